"""Objectives against the released code and against loops in NumPy."""

import re

import goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audio_mae_jax import config
from audio_mae_jax import losses
from audio_mae_jax import patches


def patches_of(shape, seed=0):
  draw = np.random.default_rng(seed)
  return draw.normal(1.0, 3.0, shape).astype(np.float32)


def test_the_variance_of_a_patch_is_unbiased_as_released():
  x = patches_of((2, 5, 16))
  mean, std = losses.patch_statistics(x)
  # Two float32 roundings of sums of 16.
  np.testing.assert_allclose(mean[..., 0], x.mean(-1), rtol=1e-5)
  np.testing.assert_allclose(
      std[..., 0], np.sqrt(x.var(-1, ddof=1) + 1e-6), rtol=1e-6)


def test_normalised_patches_have_no_mean_and_unit_variance():
  x = np.asarray(losses.normalize_patches(patches_of((2, 5, 256))))
  assert np.abs(x.mean(-1)).max() < 1e-6  # rounding
  np.testing.assert_allclose(x.var(-1, ddof=1), 1, rtol=1e-5)


def test_a_constant_patch_becomes_zero_and_not_nan():
  np.testing.assert_array_equal(
      losses.normalize_patches(np.full((1, 2, 16), 7.0, np.float32)), 0)


def test_a_patch_of_one_pixel_is_normalised_without_division_by_zero():
  np.testing.assert_array_equal(
      losses.normalize_patches(np.full((1, 2, 1), 7.0, np.float32)), 0)


def test_denormalising_undoes_normalising():
  x = patches_of((2, 5, 256))
  back = losses.denormalize_patches(losses.normalize_patches(x), x)
  np.testing.assert_allclose(back, x, atol=1e-5)  # of values up to 15


def test_the_reconstruction_loss_is_the_mean_over_what_was_removed():
  prediction, target = patches_of((3, 7, 4)), patches_of((3, 7, 4), seed=1)
  removed = np.zeros((3, 7), bool)
  removed[0, :3] = removed[1, 2:5] = removed[2, [0, 4, 6]] = True
  values = losses.masked_mse(prediction, target, removed)
  want = [np.mean((prediction[b, removed[b]] - target[b, removed[b]]) ** 2)
          for b in range(3)]
  np.testing.assert_allclose(values, want, rtol=1e-6)
  # The released code's expression over the whole batch.
  error = ((prediction - target) ** 2).mean(-1)
  np.testing.assert_allclose(
      values.mean(), (error * removed).sum() / removed.sum(), rtol=1e-6)
  # What was kept does not matter.
  prediction = np.where(removed[..., None], prediction, np.float32(1e9))
  np.testing.assert_array_equal(
      losses.masked_mse(prediction, target, removed), values)


def test_a_prediction_of_zero_costs_what_the_released_code_says_of_the_target():
  # Of normalised targets it is the unbiased variance times 255/256.
  golden = goldens.read('local_16')
  x = patches.patchify(golden['spectrograms'], config.Patch())
  removed = np.unpackbits(golden['removed'], axis=1).astype(bool)
  target = losses.normalize_patches(x)
  loss = losses.masked_mse(np.zeros_like(x), target, removed)
  silent = np.asarray(x).std(-1) < 1e-3  # padding: constant, so 0
  want = (255 / 256) * (removed & ~silent).sum() / removed.sum()
  np.testing.assert_allclose(loss[0], want, rtol=1e-3)  # from the 1e-6 in std


def info_nce_by_loop(context, target, temperature):
  values = []
  for c, t in zip(context.astype(np.float64), target.astype(np.float64)):
    total = 0.0
    for i in range(len(c)):
      scores = [c[i] @ t[j] / temperature for j in range(len(t))]
      total -= np.log(np.exp(scores[i]) / np.sum(np.exp(scores)))
    values.append(total / len(c))
  return values


@pytest.mark.parametrize('temperature', [1.0, 0.3])
def test_the_contrastive_loss_equals_a_plain_loop(temperature):
  context, target = patches_of((2, 9, 6)) / 3, patches_of((2, 9, 6), seed=1) / 3
  np.testing.assert_allclose(
      losses.info_nce(context, target, temperature),
      info_nce_by_loop(context, target, temperature),
      rtol=1e-5)  # float32 exponentials of sums of 9


def test_the_contrastive_loss_ranges_from_none_to_that_of_a_guess():
  same = np.ones((1, 8, 4), np.float32)
  np.testing.assert_allclose(losses.info_nce(same, same), np.log(8), rtol=1e-6)
  own = 100 * np.eye(8, dtype=np.float32)[None]
  assert losses.info_nce(own, own) == 0
  assert np.isfinite(losses.info_nce(1e3 * own, own)).all()


def test_losses_are_float32_whatever_comes_in():
  x = jnp.asarray(patches_of((2, 5, 16)), jnp.bfloat16)
  removed = np.ones((2, 5), bool)
  for value in (losses.normalize_patches(x), losses.denormalize_patches(x, x),
                losses.masked_mse(x, x, removed), losses.info_nce(x, x)):
    assert value.dtype == jnp.float32
  # The cast comes first: bfloat16 sums of 16 values would be off by 1e-2.
  np.testing.assert_allclose(
      losses.normalize_patches(x),
      losses.normalize_patches(x.astype(jnp.float32)), rtol=1e-6)


def labels_of(shape, seed=2):
  return np.random.default_rng(seed).integers(0, 2, shape).astype(np.float32)


def test_binary_cross_entropy_equals_the_closed_form():
  logits, targets = patches_of((4, 7)).astype(np.float64), labels_of((4, 7))
  chance = 1 / (1 + np.exp(-logits))
  want = -np.mean(
      targets * np.log(chance) + (1 - targets) * np.log(1 - chance), axis=1)
  got = losses.bce(jnp.asarray(logits, jnp.float32), targets)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  np.testing.assert_allclose(
      losses.bce(np.zeros((2, 5), np.float32), labels_of((2, 5))), np.log(2),
      rtol=1e-6)
  # Soft targets weigh both answers.
  half = losses.bce(np.full((1, 3), 2.0), np.full((1, 3), 0.5))
  np.testing.assert_allclose(half, np.log1p(np.exp(2.0)) - 1, rtol=1e-6)


def test_cross_entropy_equals_the_closed_form():
  logits = patches_of((4, 7)).astype(np.float64)
  targets = np.random.default_rng(3).dirichlet(np.ones(7), 4)
  chance = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  want = -(targets * np.log(chance)).sum(1)
  np.testing.assert_allclose(
      losses.ce(jnp.asarray(logits, jnp.float32), targets), want, rtol=1e-5)
  np.testing.assert_allclose(
      losses.ce(np.zeros((1, 5), np.float32), np.eye(5)[:1]), np.log(5),
      rtol=1e-6)


@pytest.mark.parametrize('name, right, wrong', [
    ('bce', 0, 1e4), ('ce', 0, 2e4)])  # ce: a distance of 2e4 between classes
def test_extreme_logits_cost_what_they_should(name, right, wrong):
  loss = losses.CLASSIFICATION[name]
  logits = np.array([[1e4, -1e4], [-1e4, 1e4]], np.float32)
  targets = np.array([[1, 0], [1, 0]], np.float32)
  np.testing.assert_allclose(loss(logits, targets), [right, wrong], rtol=1e-6)
  gradient = jax.grad(lambda x: loss(x, targets).sum())(logits)
  assert np.isfinite(gradient).all() and gradient[1].any()


def test_losses_of_classification_are_float32_whatever_comes_in():
  logits = jnp.asarray(patches_of((2, 300)), jnp.bfloat16)
  targets = jnp.asarray(labels_of((2, 300)), jnp.bfloat16)
  for loss in losses.CLASSIFICATION.values():
    value = loss(logits, targets)
    assert value.shape == (2,) and value.dtype == jnp.float32
    np.testing.assert_allclose(
        value, loss(logits.astype(jnp.float32), targets.astype(jnp.float32)),
        rtol=1e-6)


def test_smoothed_labels_keep_their_sum():
  one_hot = np.eye(5, dtype=np.float32)
  np.testing.assert_allclose(
      losses.smooth(one_hot, 0.1), 0.9 * one_hot + 0.02, rtol=1e-6)
  np.testing.assert_array_equal(losses.smooth(one_hot, 0.0), one_hot)


@pytest.mark.parametrize('smoothing', [-0.1, 1.0])
def test_a_smoothing_that_leaves_no_label_is_refused(smoothing):
  with pytest.raises(ValueError, match=re.escape(
      f'labels.smoothing={smoothing:g} is the share of a label that all '
      'classes divide: give 0 (off) or more, below 1.')):
    losses.smooth(np.eye(2), smoothing)
