"""Which flags the recipe needs for data that it was not written for."""

import math

from audio_mae_jax import config as config_lib
from audio_mae_jax import frontend
from audio_mae_jax.data import manifests

_PATCH = 16  # frames; the recipes' patch.size
_SHORT = 256  # frames: below, the recipe's time_mask of 96 would hide too much


def own(rows: list[manifests.Row], report: dict, clip_s: float) -> list[str]:
  """Flags for configs/finetune_own.py, whose clips have `clip_s`."""
  return [*_splits(report), *_labels(rows), *_length(report, clip_s),
          *level(rows, report, clip_s)]


def level(rows: list[manifests.Row], report: dict, clip_s: float) -> list[str]:
  """Flags for a recipe without a mean and standard deviation of its own."""
  del rows, clip_s
  found = report['frontend']
  return found and [f'--config.frontend.mean={found["mean"]:.7g}',
                    f'--config.frontend.std={found["std"]:.7g}'] or []


def _splits(report):
  splits, folds = set(report['splits']), list(report['folds'])
  if folds and not {'train', 'valid'} <= splits:
    names = ','.join(f"'{name}'" for name in folds)
    return ['--config.data.train.split=', '--config.data.valid.split=',
            f'--config.folds="({names},)"']
  flags = [f'--config.data.{name}.split=SPLIT' for name in ('train', 'valid')
           if name not in splits]
  if 'test' in splits:
    flags += ['--config.data.test.name=manifest',
              '--config.data.test.path=own/manifest.csv',
              '--config.data.test.split=test']
  return flags


def _labels(rows):
  if all(len(row.labels) <= 1 for row in rows):
    return []
  return ['--config.labels.multilabel=True', '--config.labels.loss=bce']


def _length(report, clip_s):
  """For clips that are all shorter than the recipe's."""
  longest_s = report['duration_s']['max']
  if longest_s >= clip_s:
    return []
  spec = config_lib.Frontend()
  frames = frontend.num_frames(math.ceil(longest_s * spec.sample_rate_hz), spec)
  frames = max(_PATCH * math.ceil(frames / _PATCH), 4 * _PATCH)
  flags = [f'--config.data.clip_s={math.ceil(longest_s * 100) / 100:g}',
           f'--config.frontend.num_frames={frames}']
  if frames < _SHORT:  # the share of the paper's Speech Commands, 48 of 128
    flags.append(f'--config.augment.time_mask={frames * 3 // 8}')
  return flags
