"""Readers of your own data: a manifest, or folders named after classes.

Data without a validation split, and without folds, get one: of each class, a
share of its training files, drawn once and for all by the order of their paths.
"""

import collections
import dataclasses
import os
import random

from audio_mae_jax import config as config_lib
from audio_mae_jax.data import files
from audio_mae_jax.data import manifests
from audio_mae_jax.prepare import layout

_SPLITS = ('train', 'valid', 'test')


def table(place, *, manifest, valid):
  """The clips of a CSV, JSONL or AST-style JSON."""
  root = os.path.dirname(place)
  path = files.resolve(
      config_lib.Data(root=root), manifest, '--manifest', 'your manifest')
  if os.path.dirname(path) == place:
    raise ValueError(
        f'--manifest={path} lies where the result is written. Keep it '
        'elsewhere, so that it is not replaced.')
  rows = manifests.read(path)
  base = manifests.base_of(rows, path, [os.path.dirname(path), root])
  rows = [dataclasses.replace(row, path=os.path.normpath(
      os.path.join(base, row.path))) for row in rows]
  return _with_splits(rows, valid)


def folder(place, *, path, valid):
  """CLASS/*.wav, or SPLIT/CLASS/*.wav with splits train, valid and test."""
  home = path and files.resolve(
      config_lib.Data(root=os.path.dirname(place)), path, '--path',
      'the folder with a folder per class') or place
  found = files.walk(home) if os.path.isdir(home) else []
  if not found:
    raise FileNotFoundError(
        f'No audio files under {home}. Put them there as CLASS/*.wav or as '
        'train/CLASS/*.wav, valid/CLASS/*.wav, test/CLASS/*.wav '
        f'({", ".join(files.SUFFIXES)}), or name the folder with --path.')
  tops = {name.split('/')[0] for name in found}
  rows = []
  for name in found:
    parts = name.split('/')
    split = parts.pop(0) if tops <= set(_SPLITS) else ''
    label = parts[-2:-1]  # none for a file in no class's folder
    rows.append(manifests.Row(
        os.path.join(home, name), tuple(label), split))
  return _with_splits(rows, valid)


def _with_splits(rows, share):
  if not 0 <= share < 1:
    raise ValueError(f'--valid={share:g} is a share of the clips; it takes 0 '
                     'or more and less than 1.')
  splits = {row.split for row in rows}
  if splits == {''} and not any(row.fold for row in rows):
    rows = [dataclasses.replace(row, split='train') for row in rows]
  elif 'train' not in splits or 'valid' in splits:
    return layout.Found(rows, train=('train',) if 'train' in splits else ())
  chosen = _share_of_each_class(
      [row for row in rows if row.split == 'train'], share)
  rows = [dataclasses.replace(row, split='valid') if (
      row.split == 'train' and row.path in chosen) else row for row in rows]
  return layout.Found(rows, note=(
      f'The data name no split valid: {share:.0%} of each class became it '
      '(--valid).'))


def _share_of_each_class(rows, share):
  """Paths: whole files, so that no two splits have parts of one recording."""
  classes = collections.defaultdict(set)
  placed = set()
  for row in rows:
    if row.path not in placed:  # a file of several labels counts for the first
      placed.add(row.path)
      classes[row.labels[:1]].add(row.path)
  chosen = set()
  for members in classes.values():
    count = round(share * len(members))
    chosen.update(random.Random(0).sample(sorted(members), count))
  return chosen
