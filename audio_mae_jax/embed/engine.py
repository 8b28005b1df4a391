"""Many recordings through one model: windows of several share a call."""

from collections.abc import Iterable, Iterator
import dataclasses
from typing import NamedTuple

import numpy as np

from audio_mae_jax import frontend
from audio_mae_jax.data import recordings
from audio_mae_jax.embed import programs as programs_lib
from audio_mae_jax.embed import windows as windows_lib

_WAITING = 4  # calls' worth of windows that may wait for others of their length


class Frames(NamedTuple):
  """Embeddings over time."""
  embeddings: np.ndarray  # float32 [T', D]
  times_s: np.ndarray  # float64 [T']: their centres, from the audio's start


@dataclasses.dataclass
class Result:
  """What became of one recording."""
  name: str
  seconds: float = 0.0
  # float32 [D] before a classifier's norm, the mean of all frames; None if
  # `error` says why there is none.
  mean: np.ndarray | None = None
  frames: Frames | None = None  # if they were asked for
  error: str = ''


class Recording:
  """Samples of one recording on their way to frames, in constant memory.

  With `keep`, its frames stay for its `result`.
  """

  def __init__(
      self, grid: windows_lib.Layout, name: str = '', keep: bool = False):
    self.name, self.error = name, ''
    self._grid, self._kept = grid, [] if keep else None
    self._cutter = windows_lib.Cutter(grid)
    self._joiner = windows_lib.Joiner(grid)
    self._total, self._count = 0.0, 0

  @property
  def seconds(self) -> float:
    """Of audio so far."""
    return self._cutter.num_samples / self._grid.spec.sample_rate_hz

  @property
  def mean(self) -> np.ndarray | None:
    """Float32 [D], of the frames so far; None before the first."""
    if not self._count:
      return None
    return (self._total / self._count).astype(np.float32)

  def push(self, samples: np.ndarray) -> list[windows_lib.Window]:
    """Windows to encode, and to `settle` in their order."""
    return self._cutter.push(samples)

  def finish(self) -> list[windows_lib.Window]:
    """The last windows to encode.

    Raises:
      recordings.BadAudio: the recording is too short for one.
    """
    least = frontend.min_samples(self._grid.spec)
    if self._cutter.num_samples < least:
      raise recordings.BadAudio(
          'empty' if not self._cutter.num_samples else
          f'too short: {self.seconds:.4f} s, the model needs '
          f'{least / self._grid.spec.sample_rate_hz:.4f} s')
    return self._cutter.finish()

  def windows(self, blocks) -> Iterator[windows_lib.Window]:
    """Those of all `blocks`; bad audio ends them and becomes `error`."""
    try:
      for block in blocks:
        yield from self.push(block)
      yield from self.finish()
    except recordings.BadAudio as error:
      self.error = str(error)

  def settle(self, window: windows_lib.Window, frames: np.ndarray) -> Frames:
    """The frames that are known once `window` is encoded."""
    return self._taken(*self._joiner.push(window, frames))

  def rest(self) -> Frames:
    """The frames that are known as there are no more windows."""
    return self._taken(*self._joiner.finish())

  def result(self) -> Result:
    """Once all windows are settled."""
    if self.error:
      return Result(self.name, self.seconds, error=self.error)
    self.rest()
    frames = self._kept and Frames(*map(np.concatenate, zip(*self._kept)))
    return Result(self.name, self.seconds, self.mean, frames)

  def _taken(self, first, frames):
    self._total = self._total + frames.sum(0, dtype=np.float64)
    self._count += len(frames)
    taken = Frames(frames, self._grid.times(
        first, first + len(frames), self._cutter.num_samples))
    if self._kept is not None:
      self._kept.append(taken)
    return taken


def embed_all(
    programs: programs_lib.Programs, grid: windows_lib.Layout,
    sources: Iterable[tuple[str, Iterable[np.ndarray]]], frames: bool = False
) -> Iterator[Result]:
  """Yields a `Result` for each of `sources`, in their order.

  A source is a name, and blocks of samples at the model's rate; one that raises
  `recordings.BadAudio` has that as its error. With `frames`, results hold them.

  Raises:
    ValueError: the model gives no finite numbers.
  """
  waiting, opened = [], []
  for name, blocks in sources:
    opened.append(Recording(grid, name, frames))
    for window in opened[-1].windows(blocks):
      waiting.append((opened[-1], window))
      if len(waiting) == _WAITING * programs.sizes[-1]:
        encode(programs, waiting)
        waiting.clear()
        yield from (recording.result() for recording in opened[:-1])
        del opened[:-1]
  encode(programs, waiting)
  yield from (recording.result() for recording in opened)


def encode(programs: programs_lib.Programs,
           waiting: list[tuple[Recording, windows_lib.Window]]) -> list[Frames]:
  """Encodes and settles windows, each of the recording beside it.

  Raises:
    ValueError: the model gives no finite numbers.
  """
  outputs = programs.encode([window for _, window in waiting])
  for (recording, _), x in zip(waiting, outputs):
    if not np.isfinite(x).all():
      raise ValueError(
          f'The encoder gives no finite numbers for {recording.name}: these '
          'weights have diverged.')
  return [recording.settle(window, x)
          for (recording, window), x in zip(waiting, outputs)]
