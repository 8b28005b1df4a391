"""Spectrogram <-> patches, and the fixed position tables. Pure functions.

A grid is `(time, frequency)` in patches. Tokens are ordered time first: token
`n` of a grid `(gt, gf)` is the patch at time `n // gf`, frequency `n % gf`, and
pixel `k` of a patch `(pt, pf)` is its frame `k // pf`, mel bin `k % pf`
(released code, models_mae.py:179-210).
"""

import functools

import jax.numpy as jnp
import numpy as np

from audio_mae_jax import config as config_lib
from audio_mae_jax import registry

Pair = tuple[int, int]


def resolve_stride(patch: config_lib.Patch) -> Pair:
  """The stride in (frames, bins); a zero stands for the patch size."""
  return tuple(s or p for s, p in zip(patch.stride, patch.size))


def grid_of(shape: Pair, patch: config_lib.Patch) -> Pair:
  """Patches along (time, frequency) of a spectrogram `shape` = (T, F).

  Patches that do not overlap must tile the spectrogram exactly. Overlapping
  ones may leave a rest shorter than a stride uncovered at the end, as the
  paper's 16x16 patches at stride 10 do (1024 x 128 -> 101 x 12).

  Raises:
    ValueError: the patch is larger than the spectrogram, does not tile it, or
      the stride leaves gaps between patches.
  """
  grid = []
  for axis, size, step, length in zip(
      ('frames', 'mel bins'), patch.size, resolve_stride(patch), shape):
    if not 0 < size <= length:
      raise ValueError(
          f'A patch of {size} {axis} does not fit a spectrogram of {length}; '
          f'set patch.size to 1..{length}.')
    if not 0 < step <= size:
      raise ValueError(
          f'A stride of {step} {axis} leaves gaps between patches of {size}; '
          f'set patch.stride to 1..{size}, or 0 for {size}.')
    if step == size and length % size:
      down = length - length % size
      raise ValueError(
          f'Patches of {size} {axis} do not tile a spectrogram of {length}: '
          f'{length % size} are left over. Make it {down} or {down + size} '
          '(frontend.num_frames, frontend.num_mel_bins), or change patch.size.')
    grid.append((length - size) // step + 1)
  return tuple(grid)


def covered(count: int, size: int, stride: int) -> int:
  """Frames or bins under `count` patches."""
  return (count - 1) * stride + size


def patchify(spectrogram, patch: config_lib.Patch):
  """[B, T, F] -> [B, N, P], in the order given above."""
  b, t, f = spectrogram.shape
  gt, gf = grid_of((t, f), patch)
  (pt, pf), (st, sf) = patch.size, resolve_stride(patch)
  if (st, sf) == (pt, pf):
    x = spectrogram.reshape(b, gt, pt, gf, pf).transpose(0, 1, 3, 2, 4)
  else:
    # Of an export, the number of time steps may be a symbol.
    steps = np.arange(gt) if isinstance(gt, int) else jnp.arange(gt)
    times = steps[:, None] * st + np.arange(pt)  # [gt, pt]
    bins = np.arange(gf)[:, None] * sf + np.arange(pf)  # [gf, pf]
    x = spectrogram[:, times[:, None, :, None], bins[None, :, None, :]]
  return x.reshape(b, gt * gf, pt * pf)


def unpatchify(patches, shape: Pair, patch: config_lib.Patch):
  """[B, N, P] -> [B, T, F] with `shape` = (T, F); the inverse of `patchify`.

  Pixels under several patches are averaged; pixels under none are 0.
  """
  b = patches.shape[0]
  (gt, gf), (pt, pf) = grid_of(shape, patch), patch.size
  st, sf = resolve_stride(patch)
  x = patches.reshape(b, gt, gf, pt, pf)
  if (st, sf) == (pt, pf):
    return x.transpose(0, 1, 3, 2, 4).reshape(b, gt * pt, gf * pf)
  times = np.arange(gt)[:, None] * st + np.arange(pt)
  bins = np.arange(gf)[:, None] * sf + np.arange(pf)
  at = (slice(None), times[:, None, :, None], bins[None, :, None, :])
  total = jnp.zeros((b, *shape), x.dtype).at[at].add(x)
  count = np.zeros((1, *shape), np.float32)
  np.add.at(count, at, 1)
  return total / np.maximum(count, 1)


def _time_freq(time, freq, trained, dim):
  """Half of the channels encodes frequency, half time (paper, section 3.1)."""
  del trained  # defined everywhere
  return _codes(freq, time, dim)


def _released(time, freq, trained, dim):
  """What the released weights were trained with.

  The released code builds its table for a grid of (frequency, time) while its
  tokens run over (time, frequency) (util/patch_embed.py:14): token n of a grid
  (gt, gf) gets column n % gt and row n // gt. Every place still has a code of
  its own, but neighbours in time do not have neighbouring codes. Places between
  those of the grid are interpolated.
  """
  _check_inside(freq, trained, 1)
  codes = 0
  for t, f, weight in _corners(time, freq):
    row, column = np.divmod(t * trained[1] + f, trained[0])
    codes += weight[:, None] * _codes(column, row, dim)
  return codes


# How a place gets its code. Places are those of the grid that the weights were
# trained on (`positions_grid`, at `positions_stride`): a model that moves to
# clips of another length, another stride or another grid takes its codes along.
# A 'table' is a parameter (learnt, or from other weights; see `look_up`), which
# starts as 'time_freq'.
POSITIONS = {
    'time_freq': _time_freq, 'released': _released, 'table': _time_freq}


def position_table(grid: Pair, dim: int, patch: config_lib.Patch) -> np.ndarray:
  """Fixed sin-cos positions, float32 [1 + N, dim]; row 0, of zeros, is the
  class token's.

  Raises:
    ValueError: the width is odd, settings contradict each other, or the
      positions have no code for a place of `grid`.
  """
  if dim % 4:
    raise ValueError(
        f'Positions need a width that is a multiple of 4, not {dim}.')
  registry.lookup(POSITIONS, patch.positions, 'patch.positions')
  if patch.train_positions and patch.positions != 'table':
    raise ValueError(
        'patch.train_positions has no effect with patch.positions='
        f"{patch.positions!r}, which is fixed; set patch.positions='table'.")
  return _position_table(
      grid, dim, patch.positions, trained_grid(grid, patch), _scale(patch))


@functools.lru_cache(maxsize=32)
def _position_table(grid, dim, layout, trained, scale):
  codes = POSITIONS[layout](*_places(grid, scale), trained, dim)
  table = np.concatenate([np.zeros((1, dim)), codes]).astype(np.float32)
  table.flags.writeable = False  # shared by every caller
  return table


def look_up(table, grid: Pair, patch: config_lib.Patch):
  """[1 + N', D] of `positions_grid` -> [1 + N, D] of `grid`.

  Places between those of the table are interpolated.

  Raises:
    ValueError: the table does not reach as far as the grid.
  """
  trained = trained_grid(grid, patch)
  time, freq = _places(grid, _scale(patch))
  _check_inside(time, trained, 0)
  _check_inside(freq, trained, 1)
  codes = sum(
      table[1:][t * trained[1] + f] * weight[:, None].astype(np.float32)
      for t, f, weight in _corners(time, freq))
  return jnp.concatenate([table[:1], codes])


def trained_grid(grid: Pair, patch: config_lib.Patch) -> Pair:
  """The grid that positions were made for: `grid`, unless the weights say."""
  return patch.positions_grid if any(patch.positions_grid) else grid


def _scale(patch):
  """Patches of the trained grid from one patch to the next, (time, freq)."""
  stride = resolve_stride(patch)
  trained = tuple(t or s for t, s in zip(patch.positions_stride, stride))
  return tuple(s / t for s, t in zip(stride, trained))


def _places(grid, scale):
  """Each token's (time, frequency) in the trained grid, float64 [N] each."""
  time, freq = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
  return time * scale[0], freq * scale[1]


def _corners(time, freq):
  """`(t, f, weight)` of the whole places around each: bilinear weights.

  A place that is whole in all tokens has one neighbour of weight 1: its code
  comes back bit by bit.
  """
  for t, wt in _neighbours(time):
    for f, wf in _neighbours(freq):
      yield t, f, wt * wf


def _neighbours(at):
  low = np.floor(at).astype(np.int64)
  rest = at - low
  yield low, 1 - rest
  if rest.any():
    yield low + (rest > 0), rest


def _check_inside(places, trained, axis):
  if places.max() > trained[axis] - 1:
    name = ('frames', 'mel bins')[axis]
    raise ValueError(
        f'These positions were made for {trained[0]} x {trained[1]} patches '
        f'(time x mel), and have no code for place {places.max():g} along '
        f'{name}. Use fewer {name}, or weights whose patch.positions is '
        "'time_freq'.")


def _codes(first, second, dim):
  """float64 [N, dim]: half of the channels for each coordinate."""
  return np.concatenate(
      [_sincos(first, dim // 2), _sincos(second, dim // 2)], axis=1)


def _sincos(positions, dim):
  """float64 [L] -> [L, dim]: sines, then cosines, of dim / 2 frequencies."""
  omega = 10000.0 ** (-np.arange(dim // 2) / (dim / 2))
  angle = np.outer(positions, omega)
  return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
