"""Norm and activation: values, gradients, and what is kept for them."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from audio_mae_jax import config
from audio_mae_jax import sharding
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


def test_a_sum_with_the_norm_is_rounded_once(norm):
  x, scale, bias = norm
  add = jax.random.normal(jax.random.key(3), x.shape)
  found = pointwise.layer_norm(x, scale, bias, add)
  want = pointwise.layer_norm(x, scale, bias) + add
  np.testing.assert_array_equal(found, want)
  low = [y.astype(jnp.bfloat16) for y in (x, add)]
  np.testing.assert_array_equal(
      pointwise.layer_norm(low[0], scale, bias, low[1]),
      pointwise.layer_norm(
          *(y.astype(jnp.float32) for y in (low[0], scale, bias, low[1]))
      ).astype(jnp.bfloat16))


def layers(dtype):
  """An input, and the kernel and bias of two layers."""
  keys = jax.random.split(jax.random.key(4), 5)
  draw = lambda key, *shape: jax.random.normal(key, shape)
  return (draw(keys[0], 3, 5, 8).astype(dtype),
          draw(keys[1], 8, 32).astype(dtype), draw(keys[2], 32),
          draw(keys[3], 32, 8).astype(dtype), draw(keys[4], 8))


def test_mlp_has_values_and_gradients_of_its_parts():
  args = layers(jnp.float32)
  mlp = lambda x, k1, b1, k2, b2: pointwise.mlp(x, (k1, b1), (k2, b2))
  parts = lambda x, k1, b1, k2, b2: jax.nn.gelu(
      x @ k1 + b1, approximate=False) @ k2 + b2
  np.testing.assert_allclose(mlp(*args), parts(*args), rtol=1e-5, atol=1e-5)
  for found, want in zip(gradients(mlp, *args), gradients(parts, *args)):
    np.testing.assert_allclose(
        found, want, rtol=0, atol=2e-5 * np.abs(want).max())


@pytest.mark.parametrize('channels', [(8, 32), (32, 8), (8, 8)])
@pytest.mark.parametrize('leading', [(), (6,), (2, 3), (4, 2, 3)])
def test_products_for_a_cpu_have_the_gradients_of_others(leading, channels):
  keys = jax.random.split(jax.random.key(5), 4)
  args = [jax.random.normal(key, shape) for key, shape in zip(keys, (
      (*leading, channels[0]), channels, channels[1:],
      (*leading, channels[1])))]
  back = lambda x, kernel, bias, gradient: jax.vjp(
      pointwise.affine, x, kernel, bias)[1](gradient)
  mesh = sharding.make_mesh(config.Mesh(), 1, jax.devices()[:1])
  found = sharding.jit(mesh, back)(*args)
  for got, want in zip(found, back(*args), strict=True):
    # Sums in another order, of numbers up to those here.
    np.testing.assert_allclose(
        got, want, rtol=0, atol=1e-6 * np.abs(want).max())


def test_gradients_of_biases_are_sums_in_float32():
  """4096 ones: bfloat16 cannot count beyond 256."""
  x = jnp.zeros((64, 64, 8), jnp.bfloat16)
  _, k1, b1, k2, b2 = layers(jnp.bfloat16)
  total = lambda y: y.astype(jnp.float32).sum()
  of_b1, of_b2 = jax.grad(
      lambda b1, b2: total(pointwise.mlp(x, (k1, b1), (k2, b2))), (0, 1))(
          jnp.full_like(b1, 9), b2)
  np.testing.assert_array_equal(of_b2, 4096)
  of_b = jax.grad(lambda b: total(pointwise.affine(x, k1, b)))(b1)
  np.testing.assert_array_equal(of_b, 4096)
  # Far out GELU's slope is 1: each counts what fc2's rows sum up to.
  rows = k2.astype(jnp.float32).sum(1).astype(jnp.bfloat16)
  np.testing.assert_allclose(
      of_b1, 4096 * rows.astype(np.float32), rtol=2**-7, atol=4096 * 2**-7)


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
