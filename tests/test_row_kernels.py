"""Kernels for norm and GELU: interpreted, against what they stand for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from audio_mae_jax import config as config_lib
from audio_mae_jax import sharding
from audio_mae_jax.models import pointwise
from audio_mae_jax.models import row_kernels

SHAPES = [(16, 512), (4, 7, 192), (2, 3, 4, 64), (37, 128)]
# As the released model has them, and with one row for each program.
RELEASED = [(8, 103, 768), (8, 512, 512), (37, 768), (8, 512, 2048)]
ON = [(shape, True) for shape in SHAPES] + [
    pytest.param(shape, False, marks=pytest.mark.gpu) for shape in RELEASED]
# Of numbers that were rounded once more, or in another order.
TOLERANCE = {'float32': 1e-5, 'bfloat16': 2**-7}


def arrays(shape, dtype, count):
  """Far from zero, so that a difference of means would lose digits."""
  keys = jax.random.split(jax.random.key(0), count)
  return [(3 + jax.random.normal(key, shape)).astype(dtype) for key in keys]


def check(found, want, dtype):
  for x, y in zip(found, want, strict=True):
    assert x.shape == y.shape and x.dtype == y.dtype
    y = np.asarray(y, np.float64)
    np.testing.assert_allclose(
        np.asarray(x, np.float64), y, rtol=0,
        atol=TOLERANCE[dtype] * np.abs(y).max())


@pytest.mark.parametrize('shape, interpret', ON)
@pytest.mark.parametrize('dtype, added', [
    ('float32', True), ('bfloat16', True), ('float32', False),
    pytest.param('bfloat16', False, marks=pytest.mark.slow)])
def test_norm_and_its_gradients(shape, dtype, added, interpret):
  x, gradient, add = arrays(shape, dtype, 3)
  scale, bias = 1 + jax.random.normal(jax.random.key(1), (2, shape[-1]))
  add = add if added else None
  want, back = jax.vjp(pointwise.layer_norm, x, scale, bias, add)
  found = row_kernels.norm(
      x, scale, bias, add, pointwise.EPSILON, interpret=interpret)
  check([found], [want], dtype)
  check(row_kernels.norm_back(
      x, scale, gradient, pointwise.EPSILON, interpret=interpret),
      back(gradient)[:3], dtype)


@pytest.mark.parametrize('shape, interpret', ON)
def test_gelu_and_its_gradient(shape, interpret):
  x, gradient = arrays(shape, 'bfloat16', 2)
  want, back = jax.vjp(pointwise.gelu, x)
  of_x, = back(gradient)
  check(row_kernels.gelu_back(x, gradient, interpret=interpret),
        [want, of_x, pointwise._total(of_x)], 'bfloat16')


def test_gelu_is_off_by_little_beside_rounding():
  """By 4.3e-5 of what it is, far out too, where it is nearly nothing."""
  x = jnp.linspace(-12, 12, 20001)
  exact = np.asarray(x, np.float64)
  cumulated = scipy.special.ndtr(exact)
  found, slope = row_kernels.gelu(x)
  np.testing.assert_allclose(found, exact * cumulated, rtol=5e-5, atol=1e-36)
  density = np.exp(-exact**2 / 2) / np.sqrt(2 * np.pi)
  np.testing.assert_allclose(slope, cumulated + exact * density, atol=3e-5)


def test_on_several_devices_each_has_its_own_rows():
  mesh = sharding.make_mesh(config_lib.Mesh(), 8, jax.devices()[:4])
  x, gradient = arrays((8, 3, 64), 'float32', 2)
  scale = jnp.linspace(0.5, 2, 64)
  run = functools.partial(
      row_kernels.norm_back, epsilon=pointwise.EPSILON, interpret=True)
  rows, whole = sharding.batch(mesh), sharding.replicated(mesh)
  program = sharding.jit(
      mesh, lambda x, scale, g: run(x, scale, g),
      in_shardings=(rows, whole, rows)).lower(x, scale, gradient).compile()
  assert 'all-gather' not in program.as_text()
  args = [jax.device_put(*pair) for pair in (
      (x, rows), (scale, whole), (gradient, rows))]
  check(program(*args), run(x, scale, gradient), 'float32')


@pytest.mark.parametrize('channels, taken', [
    (768, True), (192, True), (1280, True), (32, False), (100, False)])
def test_what_has_no_wide_pieces_is_left_to_the_compiler(channels, taken):
  assert row_kernels.takes((2, channels)) == taken


@pytest.fixture
def on_a_gpu(monkeypatch):
  """Norm and MLP take their kernels, which are interpreted."""
  for name in ('norm', 'norm_back', 'gelu_back'):
    monkeypatch.setattr(row_kernels, name, functools.partial(
        getattr(row_kernels, name), interpret=True))
  monkeypatch.setattr(pointwise, '_kernels', lambda x: row_kernels)


def gradients(fn, *args):
  y, back = jax.vjp(fn, *args)
  return [y, *jax.tree.leaves(back(jnp.cos(
      jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape).astype(y.dtype)))]


def test_norm_and_mlp_are_the_same_with_kernels(request):
  x, add = arrays((3, 5, 64), 'bfloat16', 2)
  draw = lambda key, *shape: jax.random.normal(jax.random.key(key), shape) / 8
  scale, bias = 1 + draw(0, 64), draw(1, 64)
  fc1 = draw(2, 64, 128).astype('bfloat16'), draw(3, 128)
  fc2 = draw(4, 128, 64).astype('bfloat16'), draw(5, 64)
  calls = [(pointwise.layer_norm, x, scale, bias, add),
           (pointwise.mlp, x, fc1, fc2)]
  want = [gradients(*call) for call in calls]
  request.getfixturevalue('on_a_gpu')
  for call, result in zip(calls, want):
    assert 'pallas_call' in str(jax.make_jaxpr(gradients, static_argnums=0)(
        *call))
    check(gradients(*call), result, 'bfloat16')
