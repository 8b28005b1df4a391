"""What a preset costs, e.g. a lighter decoder: time and FLOPs of a step.

  python -m benchmarks.decoders --batch_size=4

The presets are those of configs/pretrain_as2m.py. Ratios are to the paper's
default, whose row comes first.
"""

import argparse
import sys

from audio_mae_jax import tasks
from benchmarks import alternate
from benchmarks import work

DEFAULT, *OTHERS = work.recipe('pretrain').PRESETS


def main(argv):
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
      '--only', nargs='*', choices=OTHERS, default=OTHERS,
      help='of the presets, beside the default')
  work.add_flags(parser)
  alternate.add_flags(parser, rounds=3)
  args = parser.parse_args(argv)
  args.task = 'pretrain'
  args.one_at_a_time = True  # together they fill the memory
  names = [DEFAULT, *(name for name in OTHERS if name in args.only)]
  sides, work_of = [], {}
  for name in names:
    args.preset = name
    work_of[name] = tasks.make(work.config(args)).flops()['step']
    sides.append(alternate.Side(
        name, ('-m', 'benchmarks.ours', 'pretrain', *work.flags(args))))
  result = alternate.compare(sides, args)
  print('\n| | GFLOP a clip and step | of the default |\n|---|---|---|')
  for name, flops in work_of.items():
    print(f'| {name} | {flops / 1e9:.1f} | {flops / work_of[DEFAULT]:.2f} |')
  return result | {'flops': work_of}


if __name__ == '__main__':
  main(sys.argv[1:])
