"""`--config.mode=evaluate`, from a checkpoint file to the numbers on disk."""

import csv
import dataclasses
import json
import shutil
import subprocess
import sys

import exchange
import goldens
import jax
import numpy as np
import pytest
import sklearn.metrics
import soundfile
import tiny

from audio_mae_jax import evaluate
from audio_mae_jax import frontend
from audio_mae_jax import init_from
from audio_mae_jax import score
from audio_mae_jax import train
from audio_mae_jax import weights as weights_lib
from audio_mae_jax.data import splits

pytestmark = pytest.mark.usefixtures('compile_once')

# A front end that can be undone: frames do not overlap and are not padded, and
# a small deviation keeps neighbouring filters near each other.
INVERTIBLE = {
    'frontend.num_frames': 256, 'frontend.num_mel_bins': 32,
    'frontend.window_ms': 32.0, 'frontend.hop_ms': 32.0,
    'frontend.window': 'rectangular', 'frontend.preemphasis': 0.0,
    'frontend.remove_dc_offset': False,
    'frontend.mean': 0.0, 'frontend.std': 0.05, 'data.clip_s': 8.192}
SETTINGS = INVERTIBLE | {
    'task': 'classify', 'mask.name': '', 'patch.size': (4, 4),
    'model.encoder.width': 48, 'model.encoder.depth': 3,
    'model.encoder.heads': 3, 'train.batch_size': 2,
    'data.num_threads': 1}


def audio_of(spectrograms, config):
  """[n, T, F] features -> [n, S] audio that has them."""
  from scipy import optimize
  mel = frontend.tables(config.frontend).mel.astype(np.float64)
  log_mel = spectrograms.astype(np.float64) * 2 * config.frontend.std
  power = np.array([[optimize.nnls(mel.T, np.exp(frame))[0]
                     for frame in clip] for clip in log_mel])
  samples = round(config.frontend.hop_ms * 16)
  return np.fft.irfft(np.sqrt(power), samples).reshape(len(spectrograms), -1)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Two clips with the golden spectrograms, their labels, and the weights."""
  folder = tmp_path_factory.mktemp('score')
  golden = goldens.read('finetune')
  config = tiny.config(SETTINGS)
  rows = []
  names = [f'class {c:02d}' for c in range(20)]
  clips = audio_of(golden['imgs'][:, 0], config)
  for i, (clip, target) in enumerate(zip(clips, golden['targets'])):
    soundfile.write(folder / f'{i}.wav', clip, 16000, subtype='FLOAT')
    # The recording has a mixed clip; labels on disk are whole.
    labels = ';'.join(names[c] for c in np.flatnonzero(target))
    rows.append((f'{i}.wav', labels, 'eval'))
  with open(folder / 'manifest.csv', 'w', newline='') as file:
    csv.writer(file).writerows([('path', 'labels', 'split'), *rows])
  with open(folder / 'classes.csv', 'w', newline='') as file:
    csv.writer(file).writerows([
        ('index', 'mid', 'display_name'),
        *((c, name, name.upper()) for c, name in enumerate(names))])
  weights_lib.save(folder / 'weights', exchange.finetuned(folder))
  return folder


def settings(folder, **overrides):
  return tiny.config(SETTINGS, {
      'init_from': str(folder / 'weights'), 'data.root': str(folder),
      'workdir': str(folder / 'run'), 'data.test.name': 'manifest',
      'data.test.path': 'manifest.csv', 'data.test.split': 'eval',
      'data.test.labels_csv': 'classes.csv'} | overrides)


def test_the_command_line_gives_the_released_logits(folder, tmp_path):
  """File of the released layout -> import -> evaluate -> predictions."""
  run = lambda *arguments: subprocess.run(
      [sys.executable, '-m', *arguments], check=True, timeout=300,
      cwd=tmp_path, capture_output=True, text=True)
  run('audio_mae_jax.convert', 'import', '--input',
      str(folder / 'finetuned.safetensors'), '--output', 'weights',
      '--set', 'model.encoder.heads=3')
  recipe = tmp_path / 'recipe.py'
  recipe.write_text(f'''
from audio_mae_jax import config as config_lib


def get_config():
  config = config_lib.default('classify')
  config.update_from_flattened_dict({SETTINGS!r})
  config.data.test.update(
      name='manifest', path='manifest.csv', split='eval',
      labels_csv='classes.csv')
  return config
''')
  done = run('audio_mae_jax.main', f'--config={recipe}',
             '--config.mode=evaluate', '--config.init_from=weights',
             '--config.train.batch_size=8',  # tests have 8 devices
             f'--config.data.root={folder}', '--config.workdir=out')
  golden = goldens.read('finetune')
  found = np.load(tmp_path / 'out/evaluation/test/predictions.npz')
  # Audio is float32: its log-mel is exact to 1e-6, divided by 2 std.
  np.testing.assert_allclose(
      found['logits'], golden['eval/logits'], rtol=0, atol=1e-5)
  np.testing.assert_array_equal(found['targets'], golden['targets'] > 0)
  assert list(found['ids']) == ['0.wav', '1.wav']
  assert found['class_names'][3] == 'CLASS 03'
  content = json.loads(
      (tmp_path / 'out/evaluation/test/metrics.json').read_text())
  chances = 1 / (1 + np.exp(-golden['eval/logits'].astype(float)))
  np.testing.assert_allclose(
      content['metrics']['loss'], sklearn.metrics.log_loss(
          (golden['targets'] > 0).reshape(-1), chances.reshape(-1)), rtol=1e-5)
  assert f'mAP {content["metrics"]["mAP"]:.4f} over 2 clips' in done.stderr
  assert content['num_unusable_clips'] == 0
  empty = ~golden['targets'].any(0)
  assert content['classes_without_positives'] == [
      f'CLASS {c:02d}' for c in np.flatnonzero(empty)]
  with open(tmp_path / 'out/evaluation/test/per_class.csv') as file:
    rows = list(csv.DictReader(file))
  assert [row['class'] for row in rows if not row['average_precision']] == (
      content['classes_without_positives'])
  assert [int(row['clips']) for row in rows] == list(
      (golden['targets'] > 0).sum(0))


@pytest.mark.parametrize('batch_size, devices', [(2, 1), (8, 8), (3, 1)])
def test_each_clip_counts_once_whatever_the_batch(
    folder, tmp_path, batch_size, devices):
  config = settings(folder, **{
      'train.batch_size': batch_size, 'workdir': str(tmp_path)})
  found = score.score(config, jax.devices()[:devices])['test']
  golden = goldens.read('finetune')
  np.testing.assert_allclose(
      found.outputs['logits'], golden['eval/logits'], rtol=0, atol=1e-5)
  np.testing.assert_array_equal(found.index, [0, 1])


def test_a_clip_that_cannot_be_read_is_told_not_counted(folder, tmp_path):
  rows = (folder / 'manifest.csv').read_text()
  (folder / 'broken.wav').write_bytes(b'RIFF')
  (folder / 'more.csv').write_text(rows + 'broken.wav,class 03,eval\n')
  config = settings(folder, **{
      'data.test.path': 'more.csv', 'workdir': str(tmp_path)})
  found = score.score(config, jax.devices()[:1])['test']
  assert found.values['num_clips'] == 2
  content = json.loads((tmp_path / 'evaluation/test/metrics.json').read_text())
  assert (content['num_clips'], content['num_unusable_clips']) == (2, 1)
  assert 'broken.wav' in (tmp_path / 'bad_files_test.json').read_text()


@pytest.mark.parametrize('overrides, message', [
    ({'data.test.name': '', 'data.test.path': '', 'data.test.split': '',
      'data.test.labels_csv': ''}, 'there is nothing to evaluate on. Name a'),
    ({'data.test.split': 'valid'}, "no rows .*'valid'"),
    ({'data.test.labels_csv': ''},
     'do not say which class is which, and config.data.test has no list'),
    ({'data.test.labels_csv': '', 'data.test.classes': ('class 03',)},
     'head of 20 classes, and the class list of config.data.test has 1. '
     'Give the list'),
    ({'model.encoder.depth': 2}, 'do not fit the model'),
    ({'model.encoder.width': 24}, 'do not fit the model'),
    ({'task': 'pretrain', 'mask.name': 'unstructured',
      'model.decoder.depth': 1}, 'have no decoder/.*cannot be evaluated as'),
    ({'init_from': 'nowhere'}, 'nowhere holds no weights'),
    ({'labels.metric': 'accuracy'}, 'for data with one'),
], ids=str)
def test_what_cannot_be_evaluated_is_said(folder, overrides, message):
  with pytest.raises(ValueError, match=message):
    score.score(settings(folder, **overrides), jax.devices()[:1])


def test_weights_without_a_head_are_not_scored(folder, tmp_path):
  weights = weights_lib.load(folder / 'weights').part('encoder')
  weights_lib.save(tmp_path / 'encoder', weights)
  with pytest.raises(ValueError, match='have no fc_norm/bias.*, head/bias.*'
                     'Train first'):
    score.score(settings(folder, init_from=str(tmp_path / 'encoder')),
                jax.devices()[:1])


def test_other_weights_in_a_process_end_an_evaluation_before_it_writes(
    folder, tmp_path, monkeypatch):
  def other(config, params):
    assert set(params) == set(weights_lib.shapes(config))
    raise ValueError('not the same weights')

  monkeypatch.setattr(init_from, 'check_same', other)
  with pytest.raises(ValueError, match='not the same weights'):
    score.score(settings(folder, workdir=str(tmp_path / 'run')))
  assert not (tmp_path / 'run').exists()


def test_the_classes_of_a_run_are_those_of_its_evaluation(folder, tmp_path):
  """A held-out file that lists fewer classes is numbered as the run's."""
  names = tuple(f'class {c:02d}' for c in range(20))
  weights_lib.save(tmp_path / 'w', dataclasses.replace(
      weights_lib.load(folder / 'weights'), classes=names))
  config = settings(folder, init_from=str(tmp_path / 'w'), **{
      'data.test.labels_csv': '', 'workdir': str(tmp_path / 'run')})
  found = score.score(config, jax.devices()[:1])['test']
  np.testing.assert_array_equal(
      found.outputs['targets'], goldens.read('finetune')['targets'] > 0)


def test_predictions_are_written_whole_or_not_at_all(
    folder, tmp_path, monkeypatch):
  config = settings(folder, workdir=str(tmp_path))
  score.score(config, jax.devices()[:1])
  before = (tmp_path / 'evaluation/test/predictions.npz').read_bytes()

  def full_disk(file, **arrays):
    file.write(b'half')
    raise OSError('no space')

  monkeypatch.setattr(evaluate.np, 'savez_compressed', full_disk)
  with pytest.raises(OSError, match='no space'):
    score.score(config, jax.devices()[:1])
  assert (tmp_path / 'evaluation/test/predictions.npz').read_bytes() == before


def test_the_command_of_a_run_evaluates_the_run(folder, tmp_path):
  """Not what it started from; and nobody else's weights in its place."""
  config = settings(folder, workdir=str(tmp_path / 'run'), **{
      'train.steps': 1, 'optimizer.warmup_epochs': 0.0, 'log.progress': False,
      'log.tensorboard': False, 'optimizer.base_lr': 1.0,
      'optimizer.min_lr': 1.0, 'data.train.name': 'manifest',
      'data.train.path': 'train.csv', 'data.train.labels_csv': 'classes.csv'})
  rows = (folder / 'manifest.csv').read_text()
  for i in '01':
    shutil.copy(folder / f'{i}.wav', folder / f'copy{i}.wav')
    rows = rows.replace(f'{i}.wav', f'copy{i}.wav')
  (folder / 'train.csv').write_text(rows)
  train.train(config, jax.devices()[:1])
  kept = np.load(tmp_path / 'run/evaluation/test/predictions.npz')['logits']
  golden = goldens.read('finetune')['eval/logits']
  assert np.abs(kept - golden).max() > 1e-2
  found = score.score(config, jax.devices()[:1])['test']
  np.testing.assert_allclose(found.outputs['logits'], kept, atol=1e-6)
  with pytest.raises(ValueError, match='has a run of its own, and config.init'):
    score.score(dataclasses.replace(config, init_from='elsewhere'),
                jax.devices()[:1])


def test_metrics_are_json_whatever_they_are(folder, tmp_path):
  """A class told apart without an error has an infinite d'."""
  split = splits.Split.open(
      settings(folder).data.test, settings(folder).data, 'config.data.test')
  values = {'loss': 1.0, 'd_prime': float('inf'), 'AUC': float('nan')}
  evaluate.write(tmp_path, evaluate.Evaluation(
      values, {}, {}, np.arange(2)), split, {})
  text = (tmp_path / 'metrics.json').read_text()
  assert json.loads(text, parse_constant=pytest.fail)['metrics'] == {
      'loss': 1.0, 'd_prime': None, 'AUC': None}
