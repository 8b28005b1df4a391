"""What a recipe can be run for, and how it is repeated over folds."""

import dataclasses
import json
import logging
import os
import re

import jax
import numpy as np

import audio_mae_jax
from audio_mae_jax import checkpoint
from audio_mae_jax import config as config_lib
from audio_mae_jax import distributed
from audio_mae_jax import evaluate
from audio_mae_jax import metrics
from audio_mae_jax import probe
from audio_mae_jax import registry
from audio_mae_jax import score
from audio_mae_jax import storage
from audio_mae_jax import tasks
from audio_mae_jax import train
from audio_mae_jax import trees
from audio_mae_jax import workdirs

_log = logging.getLogger(__name__)

# Each says whether it came to its end: a signal may have stopped it.
MODES = {
    'train': lambda config: train.run(config)[1],
    'evaluate': lambda config: bool(score.score(config)),
    'probe': lambda config: probe.probe(config) is not None}
RESULT = 'folds.json'
# Where a host has its files and how fast it is may differ between processes.
OF_A_PROCESS = (r'data\.root', r'(data|probe)\.\w+\.(path|labels_csv)',
                r'data\.(num_threads|prefetch_batches|cache_gb)',
                r'log\.progress')


def run(config: config_lib.Config):
  """Runs `config` in the mode that it names, once or for each of its folds."""
  action = registry.lookup(MODES, config.mode, 'mode')
  check_same(config)
  if config.mode != 'train':
    distributed.end_at_sigterm()
  # A probe computes features once, and goes through its folds by itself.
  if config.folds and config.mode != 'probe':
    return cross_validate(config, action)
  return action(config)


def check_same(config: config_lib.Config):
  """Raises ValueError unless all processes have the same settings and code."""
  fields = {name.replace('/', '.'): value for name, value in
            trees.flatten(dataclasses.asdict(config)).items()}
  own = '|'.join(OF_A_PROCESS)
  distributed.check_same('settings or versions', {
      'audio_mae_jax': audio_mae_jax.__version__, 'jax': jax.__version__,
      **{f'config.{name}': value for name, value in fields.items()
         if not re.fullmatch(own, name)}},
      'Install the same and give the same command on each.')


def cross_validate(config: config_lib.Config, action) -> dict | None:
  """For each fold: train on all others, evaluate on it; then the mean.

  Fold k lives in WORKDIR/fold_k, as a run of its own that goes on where it
  stopped. WORKDIR/folds.json has the metric of each, their mean and their
  sample standard deviation. None if a signal ended a fold.

  Raises:
    ValueError: folds that cannot be, or one in which the metric is not defined.
  """
  metric = metrics.main_metric(
      config.labels.multilabel,
      config.labels.metric) if tasks.is_labelled(config) else 'loss'
  if len(set(config.folds)) != len(config.folds):
    raise ValueError(f'config.folds={config.folds} names a fold twice.')
  runs = {fold: of_fold(config, fold) for fold in config.folds}
  if config.mode == 'evaluate':
    _check_trained(runs)
  values = {}
  for fold, one in runs.items():
    _log.info('Fold %s of %s.', fold, ', '.join(config.folds))
    if not action(one):
      _log.warning('Fold %s has not ended; the same command goes on.', fold)
      return None
    values[fold] = _result(one, metric)
  found = {'metric': metric, 'mean': float(np.mean(list(values.values()))),
           'std': float(np.std(list(values.values()), ddof=1))
                  if len(values) > 1 else 0.0,
           'folds': values}
  path = storage.path_of(workdirs.place_of(config)) / RESULT
  if distributed.is_first():
    storage.write_text(
        path, json.dumps(found, indent=1, allow_nan=False) + '\n')
  _log.info('%s over %d folds: mean %.4f, standard deviation %.4f (%s). %s',
            metric, len(values), found['mean'], found['std'],
            ', '.join(f'{k}: {x:.4f}' for k, x in values.items()), path)
  return found


def _check_trained(runs):
  """One set of weights for all folds has been trained on most of them."""
  missing = [one.workdir for one in runs.values()
             if not checkpoint.steps_in(one.workdir)]
  if missing:
    raise ValueError(
        f'There is no run in {", ".join(missing)}, and config.mode='
        "'evaluate' with config.folds evaluates the run of each fold on what "
        'it held out. Train them first: the same command without '
        '--config.mode=evaluate. To evaluate other weights, set '
        "--config.folds='()' and name config.data.valid.")


def _result(config, metric):
  """The metric of a fold that has ended, the same in all processes."""
  path = (storage.path_of(config.workdir) / 'evaluation' / 'valid'
          / evaluate.METRICS)
  found = {}
  if distributed.is_first() and path.exists():  # the one that wrote it
    found = json.loads(path.read_text('utf-8'))
  value = distributed.gather(found.get('metrics', {}).get(metric))[0]
  if value is None:
    raise ValueError(
        f'{path} has no {metric}, or it is not defined: is there a fold '
        'without clips of any class? Name another metric, --config.labels.'
        'metric=..., and run the same command again, with --config.mode='
        "'evaluate' if that file is gone. What was trained stays.")
  return value


def of_fold(config: config_lib.Config, fold: str) -> config_lib.Config:
  """`config` of the run that holds out `fold`."""
  data = config.data
  for name in ('train', 'valid'):
    if getattr(data, name).folds:
      raise ValueError(
          f'config.data.{name}.folds={getattr(data, name).folds!r} and '
          f'config.folds={config.folds}: the second sets the first for each '
          'run. Leave one of them out.')
  if data.valid.name and data.valid != data.train:
    raise ValueError(
        'config.folds takes train and valid clips from the same source, '
        'config.data.train: leave config.data.valid.name empty.')
  return dataclasses.replace(
      config, folds=(), name=f'{config.name or config.task}_{fold}',
      workdir=os.path.join(workdirs.place_of(config), f'fold_{fold}'),
      data=dataclasses.replace(
          data, train=dataclasses.replace(data.train, folds=f'!{fold}'),
          valid=dataclasses.replace(data.train, folds=fold)))
