"""`--config.mode=evaluate`: the metrics of weights on the held-out splits."""

import dataclasses
import logging

from audio_mae_jax import checkpoint
from audio_mae_jax import config as config_lib
from audio_mae_jax import distributed
from audio_mae_jax import evaluate
from audio_mae_jax import init_from
from audio_mae_jax import step as step_lib
from audio_mae_jax import tasks
from audio_mae_jax import weights as weights_lib
from audio_mae_jax import workdirs
from audio_mae_jax.data import labels
from audio_mae_jax.data import opening
from audio_mae_jax.data import pipeline

_log = logging.getLogger(__name__)


def score(config: config_lib.Config, devices=None
          ) -> dict[str, evaluate.Evaluation]:
  """Evaluates the run in the work directory, or else `config.init_from`.

  Leaves metrics.json, per_class.csv and predictions.npz in
  WORKDIR/evaluation/SPLIT, for 'valid' and 'test', whichever are named.

  Raises:
    ValueError: there are no weights, they are not of this model or have no head
      for these classes, or there is no split to evaluate on; or it is not clear
      which weights are meant.
  """
  pipeline.check(config)
  place = _place(config)
  weights = weights_lib.load(place)
  config = init_from.adopt_positions(
      dataclasses.replace(config, init_from=str(place)), weights.config)
  config, classes, splits = _open(config, weights)
  opening.check_same(splits)
  arrays = init_from.initial(config, weights, classes)
  init_from.check_same(config, arrays)
  missing = sorted(set(weights_lib.shapes(config)) - set(arrays))
  if missing:
    raise ValueError(
        f'The weights in {place} have no {", ".join(missing[:4])}: they cannot '
        f'be evaluated as task {config.task}. Train first: the same command '
        'without --config.mode=evaluate.')
  program = step_lib.build(_without_schedule(config), 1, devices)
  params = step_lib.place(arrays, program.shapes.params)
  found = {}
  with workdirs.opened(workdirs.place_of(config)) as workdir:
    for name, split in splits.items():
      _log.info('Evaluating %s: %s.', name, split.source.describe())
      found[name] = evaluate.evaluate(program, params, split, config)
      _log.info('%s.', evaluate.summary(name, found[name], program.task.metric))
      if distributed.is_first():
        evaluate.write(
            workdir.folder / 'evaluation' / name, found[name], split,
            {'weights': str(place), 'split': name})
        split.report.write(workdir.folder / f'bad_files_{name}.json')
        _log.info('Metrics: %s', workdir.address / 'evaluation' / name
                  / evaluate.METRICS)
  return found


def _place(config):
  """Where the weights are that the user means.

  The command that trained a run, with mode=evaluate, means the run: what it
  started from is still named there.
  """
  workdir = workdirs.place_of(config)
  if not checkpoint.steps_in(workdir):
    return config.init_from or workdir
  own = checkpoint.read_meta(workdir)['config'].get('init_from', '')
  if config.init_from not in ('', own):
    raise ValueError(
        f'{workdir} has a run of its own, and config.init_from='
        f'{config.init_from!r} names other weights. To evaluate the run, leave '
        'config.init_from out; to evaluate those weights, give another place '
        'for the result: --config.workdir=DIR.')
  return workdir


def _open(config, weights):
  """(config with its number of classes, their names, splits by name)."""
  labelled = tasks.is_labelled(config)
  classes = list(weights.classes) or None
  splits = opening.held_out(config, classes if labelled else None)
  splits = {name: split for name, split in zip(('valid', 'test'), splits)
            if split is not None}
  if not splits:
    raise ValueError(
        'config.data.valid.name and config.data.test.name are empty: there is '
        'nothing to evaluate on. Name a held-out split, such as '
        '--config.data.test.name=manifest --config.data.test.path=FILE.')
  if not labelled:
    return config, (), splits
  if classes is None:
    # Imported weights do not say what their classes are called.
    for name in splits:
      settings = getattr(config.data, name)
      if not (settings.labels_csv or settings.classes):
        raise ValueError(
            f'The weights in {config.init_from} do not say which class is '
            f'which, and config.data.{name} has no list of classes in the '
            'order that they were trained with: give it as '
            f'--config.data.{name}.labels_csv=class_labels_indices.csv.')
    name, first = next(iter(splits.items()))
    classes, where = first.source.class_names, f'config.data.{name}'
    head = len(weights.params.get('head/bias', classes))
    if head != len(classes):
      raise ValueError(
          f'The weights have a head of {head} classes, and the class list of '
          f'{where} has {len(classes)}. Give the list that they were trained '
          f'with, as --{where}.labels_csv=class_labels_indices.csv.')
    for split in splits.values():
      labels.check(split.source, config.labels, where, train=False)
      if split.source.class_names != classes:
        raise ValueError(
            'config.data.valid and config.data.test have other class lists: '
            'give both the same labels_csv.')
  else:
    where = f'the run {config.init_from}'
  return labels.with_classes(config, classes, where), classes, splits


def _without_schedule(config):
  """A program is built for training; what is evaluated needs no schedule."""
  return dataclasses.replace(
      config, train=dataclasses.replace(config.train, steps=1),
      optimizer=dataclasses.replace(config.optimizer, warmup_epochs=0.0))
