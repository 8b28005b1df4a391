"""What a report hides: patches as in training, gaps in time, upper bands.

Two things are told apart. `removed` patches are not shown to the encoder;
`hidden` frames and bins are what is then to be filled. A gap of 20 ms spoils
few frames, and the encoder must do without the whole patches that these lie in.
"""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np

from audio_mae_jax import config as config_lib
from audio_mae_jax import frontend
from audio_mae_jax import masking
from audio_mae_jax import patches as patches_lib
from audio_mae_jax.reconstruct import clip as clip_lib

# Names of `masking.STRATEGIES`, and what they are called for people.
STRATEGIES = {
    'unstructured': 'Random patches',
    'time': 'Time steps',
    'freq': 'Frequency bands',
    'time_freq': 'Time and frequency',
}
GAPS, BANDS = 'gaps', 'bands'
NAMES = (*STRATEGIES, GAPS, BANDS)


class Hidden(NamedTuple):
  """Draws of one kind of hiding, of one clip."""
  key: str  # short, unique in a report
  title: str
  removed: np.ndarray  # bool [draws, N]
  hidden: np.ndarray  # bool [draws, T, F]
  lost: np.ndarray | None = None  # bool [draws, S]; None: whole cells are


def strategy(name: str, ratio: float, clip: clip_lib.Clip,
             patch: config_lib.Patch, draws: int, seed: int) -> Hidden:
  """Patches as `masking` draws them, about a share `ratio` of them.

  For time_freq it is divided evenly: each hides 1 - sqrt(1 - ratio).

  Raises:
    ValueError: the strategy or the ratio is not known, or does not fit.
  """
  if name not in STRATEGIES:
    raise ValueError(
        f'mask {name!r} is not known: {", ".join(NAMES)}.')
  if not 0 < ratio < 1:
    raise ValueError(
        f'A ratio of {ratio:g} is not a share of patches between 0 and 1.')
  each = 1 - (1 - ratio) ** 0.5
  settings = {
      'unstructured': {'ratio': ratio},
      'time': {'time_ratio': ratio},
      'freq': {'freq_ratio': ratio},
      'time_freq': {'time_ratio': each, 'freq_ratio': each},
  }[name]
  shape = clip.spectrogram.shape
  grid = patches_lib.grid_of(shape, patch)
  try:
    mask = masking.make(
        jax.random.key(seed), draws, grid,
        dataclasses.replace(config_lib.Mask(name=name), **settings))
  except ValueError as error:
    raise ValueError(
        f'A share of {ratio:g} cannot be hidden by {name!r} of {grid[0]} x '
        f'{grid[1]} patches (time x frequency): at least one step or band must '
        'stay and one go. Give another ratio, or a longer clip.') from error
  removed = np.asarray(mask.removed)
  return Hidden(name, STRATEGIES[name], removed,
                pixels(removed, shape, patch))


def gaps(gap_ms: float, clip: clip_lib.Clip, patch: config_lib.Patch,
         draws: int, seed: int) -> Hidden:
  """Samples lost in a gap at a random place of each second of the clip.

  Fewer gaps where they would be more than half of the clip.

  Raises:
    ValueError: a gap is no duration, or leaves too little of the clip.
  """
  rate, total = clip.spec.sample_rate_hz, len(clip.waveform)
  length = round(rate * gap_ms / 1000)
  if length < 1 or 2 * length > total:
    raise ValueError(
        f'A gap of {gap_ms:g} ms cannot be cut from a clip of '
        f'{clip.seconds:.2f} s: give more than {1000 / rate:g} and at most '
        f'{500 * clip.seconds:.0f} ms.')
  count = max(1, min(round(clip.seconds), total // (2 * length)))
  segment, rng = total // count, np.random.default_rng(seed)
  lost = np.zeros((draws, total), bool)
  for row in lost:
    for i in range(count):
      start = i * segment + int(rng.integers(segment - length + 1))
      row[start:start + length] = True
  window = frontend.min_samples(clip.spec)
  hop = frontend.tables(clip.spec).dft.shape[1]
  spoilt = np.lib.stride_tricks.sliding_window_view(
      lost, window, axis=1)[:, ::hop].any(-1)  # [draws, T]
  hidden = np.repeat(spoilt[..., None], clip.spec.num_mel_bins, axis=-1)
  return Hidden(f'gaps-{gap_ms:g}', f'Gaps of {gap_ms:g} ms',
                _patches(hidden, patch, f'Gaps of {gap_ms:g} ms'), hidden, lost)


def bands(cutoff_hz: float, clip: clip_lib.Clip,
          patch: config_lib.Patch) -> Hidden:
  """All mel bins that reach above `cutoff_hz`, at all times.

  Raises:
    ValueError: that is all of them, or none.
  """
  mel = frontend.tables(clip.spec).mel
  hz = np.arange(len(mel)) * clip.spec.sample_rate_hz / (2 * len(mel))
  # A filter that holds no bin reaches as far as those below it.
  top_hz = np.maximum.accumulate(np.where(mel > 0, hz[:, None], 0).max(0))
  above = top_hz > cutoff_hz
  if above.all() or not above.any():
    share = 'all' if above.all() else 'none'
    raise ValueError(
        f'Of a band up to {top_hz[-1]:.0f} Hz {share} is above a cutoff of '
        f'{cutoff_hz:g} Hz: give one inside of it.')
  hidden = np.broadcast_to(above, (1, *clip.spectrogram.shape)).copy()
  title = f'Above {cutoff_hz / 1000:g} kHz'
  return Hidden(f'bands-{cutoff_hz:g}', title,
                _patches(hidden, patch, title), hidden)


def pixels(removed, shape, patch: config_lib.Patch) -> np.ndarray:
  """bool [B, N] -> bool [B, T, F]; a pixel is hidden when all over it are."""
  cells = np.broadcast_to(
      removed[..., None], (*removed.shape, patch.size[0] * patch.size[1]))
  return np.asarray(patches_lib.unpatchify(
      cells.astype(np.float32), shape, patch)) > 0.999


def _patches(hidden, patch, what):
  """bool [B, T, F] -> bool [B, N]: patches with anything hidden in them."""
  removed = np.asarray(patches_lib.patchify(hidden, patch)).any(-1)
  if removed.all(1).any():
    raise ValueError(
        f'{what}: every patch of {patch.size[0]} frames x {patch.size[1]} mel '
        'bins has a part of that, and nothing is left to see. Hide less, or '
        'take a longer clip.')
  return removed
