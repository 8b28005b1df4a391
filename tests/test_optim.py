"""Schedule, decay groups and update against the released code."""

import re

import goldens
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
import tiny

from audio_mae_jax import config
from audio_mae_jax import masking
from audio_mae_jax import optim
from audio_mae_jax import patches
from audio_mae_jax import step
from audio_mae_jax import tasks
from audio_mae_jax import trees
from audio_mae_jax.tasks import pretrain


@pytest.mark.parametrize(
    'run', ['pretrain_as2m', 'finetune_as2m', 'finetune_as20k'])
def test_the_schedule_equals_the_released_one(run):
  golden = goldens.under(goldens.read('schedules'), f'{run}/')
  peak, low, warmup, epochs, per_epoch = golden['settings'].tolist()
  settings = config.Optimizer(
      base_lr=peak, min_lr=low, warmup_epochs=warmup)
  rate = optim.schedule(settings, 256, int(per_epoch), int(epochs * per_epoch))
  # float32 against float64: cosines near -1 cancel, so the last steps (1e-13
  # of a peak of 4e-4) are exact to a float32 rounding of the peak only.
  np.testing.assert_allclose(
      rate(golden['step']), golden['lr'], rtol=2e-6, atol=1e-7 * peak)


def test_the_schedule_rises_from_zero_to_its_peak_and_falls_to_its_floor():
  settings = config.Optimizer(base_lr=2e-4, min_lr=1e-6, warmup_epochs=3.0)
  rate = optim.schedule(settings, 512, 10, 100)
  assert rate(0) == 0
  # base_lr * batch_size / 256, to float32.
  np.testing.assert_allclose(rate(30), 4e-4, rtol=1e-6)
  np.testing.assert_allclose(rate(65), (4e-4 + 1e-6) / 2, rtol=1e-6)
  np.testing.assert_allclose(rate(100), 1e-6, rtol=1e-4)
  assert rate(500) == rate(100)


def test_without_warm_up_the_schedule_starts_at_its_peak():
  settings = config.Optimizer(warmup_epochs=0.0, base_lr=1e-3)
  assert optim.schedule(settings, 256, 10, 100)(0) == jnp.float32(1e-3)


@pytest.mark.parametrize('warmup, message', [
    (3.0, 'optimizer.warmup_epochs=3.0 are 30 steps, and the whole run has 30; '
     'shorten the warm-up or raise train.epochs.'),
    (4.0, 'optimizer.warmup_epochs=4.0 are 40 steps')])
def test_a_warm_up_as_long_as_the_run_is_refused(warmup, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    optim.schedule(config.Optimizer(warmup_epochs=warmup), 256, 10, 30)


def test_weight_decay_applies_to_the_released_groups():
  task = tasks.make(config.Config())
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  ours = trees.flatten(optim.decayed(config.Optimizer(), shapes))
  golden = {reference.rename(name): decay != '0.0'
            for name, _, decay in goldens.table('pretrain_decay_groups')
            if decay != 'frozen'}
  assert ours == golden
  assert (sum(ours.values()), len(ours)) == (149, 428)


def update(settings, grads, params):
  tx = optim.make(settings, lambda step: 0.1)
  updates, _ = tx.update(grads, tx.init(params), params)
  return updates


PARAMS = {'fc': {'kernel': jnp.full((2, 2), 2.0),
                 'bias': jnp.full((2,), 2.0)}}


def test_the_first_update_is_the_sign_of_the_gradient_and_decay():
  grads = jax.tree.map(lambda p: -3 * p, PARAMS)
  updates = update(config.Optimizer(weight_decay=0.25), grads, PARAMS)['fc']
  # Adam's first step has length 1; decay is decoupled: 0.25 of the parameter.
  np.testing.assert_allclose(updates['kernel'], 0.1 * (1 - 0.25 * 2), rtol=1e-4)
  np.testing.assert_allclose(updates['bias'], 0.1, rtol=1e-4)


def test_clip_norm_bounds_the_gradient_before_the_moments():
  grads = {'fc': {'kernel': jnp.full((2, 2), 3.0), 'bias': jnp.zeros(2)}}
  # The norm is 6.
  for limit, factor in ((0.0, 1.0), (10.0, 1.0), (1.5, 0.25)):
    settings = config.Optimizer(clip_norm=limit)
    tx = optim.make(settings, lambda step: 0.1)
    _, state = tx.update(grads, tx.init(PARAMS), PARAMS)
    moments = optax.tree.get(state, 'mu')
    np.testing.assert_allclose(
        moments['fc']['kernel'], (1 - settings.b1) * 3.0 * factor, rtol=1e-6)


class Replay(pretrain.Pretrain):
  """Pre-training on recorded spectrograms and mask noise."""

  def __init__(self, settings, params):
    super().__init__(settings)
    self.params = params

  def init(self, rng):
    return self.params

  def prepare(self, batch, rng, *, train):
    n = self.grid[0] * self.grid[1]
    keep = masking.num_kept(n, self.config.mask.ratio, 'mask.ratio')
    return {
        'patches': patches.patchify(batch['spectrogram'], self.config.patch),
        'mask': masking.from_scores(batch['noise'], keep)}


def test_nine_training_steps_equal_the_released_engine():
  golden = goldens.read('training')
  settings = tiny.config(tiny.GLOBAL, {
      'frontend.num_frames': 256, 'train.batch_size': 2, 'train.steps': 9,
      'optimizer.base_lr': 2e-3 * 256 / 2, 'optimizer.min_lr': 0.0,
      'optimizer.warmup_epochs': 1.0})
  params = jax.tree.map(jnp.asarray, reference.nest(
      goldens.under(goldens.read('global'), 'param/')))
  program = step.build(settings, steps_per_epoch=3,
                       devices=jax.devices()[:1], task=Replay(settings, params))
  state = program.init()
  got = {'loss': [], 'grad_norm': [], 'learning_rate': []}
  for i in range(9):
    state, metrics = program.train_step(state, {
        'spectrogram': golden['spectrograms'][i % 3],
        'noise': golden['noises'][i], 'index': np.arange(2)})
    for name, values in got.items():
      values.append(float(metrics['scalars'][name]))
  # float32 rounding; 1e-7 and 3e-7 were reached.
  np.testing.assert_allclose(got['loss'], golden['losses'], rtol=2e-6)
  np.testing.assert_allclose(got['grad_norm'], golden['grad_norms'], rtol=5e-6)
  np.testing.assert_allclose(
      got['learning_rate'], golden['lrs'], rtol=1e-6, atol=1e-10)
  final = trees.flatten(state.params)
  want = goldens.under(golden, 'final/')
  assert final.keys() == want.keys()
  for name, value in want.items():
    difference = np.abs(goldens.sample(final[name]) - value)
    if name.endswith('qkv/bias'):
      # Softmax does not depend on the bias of the keys: its gradient is only
      # rounding, which Adam divides by its own size.
      queries, keys, values = np.split(difference, 3)
      assert keys.max() < 1e-3, name  # half of one step at the peak rate
      difference = np.maximum(queries, values)
    # 2e-7 was reached, of parameters that moved by up to 9e-3.
    assert difference.max() < 2e-6, name
