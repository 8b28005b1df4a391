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


def patchify(spectrogram, patch: config_lib.Patch):
  """[B, T, F] -> [B, N, P], in the order given above."""
  b, t, f = spectrogram.shape
  gt, gf = grid_of((t, f), patch)
  (pt, pf), (st, sf) = patch.size, resolve_stride(patch)
  if (st, sf) == (pt, pf):
    x = spectrogram.reshape(b, gt, pt, gf, pf).transpose(0, 1, 3, 2, 4)
  else:
    times = np.arange(gt)[:, None] * st + np.arange(pt)  # [gt, pt]
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


def _sincos(positions, dim):
  """float64 [L] -> [L, dim]: sines, then cosines, of dim / 2 frequencies."""
  omega = 10000.0 ** (-np.arange(dim // 2) / (dim / 2))
  angle = np.outer(positions, omega)
  return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


def _time_freq(grid):
  """Each token's own place: frequency in the first half, time in the second."""
  gt, gf = grid
  time, freq = np.divmod(np.arange(gt * gf), gf)
  return freq, time


def _released(grid):
  """The table that the released weights were trained with.

  The released code builds it for a grid of (frequency, time) while its tokens
  run over (time, frequency) (util/patch_embed.py:14): token n gets column
  n % gt and row n // gt. Every place still has a code of its own, but
  neighbours in time do not have neighbouring codes.
  """
  gt, gf = grid
  row, column = np.divmod(np.arange(gt * gf), gt)
  return column, row


POSITIONS = {'time_freq': _time_freq, 'released': _released}


@functools.lru_cache(maxsize=32)
def position_table(grid: Pair, dim: int, layout: str) -> np.ndarray:
  """Fixed sin-cos positions, float32 [1 + N, dim]; row 0, of zeros, is the
  class token's.

  `layout` is 'time_freq' or 'released' (see `POSITIONS`). Half of the channels
  encodes each coordinate, in sines and cosines of dim / 4 frequencies.
  """
  if dim % 4:
    raise ValueError(
        f'Positions need a width that is a multiple of 4, not {dim}.')
  coordinates = config_lib.lookup(POSITIONS, layout, 'patch.positions')
  first, second = coordinates(grid)
  table = np.concatenate(
      [_sincos(first, dim // 2), _sincos(second, dim // 2)], axis=1)
  table = np.concatenate([np.zeros((1, dim)), table]).astype(np.float32)
  table.flags.writeable = False  # shared by every caller
  return table
