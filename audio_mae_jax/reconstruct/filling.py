"""What is put where a spectrogram is hidden: the model's answer, or simpler.

A model with normalised targets says what a patch looks like, and neither how
loud it is nor how strong its contrast. Here are two ways to give both back: the
original's own, as pictures of masked autoencoders have it, which a model cannot
know; and an estimate from what is visible.
"""

import numpy as np

from audio_mae_jax import config
from audio_mae_jax import losses
from audio_mae_jax import patches as patches_lib


def interpolate(values: np.ndarray, known: np.ndarray) -> np.ndarray:
  """float, bool [T, F] -> [T, F]: known values, and lines between them.

  Each bin's line runs over time and is level at both ends; bins that are never
  known are then filled over frequency, in the same way.

  Raises:
    ValueError: nothing is known.
  """
  if not known.any():
    raise ValueError('Nothing is visible that could be interpolated.')
  out, times = np.array(values, np.float64), np.arange(len(values))
  seen = np.flatnonzero(known.any(0))
  for f in seen:
    at = np.flatnonzero(known[:, f])
    out[:, f] = np.interp(times, at, out[at, f])
  rest = np.setdiff1d(np.arange(values.shape[1]), seen)
  for row in out:
    row[rest] = np.interp(rest, seen, row[seen])
  return out


def from_original(prediction, patches) -> np.ndarray:
  """[N, P] in normalised units -> [N, P] with the original's own levels."""
  return np.asarray(losses.denormalize_patches(
      prediction[None], patches[None])[0])


def from_visible(prediction, patches, removed, grid) -> np.ndarray:
  """[N, P] in normalised units -> [N, P] with levels that are estimated.

  Mean and deviation of a removed patch are those between the visible patches
  around it (`interpolate`).

  Args:
    prediction: float [N, P].
    patches: float [N, P] of the original; read where they are visible.
    removed: bool [N], patches that the model did not see.
    grid: patches along time and frequency.
  """
  mean, std = (
      interpolate(np.asarray(x).reshape(grid), ~removed.reshape(grid))
      for x in losses.patch_statistics(patches[None]))
  return prediction * std.reshape(-1, 1) + mean.reshape(-1, 1)


def join(drawn, original, removed, hidden) -> np.ndarray:
  """[T, F] -> [T, F]: `drawn` so that it goes on from what is known beside it.

  A short gap leaves most of the patches known that the model must do without.
  How far the model is off there is interpolated over the gap, and taken away.

  Args:
    drawn: float [T, F], of the model.
    original: float [T, F], read where it is not hidden.
    removed: bool [T, F], pixels that the model did not see.
    hidden: bool [T, F], those that are not known.
  """
  off = np.where(removed & ~hidden, original - drawn, 0)
  return drawn + interpolate(off, ~hidden)


def draw(patches, shape, patch: config.Patch) -> np.ndarray:
  """[N, P] -> [T, F] of this `shape`."""
  return np.asarray(patches_lib.unpatchify(
      np.asarray(patches, np.float32)[None], shape, patch))[0]
