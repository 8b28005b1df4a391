"""Front ends: this package's, PyTorch's, and Kaldi's in C++ on the processor.

  python -m benchmarks.front_end --batch_size=10
"""

import argparse
import importlib.util
import sys

from benchmarks import alternate
from benchmarks import work


def main(argv):
  alternate.need('torch')
  from benchmarks import torch_steps  # takes torch
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  work.add_flags(parser)
  torch_steps.add_flags(parser)
  alternate.add_flags(parser, steps=20)
  args = parser.parse_args(argv)
  return alternate.compare(sides(args), args)


def sides(args):
  flags = work.flags(args)
  ours = [alternate.Side(f'ours, {transform}', (
      '-m', 'benchmarks.ours', 'front_end', *flags, f'--transform={transform}'))
          for transform in ('matmul', 'fft')]
  theirs = [alternate.Side(f'PyTorch, {transform}', (
      '-m', 'benchmarks.torch_steps', 'front_end', *flags,
      f'--compile={args.compile}', f'--torch_transform={transform}'))
            for transform in ('matmul', 'fft')]
  if args.device == 'cpu' and importlib.util.find_spec('kaldi_native_fbank'):
    theirs.append(alternate.Side('Kaldi', ('-m', 'benchmarks.kaldi', *flags)))
  return ours + theirs


if __name__ == '__main__':
  main(sys.argv[1:])
