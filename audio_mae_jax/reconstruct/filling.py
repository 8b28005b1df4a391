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

# How strongly levels hold to those around them, in pixels: against so many
# known pixels of the same patch they count half.
_PRIOR_PIXELS = 16.0


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


def from_visible(prediction, patches, removed, known, grid) -> np.ndarray:
  """[N, P] in normalised units -> [N, P] with levels that are estimated.

  The mean and the deviation of a removed patch are first those between the
  patches around it (`interpolate`). Where a part of the patch is known after
  all, as beside a gap that is shorter, they move to what fits it best.

  Args:
    prediction: float [N, P].
    patches: float [N, P] of the original; read where it is visible or known.
    removed: bool [N], patches that the model did not see.
    known: bool [N, P], pixels that may be read in them.
    grid: patches along time and frequency.
  """
  mean, std = (np.asarray(x)[0, :, 0] for x in
               losses.patch_statistics(patches[None]))
  mean, std = (interpolate(x.reshape(grid), ~removed.reshape(grid)).reshape(-1)
               for x in (mean, std))
  y = np.array(prediction, np.float64)
  for n in np.flatnonzero(removed & known.any(-1)):
    at = known[n]
    basis = np.stack([np.ones(at.sum()), y[n, at]])
    error = patches[n, at] - (mean[n] + std[n] * y[n, at])
    change = np.linalg.solve(
        basis @ basis.T + _PRIOR_PIXELS * np.eye(2), basis @ error)
    mean[n], std[n] = mean[n] + change[0], max(std[n] + change[1], 0)
  return y * std[:, None] + mean[:, None]


def paste(original, patches, hidden, patch: config.Patch) -> np.ndarray:
  """[T, F] with the pixels of `patches` [N, P] where bool [T, F] `hidden`."""
  drawn = np.asarray(patches_lib.unpatchify(
      np.asarray(patches, np.float32)[None], original.shape, patch))[0]
  return np.where(hidden, drawn, original)
