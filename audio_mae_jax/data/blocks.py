"""A recording of any length as blocks of samples, in constant memory.

Whole files and streams are resampled by the same filter with the same state:
however a recording is cut into chunks, its samples are the same bit by bit, and
the same as those of the whole resampled at once (`audio_io.load`).
"""

from collections.abc import Iterator

import numpy as np
import soxr

from audio_mae_jax import registry
from audio_mae_jax.data import audio_io
from audio_mae_jax.data import recordings

_BLOCK_SAMPLES = 2**18  # at the rate of the recording


class Resampler:
  """Chunks [n] at one rate -> chunks at another; mono float32."""

  def __init__(self, from_hz: int, to_hz: int, resample: str = 'soxr_hq'):
    quality = registry.lookup(
        audio_io.RESAMPLERS, resample, 'config.data.resample')
    # 'error' is about the cost of converting training data again and again.
    quality = quality or audio_io.RESAMPLERS['soxr_hq']
    self._stream = None
    if from_hz != to_hz:
      self._stream = soxr.ResampleStream(
          from_hz, to_hz, 1, dtype='float32', quality=quality)

  def push(self, samples: np.ndarray) -> np.ndarray:
    """What can be told after these samples: a filter looks ahead."""
    if self._stream is None:
      return samples
    return self._stream.resample_chunk(samples)

  def finish(self) -> np.ndarray:
    """The rest, once there are no more."""
    if self._stream is None:
      return np.zeros(0, np.float32)
    return self._stream.resample_chunk(np.zeros(0, np.float32), last=True)


def read(item: dict, *, sample_rate_hz: int, resample: str = 'soxr_hq',
         channels: str = 'mean') -> Iterator[np.ndarray]:
  """Yields the recording `item` from start to end, float32 [n] at a time.

  `item` is an element of a source; see `audio_io.load`.

  Raises:
    recordings.BadAudio: it cannot be used, from here on.
  """
  mix = registry.lookup(audio_io.CHANNELS, channels, 'config.data.channels')
  with recordings.open_recording(item) as recording:
    rate = recording.rate_hz
    window = audio_io.Window(recording, item, rate, None, mix, np.float32)
    resampler = Resampler(rate, sample_rate_hz, resample)
    for start in range(0, window.num_samples, _BLOCK_SAMPLES):
      stop = min(start + _BLOCK_SAMPLES, window.num_samples)
      yield resampler.push(window.read([(start, stop)], None))
    yield resampler.finish()
