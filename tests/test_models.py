"""The model: sizes, names, initial values, what options must not change.

Agreement with the released code is in test_parity.py.
"""

import functools
import re

from flax import linen as nn
import goldens
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import tiny

from audio_mae_jax import config
from audio_mae_jax import masking
from audio_mae_jax import tasks
from audio_mae_jax import trees
from audio_mae_jax.models import decoder as decoder_lib
from audio_mae_jax.models import encoder as encoder_lib
from audio_mae_jax.models import layers
from audio_mae_jax.models import window

pytestmark = pytest.mark.usefixtures('compile_once')

DEPTHS = {  # of the paper's table 1c
    'local': {'depth': 16}, 'global': {'depth': 8},
    'hybrid': {'depth': 8, 'global_depth': 4}}
# Trainable parameters with patches of 16 x 16. As in the released code: S, B
# and L with the local decoder, B with the global one (which counts 111,656,448,
# 656,640 of them in frozen position tables).
COUNTS = {
    ('Ti', 'local'): 56_175_360,
    ('Ti', 'global'): 30_839_040,
    ('Ti', 'hybrid'): 43_507_200,
    ('S', 'local'): 72_278_784,
    ('S', 'global'): 46_942_464,
    ('S', 'hybrid'): 59_610_624,
    ('B', 'local'): 136_336_128,
    ('B', 'global'): 110_999_808,
    ('B', 'hybrid'): 123_667_968,
    ('L', 'local'): 353_788_672,
    ('L', 'global'): 328_452_352,
    ('L', 'hybrid'): 341_120_512,
    ('H', 'local'): 681_355_008,
    ('H', 'global'): 656_018_688,
    ('H', 'hybrid'): 668_686_848,
}


def paper(variant, decoder):
  """The paper's configuration with another encoder and decoder."""
  return tiny.config({
      'model.attention': 'xla',  # has no parameters, and one form is traced
      'model.encoder.variant': variant, 'model.decoder.name': decoder,
      **{f'model.decoder.{k}': v for k, v in DEPTHS[decoder].items()}})


@functools.cache
def shapes_of(settings):
  task = tasks.make(settings)
  return trees.flatten(jax.eval_shape(task.init, jax.random.key(0)))


def counted_by_hand(variant, decoder):
  d, depth, _ = encoder_lib.VARIANTS[variant]
  pixels, w, heads = 256, 512, 16
  norm = lambda n: 2 * n
  linear = lambda n, m: n * m + m
  block = lambda n: (2 * norm(n) + linear(n, 3 * n) + linear(n, n)
                     + linear(n, 4 * n) + linear(4 * n, n))
  local = block(w) + heads + linear(2, 384) + linear(384, heads)  # tau, bias
  blocks = {'local': 16 * local, 'global': 8 * block(w),
            'hybrid': 8 * local + 4 * block(w)}[decoder]
  return (d + linear(pixels, d) + depth * block(d) + norm(d)  # encoder
          + linear(d, w) + w + blocks + norm(w) + linear(w, pixels))


def test_every_variant_and_decoder_has_a_row():
  assert COUNTS.keys() == {
      (variant, decoder) for variant in encoder_lib.VARIANTS
      for decoder in decoder_lib.DECODERS}


@pytest.mark.parametrize('variant, decoder', COUNTS)
def test_the_number_of_parameters_is_exact(variant, decoder):
  shapes = shapes_of(paper(variant, decoder))
  assert trees.count(shapes) == COUNTS[variant, decoder]
  assert counted_by_hand(variant, decoder) == COUNTS[variant, decoder]


@pytest.mark.parametrize('decoder, keys', [
    ('local', 'pretrain_keys'), ('global', 'pretrain_global_keys')])
def test_parameters_have_the_released_names_and_shapes(decoder, keys):
  want = {}
  for name, shape, *_ in goldens.table(keys):
    ours = reference.rename(name)
    if ours is not None:
      shape = [int(n) for n in shape.split('x')]
      want[ours] = reference.convert(
          np.broadcast_to(np.float32(0), shape), ours).shape
  shapes = shapes_of(paper('B', decoder))
  got = {name: leaf.shape for name, leaf in shapes.items()}
  assert got == want


def test_initial_values_are_distributed_as_in_the_released_code():
  # Fewer blocks than released; each is as the others.
  settings = tiny.config(
      {'model.encoder.depth': 1, 'model.decoder.depth': 2})
  params = trees.flatten(jax.jit(tasks.make(settings).init)(jax.random.key(0)))
  rows = {reference.rename(name): [float(x) for x in row]
          for name, _, *row in goldens.table('pretrain_init_stats')}
  for name, value in params.items():
    x = np.asarray(value, np.float64).reshape(-1)
    mean, std, low, high, bound = rows[name]
    assert value.dtype == jnp.float32, name
    if std == 0:
      assert (x == mean).all(), name
      continue
    # Two independent samples of x.size numbers each; five deviations.
    error = 5 * std * np.sqrt(2 / x.size)
    assert abs(x.mean() - mean) < error, name
    assert abs(x.std() - std) < error, name  # generous: normal has 1/sqrt(2)
    if name.endswith('token'):  # normal
      assert 2 < np.abs(x).max() / 0.02 < 5
    else:  # uniform
      if name == 'encoder/patch_embed/bias':
        bound = 1 / 16
      assert np.abs(x).max() <= bound * (1 + 1e-6), name
      # None of n uniform numbers in the outer 20/n: e^-20.
      assert np.abs(x).max() > bound * (1 - 20 / x.size), name


GRIDS = {  # grid -> settings
    (8, 8): {},
    (12, 4): {'frontend.num_frames': 96, 'patch.size': (8, 32)},
    (13, 7): {'frontend.num_frames': 104, 'frontend.num_mel_bins': 112},
    (16, 1): {'patch.size': (4, 128)},  # frame patches
    (10, 12): {'frontend.num_frames': 106, 'patch.size': (16, 16),
               'patch.stride': (10, 10), 'model.decoder.window': (6, 6)},
}


@pytest.mark.parametrize('grid', GRIDS)
@pytest.mark.parametrize('decoder', decoder_lib.DECODERS)
def test_every_decoder_predicts_every_patch_of_any_grid(decoder, grid):
  if decoder == 'global':
    overrides = {k: v for k, v in GRIDS[grid].items() if 'window' not in k}
  else:
    overrides = GRIDS[grid]
  settings = tiny.config(tiny.MODEL, {
      **overrides, 'model.decoder.name': decoder,
      'objective.contrastive': 0.2})
  task = tasks.make(settings)
  assert task.grid == grid
  n, pixels = grid[0] * grid[1], np.prod(settings.patch.size)
  keep = masking.num_kept(n, 0.8, 'ratio')

  def run(rng):
    mask = task.draw_mask(rng, 3)
    x = jnp.zeros((3, n, pixels))
    params = task.init(rng)
    return (task.model.apply({'params': params}, x, grid, mask),
            task.model.apply({'params': params}, x, grid, mask, train=True,
                             rngs={'dropout': rng}))

  for output in jax.eval_shape(run, jax.random.key(0)):
    assert output.prediction.shape == (3, n, pixels)
    assert output.context.shape == (3, n - keep, pixels)
    assert output.prediction.dtype == output.context.dtype == jnp.float32


def random_params(shapes):
  """Parameters none of which is zero or one, so that all of them matter."""
  draw = np.random.default_rng(0)
  return jax.tree.map(
      lambda leaf: jnp.asarray(
          draw.normal(1 if leaf.ndim == 1 else 0, 0.2, leaf.shape), leaf.dtype),
      shapes)


# An odd number of alternating blocks leaves one over after the scan.
GRID, DEPTH = (8, 4), 5


@functools.cache
def stacked(**settings):
  """Sum of squares of a stack's output with dropout, and its gradient."""
  stack = layers.Stack(
      lambda i: window.WindowBlock(
          GRID, (4, 4), (2 * (i % 2), 0), heads=2, mlp_ratio=2.0,
          bias_dropout=0.1, dtype=jnp.dtype('float32'), parent=None),
      DEPTH, period=2, **settings)
  x = jnp.asarray(
      np.random.default_rng(0).normal(size=(2, 2, 16, 8)), jnp.float32)

  def loss(params):
    rngs = {'dropout': jax.random.key(1)}
    return jnp.square(stack.apply(
        {'params': params}, x, train=True, rngs=rngs)).sum()

  shapes = jax.eval_shape(stack.init, jax.random.key(0), x)['params']
  value, grads = jax.jit(jax.value_and_grad(loss))(random_params(shapes))
  return float(value), {
      name: np.asarray(leaf) for name, leaf in trees.flatten(grads).items()}


@pytest.mark.parametrize(
    'settings', [
        pytest.param(dict(remat='dots'), marks=pytest.mark.slow),
        dict(scan=True, remat='full')], ids=str)
def test_scanning_and_recomputing_layers_change_no_value(settings):
  value, grads = stacked()
  other_value, other_grads = stacked(**settings)
  # The same operations in another order: float32 rounding.
  assert abs(other_value / value - 1) < 1e-6
  assert grads.keys() == other_grads.keys()
  largest = max(np.abs(leaf).max() for leaf in grads.values())
  for name in grads:
    np.testing.assert_allclose(
        other_grads[name], grads[name], rtol=0, atol=1e-6 * largest,
        err_msg=name)


def test_each_block_starts_as_it_would_alone():
  """Blocks that are alike are drawn at once, each by a key of its own."""
  block = lambda i: layers.Block(2, (2.0, 3.0)[i % 2], jnp.dtype('float32'),
                                 parent=None)
  stack, x = layers.Stack(block, DEPTH, period=2), jnp.zeros((1, 4, 8))
  found = stack.init(jax.random.key(3), x)['params']
  keys = stack.apply({}, rngs={'params': jax.random.key(3)}, method=lambda m: [
      m.make_rng('params') for _ in range(DEPTH)])
  assert list(found) == [f'{i:02d}' for i in range(DEPTH)]
  for i, key in enumerate(keys):
    want = trees.flatten(block(i).init(key, x, train=False)['params'])
    own = trees.flatten(found[f'{i:02d}'])
    assert own.keys() == want.keys()
    for name in want:
      np.testing.assert_allclose(own[name], want[name], rtol=1e-6)


def has_a_block(jaxpr):
  """Its four products at the least; parts of it are recomputed always."""
  inner = getattr(jaxpr, 'jaxpr', jaxpr)
  return sum(eqn.primitive.name == 'dot_general'
             for eqn in primitives(inner)) >= 4


@pytest.mark.parametrize('overrides, scans, recomputed', [
    ({}, 0, 0), ({'scan_layers': True}, 2, 0), ({'remat': 'dots'}, 0, 2 + 2),
    ({'scan_layers': True, 'remat': 'full'}, 2, 2)])
def test_encoder_and_decoder_are_scanned_and_recomputed_as_asked(
    overrides, scans, recomputed):
  sizes = tiny.MODEL | {'model.encoder.depth': 2, 'model.decoder.depth': 4}
  settings = tiny.config(sizes, {f'model.{k}': v for k, v in overrides.items()})
  # The layout of parameters, and so of checkpoints, is always the same.
  assert shapes_of(settings) == shapes_of(tiny.config(sizes))
  task = tasks.make(settings)
  mask = jax.eval_shape(lambda: task.draw_mask(jax.random.key(1), 2))
  inputs = {'patches': jnp.zeros((2, 64, 128)), 'mask': mask}
  jaxpr = jax.make_jaxpr(task.losses)(
      jax.eval_shape(task.init, jax.random.key(0)), inputs)
  found = [eqn for eqn in primitives(jaxpr.jaxpr)
           if eqn.primitive.name in ('scan', 'checkpoint', 'remat2', 'remat')
           and has_a_block(eqn.params['jaxpr'])]
  count = sum(eqn.primitive.name == 'scan' for eqn in found)
  assert (count, len(found) - count) == (scans, recomputed)


def params_of(task):
  return random_params(jax.eval_shape(task.init, jax.random.key(0)))


@functools.cache
def task_and_inputs(dtype):
  task = tasks.make(tiny.config(
      tiny.MODEL, {'model.dtype': dtype, 'objective.contrastive': 0.2}))
  inputs = {
      'patches': jnp.asarray(
          np.random.default_rng(0).normal(size=(2, 64, 128)), jnp.float32),
      'mask': task.draw_mask(jax.random.key(1), 2)}
  return task, inputs


def test_dropout_is_in_the_network_of_relative_positions_only():
  task, inputs = task_and_inputs('float32')
  draw = jax.jit(
      lambda params, seed: task.losses(params, inputs, jax.random.key(seed)))
  params = params_of(task)
  a, b = (draw(params, seed)['loss'] for seed in (0, 1))
  assert (a != b).all()
  # With that network's output switched off, nothing random is left.
  off = trees.map_named(
      lambda name, leaf: leaf * 0 if '/bias/fc2/' in name else leaf, params)
  a, b = (draw(off, seed)['loss'] for seed in (0, 1))
  np.testing.assert_array_equal(a, b)


def primitives(jaxpr):
  """Every equation of a jaxpr, with those of the jaxprs inside."""
  for eqn in jaxpr.eqns:
    yield eqn
    for inner in jax.extend.core.jaxprs_in_params(eqn.params):
      yield from primitives(inner)


def test_in_bfloat16_only_products_and_activations_are_bfloat16():
  task, inputs = task_and_inputs('bfloat16')
  params = jax.eval_shape(task.init, jax.random.key(0))
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {
      np.dtype('float32')}
  jaxpr = jax.make_jaxpr(
      lambda params: task.losses(params, inputs, jax.random.key(0)))(params)
  assert {v.aval.dtype for v in jaxpr.jaxpr.outvars} == {np.dtype('float32')}
  equations = list(primitives(jaxpr.jaxpr))
  dtypes = lambda *names: [
      eqn.invars[0].aval.dtype for eqn in equations
      if eqn.primitive.name in names]
  # Softmax, normalisation statistics, lengths of queries and keys, loss.
  for names in (('exp',), ('log',), ('rsqrt',), ('sqrt',), ('reduce_sum',),
                ('reduce_max',)):
    assert set(dtypes(*names)) == {np.dtype('float32')}, names
  products = dtypes('dot_general')
  # Float32 on purpose: the network of relative positions (2 a block) and the
  # contrastive loss.
  assert products.count(np.dtype('float32')) == 2 * 2 + 1
  # Embeddings and heads 4; blocks: qkv, logits, weighted sum, proj, fc1, fc2.
  # The two of attention in windows stand there twice: once for TPUs.
  assert products.count(np.dtype(jnp.bfloat16)) == 4 + 6 * (1 + 2) + 2 * 2


@pytest.mark.slow
def test_bfloat16_is_close_to_float32():
  outputs = {}
  for dtype in ('float32', 'bfloat16'):
    task, inputs = task_and_inputs(dtype)
    params = params_of(task)
    outputs[dtype] = jax.jit(task.apply)(params, inputs).prediction
    grads = jax.eval_shape(jax.grad(
        lambda params, inputs, task=task: task.losses(
            params, inputs)['loss'].mean()), params, inputs)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {
        np.dtype('float32')}
  full, half = outputs.values()
  error = float(jnp.linalg.norm(half - full) / jnp.linalg.norm(full))
  # A bfloat16 number has 8 bits, 0.4 %; every layer adds a rounding or two.
  assert 1e-4 < error < 0.02, error


def test_all_patches_are_encoded_without_a_mask():
  task, inputs = task_and_inputs('float32')
  params = {'params': params_of(task)}
  x = inputs['patches']
  encode = jax.jit(lambda keep_ids: task.model.apply(
      params, x, task.grid, keep_ids, method='encode'))
  whole = encode(None)
  assert whole.shape == (2, 65, 16)
  # Attention does not mind the order of its keys: rounding only.
  order = jnp.broadcast_to(jnp.arange(64)[::-1], (2, 64))
  np.testing.assert_allclose(
      encode(order)[:, 1:], whole[:, :0:-1], atol=1e-5)


@pytest.mark.parametrize('overrides', [
    {}, {'model.scan_layers': True, 'model.remat': 'dots'}], ids=str)
def test_what_each_block_gives_can_be_had_as_well(overrides):
  model = encoder_lib.make(tiny.config(
      tiny.MODEL | {'model.encoder.depth': 3}, overrides))
  x = jnp.asarray(
      np.random.default_rng(0).normal(size=(2, 64, 128)), jnp.float32)
  params = random_params(jax.eval_shape(
      lambda: model.init(jax.random.key(0), x, (8, 8))))
  keep_ids = jnp.array([[3, 60], [1, 2]])
  normed, blocks = jax.jit(lambda: model.apply(
      params, x, (8, 8), keep_ids, every=True))()
  plain = jax.jit(lambda: model.apply(params, x, (8, 8), keep_ids))()
  np.testing.assert_allclose(normed, plain, atol=1e-6)
  assert [b.shape for b in blocks] == [(2, 3, 16)] * 3
  # Each follows from the one before, and the norm from the last.
  block = layers.Block(2, 4.0, jnp.dtype('float32'))
  apply = jax.jit(lambda params, x: block.apply(params, x, train=False))
  for i in (1, 2):
    of_block = {'params': params['params']['blocks'][f'{i:02d}']}
    np.testing.assert_allclose(
        blocks[i], apply(of_block, blocks[i - 1]), atol=1e-5)
  np.testing.assert_allclose(
      normed, nn.LayerNorm(epsilon=1e-6).apply(
          {'params': params['params']['norm']}, blocks[2]), atol=1e-5)


@pytest.mark.parametrize('grid, size, shift', [
    ((8, 8), (4, 4), (2, 2)), ((12, 8), (4, 4), (2, 0)),
    ((12, 8), (4, 4), (0, 2)), ((12, 12), (6, 3), (3, 1)),
    ((102, 12), (6, 6), (2, 2)), ((4, 8), (2, 8), (1, 0))])
def test_patches_that_only_the_cyclic_shift_joins_do_not_see_each_other(
    grid, size, shift):
  mask = window.shift_mask(grid, size, shift)
  (gt, gf), (wt, wf) = grid, size
  place = lambda w, i: (w // (gf // wf) * wt + i // wf,
                        w % (gf // wf) * wf + i % wf)
  want = np.zeros((gt // wt * (gf // wf), wt * wf, wt * wf), np.float32)
  for w in range(len(want)):
    # Which axes wrapped: the patch at p of the shifted grid is p + shift of
    # the grid, beyond its end or not.
    wrapped = [tuple(p + s >= g for p, s, g in zip(place(w, i), shift, grid))
               for i in range(wt * wf)]
    for i, a in enumerate(wrapped):
      for j, b in enumerate(wrapped):
        want[w, i, j] = 0 if a == b else -100
  np.testing.assert_array_equal(mask, want)


def test_there_is_no_mask_without_a_shift():
  assert window.shift_mask((8, 8), (4, 4), (0, 0)) is None


@pytest.mark.parametrize('grid, size, shift, want', [
    ((64, 8), (4, 4), (2, 0), ((4, 4), (2, 0))),
    ((250, 1), (4, 4), (2, 2), ((4, 1), (2, 0))),
    ((3, 8), (4, 4), (2, 2), ((3, 4), (0, 2))),
    ((4, 4), (4, 4), (2, 2), ((4, 4), (0, 0)))])
def test_a_window_fits_its_grid_and_is_not_shifted_when_it_fills_it(
    grid, size, shift, want):
  assert window.fit_window(grid, size, shift) == want


def test_windows_are_cut_in_raster_order_and_merged_again():
  x = np.arange(2 * 6 * 4, dtype=np.float32).reshape(2, 6, 4, 1)
  cut = window.partition(x, (3, 2))
  np.testing.assert_array_equal(cut[0, 1, :, 0], [2, 3, 6, 7, 10, 11])
  np.testing.assert_array_equal(cut[0, 2, :, 0], [12, 13, 16, 17, 20, 21])
  np.testing.assert_array_equal(window.merge(cut, (6, 4), (3, 2)), x)


@pytest.mark.parametrize('shift', [
    (0, 0), (2, 0), (1, 3), (-2, -1), (5, 4), (-4, 7)])
def test_windows_move_as_the_grid_is_rolled(shift):
  grid, size = (8, 12), (4, 6)
  x = np.arange(2 * 8 * 12 * 3, dtype=np.float32).reshape(2, *grid, 3)
  rolled = np.roll(x, [-s for s in shift], axis=(1, 2))
  moved = window.move(window.partition(x, size), grid, size, shift)
  np.testing.assert_array_equal(moved, window.partition(rolled, size))


def test_the_bias_depends_on_the_offset_between_patches_only():
  offsets = window.log_offsets((2, 3)).reshape(6, 6, 2)
  time, freq = np.divmod(np.arange(6), 3)
  for axis, at in ((0, time), (1, freq)):
    d = at[:, None] - at[None]
    np.testing.assert_allclose(
        offsets[..., axis], np.sign(d) * np.log(1 + np.abs(d)), atol=1e-7)


class Raster:
  """A block whose patches come and go in the order of the grid, [B, N, D]."""

  def __init__(self, block):
    self.block = block
    self.size, _ = window.fit_window(block.grid, block.window, block.shift)

  def windows(self, x):
    return window.partition(
        jnp.reshape(x, (x.shape[0], *self.block.grid, -1)), self.size)

  def init(self, rng, x, train):
    return self.block.init(rng, self.windows(x), train=train)

  def apply(self, params, x, train):
    y = self.block.apply(params, self.windows(x), train=train)
    return window.merge(y, self.block.grid, self.size).reshape(x.shape)


def window_block(grid, size=(6, 6), shift=(2, 2), mlp_ratio=2.0):
  return Raster(window.WindowBlock(
      grid, size, shift, heads=2, mlp_ratio=mlp_ratio, bias_dropout=0.1,
      dtype=jnp.dtype('float32')))


def test_a_grid_that_windows_do_not_tile_is_extended_around_all_blocks():
  grid, whole = (11, 8), (12, 12)  # 101 x 12 in the released code: 102 x 12
  assert window.whole_windows(grid, (6, 6)) == whole
  decoder = decoder_lib.Local(
      8, 2, 2, 4.0, config.Patch(), jnp.float32, window=(6, 6), shift=(2, 0))
  x = np.random.default_rng(0).normal(size=(2, 89, 8)).astype(np.float32)
  restore = np.broadcast_to(np.arange(88, dtype=np.int32), (2, 88))
  params = jax.jit(decoder.init, static_argnums=2)(
      jax.random.key(0), x, grid, restore)['params']
  got = decoder.apply({'params': params}, x, grid, restore)
  # By hand: the added rows and columns live through both blocks.
  tokens = decoder_lib.Tokens(8, config.Patch(), jnp.float32).apply(
      {'params': params['tokens']}, x, grid, restore)[:, 1:]
  y = np.pad(np.reshape(tokens, (2, 11, 8, 8)),
             ((0, 0), (0, 1), (0, 4), (0, 0)), 'edge').reshape(2, 144, 8)
  for number, shift in (('00', (0, 0)), ('01', (2, 0))):
    block = window_block(whole, (6, 6), shift, mlp_ratio=4.0)
    y = block.apply({'params': params['blocks'][number]}, y, train=False)
  y = np.reshape(y, (2, 12, 12, 8))[:, :11, :8].reshape(2, 88, 8)
  want = nn.LayerNorm(epsilon=1e-6).apply({'params': params['norm']}, y)
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_attention_of_zeros_has_a_finite_gradient():
  block = window_block((4, 4), (4, 4), (0, 0))
  zeros = np.zeros((1, 16, 8), np.float32)
  params = block.init(jax.random.key(0), zeros, train=False)
  grads = jax.grad(
      lambda p: block.apply(p, zeros, train=False).sum())(params)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_a_window_block_mixes_only_patches_of_one_window():
  grid, size, shift = (8, 8), (4, 4), (2, 2)
  block = window_block(grid, size, shift)
  x = np.random.default_rng(0).normal(size=(1, 64, 8)).astype(np.float32)
  params = jax.jit(block.init, static_argnames='train')(
      jax.random.key(0), x, train=False)
  run = jax.jit(lambda x: block.apply(params, x, train=False))
  before = run(x)
  for t, f in ((0, 0), (3, 5), (7, 7)):
    moved = x.copy()
    moved[0, t * 8 + f] += 1
    changed = np.abs(run(moved) - before)[0].max(-1).reshape(8, 8) > 1e-6
    # The shifted windows start at 2 and 6; what lies before 2 is on its own.
    part = lambda p: (p + 2) // 4
    want = np.array([[part(a) == part(t) and part(b) == part(f)
                      for b in range(8)] for a in range(8)])
    np.testing.assert_array_equal(changed, want)


@pytest.mark.parametrize('platform', ['tpu', 'cpu', 'cuda'])
def test_only_a_tpu_attends_in_windows_together(platform):
  block = window_block((16, 8), (4, 4), (2, 0))
  x = jax.ShapeDtypeStruct((2, 128, 8), jnp.float32)
  params = jax.eval_shape(
      functools.partial(block.init, train=False), jax.random.key(0), x)
  lowered = jax.jit(functools.partial(block.apply, train=False)).trace(
      params, x).lower(lowering_platforms=(platform,))
  together = '2x1x2x128x128xf32' in lowered.as_text()
  apart = '2x8x2x16x16xf32' in lowered.as_text()
  assert (together, apart) == (platform == 'tpu', platform != 'tpu')


def test_temperature_and_lengths_have_a_floor():
  block = window_block((4, 4), (4, 4), (0, 0))
  x = np.random.default_rng(0).normal(size=(1, 16, 8)).astype(np.float32)
  params = random_params(jax.eval_shape(
      lambda: block.init(jax.random.key(0), x, train=False)))

  @jax.jit
  def run(tau, x, scale):
    scaled = trees.map_named(
        lambda name, leaf: tau + 0 * leaf if name.endswith('tau') else
        scale * leaf if '/qkv/' in name else leaf, params)
    return block.apply(scaled, x, train=False)

  # 0.01, as released: below it the temperature has no effect.
  np.testing.assert_array_equal(run(0.0, x, 1.0), run(0.01, x, 1.0))
  assert np.abs(run(0.01, x, 1.0) - run(0.02, x, 1.0)).max() > 1e-3
  # Queries and keys of no length have no angle; 0 / 0 would be nan.
  assert np.isfinite(run(1.0, x, 0.0)).all()


@pytest.mark.parametrize('overrides, message', [
    ({'model.encoder.variant': 'XL'},
     "model.encoder.variant='XL' is not known. Did you mean 'L'? Known: Ti,"),
    ({'model.encoder.heads': 5}, 'model.encoder.width=16 is not a multiple of '
     'heads=5 and of 4'),
    ({'model.encoder.width': 18}, 'model.encoder.width=18 is not a multiple'),
    ({'model.decoder.heads': 3}, 'model.decoder.width=16 is not a multiple of '
     'heads=3 and of 4'),
    ({'model.decoder.name': 'locale'}, "model.decoder.name='locale' is not "
     "known. Did you mean 'local'? Known: global, local, hybrid."),
    ({'model.decoder.name': 'global', 'model.decoder.window': (2, 2)},
     'model.decoder.window=(2, 2) has no effect with '
     "model.decoder.name='global'"),
    ({'model.dtype': 'float16'}, "model.dtype='float16' is not known: float32, "
     'bfloat16.'),
    ({'model.remat': 'some'}, "model.remat='some' is not known."),
    ({'model.attention': 'pallsa'}, "model.attention='pallsa' is not known. "
     "Did you mean 'pallas'? Known: auto, xla, by_head, blocks, cudnn,"),
    ({'patch.positions': 'learnt'}, "patch.positions='learnt' is not known."),
])
def test_a_model_that_cannot_be_built_is_refused(overrides, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    task = tasks.make(tiny.config(tiny.MODEL, overrides))
    jax.eval_shape(task.init, jax.random.key(0))
