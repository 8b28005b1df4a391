"""Which patches the encoder does not see. Pure functions, one home for all.

A strategy is `fn(rng, batch, grid, **settings) -> (scores [B, N], num_keep)`,
the arguments of `from_scores`; its keywords are fields of `config.Mask`. The
`num_keep` patches with the lowest scores are kept; equal scores keep their
order in the grid. `from_scores` is the only place that turns scores into index
arrays, so no strategy can get the bookkeeping wrong, and a test can feed the
scores of another implementation.

Scores are float32: in bfloat16 noise has 128 values, ties are many, and the
patches that come first in the grid would be kept more often.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from audio_mae_jax import config as config_lib
from audio_mae_jax import registry


class Mask(NamedTuple):
  """A partition of N patches into K kept and N - K removed ones."""
  keep_ids: jax.Array  # int32 [B, K], in the order the encoder sees them
  removed_ids: jax.Array  # int32 [B, N - K]
  restore_ids: jax.Array  # int32 [B, N]: place of each patch in kept ++ removed
  removed: jax.Array  # bool [B, N]


def from_scores(scores, num_keep: int, removed=None) -> Mask:
  """float [B, N] -> the mask that keeps the `num_keep` lowest of each row.

  `removed` bool [B, N] is what the loss counts, if not what is not kept.
  """
  order = jnp.argsort(scores, axis=1, stable=True).astype(jnp.int32)
  restore = jnp.argsort(order, axis=1).astype(jnp.int32)
  return Mask(order[:, :num_keep], order[:, num_keep:], restore,
              restore >= num_keep if removed is None else removed)


def make(rng, batch: int, grid, mask: config_lib.Mask) -> Mask:
  """Draws the mask of a global batch of clips over `grid`."""
  strategy, settings = registry.select(STRATEGIES, mask, 'mask')
  return from_scores(*strategy(rng, batch, grid, **settings))


def num_kept(count: int, ratio: float, what: str) -> int:
  """`int(count * (1 - ratio))`, the paper's code's own expression.

  It rounds down in floating point (250 patches at 0.8 keep 49), and released
  numbers depend on it.

  Raises:
    ValueError: `ratio` keeps none of `count` or all of them.
  """
  keep = int(count * (1 - ratio))
  if not 0 < ratio < 1 or not 0 < keep < count:
    raise ValueError(
        f'{what}={ratio} keeps {max(keep, 0)} of {count}; at least one must be '
        'kept and one removed. Give a ratio between '
        f'{1 / count:.3g} and {1 - 1 / count:.3g}.')
  return keep


def _uniform(rng, shape):
  return jax.random.uniform(rng, shape, jnp.float32)


def unstructured(rng, batch, grid, *, ratio):
  """Each patch on its own (paper, section 3; the default for pre-training)."""
  n = grid[0] * grid[1]
  return _uniform(rng, (batch, n)), num_kept(n, ratio, 'mask.ratio')


def rectangle_scores(time_scores, freq_scores, keep_time: int, keep_freq: int):
  """[B, gt], [B, gf] -> [B, N]: 0 where both kept, 1 elsewhere.

  The lowest `keep_time` rows and `keep_freq` columns stay. Kept patches keep
  their order in the grid (the released code sorts by place + 999 * removed,
  which fails beyond 999 patches; equal scores and a stable sort do not).
  """
  rows = from_scores(time_scores, keep_time).removed
  columns = from_scores(freq_scores, keep_freq).removed
  removed = rows[:, :, None] | columns[:, None, :]
  return removed.reshape(removed.shape[0], -1).astype(jnp.float32)


def _rectangle(rng, batch, grid, keep_time, keep_freq):
  rng_time, rng_freq = jax.random.split(rng)
  scores = rectangle_scores(
      _uniform(rng_time, (batch, grid[0])),
      _uniform(rng_freq, (batch, grid[1])),
      keep_time, keep_freq)
  return scores, keep_time * keep_freq


def time(rng, batch, grid, *, time_ratio):
  """Whole time steps."""
  keep = num_kept(grid[0], time_ratio, 'mask.time_ratio')
  return _rectangle(rng, batch, grid, keep, grid[1])


def freq(rng, batch, grid, *, freq_ratio):
  """Whole mel bands."""
  keep = num_kept(grid[1], freq_ratio, 'mask.freq_ratio')
  return _rectangle(rng, batch, grid, grid[0], keep)


def time_freq(rng, batch, grid, *, time_ratio, freq_ratio):
  """Whole time steps and whole mel bands; the union is removed."""
  keep_time = num_kept(grid[0], time_ratio, 'mask.time_ratio')
  keep_freq = num_kept(grid[1], freq_ratio, 'mask.freq_ratio')
  return _rectangle(rng, batch, grid, keep_time, keep_freq)


def time_freq_released(rng, batch, grid, *, time_ratio, freq_ratio):
  """`time_freq` by the released code's sort, which fails beyond 999 patches.

  It sorts by place + 999 * removed (models_mae.py:295): of 101 x 12 patches,
  removed ones of the first rows come before kept ones of the last, and are seen
  in their stead. The loss still counts what was meant to be removed.
  """
  removed, keep = time_freq(
      rng, batch, grid, time_ratio=time_ratio, freq_ratio=freq_ratio)
  place = jnp.arange(removed.shape[1], dtype=jnp.float32)
  return place + 999 * removed, keep, removed > 0


def _block_scores(rng, batch, grid, block):
  """[B, N]: low where a block that was drawn early lies.

  Every placement of the block that touches the grid gets a random rank, and a
  patch takes the lowest rank among the blocks over it. Taking patches by that
  score lays down whole blocks, one after another, until the count is reached.
  Placements may stick out, so each patch lies under equally many.
  """
  (gt, gf), (bt, bf) = grid, block
  if not (1 <= bt <= gt and 1 <= bf <= gf):
    raise ValueError(
        f'mask.block={tuple(block)} does not fit a grid of {gt} x {gf} patches '
        f'(time x frequency); give 1..{gt} x 1..{gf}.')
  rng_place, rng_tie = jax.random.split(rng)
  places = (gt + bt - 1, gf + bf - 1)
  noise = _uniform(rng_place, (batch, places[0] * places[1]))
  rank = jnp.argsort(jnp.argsort(noise, axis=1), axis=1).astype(jnp.float32)
  lowest = jax.lax.reduce_window(
      rank.reshape(batch, *places), jnp.inf, jax.lax.min,
      (1, bt, bf), (1, 1, 1), 'VALID')
  # The last block rarely fits the count: noise below the step between ranks
  # says which of its patches are taken.
  return lowest.reshape(batch, gt * gf) + _uniform(rng_tie, (batch, gt * gf))


def block(rng, batch, grid, *, ratio, block):
  """Removes blocks of patches; what is kept lies around them."""
  n = grid[0] * grid[1]
  keep = num_kept(n, ratio, 'mask.ratio')
  return -_block_scores(rng, batch, grid, block), keep


def inverse_block(rng, batch, grid, *, ratio, block):
  """Keeps blocks of patches and removes the rest."""
  n = grid[0] * grid[1]
  keep = num_kept(n, ratio, 'mask.ratio')
  return _block_scores(rng, batch, grid, block), keep


STRATEGIES = {
    'unstructured': unstructured,
    'time': time,
    'freq': freq,
    'time_freq': time_freq,
    'block': block,
    'inverse_block': inverse_block,
    'time_freq_released': time_freq_released,
}
