"""What is being learnt; the loop knows a task by this protocol only."""

from collections.abc import Callable
from typing import Any, Protocol

import jax

from audio_mae_jax import config as config_lib
from audio_mae_jax import metrics
from audio_mae_jax import registry
from audio_mae_jax.tasks import classify
from audio_mae_jax.tasks import pretrain


class Task(Protocol):
  """Pure functions of arrays, to be jitted by the loop; built from a `Config`.

  A batch is a dict with 'audio' float32 [B, S], 'num_samples' int32 [B], and,
  if the task is `labelled`, 'labels' float32 [B, C]. All draws are made on the
  global batch, so that results do not depend on how many devices share it.
  """
  labelled: bool
  metric: str  # the one that is told first; empty: there is but the loss

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

  def evaluate(self, params, inputs) -> tuple[dict, dict]:
    """`losses` of inputs that were not augmented, and outputs, [B, ...] each.

    Outputs of all clips of a split are gathered for `metrics`.
    """

  def metrics(self, outputs: dict) -> metrics.Result:
    """What `outputs` of a whole split are worth."""

  # -> arrays to look at: 'original', 'removed', 'reconstruction', [B, T, F].
  # None: there is nothing to see.
  picture: Callable[[Any, Any], dict] | None

  def flops(self) -> dict[str, float]:
    """FLOPs of a clip by part, multiply and add as two; see flops.py."""


TASKS = {'pretrain': pretrain.Pretrain, 'classify': classify.Classify}


def make(config: config_lib.Config) -> Task:
  return registry.lookup(TASKS, config.task, 'task')(config)


def is_labelled(config: config_lib.Config) -> bool:
  """Whether the task that `config` names needs labels."""
  return registry.lookup(TASKS, config.task, 'task').labelled
