"""One clip of mono float32 samples from a file, bytes or an array.

Only the part of a file that the clip needs is read and resampled, with enough
context on both sides that the samples are those of the whole file resampled.

`recordings.BadAudio` says why a clip cannot be used: its file is missing,
unreadable, empty, truncated (its header promises more than it holds), shorter
than `min_samples`, or the clip has NaN, infinite or absurdly large samples.
What is never read is never judged: another crop of the same file may be good.
"""

from collections.abc import Callable
import math

import numpy as np
import soxr

from audio_mae_jax import registry
from audio_mae_jax import storage
from audio_mae_jax.data import crops
from audio_mae_jax.data import recordings

# soxr's longest filter, in samples at the model's rate, with room to spare.
_CONTEXT = 512
# Full scale is 1. Far above it lie integers stored as floats, or garbage.
_MAX_PEAK = 100.0


class WrongRate(ValueError):
  """A file's rate differs from the model's and may not be converted."""


def load(item: dict, *, sample_rate_hz: int, num_samples: int, crop: str,
         rng: np.random.Generator, resample: str = 'soxr_hq',
         min_samples: int = 1, channels: str = 'mean', as_stored: bool = False,
         out: Callable[[type], np.ndarray] | None = None) -> np.ndarray:
  """The clip [<= num_samples] of `item` at `sample_rate_hz`, of one channel.

  Float32, where full scale is 1. With `as_stored`, of what is stored in 16
  bits, one channel and that rate, int16, where it is 2**15: `to_float` gives
  the same. `out` is told that dtype and gives memory [num_samples] of it, or of
  float32 in its place; the result is the first part of that.

  `item` is an element of a source: 'audio' is a path or an address, the bytes
  of a file, or an array [n] or [n, channels] sampled at 'sample_rate_hz';
  'start_s' and 'duration_s' (None: to the end) say which part of it may be
  used. The result depends on the arguments and the state of `rng` alone.
  """
  take = registry.lookup(crops.CROPS, crop, 'config.data.crop')
  registry.lookup(RESAMPLERS, resample, 'config.data.resample')
  mix = registry.lookup(CHANNELS, channels, 'config.data.channels')
  with recordings.open_recording(item) as recording:
    rate = recording.rate_hz
    if rate != sample_rate_hz and resample == 'error':
      raise WrongRate(
          f'{item["id"]} is sampled at {rate} Hz, the model at '
          f'config.frontend.sample_rate_hz={sample_rate_hz}, and '
          "config.data.resample='error' refuses to convert. Set "
          "config.data.resample='soxr_hq', or the sample rate of the files.")
    dtype = np.float32
    if as_stored and (recording.dtype, recording.num_channels, rate) == (
        np.int16, 1, sample_rate_hz):
      dtype = np.int16
    samples = None
    if out is not None:
      samples = out(dtype)
      dtype = samples.dtype
    window = Window(recording, item, sample_rate_hz, RESAMPLERS[resample],
                    mix, dtype)
    if window.num_samples < max(min_samples, 1):
      raise recordings.BadAudio(
          'empty' if not window.num_samples else
          f'too short: {window.num_samples / sample_rate_hz:.4f} s, the model '
          f'needs {min_samples / sample_rate_hz:.4f} s')
    return take(window, num_samples, rng, samples)


def to_float(samples, full_scale=2**15, out=None):
  """Samples as float32, where full scale is 1."""
  # Full scales are powers of two: a product is as exact as a quotient.
  return np.multiply(samples, np.float32(1 / full_scale), out=out,
                     dtype=np.float32, casting='same_kind')


class Window:
  """The usable part of a recording, by index at the model's rate."""

  def __init__(self, recording, item, rate_hz, quality, mix, dtype):
    self._recording = recording
    self._rate_hz = rate_hz
    self._quality = quality
    self._mix = mix
    self._dtype = dtype
    start = round(item.get('start_s', 0.0) * recording.rate_hz)
    stop = recording.num_frames
    if stop and start >= stop:
      raise recordings.BadAudio(
          f'ends at {stop / recording.rate_hz:.3f} s, before the start of the '
          f'clip at {item["start_s"]:.3f} s')
    if item.get('duration_s') is not None:
      stop = min(
          stop, start + round(item['duration_s'] * recording.rate_hz))
    self._start, self._stop = start, stop
    self.num_samples = max(stop - start, 0) * rate_hz // recording.rate_hz

  def read(self, parts, out):
    """Samples of the `parts` (start, stop) of the window, one after another.

    In the first part of `out` if there is one.
    """
    total = sum(stop - start for start, stop in parts)
    samples = np.empty(total, self._dtype) if out is None else out[:total]
    place = 0
    for start, stop in parts:
      self._fill(samples[place:place + stop - start], start, stop)
      place += stop - start
    return samples

  def _fill(self, out, start, stop):
    source, target = self._recording.rate_hz, self._rate_hz
    if source == target:
      self._frames(self._start + start, self._start + stop, out)
      return
    # A block that starts at a multiple of `period` frames has its samples
    # where resampling the whole window would put them.
    divisor = math.gcd(source, target)
    period = source // divisor
    block = max(start - _CONTEXT, 0) * source // target // period
    first = self._start + block * period
    last = min(-(-(stop + _CONTEXT) * source // target) + self._start,
               self._stop)
    frames = self._frames(first, last, np.empty(last - first, np.float32))
    samples = soxr.resample(frames, source, target, quality=self._quality)
    offset = start - block * (target // divisor)
    out[:] = samples[offset:offset + stop - start]

  def _frames(self, start, stop, out):
    """Frames start..stop of the recording, of one channel, in `out`."""
    stored = out[:, None] if out.dtype == np.int16 else None
    try:
      frames = self._recording.read(start, stop, stored)
    except storage.Unreachable:
      raise
    except (OSError, RuntimeError, ValueError) as error:
      rate = self._recording.rate_hz
      raise recordings.BadAudio(
          f'damaged or truncated between {start / rate:.1f} and '
          f'{stop / rate:.1f} s: {recordings.reason(error)}') from error
    if len(frames) < stop - start:
      raise recordings.BadAudio(
          f'truncated: {start + len(frames)} of {self._recording.num_frames} '
          'frames')
    if stored is not None:
      return out
    if frames.shape[1] > 1:
      out[:] = self._mix(self._scaled(frames))
    else:
      self._scaled(frames[:, 0], out)
    if frames.dtype != np.int16:  # which has nothing but good samples
      _check(out)
    return out

  def _scaled(self, frames, out=None):
    """Frames as float32, where full scale is 1."""
    return to_float(frames, self._recording.full_scale, out)


def _check(samples):
  peak = np.abs(samples).max(initial=0.0)
  if not np.isfinite(peak):
    raise recordings.BadAudio('NaN or infinite samples')
  if peak > _MAX_PEAK:
    raise recordings.BadAudio(
        f'samples up to {peak:.3g}, where full scale is 1')


def _mean(frames):
  if frames.shape[1] == 2:  # the same sum, in a fraction of the time
    return (frames[:, 0] + frames[:, 1]) / 2
  return frames.mean(axis=1)


# soxr's names of its qualities; 'error' converts nothing.
RESAMPLERS = {'soxr_hq': 'HQ', 'soxr_vhq': 'VHQ', 'error': None}

CHANNELS = {  # [n, channels] -> [n]
    'mean': _mean,
    'first': lambda frames: frames[:, 0],
}
