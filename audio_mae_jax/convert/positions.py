"""Position tables of other projects: which places they are for, and in what
order."""

import dataclasses
import itertools

import numpy as np

from audio_mae_jax import config as config_lib
from audio_mae_jax import patches as patches_lib
from audio_mae_jax import weights

BINS = 128  # mel bins of every released model
OVERLAP = (10, 10)  # the other stride that there are models of


def find(tables: dict[str, np.ndarray], size: tuple[int, int],
         known: config_lib.Config | None, given: dict) -> config_lib.Patch:
  """The settings whose positions these tables are.

  Args:
    tables: [1 + N, D] of encoder and, if any, decoder.
    size: of a patch, in (frames, bins).
    known: settings that the file carries, if it does.
    given: settings by dotted name; patch.positions='table' takes the codes as
      they are.

  Returns:
    Settings with `positions`, `positions_grid` and `positions_stride`.

  Raises:
    ValueError: the tables are not of what is given, or may be any grid's.
  """
  layout = given.get('patch.positions')
  if known is not None:
    patch = _of_settings(tables, known)
  else:
    patch = recognize(
        tables, size, given.get('frontend.num_mel_bins'),
        given.get('patch.stride'), as_table=layout == 'table')
  if layout not in (None, patch.positions):
    raise ValueError(
        f'These positions are {patch.positions!r}, and given was '
        f"patch.positions={layout!r}; leave it out, or give 'table' to take "
        'the codes as they are.')
  return patch


def _of_settings(tables, config):
  """The positions of `config` if the tables are those, else a table."""
  grid = weights.grid_of(config)
  if config.patch.positions != 'table' and all(
      _close(table, patches_lib.position_table(
          grid, table.shape[1], config.patch)) for table in tables.values()):
    return config.patch
  return dataclasses.replace(
      config.patch, positions='table', positions_grid=grid,
      positions_stride=patches_lib.resolve_stride(config.patch))


def recognize(
    tables: dict[str, np.ndarray], size: tuple[int, int],
    bins: int | None = None, stride: tuple[int, int] | None = None,
    as_table: bool = False) -> config_lib.Patch:
  """`find` without settings: by comparison with the tables that are known.

  `bins` of the spectrogram are 128 or, failing that, whatever is longer in
  time; the stride is the patch's size or 10. With `as_table` formulas are
  tried only to know the grid.
  """
  count = len(tables['encoder']) - 1
  candidates = _grids(count, size, bins, stride)
  if not candidates:
    raise ValueError(
        f'{count} positions are no grid of patches of {size[0]} frames x '
        f'{size[1]} bins'
        + (f' over {bins} mel bins' if bins else '')
        + '; set frontend.num_mel_bins and patch.stride to what they are.')
  found = _of_all(tables, candidates)
  if found is None and not as_table:
    _check_no_other(tables, size, bins, stride)
  if found is not None and not as_table:
    return found
  # Of no formula: learnt, or of another project. One of the two may tell.
  likely = found or next((patch for part in tables if (
      patch := _of_all({part: tables[part]}, candidates))), candidates[0])
  if likely is candidates[0] and _bins(likely) != (bins or BINS):
    raise ValueError(
        f'{count} positions that follow no known formula may be any grid of '
        'patches; set frontend.num_mel_bins and patch.stride.')
  return config_lib.Patch(
      positions='table', positions_grid=likely.positions_grid,
      positions_stride=likely.positions_stride)


def _check_no_other(tables, size, bins, stride):
  """Raises ValueError if the tables are those of another grid than is given."""
  found = _of_all(tables, _grids(len(tables['encoder']) - 1, size, None, None))
  if found is not None:
    gt, gf = found.positions_grid
    raise ValueError(
        f'These are the positions of {gt} x {gf} patches (time x mel) at '
        f'stride {found.positions_stride}, over {_bins(found)} mel bins; '
        f'given were frontend.num_mel_bins={bins} and patch.stride={stride}. '
        "Leave them out, or give patch.positions='table' as well, to take the "
        'codes as they are.')


def _of_all(tables, candidates):
  """The first of `candidates` whose positions all tables are, or None."""
  return next((patch for patch in candidates if all(
      _equal(table, patch) for table in tables.values())), None)


def _grids(count, size, bins, stride):
  """Settings of each layout and grid of `count` patches, likely ones first."""
  strides = [tuple(stride)] if stride else [size]
  if not stride and all(o < s for o, s in zip(OVERLAP, size)):
    strides.append(OVERLAP)
  layouts = [name for name in patches_lib.POSITIONS if name != 'table']
  divisors = [gf for gf in range(1, count + 1) if count % gf == 0]
  grids = (
      config_lib.Patch(positions=name, positions_grid=(count // gf, gf),
                       positions_stride=step, size=size)
      for step, name, gf in itertools.product(strides, layouts, divisors))
  return sorted(
      (patch for patch in grids if not bins or _bins(patch) == bins),
      key=lambda patch: (
          _bins(patch) != BINS, patch.positions_stride != size,
          patch.positions_grid[0] < patch.positions_grid[1]))


def _bins(patch):
  """Mel bins that the grid covers; a rest below a stride goes on to 128."""
  bins = patches_lib.covered(
      patch.positions_grid[1], patch.size[1], patch.positions_stride[1])
  return BINS if 0 <= BINS - bins < patch.positions_stride[1] and (
      patch.positions_stride != patch.size) else bins


def _equal(table, patch):
  return _close(table, patches_lib.position_table(
      patch.positions_grid, table.shape[1], config_lib.Patch(
          positions=patch.positions)))


def _close(table, formula):
  # Sines differ in the last place between libraries; neighbouring codes differ
  # by far more than a half-precision file has rounded.
  precision = 2.0 ** -7 if table.dtype.itemsize == 2 else 1e-6
  return table.shape == formula.shape and (
      np.abs(table.astype(np.float32) - formula).max() <= precision)


def resize(table: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
  """[1 + N', D] of a square grid -> [1 + N, D] of `grid`, bicubic.

  As the released helper for weights of images (util/pos_embed.py:116): a cubic
  kernel of -0.75, pixels' centres aligned, edges repeated.

  Raises:
    ValueError: N' is no square.
  """
  side = round((len(table) - 1) ** 0.5)
  if side ** 2 != len(table) - 1:
    raise ValueError(
        f'{len(table) - 1} positions are no square grid; only those of images '
        'can be resized.')
  square = table[1:].reshape(side, side, -1).astype(np.float64)
  codes = np.einsum(
      'ti,fj,ijd->tfd', _cubic(side, grid[0]), _cubic(side, grid[1]), square)
  return np.concatenate(
      [table[:1].astype(np.float64), codes.reshape(grid[0] * grid[1], -1)]
  ).astype(np.float32)


def _cubic(old: int, new: int) -> np.ndarray:
  """float64 [new, old]: weights of cubic interpolation along one axis."""
  at = (np.arange(new) + 0.5) * old / new - 0.5
  kernel = np.zeros((new, old))
  for tap in range(-1, 3):
    place = np.floor(at) + tap
    x = np.abs(at - place)
    a = -0.75
    near = ((a + 2) * x - (a + 3)) * x ** 2 + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    np.add.at(kernel, (np.arange(new), np.clip(place, 0, old - 1).astype(int)),
              np.where(x <= 1, near, far))
  return kernel
