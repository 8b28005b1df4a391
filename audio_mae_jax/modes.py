"""What a recipe can be run for, and how it is repeated over folds."""

import dataclasses
import json
import logging
import os
import pathlib
import statistics

from audio_mae_jax import config as config_lib
from audio_mae_jax import evaluate
from audio_mae_jax import metrics
from audio_mae_jax import probe
from audio_mae_jax import registry
from audio_mae_jax import score
from audio_mae_jax import tasks
from audio_mae_jax import train
from audio_mae_jax import writer

_log = logging.getLogger(__name__)

MODES = {
    'train': train.train, 'evaluate': score.score, 'probe': probe.probe}
RESULT = 'folds.json'


def run(config: config_lib.Config):
  """Runs `config` in the mode that it names, once or for each of its folds."""
  action = registry.lookup(MODES, config.mode, 'mode')
  # A probe computes features once, and goes through its folds by itself.
  if config.folds and config.mode != 'probe':
    return cross_validate(config, action)
  return action(config)


def cross_validate(config: config_lib.Config, action) -> dict | None:
  """For each fold: train on all others, evaluate on it; then the mean.

  Fold k lives in WORKDIR/fold_k, as a run of its own that goes on where it
  stopped. WORKDIR/folds.json has the metric of each, their mean and their
  sample standard deviation. None if a signal ended a fold.
  """
  metric = metrics.main_metric(
      config.labels.multilabel,
      config.labels.metric) if tasks.is_labelled(config) else 'loss'
  if len(set(config.folds)) != len(config.folds):
    raise ValueError(f'config.folds={config.folds} names a fold twice.')
  workdir = pathlib.Path(writer.workdir_of(config))
  values = {}
  for fold in config.folds:
    _log.info('Fold %s of %s.', fold, ', '.join(config.folds))
    one = of_fold(config, fold)
    action(one)
    result = (pathlib.Path(one.workdir) / 'evaluation' / 'valid'
              / evaluate.METRICS)
    if not result.exists():
      _log.warning('Fold %s has not ended; the same command goes on.', fold)
      return None
    values[fold] = json.loads(result.read_text('utf-8'))['metrics'][metric]
  mean = statistics.fmean(values.values())
  spread = statistics.stdev(values.values()) if len(values) > 1 else 0.0
  found = {'metric': metric, 'mean': mean, 'std': spread, 'folds': values}
  workdir.mkdir(parents=True, exist_ok=True)
  partial = workdir / (RESULT + '.partial')
  partial.write_text(json.dumps(found, indent=1) + '\n')
  os.replace(partial, workdir / RESULT)
  _log.info('%s over %d folds: mean %.4f, standard deviation %.4f (%s). %s',
            metric, len(values), mean, spread,
            ', '.join(f'{k}: {x:.4f}' for k, x in values.items()),
            workdir / RESULT)
  return found


def of_fold(config: config_lib.Config, fold: str) -> config_lib.Config:
  """`config` of the run that holds out `fold`."""
  data = config.data
  for name in ('train', 'valid'):
    if getattr(data, name).folds:
      raise ValueError(
          f'config.data.{name}.folds={getattr(data, name).folds!r} and '
          f'config.folds={config.folds}: the second sets the first for each '
          'run. Leave one of them out.')
  if data.valid.name and data.valid.name != data.train.name:
    raise ValueError(
        'config.folds takes train and valid clips from the same source: leave '
        'config.data.valid.name empty.')
  return dataclasses.replace(
      config, folds=(), name=f'{config.name or config.task}_{fold}',
      workdir=os.path.join(writer.workdir_of(config), f'fold_{fold}'),
      data=dataclasses.replace(
          data, train=dataclasses.replace(data.train, folds=f'!{fold}'),
          valid=dataclasses.replace(
              data.valid if data.valid.name else data.train, folds=fold)))
