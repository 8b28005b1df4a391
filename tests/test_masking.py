"""Masks: a contract for every strategy, and the released code's own draws."""

import functools
import re

import goldens
import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from audio_mae_jax import config
from audio_mae_jax import masking

BATCH = 8
GRIDS = ((64, 8), (101, 12), (13, 7), (250, 1))
EXAMPLES = {  # strategy -> settings; None where a grid of one band cannot do
    'unstructured': lambda grid: dict(ratio=0.8),
    'time': lambda grid: dict(time_ratio=0.6),
    'freq': lambda grid: dict(freq_ratio=0.4) if grid[1] > 1 else None,
    'time_freq': lambda grid: (
        dict(time_ratio=0.7, freq_ratio=0.3) if grid[1] > 1 else None),
    'block': lambda grid: dict(ratio=0.75, block=(5, min(3, grid[1]))),
    'time_freq_released': lambda grid: EXAMPLES['time_freq'](grid),
    'inverse_block': lambda grid: dict(ratio=0.7, block=(4, min(4, grid[1]))),
}
KEPT = {  # by the released code's own expressions
    'unstructured': lambda t, f: int(t * f * (1 - 0.8)),
    'time': lambda t, f: int(t * (1 - 0.6)) * f,
    'freq': lambda t, f: t * int(f * (1 - 0.4)),
    'time_freq': lambda t, f: int(t * (1 - 0.7)) * int(f * (1 - 0.3)),
    'time_freq_released': lambda t, f: KEPT['time_freq'](t, f),
    'block': lambda t, f: int(t * f * (1 - 0.75)),
    'inverse_block': lambda t, f: int(t * f * (1 - 0.7)),
}
CASES = [(name, grid) for grid in GRIDS for name in EXAMPLES
         if EXAMPLES[name](grid)]


def settings_of(name, grid):
  return config.Mask(name=name, **EXAMPLES[name](grid))


@functools.cache
def program(grid, batch, devices=1):
  """Key -> every strategy's mask of `grid`, in one compilation."""
  names = [name for name in EXAMPLES if EXAMPLES[name](grid)]
  mesh = jax.make_mesh((devices,), ('data',), devices=jax.devices()[:devices])

  def draw(rng):
    return {name: masking.make(rng, batch, grid, settings_of(name, grid))
            for name in names}

  return jax.jit(draw, out_shardings=NamedSharding(mesh, P('data')))


def drawn(grid, batch=BATCH, seed=0, devices=1):
  draw = program(grid, batch, devices)
  return jax.tree.map(np.asarray, draw(jax.random.key(seed)))


def test_every_strategy_has_an_example_here():
  assert EXAMPLES.keys() == KEPT.keys() == masking.STRATEGIES.keys()


@pytest.mark.parametrize('name, grid', CASES)
def test_a_mask_is_a_partition_that_can_be_undone(name, grid):
  mask = drawn(grid)[name]
  n, k = grid[0] * grid[1], KEPT[name](*grid)
  assert mask.keep_ids.shape == (BATCH, k)
  assert mask.removed_ids.shape == (BATCH, n - k)
  assert mask.removed.dtype == np.bool_
  for ids in mask[:3]:
    assert ids.dtype == np.int32
  order = np.concatenate([mask.keep_ids, mask.removed_ids], axis=1)
  everything = np.broadcast_to(np.arange(n), order.shape)
  np.testing.assert_array_equal(np.sort(order, axis=1), everything)
  np.testing.assert_array_equal(
      np.take_along_axis(order, mask.restore_ids, axis=1), everything)
  flags = np.ones_like(mask.removed)
  np.put_along_axis(flags, mask.keep_ids, False, axis=1)
  if (name, grid) != ('time_freq_released', (101, 12)):  # as it is released
    np.testing.assert_array_equal(mask.removed, flags)


@pytest.mark.parametrize('name, grid', CASES)
def test_clips_and_keys_get_masks_of_their_own_and_equal_keys_equal_ones(
    name, grid):
  mask = drawn(grid)[name].removed
  # Few bands have few combinations, so that some clips may agree.
  assert len(np.unique(mask, axis=0)) >= (2 if name == 'freq' else BATCH)
  np.testing.assert_array_equal(mask, drawn(grid)[name].removed)
  assert (mask != drawn(grid, seed=1)[name].removed).any()


@pytest.mark.parametrize('name', EXAMPLES)
def test_scores_are_float32(name):
  # bfloat16 noise has so few values that ties, which favour the patches that
  # come first, would be many.
  settings = EXAMPLES[name]((13, 7))
  scores, _ = jax.eval_shape(
      lambda rng: masking.STRATEGIES[name](rng, 2, (13, 7), **settings)[0:2],
      jax.random.key(0))
  assert scores.shape == (2, 91)
  assert scores.dtype == np.float32


def test_masks_do_not_depend_on_the_number_of_devices():
  jax.tree.map(np.testing.assert_array_equal,
               drawn((13, 7)), drawn((13, 7), devices=8))


@functools.cache
def shares(grid, batch):
  """How often each patch is removed, by strategy: {name: [N]}."""
  return {name: mask.removed.mean(0)
          for name, mask in drawn(grid, batch).items()}


@pytest.mark.parametrize('name', EXAMPLES)
def test_every_patch_is_removed_equally_often(name):
  grid, batch = (13, 7), 8192
  share = shares(grid, batch)[name]
  p = 1 - KEPT[name](*grid) / (grid[0] * grid[1])
  if 'block' in name:
    # The count is fixed and blocks stick out at the edges, where therefore
    # slightly fewer patches go: 0.743 to 0.773 here, measured over 65,000
    # clips. Blocks placed inside the grid only would take corners a tenth as
    # often as the middle.
    assert np.abs(share - p).max() < 0.03
  else:
    deviation = (share - p) / np.sqrt(p * (1 - p) / batch)
    # Of 91 standard normal numbers one beyond 4.5 comes in 1600 draws.
    assert np.abs(deviation).max() < 4.5
  if name == 'unstructured':
    # Chi-square of 90 degrees of freedom over 91: 1 +- 0.15.
    assert 0.55 < (deviation ** 2).mean() < 1.45


def covered(marked, block):
  """Of a boolean grid: places under a block that lies wholly in `marked`.

  Beyond the edge everything counts as marked, since blocks may stick out.
  """
  (bt, bf), (gt, gf) = block, marked.shape
  wide = np.pad(marked, ((bt - 1,) * 2, (bf - 1,) * 2), constant_values=True)
  found = np.zeros_like(wide)
  for t in range(gt + bt - 1):
    for f in range(gf + bf - 1):
      at = np.s_[t:t + bt, f:f + bf]
      if wide[at].all():
        found[at] = True
  return found[bt - 1:bt - 1 + gt, bf - 1:bf - 1 + gf]


@pytest.mark.parametrize('grid', GRIDS)
@pytest.mark.parametrize('name', ['block', 'inverse_block'])
def test_blocks_are_whole_up_to_the_last(name, grid):
  block = EXAMPLES[name](grid)['block']
  removed = drawn(grid)[name].removed.reshape(-1, *grid)
  for clip in removed if name == 'block' else ~removed:
    rest = np.argwhere(clip & ~covered(clip, block))
    # What no whole block explains lies in one block, the one that was cut.
    if len(rest):
      assert (np.ptp(rest, axis=0) < block).all()


@pytest.mark.parametrize('grid', GRIDS)
def test_rows_and_columns_are_removed_whole(grid):
  for name in {'time', 'freq', 'time_freq'} & drawn(grid).keys():
    removed = drawn(grid)[name].removed.reshape(-1, *grid)
    rows, columns = removed.all(2), removed.all(1)
    np.testing.assert_array_equal(
        removed, rows[:, :, None] | columns[:, None, :])
    if name == 'time':
      assert not columns.any()
    if name == 'freq':
      assert not rows.any()


@pytest.mark.parametrize('count, ratio, kept', [
    (512, 0.8, 102), (512, 0.75, 128), (512, 0.7, 153), (512, 0.3, 358),
    (250, 0.8, 49), (64, 0.7, 19), (8, 0.3, 5), (1212, 0.8, 242), (2, 0.5, 1)])
def test_as_many_are_kept_as_in_the_released_code(count, ratio, kept):
  assert masking.num_kept(count, ratio, 'ratio') == kept


def golden_mask(golden, variant, shape):
  removed = np.unpackbits(golden[f'{variant}/removed'], axis=1).astype(bool)
  assert removed.shape == shape
  return removed, golden[f'{variant}/ids_restore']


def test_masks_equal_the_released_code_given_its_noise():
  golden = goldens.read('local')
  for variant, ratio in (('random80', 0.8), ('random50', 0.5)):
    noise = golden[f'{variant}/noise']
    mask = masking.from_scores(noise, masking.num_kept(512, ratio, 'ratio'))
    removed, restore = golden_mask(golden, variant, (2, 512))
    np.testing.assert_array_equal(mask.removed, removed)
    np.testing.assert_array_equal(mask.restore_ids, restore)


@pytest.mark.parametrize('variant, keep_time, keep_freq', [
    ('mask2d_t70_f30', 19, 5), ('mask2d_t60_f50', 25, 4),
    ('timeonly_t80', 12, 8), ('freqonly_f75', 64, 2)])
def test_structured_masks_equal_the_released_code_given_its_noise(
    variant, keep_time, keep_freq):
  golden = goldens.read('local')
  mask = masking.from_scores(
      masking.rectangle_scores(
          golden[f'{variant}/noise_t'], golden[f'{variant}/noise_f'],
          keep_time, keep_freq), keep_time * keep_freq)
  removed, restore = golden_mask(golden, variant, (2, 512))
  np.testing.assert_array_equal(mask.removed, removed)
  np.testing.assert_array_equal(mask.restore_ids, restore)


def test_structured_masks_hold_beyond_999_patches():
  # The released code sorts by place + 999 * removed: of 1212 patches it keeps
  # removed ones and removes kept ones.
  draw = np.random.default_rng(0)
  time, freq = draw.random((3, 101)), draw.random((3, 12))
  mask = masking.from_scores(
      masking.rectangle_scores(time, freq, 30, 8), 30 * 8)
  for b in range(3):
    rows = np.sort(np.argsort(time[b])[:30])
    columns = np.sort(np.argsort(freq[b])[:8])
    kept = [t * 12 + f for t in rows for f in columns]
    np.testing.assert_array_equal(mask.keep_ids[b], kept)
    np.testing.assert_array_equal(
        mask.removed_ids[b], np.setdiff1d(np.arange(1212), kept))


def test_equal_scores_keep_their_order_in_the_grid():
  mask = masking.from_scores(np.zeros((1, 1000), np.float32), 10)
  np.testing.assert_array_equal(mask.keep_ids[0], np.arange(10))


def draw_with(grid=(12, 8), **settings):
  masking.make(jax.random.key(0), 2, grid, config.Mask(**settings))


RANGE = 'Give a ratio between 0.0104 and 0.99'


@pytest.mark.parametrize('settings, message', [
    (dict(ratio=0.0), f'mask.ratio=0.0 keeps 96 of 96; at least one must be '
     f'kept and one removed. {RANGE}'),
    (dict(ratio=1.0), f'mask.ratio=1.0 keeps 0 of 96; at least one must be '
     f'kept and one removed. {RANGE}'),
    (dict(ratio=-0.5), 'mask.ratio=-0.5 keeps 144 of 96'),
    (dict(ratio=1.5), 'mask.ratio=1.5 keeps 0 of 96'),
    (dict(ratio=0.995), 'mask.ratio=0.995 keeps 0 of 96'),
    (dict(name='time', time_ratio=0.95), 'mask.time_ratio=0.95 keeps 0 of 12'),
    (dict(name='time', time_ratio=0.0), 'mask.time_ratio=0.0 keeps 12 of 12'),
    (dict(name='freq', freq_ratio=1.0), 'mask.freq_ratio=1.0 keeps 0 of 8'),
    (dict(name='time_freq', time_ratio=1.0), 'mask.time_ratio=1.0 keeps 0'),
    (dict(name='time_freq', freq_ratio=0.0), 'mask.freq_ratio=0.0 keeps 8'),
    (dict(name='block', ratio=1.0), 'mask.ratio=1.0 keeps 0 of 96'),
    (dict(name='inverse_block', ratio=0.0), 'mask.ratio=0.0 keeps 96 of 96'),
    (dict(name='block', block=(13, 2)), 'mask.block=(13, 2) does not fit a '
     'grid of 12 x 8 patches (time x frequency); give 1..12 x 1..8.'),
    (dict(name='inverse_block', block=(0, 2)), 'mask.block=(0, 2) does not'),
    (dict(name='blocks'), "mask.name='blocks' is not known. Did you mean "
     "'block'? Known: unstructured, time, freq, time_freq, block,"),
    (dict(name='time', ratio=0.5), "mask.ratio=0.5 has no effect with "
     "mask.name='time', which takes time_ratio. Leave it at 0.8."),
])
def test_a_mask_that_cannot_be_drawn_is_refused(settings, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    draw_with(**settings)


@pytest.mark.parametrize('grid, right', [((64, 8), True), ((101, 12), False)])
def test_the_released_sort_fails_beyond_999_patches(grid, right):
  settings = dict(time_ratio=0.7, freq_ratio=0.3)
  ours, theirs = (jax.tree.map(np.asarray, masking.make(
      jax.random.key(0), 4, grid, config.Mask(name=name, **settings)))
                  for name in ('time_freq', 'time_freq_released'))
  np.testing.assert_array_equal(ours.removed, theirs.removed)
  # By hand, from what was drawn: place, 999 later if it is to be removed.
  keys = np.arange(grid[0] * grid[1]) + 999 * ours.removed
  order = np.argsort(keys, axis=1, kind='stable')
  np.testing.assert_array_equal(
      theirs.keep_ids, order[:, :theirs.keep_ids.shape[1]])
  assert np.array_equal(ours.keep_ids, theirs.keep_ids) == right
  hidden = np.take_along_axis(ours.removed, theirs.keep_ids, axis=1)
  assert hidden.any() != right  # the encoder sees what the loss counts
