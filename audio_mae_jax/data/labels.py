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
  real = functools.cache(os.path.realpath)  # './a.wav', or a link, is 'a.wav'
  spans = collections.defaultdict(list)
  for place in map(source.place_of, range(len(source))):
    if place:
      spans[real(place[0])].append(place[1:])
  shared = []
  for i in range(len(held_out)):
    path, start, stop = held_out.place_of(i) or ('', 0.0, 0.0)
    if path and any(
        start < b and a < stop for a, b in spans.get(real(path), ())):
      shared.append(held_out.name_of(i))
  if shared:
    raise ValueError(
        f'{len(shared)} of the {len(held_out)} clips of {where} are in {other} '
        f'as well: {splits.some(shared)}. Folds and splits must not overlap; '
        'correct the manifest, or the folds and splits asked for.')

