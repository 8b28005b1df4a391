"""One pass over a split: each metric's mean over exactly its usable clips."""

import collections
import contextlib

import jax

from audio_mae_jax import config as config_lib
from audio_mae_jax import step as step_lib
from audio_mae_jax.data import pipeline
from audio_mae_jax.data import splits


def batches(program: step_lib.Program, split: splits.Split,
            config: config_lib.Config):
  """The split's batches, on the devices, to be used in a `with`."""
  return contextlib.closing(pipeline.to_device(
      pipeline.eval_batches(
          split.source, config, process_index=jax.process_index(),
          process_count=jax.process_count(), report=split.report),
      program.batch_sharding, config.data.prefetch_batches))


def evaluate(program: step_lib.Program, params, split: splits.Split,
             config: config_lib.Config) -> dict:
  """Means over the clips of `split` by name, and 'num_clips'.

  Masks are those of every evaluation of the run; rows that fill the last batch
  and clips that cannot be read do not count.
  """
  totals, count = collections.Counter(), 0
  with batches(program, split, config) as given:
    for number, batch in enumerate(given):
      sums, valid = jax.device_get(program.eval_step(params, batch, number))
      # Counter adds in float64: a sum over two million clips needs it.
      totals.update({name: float(value) for name, value in sums.items()})
      count += int(valid)
  if not count:
    split.report.stop()
  return {**{name: total / count for name, total in totals.items()},
          'num_clips': count}
