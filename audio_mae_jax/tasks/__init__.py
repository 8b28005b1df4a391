"""What is being learnt; the loop knows a task by this protocol only."""

from typing import Any, Protocol

import jax

from audio_mae_jax import config as config_lib
from audio_mae_jax.tasks import pretrain


class Task(Protocol):
  """Pure functions of arrays, to be jitted by the loop; built from a `Config`.

  A batch is a dict with 'audio' float32 [B, S], 'num_samples' int32 [B], and
  what else the source gives. All draws are made on the global batch, so that
  results do not depend on how many devices share it.
  """

  def init(self, rng: jax.Array) -> Any:
    """Fresh parameters."""

  def prepare(self, batch: dict, rng: jax.Array, *, train: bool) -> Any:
    """Batch -> the model's inputs: all that needs no parameters.

    Every leaf of the result has B as its first axis, so that the loop can split
    it into micro-batches.
    """

  def losses(self, params, inputs, rng: jax.Array | None = None) -> dict:
    """Values per clip, float32 [B] each; the mean of 'loss' is minimised.

    With `rng`, dropout is on.
    """

  def picture(self, params, inputs) -> dict:
    """Arrays to look at: 'original', 'removed', 'reconstruction', [B, T, F]."""

  def flops(self) -> dict[str, float]:
    """FLOPs of a clip by part, multiply and add as two; see flops.py."""


TASKS = {'pretrain': pretrain.Pretrain}


def make(config: config_lib.Config) -> Task:
  return config_lib.lookup(TASKS, config.task, 'task')(config)
