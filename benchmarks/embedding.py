"""Embeddings of this package against PyTorch: waveforms to the mean of all
tokens, nothing hidden.

  python -m benchmarks.embedding --batch_size=4
  python -m benchmarks.embedding --batch_size=4 --runtime=onnx
"""

import argparse
import sys

from benchmarks import alternate
from benchmarks import work

OURS = {'jax': ('benchmarks.ours', 'embedding'),
        'onnx': ('benchmarks.onnx_steps',)}


def main(argv):
  alternate.need('torch')
  from benchmarks import torch_steps  # takes torch
  parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
  parser.set_defaults(task='embedding')
  work.add_flags(parser)
  torch_steps.add_flags(parser, nargs='+')
  alternate.add_flags(parser)
  parser.add_argument(
      '--runtime', default='jax', choices=list(OURS),
      help='what runs ours: JAX, or ONNX Runtime the file of an export')
  args = parser.parse_args(argv)
  if args.runtime == 'onnx':
    alternate.need('onnx', 'onnxruntime')
  ours = alternate.Side(
      f'ours, {args.runtime}', ('-m', *OURS[args.runtime], *work.flags(args)))
  return alternate.compare([ours, *torch_steps.sides(args)], args)


if __name__ == '__main__':
  main(sys.argv[1:])
