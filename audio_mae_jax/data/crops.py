"""Which samples of a recording a clip has.

A crop takes the usable part of a recording, with `num_samples` and a method
`read(parts, out)`, the number of samples that are wanted, a generator of random
numbers, and the array that the samples go to (None: a new one).
"""

import numpy as np


def _start(window, num_samples, rng, out):
  """The first samples; a shorter window is returned whole."""
  del rng
  return window.read([(0, min(num_samples, window.num_samples))], out)


def _random(window, num_samples, rng, out):
  """From a uniform start that fits; a shorter window is returned whole."""
  start = int(rng.integers(max(window.num_samples - num_samples, 0) + 1))
  stop = min(start + num_samples, window.num_samples)
  return window.read([(start, stop)], out)


def _cyclic(window, num_samples, rng, out):
  """From a uniform start, going on at the beginning when the end is reached."""
  total = window.num_samples
  start = int(rng.integers(total))
  stop = start + num_samples
  if stop <= total:
    return window.read([(start, stop)], out)
  if num_samples <= total:
    return window.read([(start, total), (0, stop - total)], out)
  whole = window.read([(0, total)], None)
  repeated = np.resize(np.roll(whole, -start), num_samples)
  if out is None:
    return repeated
  out[:] = repeated
  return out


CROPS = {'random': _random, 'cyclic': _cyclic, 'start': _start}
