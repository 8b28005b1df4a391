"""`--config.mode=probe`: how much a frozen encoder knows, by small classifiers.

And, `Online`, the same at the evaluations of a pre-training.
"""

import dataclasses
import json
import logging
import os
import statistics
import time

import numpy as np

from audio_mae_jax import config as config_lib
from audio_mae_jax import distributed
from audio_mae_jax import features as features_lib
from audio_mae_jax import init_from
from audio_mae_jax import metrics
from audio_mae_jax import probes
from audio_mae_jax import step as step_lib
from audio_mae_jax import storage
from audio_mae_jax import weights as weights_lib
from audio_mae_jax import workdirs
from audio_mae_jax.data import labels
from audio_mae_jax.data import manifests
from audio_mae_jax.data import opening
from audio_mae_jax.data import pipeline
from audio_mae_jax.data import sources
from audio_mae_jax.data import splits

_log = logging.getLogger(__name__)

RESULT, SCORES = 'probe.json', 'probe'


def probe(config: config_lib.Config, devices=None) -> dict:
  """Fits `config.probe.kinds` to the encoder in `config.init_from`.

  The encoder, its patches and its front end are what the weights say; of
  `config` come the clips, their length and the probes. With `config.folds`,
  each fold of `config.probe.train` is the test split once. Leaves probe.json,
  scores of each kind in probe/ and the features in features/ of the work
  directory.

  Returns:
    What probe.json holds; an empty dict in all processes but the first.

  Raises:
    ValueError: there are no weights, no clips, labels that do not fit, a clip
      in both splits, or settings that would have no effect.
  """
  pipeline.check(config)
  settings = config.probe
  probes.check(settings, settings.kinds, 'config.probe.kinds')
  if not config.init_from:
    raise ValueError(
        'config.init_from is empty: say whose encoder to probe, '
        '--config.init_from= a run, one of its checkpoints, or imported '
        'weights.')
  parts = _parts(config)
  opening.check_same(dict(enumerate(parts.whole)))
  weights = weights_lib.load(config.init_from).part('encoder')
  config = features_lib.adopt(config, weights.config)
  init_from.check_same(config, weights.params)
  encoders = {'trained': weights.params}
  if settings.untrained:
    encoders['untrained'] = features_lib.random_params(
        config, final_norm='encoder/norm/scale' in weights.params)
  with workdirs.opened(workdirs.place_of(config)) as workdir:
    values = {}
    for name, params in encoders.items():
      _log.info('Encoder: %s.', config.init_from if name == 'trained'
                else 'the same with random weights')
      values[name] = _fold_by_fold(
          config, params, parts, workdir.folder, name, devices)
    if not distributed.is_first():
      return {}
    return _tell(config, parts, values, workdir)


@manifests.parsed_once()
def open_splits(
    config: config_lib.Config, settings: config_lib.Probe
) -> tuple[splits.Split, splits.Split]:
  """(train, test) of `settings`, with one class list.

  Raises:
    ValueError: one is not named, has labels that the other one has not or that
      cannot be learnt, or shares clips with the other.
  """
  opened = []
  for name in ('train', 'test'):
    where = f'config.probe.{name}'
    split = splits.Split.open(
        getattr(settings, name), config.data, where,
        opened[0].source.class_names if opened else None)
    if split is None:
      raise ValueError(
          f'{where}.name is empty: a probe needs labelled clips to train and '
          f'to test on, each from one of {", ".join(sources.SOURCES)}.')
    if len(split.source.class_names) < 2:
      raise ValueError(
          f'{where} has {len(split.source.class_names)} classes, and a probe '
          'needs 2 to tell apart: a manifest with a column label or labels, or '
          'folders named after their class.')
    labels.check(split.source, config.labels, where, train=name == 'train')
    opened.append(split)
  train, test = opened
  labels.check_disjoint(train.source, test.source, 'config.probe.test')
  return train, test


@dataclasses.dataclass(frozen=True)
class _Parts:
  """The splits, by fold ('' without folds), and those to take features of."""
  by_fold: dict[str, tuple[splits.Split, splits.Split]]
  whole: tuple[splits.Split, ...]


@manifests.parsed_once()
def _parts(config) -> _Parts:
  settings = config.probe
  if not config.folds:
    pair = open_splits(config, settings)
    return _Parts({'': pair}, pair)
  if len(set(config.folds)) != len(config.folds):
    raise ValueError(f'config.folds={config.folds} names a fold twice.')
  if settings.test.name or settings.train.folds:
    raise ValueError(
        'config.folds makes both splits of config.probe.train, a fold at a '
        'time: leave config.probe.test.name and config.probe.train.folds '
        'empty.')
  by_fold = {}
  for fold in config.folds:
    of = lambda folds: dataclasses.replace(settings.train, folds=folds)
    by_fold[fold] = open_splits(config, dataclasses.replace(
        settings, train=of(f'!{fold}'), test=of(fold)))
  return _Parts(by_fold, (splits.Split.open(
      settings.train, config.data, 'config.probe.train'),))


def _fold_by_fold(config, params, parts, folder, encoder, devices):
  """Values of every kind by fold, in the first process; None in others."""
  tokens = bool(set(config.probe.kinds) & set(probes.TOKENS))
  found = [features_lib.extract(
      config, params, split, folder / features_lib.FOLDER, tokens=tokens,
      devices=devices) for split in parts.whole]
  if not distributed.is_first():
    return None
  values = {}
  for fold, pair in parts.by_fold.items():
    train, test = found if not fold else (
        _of(split, parts.whole[0], found[0]) for split in pair)
    for kind in config.probe.kinds:
      started = time.monotonic()
      scores, result = _fit(config, kind, train, test)
      values.setdefault(kind, {})[fold] = result
      _log.info('%s%s: %s, %.1f s.', kind, f' of fold {fold}' if fold else '',
                _show(result), time.monotonic() - started)
      _save_scores(folder / SCORES / f'{kind}_{encoder}{fold and f"_{fold}"}',
                   pair[1], test, scores)
  return values


def _of(split, whole, features):
  """The `features` of those clips of `whole` that `split` has."""
  key = lambda source, i: (source.name_of(int(i)), source.place_of(int(i)))
  rows = {key(whole.source, i): row for row, i in enumerate(features.index)}
  pairs = [(i, rows[key(split.source, i)]) for i in range(len(split.source))
           if key(split.source, i) in rows]
  if not pairs:
    raise ValueError(
        f'No clip of {split.source.describe()} can be read: a fold without '
        'clips cannot be tested on. Repair its files, or leave it out of '
        'config.folds.')
  return features.take(np.array([row for _, row in pairs]))._replace(
      index=np.array([i for i, _ in pairs]))


def _fit(config, kind, train, test):
  """(scores [n, C] of the test clips, their metrics)."""
  multilabel = config.labels.multilabel
  scores = probes.PROBES[kind](
      train, test, config.probe, multilabel, config.train.seed)
  values = metrics.compute(scores, test.targets, multilabel).values
  return scores, {name: float(value) for name, value in values.items()}


def _show(values):
  return ', '.join(f'{name} {value:.4f}' for name, value in values.items())


def _save_scores(path, split, test, scores):
  path.parent.mkdir(exist_ok=True)
  partial = path.with_name(path.name + '.partial')
  with open(partial, 'wb') as file:
    np.savez_compressed(
        file, scores=scores.astype(np.float32), targets=test.targets,
        ids=np.array([split.source.name_of(int(i)) for i in test.index]),
        class_names=np.array(split.source.class_names))
  os.replace(partial, path.with_name(path.name + '.npz'))


def _tell(config, parts, values, workdir) -> dict:
  """Prints a table of the main metric, and writes all into probe.json."""
  metric = metrics.main_metric(config.labels.multilabel, config.labels.metric)
  results, lines = {}, []
  for encoder, kinds in values.items():
    results[encoder] = {kind: _summary(of_fold, metric)
                        for kind, of_fold in kinds.items()}
    lines.append([encoder, *(
        f'{found["mean"]:.4f} +- {found["std"]:.4f}' if config.folds
        else f'{found[metric]:.4f}' for found in results[encoder].values())])
  content = {
      'weights': str(config.init_from), 'metric': metric,
      'clip_s': config.data.clip_s, 'seed': config.train.seed,
      'data': [split.source.describe() for split in parts.whole],
      'results': results}
  storage.write_text(workdir.folder / RESULT,
                     json.dumps(_without_nan(content), indent=1) + '\n')
  for row in [[metric, *config.probe.kinds], *lines]:
    _log.info(''.join(f'{cell:<18}' for cell in row).rstrip())
  _log.info('All metrics: %s  Scores: %s', workdir.address / RESULT,
            workdir.address / SCORES)
  return content


def _summary(by_fold, metric):
  """Metrics of the only fold; or mean and deviation of the main one."""
  if '' in by_fold:
    return by_fold['']
  found = {fold: values[metric] for fold, values in by_fold.items()}
  return {
      'mean': statistics.fmean(found.values()),
      'std': statistics.stdev(found.values()) if len(found) > 1 else 0.0,
      'folds': by_fold}


def _without_nan(x):
  """JSON has no NaN and no infinity."""
  if isinstance(x, dict):
    return {name: _without_nan(value) for name, value in x.items()}
  return None if isinstance(x, float) and not np.isfinite(x) else x


class Online:
  """Probes of an encoder that is being trained, at its evaluations.

  They share no draws with the training, which is the same with and without.
  """

  def __init__(self, config: config_lib.Config, program: step_lib.Program):
    """Opens the splits of `config.probe`.

    Raises:
      ValueError: as `open_splits`; or a kind costs too much to be fitted at
        every evaluation.
    """
    self._config, self._program = config, program
    kinds = config.probe.online
    probes.check(config.probe, kinds, 'config.probe.online')
    for kind in kinds:
      if kind not in probes.ONLINE:
        raise ValueError(
            f'config.probe.online has {kind!r}, which trains for minutes at '
            f'each evaluation: {" and ".join(probes.ONLINE)} are for this. '
            'Probe the finished encoder with --config.mode=probe.')
    self._pair = open_splits(config, config.probe)
    self._metric = metrics.main_metric(
        config.labels.multilabel, config.labels.metric)
    self._embed = features_lib.embedder(
        program.task.model.encoder, config, program.mesh)

  @property
  def opened(self) -> dict[str, splits.Split]:
    """By what they are for."""
    return dict(zip(('probe.train', 'probe.test'), self._pair))

  def measure(self, params) -> dict[str, float]:
    """The main metric of each kind ('linear_accuracy'), and 'num_clips'.

    `params` are those of the training program. All processes take part.
    """
    train, test = (self._features(params['encoder'], split)
                   for split in self._pair)
    found = {f'{kind}_{self._metric}': _fit(
        self._config, kind, train, test)[1][self._metric]
             for kind in self._config.probe.online}
    return {**found, 'num_clips': len(test.index)}

  def _features(self, params, split):
    rows = list(features_lib.one_pass(
        self._embed, params, split, self._config, self._program.mesh))
    means, index = (np.concatenate([row[name] for row in rows])
                    for name in ('means', 'index'))
    return features_lib.Features(
        means, features_lib.targets(split, index), index)
