"""A worker that runs the exported encoder in ONNX Runtime, without JAX:
`python -m benchmarks.onnx_steps`."""

import argparse
import pathlib
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime

from audio_mae_jax import trees
from audio_mae_jax.export import onnx_graph
from audio_mae_jax.export import program as program_lib
from benchmarks import ours
from benchmarks import work
from benchmarks import worker


def main(argv):
  parser = argparse.ArgumentParser(description=__doc__)
  parser.set_defaults(task='embedding')
  work.add_flags(parser)
  args = parser.parse_args(argv)
  if args.dtype != 'float32':
    parser.error(f'--dtype={args.dtype}: exported files compute in float32.')
  worker.limit(args.threads)
  config = work.config(args)
  session = session_of(config, args)
  clips, _ = ours.audio(config)

  def step():
    # As embed.py runs it. One clip after another is faster than all at once:
    # what a block leaves is still in the cache when the next one needs it.
    return [session.run(['embedding'], {'waveform': clip[None]})
            for clip in clips]

  worker.serve({'onnxruntime': onnxruntime.__version__,
                'device': session.get_providers()[0]}, step, lambda: None)


def session_of(config, args) -> onnxruntime.InferenceSession:
  """The file that `audio_mae_jax.export` would write, opened."""
  *_, params = ours.embedder(config)
  program = program_lib.Program(
      {name: np.asarray(x) for name, x in trees.flatten(params).items()},
      config)
  settings = onnxruntime.SessionOptions()
  settings.intra_op_num_threads = args.threads
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder, 'model.onnx')
    onnx.save(onnx_graph.build(program, {}), file)
    return onnxruntime.InferenceSession(file, settings, providers=(
        ['CPUExecutionProvider'] if args.device == 'cpu' else
        onnxruntime.get_available_providers()))


if __name__ == '__main__':
  main(sys.argv[1:])
