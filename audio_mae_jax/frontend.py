"""Waveform to log-mel spectrogram by Kaldi's convention, on the accelerator.

`features` is what a model reads; `log_mel` is the filter bank below it, equal
to Kaldi's `compute-fbank-feats --dither=0` and to the `fbank` of its ports.

Everything is float32 and every product asks for full precision, whatever the
model computes in: rounding the inputs of a product to bfloat16 or TF32 moves
quiet cells of a log spectrum by whole units. Tables are computed in float64.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from audio_mae_jax import augment
from audio_mae_jax import config
from audio_mae_jax import devices
from audio_mae_jax import registry

HIGHEST = jax.lax.Precision.HIGHEST


def min_samples(spec: config.Frontend) -> int:
  """Samples of one window: the shortest waveform that has a frame."""
  return _samples('window_ms', 2, spec)


def num_frames(num_samples: int, spec: config.Frontend) -> int:
  """Frames that lie wholly inside `num_samples` (Kaldi's snip_edges)."""
  window, hop = min_samples(spec), _samples('hop_ms', 1, spec)
  if num_samples < window:
    raise ValueError(
        f'A clip of {num_samples} samples is shorter than one window: '
        f'{window} samples are needed ({spec.window_ms:g} ms at '
        f'{spec.sample_rate_hz} Hz). Leave such clips out, pad them, or set '
        f'frontend.window_ms lower.')
  return 1 + (num_samples - window) // hop


def covered(frames: int, spec: config.Frontend) -> int:
  """Samples under so many `frames`: the fewest that have them."""
  return min_samples(spec) + (frames - 1) * _samples('hop_ms', 1, spec)


def log_mel(waveform: jax.Array, spec: config.Frontend) -> jax.Array:
  """[B, S] -> [B, frames, F]: natural logarithm of the mel power spectrum."""
  if not jnp.issubdtype(waveform.dtype, jnp.floating):
    raise ValueError(
        f'The waveform is {waveform.dtype}; the front end takes floating point '
        f'in [-1, 1]. Divide 16-bit samples by 32768.')
  waveform = waveform.astype(jnp.float32)
  transform = registry.lookup(TRANSFORMS, spec.transform, 'frontend.transform')
  if transform is None:
    transform = TRANSFORMS[AUTO.get(devices.platform(), 'matmul')]
  power = transform(waveform, spec)
  mel = jnp.matmul(power, tables(spec).mel, precision=HIGHEST)
  return jnp.log(jnp.maximum(mel, spec.floor))


def features(
    waveform: jax.Array, num_samples: jax.Array, spec: config.Frontend
) -> jax.Array:
  """[B, S], [B] -> [B, T, F]: normalised log-mel of the valid samples.

  Frames that are not wholly inside a clip's `num_samples` are zeros *before*
  normalisation, as in the paper's code; they end up above the mean.
  """
  if spec.num_frames < 1:
    raise ValueError(
        f'frontend.num_frames={spec.num_frames} must be 1 or more.')
  waveform = augment.remove_mean(waveform, num_samples)
  window, hop = min_samples(spec), _samples('hop_ms', 1, spec)
  # Not through num_frames: a clip without a frame is all padding here.
  frames_in_clip = (num_samples - window) // hop + 1
  x = log_mel(waveform[:, :covered(spec.num_frames, spec)], spec)
  missing = spec.num_frames - x.shape[1]
  x = jnp.pad(x, ((0, 0), (0, missing), (0, 0)))
  valid = jnp.arange(spec.num_frames) < frames_in_clip[:, None]
  x = jnp.where(valid[..., None], x, 0.0)
  return (x - spec.mean) / (2 * spec.std)


class Tables(NamedTuple):
  """Constants of a `Frontend`, float32, computed in float64."""
  window: np.ndarray  # [window]
  dft: np.ndarray  # [taps, hop, 2 * bins], of windowed rows; see `_matmul`
  dft_of_ones: np.ndarray  # [2 * bins], of the window alone
  mel: np.ndarray  # [bins, F]


@functools.lru_cache(maxsize=16)
def tables(spec: config.Frontend) -> Tables:
  """The constants that `spec` stands for, or a ValueError where none exist."""
  length, hop = min_samples(spec), _samples('hop_ms', 1, spec)
  phase = 2 * np.pi * np.arange(length) / (length - 1)
  window = registry.lookup(WINDOWS, spec.window, 'frontend.window')(phase)
  bins = _fft_length(spec) // 2
  angle = np.pi / bins * np.outer(np.arange(length), np.arange(bins))
  dft = window[:, None] * np.hstack([np.cos(angle), np.sin(angle)])
  taps = -(-length // hop)
  rows = np.pad(dft, ((0, taps * hop - length), (0, 0)))
  return Tables(*(x.astype(np.float32) for x in (
      window, rows.reshape(taps, hop, 2 * bins), dft.sum(0),
      _mel_filters(spec))))


def _mel_filters(spec):
  """[bins, F] triangles of peak 1, linear in mel; float64."""
  nyquist_hz = spec.sample_rate_hz / 2
  high_hz = spec.high_hz if spec.high_hz > 0 else nyquist_hz + spec.high_hz
  if not 0 <= spec.low_hz < high_hz <= nyquist_hz:
    raise ValueError(
        f'frontend.low_hz={spec.low_hz:g} and high_hz={spec.high_hz:g} make a '
        f'band of {spec.low_hz:g} to {high_hz:g} Hz; it must rise and end at '
        f'or below {nyquist_hz:g} Hz, half of the sample rate.')
  if spec.num_mel_bins < 1 or spec.floor <= 0:
    raise ValueError(
        f'frontend.num_mel_bins={spec.num_mel_bins} and '
        f'frontend.floor={spec.floor:g} must be positive.')
  edges = np.linspace(*_mel([spec.low_hz, high_hz]), spec.num_mel_bins + 2)
  delta = edges[1] - edges[0]
  # The bin at Nyquist is left out, as in Kaldi. At the defaults filter 3 holds
  # no bin at all and is always at the floor; the released weights saw it so.
  length = _fft_length(spec)
  bins = _mel(np.arange(length // 2) * spec.sample_rate_hz / length)[:, None]
  rising = (bins - edges[:-2]) / delta
  falling = (edges[2:] - bins) / delta
  return np.maximum(0, np.minimum(rising, falling))


def _mel(hz):
  return 1127 * np.log1p(np.asarray(hz) / 700)


def _samples(field, least, spec):
  """Whole samples in the duration `spec.<field>`, rounded down as in Kaldi."""
  if spec.sample_rate_hz < 1:
    raise ValueError(
        f'frontend.sample_rate_hz={spec.sample_rate_hz} must be positive: the '
        'rate that clips are resampled to, 16000 for the released weights.')
  duration_ms = getattr(spec, field)
  samples = int(spec.sample_rate_hz * duration_ms / 1000)
  if samples < least:
    raise ValueError(
        f'frontend.{field}={duration_ms:g} is {samples} samples at '
        f'{spec.sample_rate_hz} Hz; it must be {least} or more.')
  return samples


def _fft_length(spec):
  return 1 << (min_samples(spec) - 1).bit_length()  # next power of two


def _rows(waveform, spec):
  """[B, S] -> [B, frames + taps - 1, hop].

  Frame t is the first samples of rows t, t + 1, ..., t + taps - 1 joined: no
  gather, which a TPU would do sample by sample.
  """
  batch, samples = waveform.shape
  taps, hop, _ = tables(spec).dft.shape
  rows = num_frames(samples, spec) + taps - 1
  waveform = jnp.pad(waveform, ((0, 0), (0, max(0, rows * hop - samples))))
  return waveform[:, :rows * hop].reshape(batch, rows, hop)


def _fft(waveform, spec):
  """[B, S] -> [B, frames, bins]: power spectrum, step by step as in Kaldi."""
  # XLA would gather a batch that is split over CPUs or GPUs before a Fourier
  # transform (openxla/xla issue 24), so that each did all the work.
  return devices.split(
      functools.partial(_fft_here, spec=spec), (waveform,), ())


def _fft_here(waveform, spec):
  rows = _rows(waveform, spec)
  taps = tables(spec).dft.shape[0]
  frames = rows.shape[1] - taps + 1
  x = jnp.concatenate([rows[:, i:i + frames] for i in range(taps)], axis=-1)
  x = x[..., :min_samples(spec)]
  if spec.remove_dc_offset:
    x -= x.mean(-1, keepdims=True)
  x -= spec.preemphasis * jnp.concatenate([x[..., :1], x[..., :-1]], axis=-1)
  x = jnp.fft.rfft(x * tables(spec).window, _fft_length(spec))[..., :-1]
  return x.real**2 + x.imag**2


def _matmul(waveform, spec):
  """[B, S] -> [B, frames, bins]: power spectrum, by one product.

  Window and Fourier transform are a matrix, applied as a convolution over rows
  of one hop, so that no frame is copied. Pre-emphasis comes before it, on the
  waveform: inside the matrix it would have to cancel loud low frequencies,
  which costs quiet high ones a digit. The two steps that belong to a frame,
  its mean and the sample before its first, are added to the spectrum.
  """
  const, p = tables(spec), spec.preemphasis
  taps, hop, _ = const.dft.shape
  previous = jnp.pad(waveform, ((0, 0), (1, 0)))[:, :-1]
  x = jax.lax.conv_general_dilated(
      _rows(waveform - p * previous, spec), const.dft, window_strides=(1,),
      padding='VALID', dimension_numbers=('NWC', 'WIO', 'NWC'),
      precision=HIGHEST)
  frames = x.shape[1]
  if spec.remove_dc_offset:
    rows = _rows(waveform, spec)
    whole = rows.sum(-1)
    total = rows[:, taps - 1:, :min_samples(spec) - (taps - 1) * hop].sum(-1)
    total += sum(whole[:, i:i + frames] for i in range(taps - 1))
    mean = total / min_samples(spec)
    x -= (1 - p) * mean[..., None] * const.dft_of_ones
  real, imag = jnp.split(x, 2, axis=-1)
  if const.window[0]:  # zero for hann and povey
    first = _rows(previous - waveform, spec)[:, :frames, :1]
    real += p * const.window[0] * first
  return real**2 + imag**2


# docs/frontend.md compares them.
TRANSFORMS = {'auto': None, 'matmul': _matmul, 'fft': _fft}
# What 'auto' stands for where that is not 'matmul'.
AUTO = {'gpu': 'fft'}

# By the phase, 0 at the first sample and 2 pi at the last (not periodic).
WINDOWS = {
    'hann': lambda phase: 0.5 - 0.5 * np.cos(phase),
    'hamming': lambda phase: 0.54 - 0.46 * np.cos(phase),
    'povey': lambda phase: (0.5 - 0.5 * np.cos(phase)) ** 0.85,
    'rectangular': np.ones_like,
}
