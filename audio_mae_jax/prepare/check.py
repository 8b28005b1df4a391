"""Opens every clip: its length and sample rate, or the reason it is no good."""

import concurrent.futures
import dataclasses
import sys

import numpy as np
import soundfile

from audio_mae_jax import config as config_lib
from audio_mae_jax import frontend
from audio_mae_jax import progress
from audio_mae_jax.data import audio_io
from audio_mae_jax.data import manifests
from audio_mae_jax.data import recordings

_THREADS = 16  # reading headers waits for the disk, not for the core
_BLOCK = 4096  # clips in flight: a future for each of two million is memory


@dataclasses.dataclass(frozen=True)
class Clip:
  """What the header of a good clip's file says."""
  duration_s: float  # of the part that the row lists
  rate_hz: int


def item_of(row: manifests.Row) -> dict:
  """`row` as `audio_io.load` takes it."""
  return {'audio': row.path, 'id': row.path, 'start_s': row.start_s,
          'duration_s': row.duration_s}


def clips(rows: list[manifests.Row], decode: bool
          ) -> tuple[dict[manifests.Row, Clip], dict[manifests.Row, str]]:
  """The good rows, each once, and what is wrong with the others.

  Headers and first samples are read; with `decode` everything.
  """
  good, bad = {}, {}
  rows = list(dict.fromkeys(rows))
  with (concurrent.futures.ThreadPoolExecutor(_THREADS) as pool,
        progress.clips(len(rows)) as bar):
    for start in range(0, len(rows), _BLOCK):
      block = rows[start:start + _BLOCK]
      results = pool.map(lambda row: _open(row, decode), block)
      for row, result in zip(block, results, strict=True):
        bar.update()
        if isinstance(result, Clip):
          good[row] = result
        else:
          bad[row] = result
  return good, bad


def _open(row, decode):
  spec = config_lib.Frontend()
  try:
    audio_io.load(
        item_of(row), sample_rate_hz=spec.sample_rate_hz,
        num_samples=sys.maxsize if decode else 1, crop='start',
        rng=np.random.default_rng(0), min_samples=frontend.min_samples(spec))
  except recordings.BadAudio as error:
    return str(error)
  header = soundfile.info(row.path)
  duration_s = header.duration - row.start_s
  if row.duration_s is not None:
    duration_s = min(duration_s, row.duration_s)
  return Clip(duration_s, header.samplerate)
