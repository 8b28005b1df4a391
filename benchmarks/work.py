"""The work that is compared: one recipe for both sides, and its flags."""

import argparse
import importlib.util
import json
import os
import pathlib

from audio_mae_jax import config as config_lib

ROOT = pathlib.Path(__file__).parents[1]
RECIPES = {'pretrain': 'pretrain_as2m', 'finetune': 'finetune_as2m',
           'embedding': 'finetune_as2m', 'front_end': 'pretrain_as2m'}
CLASSES = 527  # of AudioSet
# For tests: everything that the full size has, and little of each.
TINY = {
    'data.clip_s': 1.3, 'frontend.num_frames': 128,
    'model.encoder.width': 32, 'model.encoder.depth': 2,
    'model.encoder.heads': 2,
    'model.decoder.width': 32, 'model.decoder.depth': 2,
    'model.decoder.heads': 2}


def recipe(task):
  """The module of configs/ that `task` is measured with."""
  path = ROOT / 'configs' / f'{RECIPES[task]}.py'
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def config(args) -> config_lib.Config:
  """The recipe of `args.task`, as the flags change it.

  Raises ValueError for a preset that it does not have.
  """
  module = recipe(args.task)
  if args.preset and not hasattr(module, 'PRESETS'):
    raise ValueError(
        f'--preset={args.preset}: {RECIPES[args.task]} has no presets. Leave '
        'the flag out, or compare --task=pretrain.')
  settings = module.get_config(*[args.preset] if args.preset else [])
  changes = {'train.batch_size': args.batch_size, 'model.dtype': args.dtype}
  if RECIPES[args.task] == 'finetune_as2m':
    changes |= {'model.classifier.num_classes': CLASSES,
                'mask.time_ratio': 0.2, 'mask.freq_ratio': 0.2}
  if args.task == 'embedding':
    changes |= {'model.classifier.num_classes': 0}
  if args.tiny:
    changes |= {k: v for k, v in TINY.items()
                if 'decoder' not in k or args.task == 'pretrain'}
    if args.task == 'finetune':
      changes |= {'augment.time_mask': 24}
  settings.update_from_flattened_dict(changes | dict(args.set))
  return config_lib.typed(settings)


def setting(text: str):
  """NAME=VALUE, the value as JSON or else as it stands."""
  name, _, value = text.partition('=')
  try:
    value = json.loads(value)
  except json.JSONDecodeError:
    pass
  return name, tuple(value) if isinstance(value, list) else value


def add_flags(parser: argparse.ArgumentParser):
  """Flags that say what is computed, alike on both sides."""
  parser.add_argument('--batch_size', type=int, default=4)
  parser.add_argument(
      '--dtype', default='float32', choices=['float32', 'bfloat16'])
  parser.add_argument(
      '--device', default='cpu', choices=['cpu', 'gpu'])
  parser.add_argument(
      '--threads', type=int, default=len(os.sched_getaffinity(0)),
      help='of the processor, for either side; all that there are')
  parser.add_argument(
      '--tiny', action='store_true', help='a few parameters: a test of this')
  parser.add_argument(
      '--preset', default='', help='of the recipe of pre-training')
  parser.add_argument(
      '--set', type=setting, action='append', default=[], metavar='NAME=VALUE',
      help="a setting of the recipe, e.g. model.encoder.variant=S")


def flags(args) -> list[str]:
  """The flags of `add_flags`, to hand on."""
  values = [f'--{name}={getattr(args, name)}'
            for name in (
                'batch_size', 'dtype', 'device', 'threads', 'preset')]
  return values + ['--tiny'] * args.tiny + [
      f'--set={name}={json.dumps(value)}' for name, value in args.set]
