"""What a choice of decoder, model or clip costs: time and FLOPs of a step.

  python -m benchmarks.decoders --batch_size=4

Ratios are to the paper's default, whose row comes first.
"""

import argparse
import sys

from audio_mae_jax import tasks
from benchmarks import alternate
from benchmarks import work

LIGHT = {'model.decoder.width': 256, 'model.decoder.depth': 4,
         'model.decoder.heads': 8}
SIZES = {  # settings that differ from the recipe's
    'local 16 x 512': {},
    'local 4 x 256': LIGHT,
    'global 8 x 512': {
        'model.decoder.name': 'global', 'model.decoder.depth': 8},
    'global 4 x 256': {'model.decoder.name': 'global', **LIGHT},
    'hybrid 8 + 4 x 512': {
        'model.decoder.name': 'hybrid', 'model.decoder.depth': 8},
    'ViT-S, local 4 x 256': {'model.encoder.variant': 'S', **LIGHT},
    '5 s, local 16 x 512': {
        'data.clip_s': 5.0, 'frontend.num_frames': 512},
    '5 s, local 4 x 256': {
        'data.clip_s': 5.0, 'frontend.num_frames': 512, **LIGHT},
}


def main(argv):
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
      '--only', nargs='*', choices=SIZES, default=list(SIZES),
      help='of the sizes, beside the first')
  work.add_flags(parser)
  alternate.add_flags(parser, rounds=3)
  args = parser.parse_args(argv)
  args.task = 'pretrain'
  args.one_at_a_time = True  # together they fill the memory
  first, *others = SIZES
  names = [first, *(name for name in others if name in args.only)]
  given, sides, work_of = args.set, [], {}
  for name in names:
    args.set = given + list(SIZES[name].items())
    work_of[name] = tasks.make(work.config(args)).flops()['step']
    sides.append(alternate.Side(
        name, ('-m', 'benchmarks.ours', 'pretrain', *work.flags(args))))
  result = alternate.compare(sides, args)
  print('\n| | GFLOP a clip and step | of the default |\n|---|---|---|')
  for name, flops in work_of.items():
    print(f'| {name} | {flops / 1e9:.1f} | {flops / work_of[first]:.2f} |')
  return result | {'flops': work_of}


if __name__ == '__main__':
  main(sys.argv[1:])
