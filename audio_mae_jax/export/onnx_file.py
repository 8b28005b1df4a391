"""A file of ONNX, and beside it a script that uses it without JAX."""

import json
import pathlib
import shutil

import onnx
import onnxruntime

from audio_mae_jax.export import onnx_graph

FILE, SCRIPT = 'model.onnx', 'embed.py'
# A protocol buffer ends at 2 GiB; tensors of more (ViT-H) get their own file.
_WHOLE_BYTES = 2**31 - 2**27


def write(program, folder, notes, lengths):
  del lengths  # any will do
  model = onnx_graph.build(
      program, {name: json.dumps(value) for name, value in notes.items()})
  large = sum(x.nbytes for x in program.params.values()) > _WHOLE_BYTES
  onnx.save_model(
      model, folder / FILE, save_as_external_data=large,
      location=f'{FILE}.data')
  onnx.checker.check_model(folder / FILE)
  shutil.copyfile(
      pathlib.Path(__file__).with_name('onnx_consumer.py'), folder / SCRIPT)


def reader(folder, program):
  """A function like the program, of NumPy: what the files compute."""
  session = onnxruntime.InferenceSession(
      folder / FILE, providers=['CPUExecutionProvider'])
  return lambda waveform: dict(zip(
      program.outputs, session.run(program.outputs, {'waveform': waveform})))
