"""Every implementation of attention gives what its reference gives."""

import functools
import json
import pathlib
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from audio_mae_jax import config as config_lib
from audio_mae_jax import meta
from audio_mae_jax import sharding
from audio_mae_jax import step
from audio_mae_jax.models import attention
from audio_mae_jax.models import pointwise
from audio_mae_jax.models import window
from audio_mae_jax.models import window_kernel
from benchmarks import attention as benchmark

# As they run here: a kernel interpreted, cuDNN's place taken by jax's own.
RUNS = {
    'windows': attention.WINDOWS['windows'],
    'blocks': attention.WINDOWS['blocks'],
    'cudnn': functools.partial(
        attention.dot_product_windows, implementation='xla'),
    'pallas': functools.partial(window_kernel.attend, interpret=True),
}
OTHERS = ['blocks', 'cudnn', 'pallas']
CASES = {  # B, grid, window, shift, H, D / H
    'odd numbers of clips and windows, shifted': (
        3, (12, 4), (4, 4), (2, 2), 2, 16),
    'not shifted': (2, (8, 4), (4, 4), (0, 0), 2, 8),
    'more clips than a program takes, windows that fill the grid': (
        9, (4, 4), (4, 4), (2, 2), 1, 32),
    'windows and heads that need padding': (
        1, (12, 6), (6, 6), (2, 2), 3, 24),
}
SHIFTED, PLAIN, FILLED, PADDED = CASES
PARTS = ('value', 'q', 'k', 'v', 'bias', 'tau')


def inputs(case, scale=1.0):
  """Projection [B, W, L, 3, D], bias, temperature, and weights of a sum."""
  b, grid, size, _, heads, channels = CASES[case]
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  n = size[0] * size[1]
  w = grid[0] * grid[1] // n
  qkv = scale * draw(b, w, n, 3, heads * channels)
  return (qkv, draw(heads, n, n), np.linspace(0.1, 1, heads, dtype=np.float32),
          draw(b, w, n, heads * channels))


@functools.cache
def compiled(name, case, dtype):
  _, grid, size, shift, heads, _ = CASES[case]
  mask = window.shift_mask(grid, *window.fit_window(grid, size, shift))

  def loss(qkv, bias, tau, weight):
    y = RUNS[name](qkv.reshape(*qkv.shape[:3], -1).astype(dtype), heads, bias,
                   tau, mask)
    assert y.dtype == dtype
    return (y.astype(jnp.float32) * weight).sum(), y

  return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))


def run(name, case, dtype='float32', *, arrays=None):
  """The result, and gradients by q, k and v (apart), bias and temperature."""
  arrays = inputs(case) if arrays is None else arrays
  (_, y), (qkv, *others) = compiled(name, case, jnp.dtype(dtype))(*arrays)
  return {part: np.asarray(x, np.float64) for part, x in zip(
      PARTS, (y, *jnp.moveaxis(qkv, 3, 0), *others), strict=True)}


def distance(a, b):
  """Largest difference, relative to the largest number of `b`."""
  return np.abs(a - b).max() / np.abs(b).max()


def assert_close(got, want, tolerance, parts=PARTS):
  for part in parts:  # that of the temperature is a sum that nearly cancels
    error = distance(got[part], want[part])
    assert error < tolerance * (10 if part == 'tau' else 1), (part, error)


@pytest.mark.parametrize('name, case', [
    ('blocks', SHIFTED), ('blocks', PLAIN),
    ('cudnn', SHIFTED), ('cudnn', FILLED),
    ('pallas', SHIFTED), ('pallas', FILLED), ('pallas', PADDED)])
def test_windows_are_attended_in_as_by_the_reference(name, case):
  assert_close(run(name, case), run('windows', case), 1e-5)


@pytest.mark.parametrize('name', ['windows', 'cudnn', 'pallas'])
def test_in_bfloat16_results_are_those_of_float32_rounded(name):
  qkv, *others = inputs(SHIFTED)
  rounded = (np.asarray(jnp.asarray(qkv, jnp.bfloat16), np.float32), *others)
  want = run('windows', SHIFTED, arrays=rounded)
  # A bfloat16 number has 8 bits, 0.4 %; cosines over a temperature of 0.1 grow.
  assert_close(run(name, SHIFTED, 'bfloat16', arrays=rounded), want, 0.02)


@pytest.mark.parametrize('name', OTHERS)
def test_vectors_of_no_length_and_of_hardly_any(name):
  qkv, *others = inputs(SHIFTED)
  qkv[0, :, :4, :2] = 0
  qkv[1, :, 4:9, 0] *= 1e-5  # products below 1e-6, where the floor reigns
  qkv[1, :, :, 1] *= 1e-2
  want = run('windows', SHIFTED, arrays=(qkv, *others))
  got = run(name, SHIFTED, arrays=(qkv, *others))
  assert all(np.isfinite(x).all() for x in (*want.values(), *got.values()))
  if name == 'cudnn':
    assert distance(got['value'][0], want['value'][0]) < 1e-5
  else:
    assert_close(got, want, 2e-5)


def test_cudnn_has_its_floor_under_each_length():
  """Lengths of 4e-4 have a cosine there; in the reference they lose most."""
  small, large = inputs(SHIFTED, 1e-4), inputs(SHIFTED)
  small[0][..., 2, :] = large[0][..., 2, :]
  want = run('windows', SHIFTED)['value']
  assert distance(
      run('cudnn', SHIFTED, arrays=small)['value'], want) < 1e-5
  for name in ('windows', 'blocks', 'pallas'):
    assert distance(run(name, SHIFTED, arrays=small)['value'], want) > 0.1


# As they run here: cuDNN's place taken by jax's own.
FULL_RUNS = {
    'xla': attention.FULL['xla'],
    'by_head': attention.FULL['by_head'],
    'cudnn': functools.partial(
        attention.dot_product_full, implementation='xla'),
}


def test_every_implementation_is_tested():
  assert FULL_RUNS.keys() == attention.FULL.keys()
  assert RUNS.keys() == attention.WINDOWS.keys()


@pytest.mark.parametrize('name', FULL_RUNS)
@pytest.mark.parametrize('tokens', [8, 9])
def test_tokens_behind_the_length_of_a_clip_are_not_attended_to(name, tokens):
  qkv = np.random.default_rng(0).normal(size=(2, tokens, 48)).astype(np.float32)
  found = FULL_RUNS[name](qkv, 2, lengths=jnp.array([5, tokens], jnp.int32))
  for row, clip, length in zip(found, qkv, (5, tokens)):
    np.testing.assert_allclose(
        row[:length], attention.full(clip[None, :length], 2)[0], atol=1e-6)


@pytest.mark.parametrize('name', ['by_head', 'cudnn'])
@pytest.mark.parametrize('length', [16, 103])
def test_all_tokens_are_attended_to_as_by_the_reference(name, length):
  rng = np.random.default_rng(0)
  qkv = rng.normal(size=(2, length, 3 * 32)).astype(np.float32)
  weight = rng.normal(size=(2, length, 32)).astype(np.float32)

  def value_and_gradient(run):
    def loss(qkv):
      y = run(qkv, 2)
      return (y * weight).sum(), y
    return jax.tree.leaves(
        jax.jit(jax.value_and_grad(loss, has_aux=True))(qkv))

  for a, b in zip(value_and_gradient(FULL_RUNS[name]),
                  value_and_gradient(FULL_RUNS['xla'])):
    assert distance(a, b) < 1e-5


@pytest.mark.parametrize('name', ['by_head', 'cudnn'])
def test_in_bfloat16_all_tokens_are_those_of_the_reference_rounded(name):
  qkv = jnp.asarray(np.random.default_rng(0).normal(size=(2, 33, 96)),
                    jnp.bfloat16)
  found = FULL_RUNS[name](qkv, 2)
  assert found.dtype == jnp.bfloat16
  want = FULL_RUNS['xla'](qkv.astype(jnp.float32), 2)
  # 8 bits: of the weights, and of the result.
  assert distance(found.astype(jnp.float32), want) < 0.01


def test_on_several_devices_each_goes_through_the_heads_of_its_own_clips():
  mesh = sharding.make_mesh(config_lib.Mesh(data=4, fsdp=2), 8)
  qkv = np.random.default_rng(0).normal(size=(8, 9, 48)).astype(np.float32)
  lengths = np.arange(2, 10, dtype=np.int32)
  rows = sharding.batch(mesh)
  split = sharding.jit(
      mesh, lambda qkv, lengths: attention.full(qkv, 2, 'by_head', lengths),
      in_shardings=(rows, rows)).lower(qkv, lengths).compile()
  assert not re.search('all-gather|all-to-all|permute', split.as_text())
  np.testing.assert_allclose(
      split(qkv, lengths), FULL_RUNS['xla'](qkv, 2, lengths), atol=1e-6)


@pytest.mark.parametrize('tokens, together', [(103, 1), (51, 3 * 2)])
def test_on_a_cpu_many_tokens_have_the_scores_of_one_head_at_a_time(
    tokens, together):
  """Forth and back."""
  mesh = sharding.make_mesh(config_lib.Mesh(), 3, jax.devices()[:1])
  gradient = jax.grad(lambda qkv: attention.full(qkv, 2).sum())
  qkv = jax.ShapeDtypeStruct((3, tokens, 96), jnp.float32)
  text = sharding.jit(mesh, gradient).lower(qkv).compile().as_text()
  scores = [np.prod(sizes) for sizes in (
      tuple(map(int, x.split(',')))
      for x in re.findall(r'f32\[([\d,]+)\]', text)) if (
          sizes[-2:] == (tokens, tokens))]
  assert max(scores) == together * tokens**2


@pytest.mark.parametrize('windows, patches, together', [
    (32, 16, 8), (2, 16, 2), (6, 36, 3), (34, 36, 2), (7, 16, 7), (11, 16, 1),
    (4, 256, 1)])
def test_windows_share_a_tile_of_128_tokens(windows, patches, together):
  assert attention.windows_at_once(windows, patches) == together


def shapes(clips, dtype):
  """Arguments of the released decoder, and the mask of its shifted windows."""
  return (jax.ShapeDtypeStruct((clips, 32, 16, 3 * 512), dtype),
          jax.ShapeDtypeStruct((16, 16, 16), jnp.float32),
          jax.ShapeDtypeStruct((16,), jnp.float32),
          window.shift_mask((64, 8), (4, 4), (2, 0)))


def mesh_of(device_kind, platform):
  """One device of this kind, which need not be there."""
  return jax.sharding.AbstractMesh(
      (1, 1), ('data', 'fsdp'), abstract_device=jax.sharding.AbstractDevice(
          device_kind=device_kind, num_cores=None, platform=platform))


def test_the_kernel_is_lowered_for_gpus_at_the_released_size():
  *arrays, mask = shapes(512, jnp.bfloat16)

  def loss(qkv, bias, tau):
    y = attention.windows(qkv, 16, bias, tau, mask, 'pallas')
    return jnp.square(y.astype(jnp.float32)).sum()

  with jax.sharding.use_abstract_mesh(mesh_of('NVIDIA H100', 'gpu')):
    lowered = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*arrays).lower(
        lowering_platforms=('cuda',))
  text = lowered.as_text()
  calls = [line for line in text.splitlines() if '__gpu$xla.gpu.tri' in line]
  assert len(calls) == 2, len(calls)
  # Forth and back it reads the projection itself, not thirds of it.
  assert all('tensor<512x32x16x3x512xbf16>' in line for line in calls)


def test_on_several_devices_the_kernel_works_on_the_clips_of_each():
  mesh = sharding.make_mesh(config_lib.Mesh(data=4, fsdp=2), 8)
  qkv, bias, tau, weight = (
      x[:1].repeat(8, 0) if x.ndim > 3 else x for x in inputs(SHIFTED))
  qkv *= np.linspace(1, 2, 8, dtype=np.float32)[:, None, None, None, None]
  gradient = jax.grad(lambda run, *args: (run(
      args[0].reshape(*args[0].shape[:3], -1), 2, *args[1:], None)
      * weight).sum(), (1, 2, 3))
  split = jax.jit(
      sharding.known(mesh, functools.partial(gradient, RUNS['pallas'])),
      in_shardings=(sharding.batch(mesh), None, None)
  ).lower(qkv, bias, tau).compile()
  # No clip leaves its device; gradients of bias and temperature are summed.
  text = split.as_text()
  assert 'all-gather' not in text and 'all-reduce' in text
  want = jax.jit(functools.partial(gradient, RUNS['windows']))(qkv, bias, tau)
  for a, b in zip(split(qkv, bias, tau), want):
    assert distance(np.asarray(a), np.asarray(b)) < 1e-4


@pytest.mark.parametrize('platform, together', [
    ('tpu', 8), ('gpu', 0), ('cpu', 1)])
def test_the_platform_is_that_of_the_devices_made_known(platform, together):
  *arrays, mask = shapes(2, jnp.float32)
  with jax.sharding.use_abstract_mesh(mesh_of('NVIDIA H200', platform)):
    text = str(jax.make_jaxpr(
        lambda *args: attention.windows(args[0], 16, *args[1:], mask))(*arrays))
  assert ('pallas_call' in text) == (platform == 'gpu')
  if together:
    tokens = 16 * together
    assert f'f32[2,{32 // together},16,{tokens},{tokens}]' in text
  assert 'platform_index' not in text and 'cond' not in text


@pytest.mark.parametrize('kind, capability, dtype, fused', [
    ('NVIDIA H100', '9.0', 'bfloat16', True),
    ('NVIDIA H100', '9.0', 'float32', False),
    ('Tesla T4', '7.5', 'bfloat16', False),
    ('NVIDIA T4', '7.5', 'bfloat16', False),
    ('AMD Instinct MI300X', 'gfx942', 'bfloat16', False)])
def test_auto_takes_kernels_where_they_work(
    kind, capability, dtype, fused, monkeypatch):
  monkeypatch.setitem(attention.FULL, 'cudnn', lambda qkv, heads: None)
  monkeypatch.setattr(jax, 'local_devices', lambda: [types.SimpleNamespace(
      device_kind=kind, compute_capability=capability)])
  qkv, x = (jax.ShapeDtypeStruct(sizes, dtype) for sizes in (
      (2, 16, 96), (2, 64)))
  scale = jax.ShapeDtypeStruct((64,), jnp.float32)
  with jax.sharding.use_abstract_mesh(mesh_of(kind, 'gpu')):
    found = jax.eval_shape(lambda qkv: attention.full(qkv, 2), qkv)
    norm = str(jax.make_jaxpr(pointwise.layer_norm)(x, scale, scale))
  assert (found is None) == fused
  assert ('pallas_call' in norm) == (capability == '9.0')


@pytest.mark.parametrize('overrides, message', [
    ({'model.attention': 'pallas'}, "model.attention='pallas' needs a GPU, and "
     "this program is for devices of platform 'cpu'. Set model.attention to "
     'one of auto, xla, by_head, blocks.'),
    ({'model.attention': 'cudnn', 'model.dtype': 'bfloat16'},
     "model.attention='cudnn' needs a GPU"),
])
def test_what_cannot_run_on_the_devices_is_refused_as_the_step_is_built(
    overrides, message):
  settings = tiny.config(tiny.MODEL, {'train.batch_size': 8, **overrides})
  with pytest.raises(ValueError, match=re.escape(message)):
    step.build(settings, 1)


def test_a_run_may_go_on_with_another_implementation():
  of = lambda name: meta.of(tiny.config({'model.attention': name}), {})
  meta.check(of('xla'), of('pallas'), pathlib.Path('runs/x/checkpoints'))


@pytest.mark.parametrize('shape, dtype, message', [
    ((2, 16, 96), 'float32', 'model.attention=cudnn computes in bfloat16, and '
     'model.dtype is float32. Set model.dtype=bfloat16, or'),
    ((2, 16, 60), 'bfloat16', 'model.attention=cudnn takes heads of at most '
     '128 channels and a multiple of 8, not 10. Set another number of heads'),
    ((1, 3, 9, 96), 'bfloat16', 'model.attention=cudnn takes an even number of '
     'patches, and 3 windows of 9 are 27. Set another model.decoder.window'),
])
def test_what_cudnn_does_not_take_is_refused(shape, dtype, message):
  qkv = jnp.zeros(shape, dtype)
  with pytest.raises(ValueError, match=re.escape(message)):
    if len(shape) == 3:
      attention.full(qkv, 2, 'cudnn')
    else:
      attention.windows(qkv, 2, jnp.zeros((2, 9, 9)), jnp.ones(2), None,
                        'cudnn')


SMALL = ['--kind=full', '--clips=1', '--tokens=5', '--width=16', '--heads=2',
         '--rounds=1', '--dtype=float32']


def test_the_benchmark_compares_what_runs_and_says_what_does_not(
    tmp_path, capsys):
  benchmark.main([*SMALL, f'--output={tmp_path / "x.json"}'])
  found = json.loads((tmp_path / 'x.json').read_text())['results']['5 tokens']
  assert found['xla']['forward']['ratio'] == [1, 1, 1]
  assert found['xla']['forward and backward']['gflop'] > 0
  assert 'model.dtype=bfloat16' in found['cudnn']['refused']
  assert 'cudnn: does not run here' in capsys.readouterr().out


def raises(error):
  def run(*_):
    raise error
  return run


@pytest.mark.parametrize('name, run, backend', [
    # What compilers say when a kernel does not compile.
    ('cudnn', raises(jax.errors.JaxRuntimeError('INTERNAL: ptxas')), 'gpu'),
    ('cudnn', raises(ValueError('shapes differ')), 'gpu'),
    # It is for every device.
    ('blocks', raises(RuntimeError('no memory')), 'cpu'),
    # Runs, and gives what is no number.
    ('cudnn', lambda qkv, heads: jnp.nan * qkv[..., :16], 'gpu')])
def test_the_benchmark_fails_if_an_implementation_does(
    name, run, backend, monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  monkeypatch.setattr(attention, 'FULL', {
      'xla': attention.FULL['xla'], name: run})
  with pytest.raises(SystemExit, match=f'5 tokens: {name}'):
    benchmark.main(SMALL)


def test_what_the_package_refuses_is_no_failure_on_a_gpu(monkeypatch, capsys):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  benchmark.main(SMALL)  # cuDNN in float32
  assert 'cudnn: does not run here' in capsys.readouterr().out
