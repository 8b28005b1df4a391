"""The splits of a run, opened together: one class list, no clip in two."""

import hashlib
from typing import NamedTuple

from audio_mae_jax import config as config_lib
from audio_mae_jax import distributed
from audio_mae_jax.data import files
from audio_mae_jax.data import labels
from audio_mae_jax.data import manifests
from audio_mae_jax.data import sources
from audio_mae_jax.data import splits


class Data(NamedTuple):
  """What a run reads; `valid` and `test` may be None."""
  train: splits.Split
  valid: splits.Split | None
  test: splits.Split | None


@manifests.parsed_once()
def for_training(
    config: config_lib.Config, labelled: bool
) -> tuple[config_lib.Config, Data]:
  """The splits that `config` names, and `config` with its number of classes.

  `labelled`, the train split's class list is that of the others, too.

  Raises:
    ValueError: there is nothing to train on; or labels are missing, are not in
      the class list, or are such that the task cannot be learnt; or a clip is
      both in the train split and held out.
  """
  train = splits.Split.open(
      config.data.train, config.data, 'config.data.train')
  if train is None:
    raise ValueError(
        'config.data.train.name is empty: say what to train on, one of '
        f'{", ".join(sources.SOURCES)}.')
  classes = None
  if labelled:
    classes = train.source.class_names
    config = labels.with_classes(config, classes, 'config.data.train')
    labels.check(train.source, config.labels, 'config.data.train', train=True)
  data = Data(train, *held_out(config, classes))
  for name in ('valid', 'test'):
    split = getattr(data, name)
    if labelled and split is not None:
      labels.check_disjoint(
          train.source, split.source, f'config.data.{name}')
  if labelled and data.valid is not None and data.test is not None:
    labels.check_disjoint(data.valid.source, data.test.source,
                          'config.data.test', 'the valid split')
  return config, data


@manifests.parsed_once()
def held_out(
    config: config_lib.Config, classes: list[str] | None
) -> tuple[splits.Split | None, splits.Split | None]:
  """The valid and the test split, if named; labels are places in `classes`."""
  opened = []
  for name in ('valid', 'test'):
    where = f'config.data.{name}'
    split = splits.Split.open(
        getattr(config.data, name), config.data, where, classes)
    if split is not None and classes is not None:
      labels.check(split.source, config.labels, where, train=False)
    opened.append(split)
  return tuple(opened)


def check_same(opened: dict[str, splits.Split | None]):
  """Raises ValueError unless all processes of the run read the same clips.

  `opened` are the splits by name; None is one that there is not.
  """
  if distributed.is_several():
    distributed.check_same('data', {
        name: identity(split.source, labelled=bool(split.source.class_names))
        for name, split in opened.items() if split is not None},
        'Give each of them the same files, in the same folders below '
        'config.data.root.')


def identity(source: files.Source, labelled: bool) -> dict:
  """Tells one set of clips from another: a run's result depends on it."""
  names, marks = hashlib.sha256(), hashlib.sha256()
  for i in range(len(source)):
    names.update(source.name_of(i).encode() + b'\n')
    if labelled:
      marks.update(repr(source.labels_of(i)).encode())
  found = {'clips': len(source), 'names': names.hexdigest()[:16]}
  if labelled:
    marks.update('\n'.join(source.class_names).encode())
    found['labels'] = marks.hexdigest()[:16]
  return found
