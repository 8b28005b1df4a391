"""Schedule, decay groups and update against the released code."""

import dataclasses
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
from audio_mae_jax import losses
from audio_mae_jax import masking
from audio_mae_jax import optim
from audio_mae_jax import patches
from audio_mae_jax import step
from audio_mae_jax import tasks
from audio_mae_jax import trees
from audio_mae_jax.convert import names
from audio_mae_jax.models import classifier
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


def released_layer_table():
  """{our name: (scale of the learning rate, weight decay)} of ViT-B."""
  return {names.RELEASED.name_here(name): (float(scale), float(decay))
          for name, _, group, _, scale, decay
          in goldens.table('finetune_lr_decay_groups') if group != 'frozen'}


def test_rates_and_decay_by_layer_equal_the_released_groups():
  settings = config.default('classify')
  settings.model.classifier.num_classes = 527
  settings = config.typed(settings)
  model = classifier.make(settings)
  params = jax.eval_shape(lambda: model.init(
      jax.random.key(0), jnp.zeros((1, 512, 256)), (64, 8)))['params']
  want = released_layer_table()
  scales = trees.flatten(optim.layer_scales(0.75, params))
  assert scales == {name: scale for name, (scale, _) in want.items()}
  assert len(set(scales.values())) == 14
  assert trees.flatten(optim.decayed(settings.optimizer, params)) == {
      name: decay > 0 for name, (_, decay) in want.items()}


@pytest.mark.parametrize('run', ['finetune_as2m', 'finetune_as20k'])
def test_the_rate_of_a_layer_equals_the_released_one(run):
  golden = goldens.under(goldens.read('schedules'), f'{run}/')
  peak, low, warmup, epochs, per_epoch = golden['settings'].tolist()
  rate = optim.schedule(
      config.Optimizer(base_lr=peak, min_lr=low, warmup_epochs=warmup), 256,
      int(per_epoch), int(epochs * per_epoch))(golden['step'])
  params = {'encoder': {'cls_token': 0, 'blocks': {'11': {'bias': 0}}},
            'head': 0}
  scales = optim.layer_scales(0.75, params)
  for name, scale in (('first', scales['encoder']['cls_token']),
                      ('last', scales['head'])):
    np.testing.assert_allclose(
        rate * scale, golden[f'lr_{name}'], rtol=2e-6, atol=1e-7 * peak * scale)


def test_layers_are_counted_from_the_last_block_of_the_encoder():
  block = {'mlp': {'kernel': 0}}
  params = {
      'encoder': {'blocks': {'00': block, '01': block}, 'cls_token': 0,
                  'positions': 0, 'patch_embed': {'bias': 0},
                  'norm': {'scale': 0}},
      'decoder': {'blocks': {'00': block, '05': block}},
      'fc_norm': {'bias': 0}, 'head': {'kernel': 0}}
  scales = trees.flatten(optim.layer_scales(0.5, params))
  assert {name: scale for name, scale in scales.items() if scale != 1} == {
      'encoder/blocks/01/mlp/kernel': 0.5,
      'encoder/blocks/00/mlp/kernel': 0.25,
      'encoder/cls_token': 0.125,
      'encoder/positions': 0.125,
      'encoder/patch_embed/bias': 0.125}
  assert len(scales) == 10


def recorded_classifier(golden):
  """(loss of its parameters, parameters, settings)."""
  settings = tiny.config(tiny.LOCAL, {
      'model.encoder.depth': 3, 'model.classifier.num_classes': 20})
  spectrograms = jnp.asarray(golden['imgs'][:, 0])
  grid = patches.grid_of(spectrograms.shape[1:], settings.patch)
  pixels = patches.patchify(spectrograms, settings.patch)
  model = classifier.make(settings)
  shapes = jax.eval_shape(
      lambda: model.init(jax.random.key(0), pixels, grid))['params']
  tensors = goldens.under(golden, 'param/')
  params = trees.map_named(
      lambda name, _: names.to_ours(names.RELEASED, name, tensors), shapes)
  loss = lambda params: losses.bce(
      model.apply({'params': params}, pixels, grid), golden['targets']).mean()
  return loss, jax.tree.map(jnp.asarray, params), settings


@pytest.mark.parametrize('run', ['release', 'strong'])
def test_three_fine_tuning_steps_equal_the_released_ones(run):
  golden = goldens.read('finetune')
  loss, params, settings = recorded_classifier(golden)
  optimizer = dataclasses.replace(
      config.typed(config.default('classify')).optimizer, b2=0.999,
      weight_decay=float(golden[f'{run}/wd']), layer_decay=0.75)
  tx = optim.make(optimizer, lambda step: float(golden[f'{run}/lr']))

  @jax.jit
  def update(params, state):
    value, grads = jax.value_and_grad(loss)(params)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state, value

  state = tx.init(params)
  for want in golden[f'{run}/losses']:
    params, state, value = update(params, state)
    np.testing.assert_allclose(value, want, rtol=1e-5)  # 2e-6 was reached
  before = goldens.under(golden, 'param/')
  after = goldens.under(golden, f'{run}/param_after/')
  ours = trees.flatten(params)
  assert len(after) == len(ours) == 43
  for name, array in ours.items():
    (theirs,), transform = names.RELEASED.find(name)
    array = transform.theirs(np.asarray(array), settings.patch)[0]
    moved = np.abs(after[theirs] - goldens.sample(before[theirs])).max()
    difference = np.abs(goldens.sample(array) - after[theirs]).max()
    # 4e-4 was reached: in 'release', one rounding of a scale of 1.
    assert difference < 2e-3 * moved, name


def test_without_layer_decay_the_state_is_as_in_older_checkpoints():
  every = lambda params: jax.tree.map(lambda _: True, params)
  plain = optax.adamw(lambda step: 0.1, mask=every)
  clip = optax.clip_by_global_norm(1.0)
  for clip_norm, tx in ((0.0, plain), (1.0, optax.chain(clip, plain))):
    settings = config.Optimizer(clip_norm=clip_norm)
    ours = optim.make(settings, lambda step: 0.1).init(PARAMS)
    theirs = tx.init(PARAMS)
    assert str(jax.tree.structure(ours)) == str(jax.tree.structure(theirs))


def test_layer_decay_scales_the_whole_update_and_nothing_before_it():
  layer = {'kernel': jnp.full((2, 2), 2.0), 'bias': jnp.full((2,), 2.0)}
  params = {'encoder': {'blocks': {'00': layer, '01': layer}}, 'head': layer}
  grads = jax.tree.map(lambda p: -3 * p, params)
  settings = config.Optimizer(weight_decay=0.25, clip_norm=1.5)
  results = []
  for decay in (1.0, 0.5):
    tx = optim.make(dataclasses.replace(settings, layer_decay=decay),
                    lambda step: 0.1)
    results.append(tx.update(grads, tx.init(params), params))
  (plain, state), (scaled, scaled_state) = results
  for name, factor in (('01', 0.5), ('00', 0.25)):
    for leaf in ('kernel', 'bias'):
      np.testing.assert_array_equal(
          scaled['encoder']['blocks'][name][leaf],
          factor * plain['encoder']['blocks'][name][leaf])
  jax.tree.map(np.testing.assert_array_equal, scaled['head'], plain['head'])
  # The norm that is clipped is that of the gradients, not of what they become.
  jax.tree.map(np.testing.assert_array_equal,
               optax.tree.get(scaled_state, 'mu'), optax.tree.get(state, 'mu'))
  assert optax.tree.get(state, 'mu')['head']['bias'][0] < 0.1 * 6


@pytest.mark.parametrize('decay', [0.0, -0.5, 1.01])
def test_a_layer_decay_that_is_none_is_refused(decay):
  with pytest.raises(ValueError, match=re.escape(
      f'optimizer.layer_decay={decay:g} is the learning rate of a block over '
      'that of the next: give above 0, up to 1')):
    optim.make(config.Optimizer(layer_decay=decay), lambda step: 0.1)


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
