"""The compiled step: what it must not depend on, and what it must do."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from audio_mae_jax import config
from audio_mae_jax import optim
from audio_mae_jax import sharding
from audio_mae_jax import step
from audio_mae_jax import trees

STEPS = 3
SAMPLES = 10480  # 64 frames
SETTINGS = tiny.MODEL | {
    'augment.gain_concentration': 10.0,
    # Its MLP has leaves of 1 MiB, which 'fsdp' splits.
    'model.encoder.width': 256,
    # Micro-batches draw dropout of their own. (test_train.py has it on a mesh.)
    'model.decoder.bias_dropout': 0.0,
    'train.batch_size': 8, 'train.steps': 10,
    'optimizer.warmup_epochs': 0.1, 'optimizer.base_lr': 0.1}


@functools.cache
def batch():
  draw = np.random.default_rng(0)
  audio = draw.uniform(-0.5, 0.5, (8, SAMPLES)).astype(np.float32)
  num_samples = np.full(8, SAMPLES, np.int32)
  num_samples[3] = 5000
  audio[3, 5000:] = 0
  return {
      'audio': audio, 'num_samples': num_samples,
      'index': np.arange(8, dtype=np.int32), 'valid': np.ones(8, np.float32)}


def build(settings, devices=1):
  return step.build(
      settings, steps_per_epoch=10, devices=jax.devices()[:devices])


def rows(program, **changed):
  """The batch on its devices, as the loop passes it: compiled for once."""
  return jax.device_put(batch() | changed, program.batch_sharding)


def train(program):
  """Metrics of each step as NumPy arrays, and the last state."""
  state, seen = program.init(), []
  for _ in range(STEPS):
    state, metrics = program.train_step(state, rows(program))
    seen.append(jax.tree.map(np.asarray, metrics))
  return seen, state


@functools.cache
def trained(data, fsdp):
  mesh = {'mesh.data': data, 'mesh.fsdp': fsdp}
  program = build(tiny.config(SETTINGS, mesh), data * fsdp)
  return program, *train(program)


@pytest.mark.parametrize('data, fsdp', [
    (2, 4), pytest.param(8, 1, marks=pytest.mark.slow),
    pytest.param(1, 8, marks=pytest.mark.slow)])
def test_losses_and_masks_do_not_depend_on_the_mesh(data, fsdp):
  _, one, _ = trained(1, 1)
  program, many, state = trained(data, fsdp)
  assert dict(program.mesh.shape) == {'data': data, 'fsdp': fsdp}
  assert one[0]['scalars']['loss'] != one[-1]['scalars']['loss']
  for a, b in zip(one, many):
    # Sums in another order. Another mask, roll, gain or unit dropped would
    # change a clip's loss by percents.
    np.testing.assert_allclose(b['clip_loss'], a['clip_loss'], rtol=1e-5)
    np.testing.assert_allclose(
        b['scalars']['loss'], a['scalars']['loss'], rtol=2e-6)
    np.testing.assert_allclose(
        b['scalars']['grad_norm'], a['scalars']['grad_norm'], rtol=1e-4)
    np.testing.assert_array_equal(b['clip_index'], np.arange(8))
  # Parameters stay where they were put.
  stayed = jax.tree.map(
      lambda leaf, want: leaf.sharding.is_equivalent_to(
          want.sharding, leaf.ndim), state, program.shapes)
  assert all(jax.tree.leaves(stayed)), stayed


def test_parameters_and_moments_of_a_mebibyte_are_split_over_fsdp():
  _, _, state = trained(2, 4)
  split = set()
  for name, leaf in trees.flatten(state).items():
    part = leaf.addressable_shards[0].data
    if leaf.nbytes >= sharding.MIN_BYTES:
      assert part.nbytes * 4 == leaf.nbytes, name
      split.add(name.split('encoder/')[-1])
    else:
      assert part.nbytes == leaf.nbytes, name
  assert split == {f'blocks/00/mlp/fc{i}/kernel' for i in (1, 2)}


@functools.cache
def accumulating():
  return build(tiny.config(SETTINGS, {
      'optimizer.accumulate': 4, 'optimizer.ema_decay': 0.75}))


def test_micro_batches_give_the_gradient_of_the_whole_batch():
  _, whole, _ = trained(1, 1)
  parts, _ = train(accumulating())
  for a, b in zip(whole, parts):
    # Sums in another order.
    np.testing.assert_allclose(b['clip_loss'], a['clip_loss'], rtol=1e-5)
    np.testing.assert_array_equal(b['clip_index'], a['clip_index'])
    for name in ('loss', 'reconstruction', 'grad_norm', 'learning_rate'):
      np.testing.assert_allclose(
          b['scalars'][name], a['scalars'][name], rtol=1e-5)


def test_the_state_is_donated_and_float32():
  program, *_ = trained(1, 1)
  state = program.init()
  after, metrics = program.train_step(state, rows(program))
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
  assert after.step == 1 and after.step.dtype == jnp.int32
  assert after.ema is None and after.best_params is after.params
  leaves = jax.tree.leaves((after.params, metrics['scalars']))
  assert {leaf.dtype for leaf in leaves} == {np.dtype('float32')}
  assert metrics['clip_loss'].shape == (8,)


def test_metrics_are_those_of_the_batch():
  _, (first, second, *_), _ = trained(1, 1)
  assert first['scalars'].keys() == {
      'loss', 'reconstruction', 'grad_norm', 'learning_rate'}
  np.testing.assert_allclose(
      first['scalars']['loss'], first['clip_loss'].mean(), rtol=1e-6)
  settings = config.Optimizer(base_lr=0.1, warmup_epochs=0.1)
  rate = optim.schedule(settings, 8, 10, 10)
  assert first['scalars']['learning_rate'] == 0
  np.testing.assert_allclose(
      second['scalars']['learning_rate'], rate(1), rtol=1e-6)


def test_every_step_and_seed_draws_anew_and_equal_ones_draw_equally():
  program, *_ = trained(1, 1)

  def clip_loss(number):
    state = program.init()
    state = state.replace(step=jax.device_put(
        np.int32(number), state.step.sharding))
    return np.asarray(program.train_step(state, rows(program))[1]['clip_loss'])

  np.testing.assert_array_equal(clip_loss(0), clip_loss(0))
  assert (clip_loss(0) != clip_loss(1)).all()


def test_the_average_of_the_weights_follows_its_formula():
  program = accumulating()
  state = program.init()
  want = jax.tree.map(np.array, state.params)
  assert_equal = lambda a, b: jax.tree.map(
      # One rounding of each product and sum.
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), a, b)
  assert_equal(state.ema, want)
  for _ in range(3):
    state, _ = program.train_step(state, rows(program))
    want = jax.tree.map(
        lambda average, new: 0.75 * average + 0.25 * np.asarray(new),
        want, state.params)
  assert_equal(state.ema, want)
  assert state.best_params is state.ema
  moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()),
                       state.ema, state.params)
  assert max(jax.tree.leaves(moved)) > 1e-3


def test_evaluation_counts_valid_clips_only_and_repeats_its_masks():
  program, *_ = trained(1, 1)
  params = program.init().params
  sums, count, outputs = program.eval_step(params, rows(program), 0)
  assert count == 8
  np.testing.assert_array_equal(outputs['index'], range(8))
  again, *_ = program.eval_step(params, rows(program), 0)
  assert again['loss'] == sums['loss']
  other, *_ = program.eval_step(params, rows(program), 1)
  assert other['loss'] != sums['loss']
  # Rows that only fill the batch may hold anything.
  audio = batch()['audio'].copy()
  audio[6:] = np.nan
  valid = np.array([1] * 6 + [0] * 2, np.float32)
  part, count, outputs = program.eval_step(
      params, rows(program, audio=audio, valid=valid), 0)
  assert count == 6
  np.testing.assert_array_equal(outputs['valid'], valid)
  assert 0 < part['loss'] < sums['loss']


def test_a_picture_shows_the_first_clips():
  program, *_ = trained(1, 1)
  shapes = jax.eval_shape(program.picture, program.shapes.params, batch())
  assert {name: (leaf.shape, leaf.dtype) for name, leaf in shapes.items()} == {
      'original': ((step.PICTURED, 64, 128), np.float32),
      'removed': ((step.PICTURED, 64, 128), np.bool_),
      'reconstruction': ((step.PICTURED, 64, 128), np.float32)}


@pytest.mark.parametrize('epochs, steps, want', [
    (32.0, 0, 320), (0.25, 0, 2), (32.0, 7, 7)])
def test_a_run_is_as_long_as_its_epochs_or_its_steps(epochs, steps, want):
  assert step.total_steps(config.Train(epochs=epochs, steps=steps), 10) == want


def test_a_run_of_no_step_is_refused():
  with pytest.raises(ValueError, match=re.escape(
      'train.epochs=0.01 of 10 steps are no step; set train.epochs or '
      'train.steps')):
    step.total_steps(config.Train(epochs=0.01), 10)


@pytest.mark.parametrize('overrides, devices, message', [
    ({'train.batch_size': 12}, 8, 'A batch of 12 clips cannot be split over 8 '
     'devices'),
    ({'optimizer.accumulate': 3}, 4, 'optimizer.accumulate=3 does not divide '
     'the 2 clips of each device (train.batch_size=8 over 4).'),
    ({'mesh.fsdp': 3}, 8, 'A mesh of data=2 x fsdp=3 needs 6 devices, and '
     'there are 8'),
])
def test_a_batch_that_cannot_be_split_is_refused(overrides, devices, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    build(tiny.config(SETTINGS, overrides), devices)


def test_a_task_without_an_objective_is_refused():
  with pytest.raises(ValueError, match=re.escape(
      'Nothing to learn: objective.reconstruction=0.0 and '
      'objective.contrastive=0.0')):
    build(tiny.config(SETTINGS, {'objective.reconstruction': 0.0}))


def test_the_two_objectives_are_added_by_their_weights():
  program = build(tiny.config(SETTINGS, {
      'objective.reconstruction': 0.5, 'objective.contrastive': 0.25}))
  params = jax.tree.map(
      lambda leaf: jnp.full(leaf.shape, 0.1), program.shapes.params)
  values, *_ = program.eval_step(params, rows(program), 0)
  assert values['contrastive'] > 0 and values['reconstruction'] > 0
  np.testing.assert_allclose(
      values['loss'],
      0.5 * values['reconstruction'] + 0.25 * values['contrastive'], rtol=1e-6)
