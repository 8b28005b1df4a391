"""Norm and activation: values, gradients, and what is kept for them."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from audio_mae_jax.models import pointwise


def gradients(fn, *args):
  """Of a sum with weights, so that no two entries count alike."""
  weights = jnp.sin(jnp.arange(args[0].size, dtype=jnp.float32))
  return jax.grad(
      lambda *args: (fn(*args).astype(jnp.float32).ravel() * weights).sum(),
      argnums=tuple(range(len(args))))(*args)


def test_gelu_is_exact_far_out_too():
  x = np.linspace(-9, 9, 2001)
  want = x * scipy.special.ndtr(x)
  np.testing.assert_allclose(
      pointwise.gelu(jnp.asarray(x, jnp.float32)), want, rtol=2e-6, atol=1e-6)


def test_gelu_has_the_gradient_of_the_exact_one():
  x = np.linspace(-9, 9, 2001)
  density = np.exp(-x**2 / 2) / np.sqrt(2 * np.pi)
  want = scipy.special.ndtr(x) + x * density
  found = jax.vmap(jax.grad(pointwise.gelu))(jnp.asarray(x, jnp.float32))
  np.testing.assert_allclose(found, want, rtol=2e-6, atol=1e-6)


@pytest.fixture
def norm():
  """Of rows far from zero, where a difference of means would lose digits."""
  x = 100 + jax.random.normal(jax.random.key(0), (3, 5, 64))
  scale, bias = 1 + jax.random.normal(jax.random.key(1), (2, 64))
  return x, scale, bias


def flax_norm(x, scale, bias):
  return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False).apply(
      {'params': {'scale': scale, 'bias': bias}}, x)


def test_layer_norm_is_that_of_flax(norm):
  np.testing.assert_allclose(
      pointwise.layer_norm(*norm), flax_norm(*norm), rtol=1e-5, atol=1e-5)


def test_layer_norm_has_the_gradients_of_flax(norm):
  for found, want in zip(gradients(pointwise.layer_norm, *norm),
                         gradients(flax_norm, *norm)):
    np.testing.assert_allclose(
        found, want, rtol=0, atol=2e-5 * np.abs(want).max())


def test_a_constant_row_has_finite_gradients():
  found = gradients(
      pointwise.layer_norm, jnp.ones((2, 8)), jnp.ones(8), jnp.zeros(8))
  assert all(np.isfinite(x).all() for x in found)


@pytest.mark.parametrize('fn', [
    pointwise.gelu,
    lambda x: pointwise.layer_norm(x, jnp.ones(64), jnp.zeros(64))],
    ids=['gelu', 'layer_norm'])
def test_bfloat16_is_rounded_once(fn):
  x = jax.random.normal(jax.random.key(2), (4, 64)).astype(jnp.bfloat16)
  wide = x.astype(jnp.float32)
  found = fn(x)
  assert found.dtype == jnp.bfloat16
  np.testing.assert_array_equal(found, fn(wide).astype(jnp.bfloat16))
  (back,), (want,) = gradients(fn, x), gradients(fn, wide)
  assert back.dtype == jnp.bfloat16
  np.testing.assert_allclose(
      back.astype(np.float32), want, rtol=2**-8, atol=2**-8)


@pytest.mark.parametrize('fn', [
    pointwise.gelu,
    lambda x: pointwise.layer_norm(x, jnp.ones(64), jnp.zeros(64))],
    ids=['gelu', 'layer_norm'])
def test_only_the_input_is_kept(fn):
  x = jax.ShapeDtypeStruct((4, 64), jnp.bfloat16)
  kept = jax.eval_shape(lambda x: jax.vjp(fn, x)[1], x)
  large = [leaf for leaf in jax.tree.leaves(kept) if leaf.size > 64]
  assert [(leaf.shape, leaf.dtype) for leaf in large] == [
      (x.shape, x.dtype)]
