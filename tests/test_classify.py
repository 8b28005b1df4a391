"""Task classify: equal to the released code, and what fine-tuning promises."""

import csv
import dataclasses
import functools
import json
import shutil

import exchange
import goldens
import jax
import jax.numpy as jnp
import labelled
import numpy as np
import pytest
import reference
import tiny

from audio_mae_jax import losses
from audio_mae_jax import masking
from audio_mae_jax import patches
from audio_mae_jax import record
from audio_mae_jax import step
from audio_mae_jax import tasks
from audio_mae_jax import train
from audio_mae_jax import trees
from audio_mae_jax import weights as weights_lib

pytestmark = pytest.mark.usefixtures('compile_once')

CLASSES, SAMPLES = 6, 10480
SETTINGS = tiny.MODEL | {
    'augment.gain_concentration': 10.0,
    'task': 'classify', 'model.classifier.num_classes': CLASSES,
    'model.encoder.drop_path': 0.5, 'model.encoder.depth': 2,
    'mask.name': 'time_freq', 'mask.time_ratio': 0.3, 'mask.freq_ratio': 0.3,
    'augment.mixup': 0.5, 'augment.time_mask': 16, 'augment.freq_mask': 24,
    'augment.noise': 0.1, 'augment.noise_shift': 4,
    'optimizer.layer_decay': 0.75, 'optimizer.ema_decay': 0.9,
    'train.batch_size': 8, 'train.steps': 10,
    'optimizer.warmup_epochs': 0.1, 'optimizer.base_lr': 0.03}


@functools.cache
def batch():
  draw = np.random.default_rng(0)
  audio = draw.uniform(-0.5, 0.5, (8, SAMPLES)).astype(np.float32)
  num_samples = np.full(8, SAMPLES, np.int32)
  num_samples[3] = 5000
  audio[3, 5000:] = 0
  return {
      'audio': audio, 'num_samples': num_samples,
      'labels': np.eye(CLASSES, dtype=np.float32)[np.arange(8) % CLASSES],
      'index': np.arange(8, dtype=np.int32), 'valid': np.ones(8, np.float32)}


def trained(overrides, devices=1):
  """Two steps: losses, clip losses and the parameters that came out."""
  config = tiny.config(SETTINGS, overrides)
  program = step.build(config, 10, jax.devices()[:devices])
  state, seen = program.init(), []
  for _ in range(2):
    given = jax.device_put(batch(), program.batch_sharding)
    state, metrics = program.train_step(state, given)
    seen.append(jax.device_get(metrics))
  return seen, jax.device_get(state)


@pytest.mark.parametrize('variant, time_ratio, freq_ratio', [
    ('eval', 0, 0), ('mask_t20_f20', 0.2, 0.2), ('mask_t30_f0', 0.3, 0),
    ('mask_t0_f40', 0, 0.4)])
def test_logits_and_loss_equal_the_released_code(
    tmp_path, variant, time_ratio, freq_ratio):
  golden, weights = goldens.read('finetune'), exchange.finetuned(tmp_path)
  task, params = tasks.make(weights.config), reference.nest(weights.params)
  inputs = {'patches': patches.patchify(
                jnp.asarray(golden['imgs'][:, 0]), task.config.patch),
            'labels': jnp.asarray(golden['targets'])}
  if variant != 'eval':
    keep = [masking.num_kept(n, ratio, 'x') if ratio else n
            for n, ratio in zip(task.grid, (time_ratio, freq_ratio))]
    scores = masking.rectangle_scores(
        golden['noise_t'], golden['noise_f'], *keep)
    inputs['keep_ids'] = masking.from_scores(
        scores, keep[0] * keep[1]).keep_ids
    # The rows and columns that the released code kept, in any order.
    rows, columns = (np.sort(golden[f'{variant}/ids_keep_{axis}'])
                     for axis in 'tf')
    np.testing.assert_array_equal(
        inputs['keep_ids'], (rows[:, :, None] * 8 + columns[:, None]).reshape(
            2, -1))
  logits = task.apply(params, inputs)
  np.testing.assert_allclose(
      logits, golden[f'{variant}/logits'], rtol=0, atol=2e-6)
  np.testing.assert_allclose(
      task.losses(params, inputs)['loss'].mean(),
      golden[f'{variant}/bce_loss'], rtol=1e-6)


@pytest.mark.slow
def test_results_do_not_depend_on_how_many_devices_share_the_batch():
  one, state = trained({})
  many, other = trained({'mesh.fsdp': 2}, 4)
  for a, b in zip(one, many, strict=True):
    np.testing.assert_allclose(a['clip_loss'], b['clip_loss'], rtol=2e-5)
  for (name, x), y in zip(trees.flatten(state.params).items(),
                          jax.tree.leaves(other.params), strict=True):
    np.testing.assert_allclose(x, y, atol=2e-5, err_msg=name)


@pytest.mark.slow
def test_accumulated_micro_batches_mix_over_the_whole_batch():
  """Mixing and masks are drawn before the batch is split."""
  settings = {'model.encoder.drop_path': 0.0}
  whole, state = trained(settings)
  parts, other = trained(settings | {'optimizer.accumulate': 4})
  np.testing.assert_allclose(
      parts[0]['clip_loss'], whole[0]['clip_loss'], rtol=1e-5)
  np.testing.assert_allclose(
      state.params['head']['kernel'], other.params['head']['kernel'], atol=1e-5)


@pytest.mark.parametrize('overrides', [
    {'augment.mixup': 0.0}, {'augment.time_mask': 0}, {'augment.freq_mask': 0},
    {'augment.noise': 0.0, 'augment.noise_shift': 0}, {'augment.roll': False},
    {'augment.gain_concentration': 0.0}, {'mask.time_ratio': 0.5},
    {'model.encoder.drop_path': 0.0},
    {'labels.multilabel': False, 'labels.smoothing': 0.1},
    {'labels.multilabel': False, 'labels.loss': 'ce'}], ids=str)
def test_each_setting_changes_training(overrides):
  assert np.abs(loss_of(overrides) - usual_loss()).max() > 1e-6


@functools.cache
def usual_loss():
  return loss_of({})


def loss_of(overrides):
  """Of each clip in training, by weights that are not near zero."""
  task = tasks.make(tiny.config(SETTINGS, overrides))
  params = jax.tree.map(
      lambda x: jnp.sin(jnp.arange(x.size)).reshape(x.shape),
      jax.eval_shape(task.init, jax.random.key(0)))
  inputs = task.prepare(batch(), jax.random.key(1), train=True)
  return task.losses(params, inputs, jax.random.key(2))['loss']


def test_evaluation_sees_all_and_changes_nothing():
  task = tasks.make(tiny.config(SETTINGS))
  plain = tasks.make(tiny.config(tiny.MODEL, {
      'task': 'classify', 'model.classifier.num_classes': CLASSES,
      'model.encoder.depth': 2, 'mask.name': '', 'augment.roll': False,
      'augment.gain_concentration': 0.0}))
  inputs = [t.prepare(batch(), jax.random.key(seed), train=False)
            for seed, t in enumerate((task, plain))]
  assert inputs[0].keys() == {'patches', 'labels'}
  np.testing.assert_array_equal(inputs[0]['patches'], inputs[1]['patches'])
  np.testing.assert_array_equal(inputs[0]['labels'], batch()['labels'])
  trained_on = task.prepare(batch(), jax.random.key(0), train=True)
  assert trained_on['keep_ids'].shape == (8, 5 * 5)
  assert np.abs(trained_on['labels'] - batch()['labels']).max() > 0.1


def test_the_loss_of_evaluation_is_not_smoothed():
  config = {'labels.smoothing': 0.2, 'labels.multilabel': False,
            'labels.loss': 'ce'}
  task = tasks.make(tiny.config(SETTINGS, config))
  params = task.init(jax.random.key(0))
  inputs = task.prepare(batch(), jax.random.key(1), train=False)
  values, outputs = task.evaluate(params, inputs)
  np.testing.assert_allclose(
      values['loss'], losses.CLASSIFICATION['ce'](
          outputs['logits'], batch()['labels']), rtol=1e-6)
  np.testing.assert_array_equal(outputs['targets'], batch()['labels'])


@pytest.mark.parametrize('overrides, message', [
    ({'model.classifier.num_classes': 0}, 'num_classes=0 is a model without a'),
    ({'labels.loss': 'hinge'}, "labels.loss='hinge' is not known"),
    ({'labels.loss': 'ce'}, "'ce' is for clips with one label each"),
    ({'labels.metric': 'accuracy'}, 'for data with one'),
    ({'labels.smoothing': 0.1}, 'divides the one label of a clip among all'),
    ({'labels.smoothing': 1.0, 'labels.multilabel': False}, 'smoothing=1 is'),
    ({'optimizer.ema_decay': 1.0}, 'ema_decay=1 is the share'),
    ({'optimizer.ema_decay': -0.5}, 'ema_decay=-0.5 is the share'),
    ({'mask.time_ratio': 1.5}, 'mask.time_ratio=1.5'),
    ({'mask.name': 'stripes'}, "mask.name='stripes' is not known"),
    ({'model.encoder.drop_path': 1.0}, 'drop_path=1'),
    ({'optimizer.layer_decay': 0.0}, 'layer_decay=0'),
], ids=str)
def test_settings_that_cannot_be_are_refused(overrides, message):
  with pytest.raises(ValueError, match=message):
    step.build(tiny.config(SETTINGS, overrides), 10, jax.devices()[:1])


@pytest.fixture(scope='module')
def finetuned(tmp_path_factory):
  """(folder of the corpus, config, state) of a run over two of three folds."""
  folder = tmp_path_factory.mktemp('finetuned')
  labelled.corpus(folder)
  config = tiny.config(labelled.RUN, {
      'data.root': str(folder),
      'workdir': str(folder / 'run')})
  return folder, config, train.train(config, jax.devices()[:1])


def test_a_run_learns_and_leaves_its_evaluation(finetuned):
  folder, _, state = finetuned
  lines = record.read(folder / 'run' / record.NAME)
  assert lines[-1]['valid/accuracy'] == 1.0
  found = json.loads(
      (folder / 'run/evaluation/valid/metrics.json').read_text())
  assert found['metrics']['accuracy'] == 1.0
  assert found['metrics']['loss'] == pytest.approx(lines[-1]['valid/loss'])
  assert (found['num_clips'], found['step']) == (6, int(state.step))
  with open(folder / 'run/evaluation/valid/per_class.csv') as file:
    rows = list(csv.DictReader(file))
  assert [row['class'] for row in rows] == ['high', 'low', 'noise']
  assert [float(row['recall']) for row in rows] == [1, 1, 1]
  with np.load(folder / 'run/evaluation/valid/predictions.npz') as arrays:
    assert arrays['logits'].shape == (6, 3)
    names = arrays['class_names'][arrays['logits'].argmax(1)]
    assert dict(zip(arrays['ids'], names)) == {
        '0.wav': 'high', '1.wav': 'low', '2.wav': 'noise',
        '9.wav': 'high', '10.wav': 'low', '11.wav': 'noise'}


def test_a_run_goes_on_with_the_same_bits(finetuned, tmp_path):
  folder, config, state = finetuned
  workdir = tmp_path / 'again'
  shutil.copytree(folder / 'run', workdir)
  newest = max(int(p.name) for p in (workdir / 'checkpoints').iterdir()
               if p.name.isdigit())
  shutil.rmtree(workdir / 'checkpoints' / str(newest))
  again = train.train(
      dataclasses.replace(config, workdir=str(workdir)), jax.devices()[:1])
  exchange.assert_same_bits(trees.flatten(jax.device_get(again)),
                            trees.flatten(jax.device_get(state)))
  assert [line['valid/loss'] for line in record.read(workdir / record.NAME)
          if 'valid/loss' in line] == [
              line['valid/loss']
              for line in record.read(folder / 'run' / record.NAME)
              if 'valid/loss' in line]


def test_changed_labels_are_not_gone_on_with(finetuned, tmp_path):
  folder, config, _ = finetuned
  rows = (folder / 'manifest.csv').read_text()
  changed = folder / 'changed.csv'
  changed.write_text(rows.replace('3.wav,high', '3.wav,noise'))
  train_source = dataclasses.replace(config.data.train, path='changed.csv')
  with pytest.raises(ValueError, match=r'the data \(labels\): was'):
    train.train(dataclasses.replace(config, data=dataclasses.replace(
        config.data, train=train_source)), jax.devices()[:1])


def test_its_weights_know_their_classes(finetuned):
  folder, *_ = finetuned
  weights = weights_lib.load(folder / 'run')
  assert weights.classes == ('high', 'low', 'noise')
  assert weights.config.model.classifier.num_classes == 3
