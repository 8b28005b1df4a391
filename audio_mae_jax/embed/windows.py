"""How audio of any length is cut into windows, and their frames joined.

A frame of an embedding is a column of patches: what the encoder makes of the
mel bands of one time step. Columns lie on one grid that begins with the audio.
A window is as many columns as a clip of training had, or fewer at the end of
the audio; it is encoded on its own. Windows overlap, and a column is taken from
the one in which it is farther from an edge. So a window depends on its own
samples alone, and chunks of a stream give what the whole recording gives.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from audio_mae_jax import config as config_lib
from audio_mae_jax import frontend
from audio_mae_jax import patches as patches_lib
from audio_mae_jax import weights as weights_lib
from audio_mae_jax.data import pipeline


@dataclasses.dataclass(frozen=True)
class Layout:
  """The grid of columns, and the windows on it."""
  spec: config_lib.Frontend
  frames: int  # spectrogram frames under a column
  step: int  # frames from one column to the next
  size: int  # columns of a window
  hop: int  # columns from one window to the next

  @property
  def buckets(self) -> tuple[int, ...]:
    """Columns that programs are compiled for: size, half of it, ... 1."""
    found = [self.size]
    while found[-1] > 1:
      found.append(-(-found[-1] // 2))
    return tuple(reversed(found))

  @property
  def overlap(self) -> int:
    return self.size - self.hop

  def bucket(self, columns: int) -> int:
    """The shortest bucket that holds so many columns."""
    return next(x for x in self.buckets if x >= columns)

  def columns(self, samples: int) -> int:
    """Columns of so many samples: those at least half inside; at least one.

    Raises:
      ValueError: they are fewer than one window of the front end.
    """
    frames = frontend.num_frames(samples, self.spec)
    return max((frames - (self.frames + 1) // 2) // self.step + 1, 1)

  def spectrum(self, columns: int) -> int:
    """Spectrogram frames under so many columns."""
    return patches_lib.covered(columns, self.frames, self.step)

  def samples(self, columns: int) -> int:
    """Samples under so many columns."""
    return (self.hop_samples * (self.spectrum(columns) - 1)
            + frontend.min_samples(self.spec))

  @property
  def hop_samples(self) -> int:
    """From one spectrogram frame to the next."""
    return int(self.spec.sample_rate_hz * self.spec.hop_ms / 1000)

  def place(self, column: int) -> int:
    """The first sample of a column."""
    return column * self.step * self.hop_samples

  @property
  def frame_s(self) -> float:
    """Seconds from one frame of an embedding to the next."""
    return self.place(1) / self.spec.sample_rate_hz

  def times(self, first: int, last: int, samples: int) -> np.ndarray:
    """Seconds, float64, of the centres of columns from `first` up to `last`.

    All lie inside the audio, of so many `samples`: at least half of a column
    does; the middle of audio shorter than a column is its own.
    """
    middle = min(self.samples(1), samples) / 2
    return ((np.arange(first, last) * self.place(1) + middle)
            / self.spec.sample_rate_hz)


def layout(config: config_lib.Config, overlap: float = 0.25) -> Layout:
  """Windows as long as the clips that the model was trained on.

  `overlap` is the share of a window that the next one has as well.

  Raises:
    ValueError: `overlap` is not in [0, 0.5].
  """
  if not 0 <= overlap <= 0.5:
    raise ValueError(
        f'overlap={overlap}: the share of a window that the next one has as '
        'well is 0 (none) to 0.5.')
  spec, patch = config.frontend, config.patch
  frames, step = patch.size[0], patches_lib.resolve_stride(patch)[0]
  grid = Layout(spec, frames, step, 1, 1)
  size = min(grid.columns(pipeline.clip_samples(config)),
             weights_lib.grid_of(config)[0])
  # An even overlap: both windows give the same share of it. Half a window at
  # most: what comes next but one would overlap as well.
  shared = min(2 * round(size * overlap / 2), 2 * (size // 4))
  return dataclasses.replace(grid, size=size, hop=size - shared)


class Window(NamedTuple):
  """A stretch of audio that is encoded at once."""
  samples: np.ndarray  # float32, at the model's rate
  first: int  # its first column
  columns: int


class Cutter:
  """Samples in chunks -> windows, each as soon as its samples are there."""

  def __init__(self, grid: Layout):
    self._grid = grid
    self._chunks = []  # from the first sample of the next window on
    self._held = 0  # samples in them
    self._next = 0  # the next window's first column
    self._done = 0  # columns in the windows so far
    self.num_samples = 0

  def push(self, samples: np.ndarray) -> list[Window]:
    """The windows that these samples complete."""
    self.num_samples += len(samples)
    self._chunks.append(samples)
    self._held += len(samples)
    size, step = self._grid.size, self._grid.place(self._grid.hop)
    length = self._grid.samples(size)
    need = max(length, step)  # of frames with gaps between them
    if self._held < need:
      return []
    held, start, found = np.concatenate(self._chunks), 0, []
    while len(held) - start >= need:
      found.append(self._window(held[start:start + length], size))
      start += step
    self._chunks, self._held = [held[start:].copy()], len(held) - start
    return found

  def finish(self) -> list[Window]:
    """The last window, of what is left; none if that has no column more.

    Raises:
      ValueError: all samples together are too few for one frame.
    """
    total = self._grid.columns(self.num_samples)
    if total <= self._done:
      return []
    columns = total - self._next
    held = np.concatenate(self._chunks)[:self._grid.samples(columns)]
    return [self._window(held, columns)]

  def _window(self, samples, columns):
    window = Window(samples, self._next, columns)
    self._done = self._next + columns
    self._next += self._grid.hop
    return window


class Joiner:
  """Encoded windows of one recording, in order -> its frames, each once."""

  def __init__(self, grid: Layout):
    self._half = grid.overlap // 2
    self._tail = None  # frames that the next window may have better ones of
    self._next = 0  # the column of the first frame not yet given

  def push(self, window: Window, frames: np.ndarray) -> tuple[
      int, np.ndarray]:
    """(first column, [n, D]) of the frames that are now settled.

    `frames` [columns, D] are those of `window`.
    """
    start = self._next - window.first
    # Behind this the next window, if there is one, is the better.
    stop = max(window.columns - self._half, start)
    self._tail = frames[stop:]
    first, self._next = self._next, window.first + stop
    return first, frames[start:stop]

  def finish(self) -> tuple[int, np.ndarray]:
    """The rest, once there are no more windows."""
    tail, self._tail = self._tail, self._tail[:0]
    first, self._next = self._next, self._next + len(tail)
    return first, tail
