"""What a classifier says of many recordings: stretches of several share a call.
"""

from collections.abc import Iterable, Iterator
import dataclasses

import jax
import numpy as np

from audio_mae_jax import config as config_lib
from audio_mae_jax import frontend
from audio_mae_jax.data import pipeline
from audio_mae_jax.data import recordings
from audio_mae_jax.embed import programs as programs_lib


@dataclasses.dataclass
class Scored:
  """What became of one recording."""
  name: str
  error: str = ''  # why there are no scores
  _total: np.ndarray | float = 0.0  # of its stretches' scores
  _count: int = 0

  @property
  def scores(self) -> np.ndarray:
    """Float32 [C], 0 to 1: the mean over its stretches."""
    return (self._total / self._count).astype(np.float32)

  def add(self, scores: np.ndarray):
    self._total, self._count = self._total + scores, self._count + 1


def score_all(
    programs: programs_lib.Programs, config: config_lib.Config,
    sources: Iterable[tuple[str, Iterable[np.ndarray]]]) -> Iterator[Scored]:
  """Yields what became of each of `sources`, in their order.

  A source is a name, and blocks of samples at the model's rate; one that raises
  `recordings.BadAudio` has that as its error.
  """
  length = pipeline.clip_samples(config)
  least = frontend.min_samples(config.frontend)
  squash = jax.nn.sigmoid if config.labels.multilabel else jax.nn.softmax
  waiting, opened = [], []

  def settle():
    if waiting:
      logits = programs.classify([part for _, part in waiting])
      for (clip, _), row in zip(waiting, np.asarray(squash(logits))):
        clip.add(row.astype(np.float64))
      waiting.clear()

  for name, blocks in sources:
    opened.append(Scored(name))
    try:
      for part in _stretches(blocks, length, least):
        waiting.append((opened[-1], part))
        if len(waiting) == programs.sizes[-1]:
          settle()
          yield from opened[:-1]
          del opened[:-1]
    except recordings.BadAudio as error:
      opened[-1].error = str(error)
  settle()
  yield from opened


def _stretches(samples, length, least) -> Iterator[np.ndarray]:
  """Clips of `length` samples from blocks; the last one may be shorter, and
  comes if it is the only one or at least half as long."""
  held, any_yet = np.zeros(0, np.float32), False
  for block in samples:
    held = np.concatenate([held, block])
    while len(held) >= length:
      yield held[:length]
      held, any_yet = held[length:], True
  if any_yet and len(held) < max(length // 2, least):
    return
  if len(held) < least:
    raise recordings.BadAudio(
        'empty' if not len(held) else f'too short: {len(held)} samples, the '
        f'model needs {least}')
  yield held
