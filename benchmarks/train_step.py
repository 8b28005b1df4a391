"""A training step of this package against PyTorch, from waveform to update.

  python -m benchmarks.train_step --task=pretrain --batch_size=4
"""

import argparse
import sys

from benchmarks import alternate
from benchmarks import work


def main(argv):
  alternate.need('torch')
  from benchmarks import torch_steps  # takes torch
  parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
  parser.add_argument(
      '--task', default='pretrain', choices=['pretrain', 'finetune'])
  work.add_flags(parser)
  torch_steps.add_flags(parser, nargs='+')
  alternate.add_flags(parser)
  args = parser.parse_args(argv)
  ours = alternate.Side(
      'ours', ('-m', 'benchmarks.ours', args.task, *work.flags(args)))
  return alternate.compare([ours, *torch_steps.sides(args)], args)


if __name__ == '__main__':
  main(sys.argv[1:])
