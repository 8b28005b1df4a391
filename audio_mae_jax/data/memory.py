"""Memory of the host: of clips that are kept, and of batches under way."""

import sys
import threading

import numpy as np


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
  """

  def __init__(self, batch_size, num_samples, dtype):
    self._shape, self._dtype = (batch_size, num_samples), dtype
    self.batch_size = batch_size
    self._lock = threading.Lock()
    self._open = {}  # batch: [its memory, rows given out]

  def row(self, i):
    """[S]: where row i of all goes. Each is given out once."""
    batch, place = divmod(i, self._shape[0])
    with self._lock:
      entry = self._open.setdefault(batch, [None, 0])
      if entry[0] is None:
        entry[0] = np.empty(self._shape, self._dtype)
      entry[1] += 1
      if entry[1] == self._shape[0]:  # from here on its rows keep it
        del self._open[batch]
    return entry[0][place]


def stacked(rows):
  """A batch of its rows; their audio lies together already."""
  batch = {name: np.stack([row[name] for row in rows])
           for name in rows[0] if name != 'audio'}
  return {'audio': rows[0]['audio'].base, **batch}
