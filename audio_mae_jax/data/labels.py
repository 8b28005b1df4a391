"""Do the labels of the data make a classification task? Checked before it runs.

What is found here would otherwise end as a number that is wrong and looks
right: a class nobody trained, a test clip that was trained on.
"""

import collections
import dataclasses
import functools
import logging
import os

from audio_mae_jax import config as config_lib
from audio_mae_jax import metrics
from audio_mae_jax import storage
from audio_mae_jax.data import files
from audio_mae_jax.data import splits

_log = logging.getLogger(__name__)


def with_classes(
    config: config_lib.Config, class_names: list[str], where: str
) -> config_lib.Config:
  """`config` with as many classes as `where` has; they must be those asked.

  Raises:
    ValueError: there are none, or `config` says another number.
  """
  if not class_names:
    raise ValueError(
        f'{where} has no labels, and task classify needs them: a manifest with '
        'a column label or labels, or folders named after their class.')
  settings = config.model.classifier
  if settings.num_classes not in (-1, len(class_names)):
    raise ValueError(
        f'model.classifier.num_classes={settings.num_classes}, and {where} has '
        f'{len(class_names)} classes ({splits.some(class_names)}). Set -1 to '
        'take as many as the data has, or correct the class list.')
  return dataclasses.replace(config, model=dataclasses.replace(
      config.model, classifier=dataclasses.replace(
          settings, num_classes=len(class_names))))


def check(source: files.Source, labels: config_lib.Labels, where: str,
          train: bool):
  """Raises ValueError where the labels of `source` cannot be learnt or scored.

  A class without a clip to train on is an error if each clip has one label, and
  a warning if it may have several (no two copies of AudioSet are the same).
  """
  metric = metrics.main_metric(labels.multilabel, labels.metric)
  if metric == 'accuracy_top5' and len(source.class_names) <= 5:
    raise ValueError(
        f"labels.metric='accuracy_top5', and {where} has "
        f"{len(source.class_names)} classes: all are in the top 5. Ask for "
        "'accuracy'.")
  count = collections.Counter()
  for i in range(len(source)):
    found = source.labels_of(i)
    count.update(found)
    if not labels.multilabel and len(found) != 1:
      raise ValueError(
          f'{where}: {source.name_of(i)} has '
          f'{len(found) or "no"} label{"s" * (len(found) != 1)}, and '
          'labels.multilabel=False means one a clip. Correct the label, or set '
          'labels.multilabel=True.')
  empty = [name for c, name in enumerate(source.class_names) if not count[c]]
  if not empty or not train:
    return
  text = (f'{where} has no clip of {len(empty)} of its '
          f'{len(source.class_names)} classes: {splits.some(empty)}.')
  if not labels.multilabel:
    raise ValueError(
        f'{text} They could not be learnt. Add clips of them, or name the '
        f'classes to keep as {where}.classes.')
  _log.warning('Warning: %s They cannot be learnt.', text)


def check_disjoint(
    source: files.Source, held_out: files.Source, where: str,
    other: str = 'the train split'):
  """Raises ValueError if a clip of `held_out` is (partly) in `source`, too."""
  real = _RealPaths()  # './a.wav', or a link, is 'a.wav'
  parts, shared = collections.defaultdict(list), set()
  for i in range(len(held_out)):
    place = held_out.place_of(i)
    if place:
      parts[real.of(place[0])].append((i, *place[1:]))
  for place in map(source.place_of, range(len(source))):
    if place:
      path, start, stop = place
      shared.update(i for i, a, b in parts.get(real.of(path), ())
                    if start < b and a < stop)
  if shared:
    names = [held_out.name_of(i) for i in sorted(shared)]
    raise ValueError(
        f'{len(shared)} of the {len(held_out)} clips of {where} are in {other} '
        f'as well: {splits.some(names)}. Folds and splits must not overlap; '
        'correct the manifest, or the folds and splits asked for.')


class _RealPaths:
  """`os.path.realpath` of files, each folder of which is looked at once.

  To ask for every file takes a minute for two million, and on a network file
  system as many requests. A listing of the folder says which of its files are
  links, and only these are asked for.
  """

  def __init__(self):
    self._folder = functools.cache(_folder)

  def of(self, path: str) -> str:
    """The file behind all links; an address as it is."""
    if storage.is_remote(path):
      return path
    folder, name = os.path.split(path)
    start, links = self._folder(folder)
    if links is None or name in links:
      return os.path.realpath(path)
    return start + name


def _folder(path):
  """(its real path with a slash, names of links in it or None: not known)."""
  try:
    with os.scandir(path) as entries:
      links = {entry.name for entry in entries if entry.is_symlink()}
  except OSError:
    links = None
  return os.path.join(os.path.realpath(path), ''), links
