"""A file of ONNX, and beside it a script that uses it without JAX."""

import json
import pathlib
import shutil

import onnx
import onnxruntime

from audio_mae_jax.export import onnx_graph
from audio_mae_jax.export import program as program_lib

FILE, SCRIPT = 'model.onnx', 'embed.py'


def write(program, folder, notes, lengths):
  del lengths  # any will do
  model = onnx_graph.build(
      program, {name: json.dumps(value) for name, value in notes.items()})
  # More than one file holds (ViT-H): parameters get their own, beside it.
  onnx.save_model(
      model, folder / FILE, location=f'{FILE}.data',
      save_as_external_data=program.num_bytes > program_lib.ONE_FILE_BYTES)
  onnx.checker.check_model(folder / FILE)
  shutil.copyfile(
      pathlib.Path(__file__).with_name('onnx_consumer.py'), folder / SCRIPT)


def reader(folder, program):
  """A function like the program, of NumPy: what the files compute."""
  session = onnxruntime.InferenceSession(
      folder / FILE, providers=['CPUExecutionProvider'])
  return lambda waveform: dict(zip(
      program.outputs, session.run(program.outputs, {'waveform': waveform})))
