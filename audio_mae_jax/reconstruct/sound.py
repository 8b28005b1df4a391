"""Spectrograms to sound, with all of the original that was not hidden.

The short-time Fourier transform has the front end's frames: its frame t is the
front end's, and a few stand before and after it, so that every sample lies
under as many. It is of the waveform as it is; pre-emphasis, which the front end
puts before, is a factor for each bin here, exact up to a few tenths of a dB.
"""

import functools

import numpy as np
from scipy import sparse

from audio_mae_jax import config
from audio_mae_jax import frontend

_MOMENTUM = 0.99  # of the fast Griffin-Lim algorithm (Perraudin et al., 2013)
# Bins of a clip are told apart down to so far below its loudest one.
RANGE_DB = 80.0
_SILENCE = 1e-9  # power of a bin; a sine at full scale has some 1e4
# At 0 Hz a pre-emphasis of 1 leaves nothing that could be divided by.
_LEAST_GAIN = 1e-2
# Of the sample under the most weight of windows: with less none comes back.
_LEAST_WEIGHT = 1e-3


class Transform:
  """Short-time Fourier transform of clips of `num_frames` frames.

  Spectra are complex [..., frames + 2 * margin, bins]; the bins are those of
  the front end, and the one at half of the sample rate.

  Raises:
    ValueError: the front end's frames leave samples out, and cannot be undone.
  """

  def __init__(self, spec: config.Frontend, num_frames: int):
    table = frontend.tables(spec)
    self.window = table.window.astype(np.float64)
    taps, self.hop, _ = table.dft.shape
    self.margin = taps - 1
    self.num_frames = num_frames
    self.num_samples = len(self.window) + (num_frames - 1) * self.hop
    self.bins = table.mel.shape[0] + 1
    # The whole-hop rest of a frame is empty; see `inverse`.
    self._frame = taps * self.hop
    padded = np.pad(self.window, (0, self._frame - len(self.window)))
    weight = np.square(padded).reshape(taps, self.hop).sum(0)
    if weight.min() < _LEAST_WEIGHT * weight.max():
      raise ValueError(
          f'Frames of frontend.window_ms={spec.window_ms:g} every '
          f'frontend.hop_ms={spec.hop_ms:g} give no sound: between two of them '
          f'there are samples that the window {spec.window!r} leaves out. '
          'Take a model whose hop is at most half of its window.')
    self._dual = padded / np.tile(weight, taps)

  @property
  def frames(self) -> slice:
    """Of the front end's frames among those of a spectrum."""
    return slice(self.margin, self.margin + self.num_frames)

  def __call__(self, waveform: np.ndarray) -> np.ndarray:
    """float [..., S] -> complex [..., frames + 2 * margin, bins]."""
    edge = self.margin * self.hop
    total = edge + (self.num_frames - 1 + self.margin) * self.hop + self._frame
    x = np.pad(waveform, [(0, 0)] * (waveform.ndim - 1)
               + [(edge, total - edge - waveform.shape[-1])])
    x = np.lib.stride_tricks.sliding_window_view(x, len(self.window), -1)
    return np.fft.rfft(x[..., ::self.hop, :] * self.window, 2 * self.bins - 2)

  def inverse(self, spectrum: np.ndarray) -> np.ndarray:
    """The waveform [..., S] whose transform is nearest to `spectrum`."""
    x = np.fft.irfft(spectrum, 2 * self.bins - 2)[..., :len(self.window)]
    x = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, self._frame - x.shape[-1])])
    x = (x * self._dual).reshape(*x.shape[:-1], -1, self.hop)
    rows = np.zeros((*x.shape[:-3], x.shape[-3] + self.margin, self.hop))
    for i in range(self.margin + 1):
      rows[..., i:i + x.shape[-3], :] += x[..., i, :]
    edge = self.margin * self.hop
    return rows.reshape(*rows.shape[:-2], -1)[
        ..., edge:edge + self.num_samples]


def bins_of(hidden: np.ndarray, spec: config.Frontend) -> np.ndarray:
  """bool [..., F] -> [..., bins]: Fourier bins whose mel bins are hidden.

  A bin under two filters goes with the one that weighs more; a bin under none
  with the nearest that is under one.
  """
  nearest = _nearest(spec)
  weight = frontend.tables(spec).mel.T.astype(np.float64)  # [F, bins - 1]
  share = hidden @ weight / np.maximum(weight.sum(0), 1e-12)
  return share[..., nearest] > 0.5


@functools.lru_cache(maxsize=8)
def _nearest(spec):
  """For each bin, the nearest one that lies under a filter."""
  mel = frontend.tables(spec).mel
  covered = np.flatnonzero(mel.sum(1) > 0)
  return covered[np.abs(
      np.arange(mel.shape[0] + 1)[:, None] - covered).argmin(1)]


def magnitudes(log_mel, known, hidden, spec, iterations: int = 10):
  """Fourier magnitudes of the waveform for mel energies.

  A mel filter is wider than a bin for most of the band, so that many spectra
  have the same energies. This one starts smooth and is moved by the iteration
  for non-negative factors with the Kullback-Leibler divergence (Lee and Seung,
  2001), which keeps it positive and near to what it was.

  Args:
    log_mel: float [..., T, F], natural logarithm of energies.
    known: float [..., T, bins], magnitudes of the original.
    hidden: bool [..., T, bins], where they are to be found; elsewhere the
      result is `known`.
    spec: of the front end.
    iterations: 10 are enough: 100 are nearer by a hundredth of a dB.

  Returns:
    float [..., T, bins].
  """
  mel = frontend.tables(spec).mel.astype(np.float64)
  width = mel.sum(0)
  used = width > 0  # a filter may hold no bin
  mel, width = mel[:, used], width[used]
  back = (mel / np.maximum(mel.sum(1, keepdims=True), 1e-12)).T
  # A bin lies under two filters at most.
  mel, back = sparse.csr_array(mel), sparse.csr_array(back)
  gain = _gain(spec, mel.shape[0] + 1)
  energy = np.exp(np.asarray(log_mel, np.float64)[..., used])
  energy = energy.reshape(-1, len(width))
  free = hidden[..., :-1].reshape(len(energy), -1)
  kept = np.square(known * gain)[..., :-1].reshape(free.shape)
  power = np.where(free, (energy / width) @ back, kept)
  for _ in range(iterations):
    ratio = energy / np.maximum(power @ mel, 1e-30)
    power = np.where(free, power * (ratio @ back), kept)
  # The front end does not see the last bin.
  power = np.concatenate([power, power[:, -1:]], axis=-1)
  return np.where(hidden, np.sqrt(power).reshape(known.shape) / gain, known)


def _gain(spec, bins):
  """Of pre-emphasis at each bin."""
  phase = np.pi * np.arange(bins) / (bins - 1)
  return np.maximum(
      np.abs(1 - spec.preemphasis * np.exp(-1j * phase)), _LEAST_GAIN)


def griffin_lim(transform: Transform, original, magnitude, hidden, *,
                lost=None, iterations: int = 100, seed: int = 0):
  """Sound whose spectrum is the original's, or has the given magnitudes.

  The fast Griffin-Lim algorithm, held fast where the original is known: its
  complex spectrum in bins that are not hidden and, with `lost`, all samples
  that are not lost. So phases of hidden bins follow those around them.

  Args:
    transform: of clips like this.
    original: float [S].
    magnitude: float [..., T, bins].
    hidden: bool, as `magnitude`: where it holds instead of the original.
    lost: bool [..., S]: samples to replace, or None for all of them.
    iterations: of the algorithm.
    seed: of the phases it starts from.

  Returns:
    float [..., S].
  """
  rng = np.random.default_rng(seed)
  inside = transform.frames
  edge = [(0, 0)] * (magnitude.ndim - 2) + [
      (transform.margin, transform.margin), (0, 0)]
  # Frames over an end of the clip have no magnitudes of their own. They are
  # free where the nearest frame is hidden.
  hidden = np.pad(hidden, edge, mode='edge')
  free = hidden.copy()
  free[..., inside, :] = False
  magnitude = np.pad(magnitude, edge)
  truth = transform(original)
  start = magnitude * np.exp(2j * np.pi * rng.random(magnitude.shape))
  spectrum = np.where(hidden, start, truth)

  def sound():
    x = transform.inverse(spectrum)
    return x if lost is None else np.where(lost, x, original)

  before = np.zeros_like(spectrum)
  for _ in range(iterations):
    now = transform(sound())
    ahead = now + _MOMENTUM * (now - before)
    before = now
    found = magnitude * ahead / np.maximum(np.abs(ahead), 1e-12)
    spectrum = np.where(hidden, np.where(free, now, found), truth)
  return sound()


def without(transform: Transform, original, hidden, lost=None) -> np.ndarray:
  """[..., S]: the original without what is hidden, or with lost samples 0."""
  if lost is not None:
    return np.where(lost, 0.0, original)
  hidden = np.pad(hidden, [(0, 0)] * (hidden.ndim - 2) + [
      (transform.margin, transform.margin), (0, 0)], mode='edge')
  return transform.inverse(np.where(hidden, 0, transform(original)))


def log_spectral_distance(reference, estimate, cells) -> np.ndarray:
  """[..., T, bins] of powers -> dB [...]: over the bins of `cells` alone.

  In each frame the root of the mean squared difference of levels in dB, and of
  that the mean over frames that have such a bin. Levels are told apart down to
  `RANGE_DB` below the loudest bin of the reference: silence is that far off,
  not infinitely.

  Raises:
    ValueError: there is no such bin.
  """
  cells = np.asarray(cells, bool)
  if not cells.any((-2, -1)).all():
    raise ValueError('A log-spectral distance needs a bin to be measured in.')
  least = reference.max() * 10 ** (-RANGE_DB / 10)
  level = lambda power: 10 * np.log10(np.maximum(power, max(least, _SILENCE)))
  squares = np.where(cells, np.square(level(reference) - level(estimate)), 0)
  count = cells.sum(-1)
  distance = np.sqrt(squares.sum(-1) / np.maximum(count, 1))
  return distance.sum(-1) / (count > 0).sum(-1)
