"""A file for LiteRT (TensorFlow Lite): one clip at a time, of given lengths.

Its interpreter knows no free sizes. A file has a signature for each length,
'samples_N', and all share the parameters.
"""

import os
import tempfile

from ai_edge_litert import interpreter
import numpy as np
import tensorflow as tf

from audio_mae_jax.export import saved_model
from audio_mae_jax.export import stablehlo

FILE = 'model.tflite'


def write(program, folder, notes, lengths):
  del notes
  functions = {
      _signature(n): saved_model.function(stablehlo.lower(program, ('cpu',), n))
      for n in lengths}
  with tempfile.TemporaryDirectory() as place:
    saved_model.save(functions, place)
    converter = tf.lite.TFLiteConverter.from_saved_model(
        place, signature_keys=list(functions))
    (folder / FILE).write_bytes(converter.convert())


def reader(folder, program):
  """A function like the program, of NumPy: what the files compute."""
  loaded = interpreter.Interpreter(
      os.fspath(folder / FILE), num_threads=os.cpu_count())

  def run(waveform):
    call = loaded.get_signature_runner(_signature(waveform.shape[1]))
    rows = [call(waveform=row[None]) for row in waveform]
    return {name: np.concatenate([row[name] for row in rows])
            for name in program.outputs}

  return run


def _signature(samples):
  return f'samples_{samples}'
