"""Memory of the host: of clips that are kept, and of batches under way."""

import sys
import threading

import numpy as np

from audio_mae_jax.data import audio_io


class Clips:
  """Whole clips at the model's rate, decoded once; safe in threads.

  Clips stay up to `max_bytes` in all; beyond that they are decoded at each use,
  also as a whole, so that what a clip sounds like does not depend on what was
  read before it (a coded file decodes differently from its middle).
  """

  def __init__(self, max_bytes, load, rate_hz):
    self._free = max_bytes
    self._load, self._rate_hz = load, rate_hz
    self._lock = threading.Lock()
    self._kept = {}

  def item(self, source, index):
    """`source[index]` with its samples in place of its file."""
    samples = self._kept.get(index)
    if samples is None:
      samples = self._load(
          source[index], num_samples=sys.maxsize, crop='start', rng=None)
      with self._lock:
        if index not in self._kept and samples.nbytes <= self._free:
          self._kept[index] = samples
          self._free -= samples.nbytes
    return {'audio': samples, 'sample_rate_hz': self._rate_hz,
            'id': source.name_of(index)}


class Batches:
  """Memory of the batches under way: clips are decoded where they will lie.

  Most of what a row of its own costs is its memory, which the system hands out
  page by page; of a whole batch it takes large pages.

  A batch is int16, half of the bytes, if all its clips are stored so; from the
  first that is not, batches are float32.
  """

  def __init__(self, batch_size: int, num_samples: int):
    self._shape = batch_size, num_samples
    self.batch_size = batch_size
    self._wide = False
    self._lock = threading.Lock()
    self._open = {}  # batch: [its memory by dtype, rows given out]

  def row(self, i: int) -> 'Row':
    """Where row i of all goes. Each is given out once."""
    batch, place = divmod(i, self.batch_size)
    with self._lock:
      entry = self._open.setdefault(batch, [{}, 0])
      entry[1] += 1
      if entry[1] == self.batch_size:  # from here on its rows keep it
        del self._open[batch]
    return Row(self, entry[0], place)

  def take(self, arrays: dict, place: int, dtype: type) -> np.ndarray:
    """Row `place` of the array of that dtype, or of the float32 one."""
    with self._lock:
      self._wide |= dtype != np.int16
      if self._wide:
        dtype = np.float32
      if dtype not in arrays:
        arrays[dtype] = np.empty(self._shape, dtype)
    return arrays[dtype][place]

  def stacked(self, parts: list[list[dict]]) -> dict:
    """A batch of lists of its rows; their audio lies together already."""
    rows = [row for part in parts for row in part]
    batch = {name: np.stack([row[name] for row in rows])
             for name in rows[0] if name != 'audio'}
    wide = [row['audio'] for row in rows if row['audio'].dtype != np.int16]
    audio = (wide or [rows[0]['audio']])[0].base
    if 0 < len(wide) < len(rows):
      for samples, row in zip(audio, rows, strict=True):
        if row['audio'].dtype == np.int16:
          audio_io.to_float(row['audio'], out=samples)
    return {'audio': audio, **batch}


class Row:
  """Memory of a clip in a batch; `samples` [S] once its dtype is known."""

  def __init__(self, batches, arrays, place):
    self._batches, self._arrays, self._place = batches, arrays, place

  def take(self, dtype: type) -> np.ndarray:
    self.samples = self._batches.take(self._arrays, self._place, dtype)
    return self.samples
