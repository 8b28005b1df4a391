"""Drop path in the encoder, against the released classifier and by itself."""

import functools
import re

import goldens
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
import safetensors.numpy
import tiny

from audio_mae_jax import config
from audio_mae_jax import patches
from audio_mae_jax import sharding
from audio_mae_jax import tasks
from audio_mae_jax import trees
from audio_mae_jax.convert import importer
from audio_mae_jax.models import classifier
from audio_mae_jax.models import encoder
from audio_mae_jax.models import layers

DEPTH, GRID = 3, (8, 8)
SMALL = tiny.MODEL | {'model.encoder.depth': DEPTH}


def test_branches_are_kept_where_timm_keeps_them():
  draw = np.random.default_rng(0).random((5, 2, 1000), np.float32)
  draw[:, :, 0] = 1 - 2**-23  # the largest that jax.random.uniform gives
  got = np.asarray(layers.drop_path(draw, 0.4))
  for factors, u, rate in zip(got, draw, (0, 0.1, 0.2, 0.3, 0.4)):
    keep = np.float32(1) - np.float32(rate)
    want = np.floor(keep + u) / keep if rate else np.ones_like(u)
    np.testing.assert_allclose(factors, want, rtol=2e-7)
    assert abs((factors == 0).mean() - rate) < 0.04
    assert abs(factors.mean() - 1) < 0.06


def test_the_rate_of_a_single_block_is_zero():
  draw = np.zeros((1, 2, 3), np.float32)
  np.testing.assert_array_equal(layers.drop_path(draw, 0.9), 1 + draw)


def test_with_the_released_draws_training_equals_the_released_code(
    tmp_path, monkeypatch):
  golden = goldens.read('finetune')
  path = tmp_path / 'finetuned.safetensors'
  safetensors.numpy.save_file(goldens.under(golden, 'param/'), path)
  weights = importer.import_weights(path, given={
      'model.encoder.heads': 3, 'model.encoder.drop_path': 0.1})
  # Recorded are two draws per block but the first, which always stays.
  draws = golden['train_droppath/uniform_draws'].reshape(2, 2, 2)
  draws = np.concatenate([np.zeros((1, 2, 2)), draws]).astype(np.float32)
  given = layers.drop_path
  monkeypatch.setattr(
      layers, 'drop_path', lambda uniform, rate: given(draws, rate))
  # And the mask of this recording: a fifth of the times, of the bands.
  time, freq = (golden[f'mask_t20_f20/ids_keep_{axis}'] for axis in 'tf')
  keep = (8 * time[:, :, None] + freq[:, None]).reshape(2, -1)
  spectrograms = jnp.asarray(golden['imgs'][:, 0])
  grid = patches.grid_of(spectrograms.shape[1:], weights.config.patch)
  logits = jax.jit(lambda params: classifier.make(weights.config).apply(
      {'params': params},
      patches.patchify(spectrograms, weights.config.patch), grid, keep,
      train=True, rngs={'dropout': jax.random.key(0)}))(
          reference.nest(weights.params))
  np.testing.assert_allclose(
      logits, golden['train_droppath/logits'], rtol=0, atol=2e-6)
  loss = optax.sigmoid_binary_cross_entropy(logits, golden['targets']).mean()
  np.testing.assert_allclose(
      loss, golden['train_droppath/bce_loss'], rtol=1e-6)


PIXELS = np.random.default_rng(0).normal(size=(8, 64, 128)).astype(np.float32)


@functools.cache
def model_and_params(*overrides):
  model = encoder.make(tiny.config(SMALL, dict(overrides)))
  shapes = jax.eval_shape(
      lambda: model.init(jax.random.key(0), PIXELS, GRID))
  draw = np.random.default_rng(1)
  return model, jax.tree.map(
      lambda leaf: draw.normal(
          1 if leaf.ndim == 1 else 0, 0.2, leaf.shape).astype(np.float32),
      shapes)


def encode(*overrides, seed=0, train=True):
  """[8, 65, 16]: tokens of eight clips, with the settings `overrides`."""
  model, params = model_and_params(*overrides)
  return np.asarray(jax.jit(lambda key: model.apply(
      params, PIXELS, GRID, train=train, rngs={'dropout': key}))(
          jax.random.key(seed)))


RATE = ('model.encoder.drop_path', 0.5)


def test_clips_pass_by_blocks_in_training_only():
  plain = encode(train=False)
  np.testing.assert_array_equal(encode(RATE, train=False), plain)
  np.testing.assert_array_equal(encode(), plain)  # trains, and the rate is 0
  a, b = encode(RATE), encode(RATE, seed=1)
  np.testing.assert_array_equal(a, encode(RATE))
  # Two blocks of two branches for each of eight clips, drawn one by one.
  differ = lambda x, y: np.abs(x - y).max((1, 2)) > 1e-3
  assert differ(a, plain).all() and differ(a, b).sum() >= 4


@pytest.mark.parametrize('overrides', [
    [('model.remat', 'dots')],
    [('model.scan_layers', True), ('model.remat', 'full')]], ids=str)
def test_scanning_and_recomputing_layers_draw_the_same(overrides):
  np.testing.assert_allclose(
      encode(RATE, *overrides), encode(RATE), rtol=0, atol=2e-5)


def test_every_block_branch_and_clip_has_a_draw_of_its_own(monkeypatch):
  seen = []
  monkeypatch.setattr(layers, 'drop_path', lambda uniform, rate: (
      seen.append(uniform), jnp.ones_like(uniform))[1])
  model, params = model_and_params(RATE, ('model.dtype', 'bfloat16'))

  @jax.jit
  def draw():
    model.apply(params, PIXELS, GRID, train=True,
                rngs={'dropout': jax.random.key(0)})
    return seen.pop()

  draws = draw()
  assert draws.shape == (DEPTH, 2, 8) and draws.dtype == jnp.float32
  assert len(np.unique(draws)) == draws.size


def test_draws_do_not_depend_on_the_devices():
  model, params = model_and_params(RATE)
  tokens = []
  for count in (1, 8):
    mesh = sharding.make_mesh(config.Mesh(), 8, jax.devices()[:count])
    tokens.append(jax.jit(
        lambda pixels: model.apply(
            params, pixels, GRID, train=True,
            rngs={'dropout': jax.random.key(0)}),
        in_shardings=sharding.batch(mesh))(PIXELS))
  np.testing.assert_allclose(*tokens, rtol=0, atol=2e-5)


def test_in_bfloat16_the_factor_is_not_rounded():
  block = layers.Block(2, 2.0, jnp.dtype('bfloat16'))
  # Small, so that adding it to the branch hardly rounds.
  x = jnp.asarray(PIXELS[:2, :, :16] / 100, jnp.bfloat16)
  params = jax.jit(lambda: block.init(jax.random.key(0), x, train=False))()

  @jax.jit
  def size(factor):  # of what attention adds, without the MLP
    kept = jnp.array([[factor, factor], [0, 0]])
    y = block.apply(params, x, train=True, kept=kept)
    assert y.dtype == jnp.bfloat16
    return jnp.abs((y - x).astype(jnp.float32)).sum()

  # Rounded, 1 / 0.9 would be 1.1094 for all; sums round up as often as down.
  assert abs(size(1 / 0.9) / size(1.0) - 1 / 0.9) < 5e-4


@pytest.mark.parametrize('rate', [-0.1, 1.0, float('nan')])
def test_a_rate_that_is_no_share_is_refused(rate):
  with pytest.raises(ValueError, match=re.escape(
      f'model.encoder.drop_path={rate} is not the share of clips that')):
    encoder.make(tiny.config(SMALL, {'model.encoder.drop_path': rate}))


def test_it_changes_no_parameters():
  of = lambda **overrides: {
      name: leaf.shape for name, leaf in trees.flatten(jax.eval_shape(
          tasks.make(tiny.config(SMALL, overrides)).init,
          jax.random.key(0))).items()}
  assert of(**dict([RATE])) == of()
