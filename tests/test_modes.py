"""What a recipe is run for, and cross-validation: one command, all folds."""

import dataclasses
import itertools
import json
import logging
import pathlib
import re

import jax
import labelled
import pytest
import tiny

from audio_mae_jax import modes
from audio_mae_jax import record
from audio_mae_jax import train
from audio_mae_jax import workdirs

pytestmark = pytest.mark.usefixtures('compile_once')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('folds')
  labelled.corpus(folder)
  return folder


def settings(folder, **overrides):
  return tiny.config(labelled.RUN, {
      'data.root': str(folder), 'workdir': str(folder / 'run'),
      'data.train.folds': '', 'data.valid.name': '', 'data.valid.path': '',
      'data.valid.folds': '', 'folds': ('0', '1', '2'),
      'train.epochs': 2.0, 'train.batch_size': 8} | overrides)


@pytest.fixture
def calls(monkeypatch):
  """Runs of a pretended training, which scores 0.5, 0.6, ... in turn."""
  seen = []

  def pretend(config):
    seen.append(config)
    path = pathlib.Path(workdirs.place_of(config)) / 'evaluation' / 'valid'
    path.mkdir(parents=True, exist_ok=True)
    (path / 'metrics.json').write_text(json.dumps({'metrics': {
        'accuracy': 0.4 + 0.1 * len(seen), 'loss': 1.0,
        'balanced_accuracy': 0.2 * len(seen), 'accuracy_top5': None}}))
    return True

  monkeypatch.setitem(modes.MODES, 'train', pretend)
  return seen


def test_each_fold_is_held_out_once(folder, tmp_path, calls):
  found = modes.run(settings(folder, workdir=str(tmp_path / 'run')))
  assert [c.data.train.folds for c in calls] == ['!0', '!1', '!2']
  assert [c.data.valid.folds for c in calls] == ['0', '1', '2']
  assert {c.data.valid.path for c in calls} == {'manifest.csv'}
  assert [c.workdir for c in calls] == [
      str(tmp_path / 'run' / f'fold_{k}') for k in '012']
  assert not any(c.folds for c in calls)
  assert found == json.loads((tmp_path / 'run/folds.json').read_text())
  assert found['folds'] == pytest.approx({'0': 0.5, '1': 0.6, '2': 0.7})
  assert found['mean'] == pytest.approx(0.6)
  assert found['std'] == pytest.approx(0.1)
  assert found['metric'] == 'accuracy'


@pytest.mark.slow
def test_folds_train_for_real_and_go_on_where_they_stopped(folder):
  """The whole loop on one fold that is complete, and one that is new."""
  config = settings(folder, folds=('0', '2'))
  train.train(modes.of_fold(config, '0'))
  before = (folder / 'run/fold_0' / record.NAME).read_bytes()
  found = modes.run(config)
  assert (folder / 'run/fold_0' / record.NAME).read_bytes() == before
  for fold in ('0', '2'):
    last = record.read(folder / 'run' / f'fold_{fold}' / record.NAME)[-1]
    assert last['valid/num_clips'] == 6
    assert last['valid/accuracy'] == found['folds'][fold]


def test_a_fold_that_a_signal_ended_has_no_mean(
    folder, tmp_path, calls, monkeypatch):
  ended = modes.MODES['train']
  config = settings(folder, workdir=str(tmp_path / 'run'))
  for fold in '012':  # what an earlier run may have left is no result
    ended(modes.of_fold(config, fold))
  calls.clear()
  monkeypatch.setitem(
      modes.MODES, 'train',
      lambda config: ended(config) and len(calls) < 2)
  assert modes.run(config) is None
  assert len(calls) == 2
  assert not (tmp_path / 'run/folds.json').exists()


def wish_at(call):
  """As if a signal had come before this call."""
  calls = itertools.count(1)

  def requested(self):
    self.wished |= next(calls) == call
    return self.wished

  return requested


@pytest.mark.slow
def test_a_signal_in_the_last_step_of_a_fold_begins_no_other(
    folder, tmp_path, monkeypatch):
  config = settings(folder, workdir=str(tmp_path / 'run'))
  steps = train.train(modes.of_fold(config, '0'), jax.devices()[:1]).step
  monkeypatch.setattr(train._StopSignal, 'requested', wish_at(int(steps)))
  config = dataclasses.replace(config, workdir=str(tmp_path / 'other'))
  assert modes.run(config) is None
  assert (tmp_path / 'other/fold_0/evaluation').exists()
  assert not (tmp_path / 'other/fold_1').exists()


def test_a_signal_says_that_a_run_has_not_ended(folder, tmp_path, monkeypatch):
  monkeypatch.setattr(
      train._StopSignal, 'requested', wish_at(1))
  config = modes.of_fold(
      settings(folder, workdir=str(tmp_path / 'run')), '0')
  state, ended = train.run(config, jax.devices()[:1])
  assert (int(state.step), ended) == (1, False)
  assert not (tmp_path / 'run/fold_0/evaluation').exists()


def test_a_recipe_without_folds_runs_once(folder, tmp_path, calls):
  config = settings(folder, folds=(), workdir=str(tmp_path / 'run'))
  modes.run(config)
  assert calls == [config]


def test_hosts_may_have_their_own_places_and_memory(monkeypatch):
  told = []
  monkeypatch.setattr(modes.distributed, 'check_same',
                      lambda _, values, __: told.append(values))
  for overrides in (
      {}, {'data.root': '/b', 'data.train.path': '/b/list.json',
           'data.valid.labels_csv': '/b/c.csv', 'data.cache_gb': 8.0,
           'probe.test.labels_csv': '/b/c.csv', 'data.num_threads': 3},
      {'data.train.split': 'b'}):
    modes.check_same(tiny.config({}, overrides))
  assert told[0] == told[1] != told[2]


def test_a_probe_goes_through_its_folds_itself(folder, monkeypatch):
  seen = []
  monkeypatch.setitem(modes.MODES, 'probe', seen.append)
  config = settings(folder, mode='probe')
  modes.run(config)
  assert seen == [config]


@pytest.mark.parametrize('overrides, message', [
    ({'mode': 'predict'}, "mode='predict' is not known.*train, evaluate"),
    ({'folds': ('0', '0')}, 'names a fold twice'),
    ({'data.train.folds': '!0'}, "config.data.train.folds='!0' and config"),
    ({'data.valid.name': 'demo'}, 'from the same source.* leave .*valid.name'),
    ({'data.valid.name': 'manifest', 'data.valid.path': 'other.csv'},
     'from the same source'),
    ({'mode': 'evaluate'}, 'There is no run in .*fold_0.* Train them first'),
    ({'folds': ('7',)}, '7'),
], ids=str)
def test_folds_that_cannot_be_are_refused(
    folder, tmp_path, overrides, message):
  with pytest.raises(ValueError, match=message):
    modes.run(settings(
        folder, **{'workdir': str(tmp_path / 'run')} | overrides))
  assert not (tmp_path / 'run').exists()


def test_a_file_in_two_folds_is_an_error(folder, tmp_path):
  rows = (folder / 'manifest.csv').read_text()
  (folder / 'twice.csv').write_text(rows + '0.wav,high,1\n')
  config = settings(folder, **{
      'data.train.path': 'twice.csv', 'workdir': str(tmp_path / 'run')})
  with pytest.raises(ValueError, match=(
      "of config.data.valid are in the train split as well: '0.wav'")):
    modes.run(config)


@pytest.mark.slow
def test_pre_training_tells_what_its_encoder_learnt(folder, tmp_path, caplog):
  """Probes at step 0 and at each evaluation; they change nothing else."""
  source = {'data.root': str(folder), 'train.epochs': 1.0, 'train.steps': 0,
            'task': 'pretrain', 'mask.name': 'unstructured',
            'labels.multilabel': True, 'labels.loss': 'bce',
            'optimizer.layer_decay': 1.0, 'augment.mixup': 0.0,
            'optimizer.warmup_epochs': 0.5,
            'data.train.folds': '', 'data.valid.name': '',
            'data.valid.path': '', 'data.valid.folds': ''}
  probe = {f'probe.{part}.{name}': value
           for part, folds in (('train', '!0'), ('test', '0'))
           for name, value in (('name', 'manifest'), ('path', 'manifest.csv'),
                               ('folds', folds))}
  run = lambda name, more: train.train(tiny.config(
      labelled.RUN, source | more | {'workdir': str(tmp_path / name)}),
      jax.devices()[:1])
  logging.getLogger('audio_mae_jax').propagate = True
  with caplog.at_level('INFO'):
    state = run('probed', probe | {
        'probe.online': ('linear', 'knn'), 'probe.neighbours': 3,
        'labels.multilabel': False})
  lines = [line for line in record.read(tmp_path / 'probed' / record.NAME)
           if 'probe/linear_accuracy' in line]
  assert [line['step'] for line in lines] == [0, int(state.step)]
  assert all(line['probe/num_clips'] == 6 for line in lines)
  assert re.search(
      'with random weights -> now, on 6 held-out clips: knn accuracy '
      r'[01]\.\d+ -> [01]\.\d+, linear accuracy [01]\.\d+', caplog.text)
  plain = run('plain', {'labels.multilabel': True})
  assert all(jax.tree.leaves(jax.tree.map(
      lambda a, b: bool((a == b).all()), plain.params, state.params)))


def test_the_mean_is_of_the_metric_that_was_asked_for(
    folder, tmp_path, calls):
  config = settings(folder, workdir=str(tmp_path / 'run'))
  asked = dataclasses.replace(config, labels=dataclasses.replace(
      config.labels, metric='balanced_accuracy'))
  assert modes.run(asked)['mean'] == pytest.approx(0.4)


def test_a_metric_that_a_fold_does_not_define_is_told(folder, tmp_path, calls):
  config = settings(folder, workdir=str(tmp_path / 'run'), **{
      'labels.metric': 'accuracy_top5'})
  with pytest.raises(ValueError, match='has no accuracy_top5, or it is not de'):
    modes.run(config)
