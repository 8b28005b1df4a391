"""Batches on their way from the host to the devices."""

import collections
import contextlib

import jax
import numpy as np

from audio_mae_jax import config as config_lib
from audio_mae_jax.data import pipeline
from audio_mae_jax.data import splits


def one_pass(split: splits.Split, config: config_lib.Config,
             sharding: jax.sharding.Sharding, labelled: bool = False):
  """The split's batches, on the devices, to be used in a `with`."""
  return contextlib.closing(to_device(
      pipeline.eval_batches(
          split.source, config, process_index=jax.process_index(),
          process_count=jax.process_count(), report=split.report,
          labelled=labelled),
      sharding, config.data.prefetch_batches))


def to_device(batches, sharding: jax.sharding.Sharding, ahead: int):
  """Global arrays of `batches`, `ahead` of them in flight before they are used.

  `sharding` splits the first dimension; the rows of this process must be those
  that it places on this process' devices, as a mesh in process order does.
  Audio becomes float32 there, if it is not. Closes `batches` when it ends or is
  closed.
  """
  queue = collections.deque()

  def put(value):
    array = jax.make_array_from_process_local_data(sharding, value)
    return _as_float_here(array) if value.dtype == np.int16 else array

  try:
    for batch in batches:
      queue.append({name: put(value) for name, value in batch.items()})
      if len(queue) > ahead:
        yield queue.popleft()
    while queue:
      yield queue.popleft()
  finally:
    batches.close()


def _as_float_here(audio):
  """Int16 -> float32 in -1 to 1, on the devices of this process alone: others
  may have read clips that were floats already."""
  parts = sorted(audio.addressable_shards, key=lambda x: x.index[0].start or 0)
  mesh = jax.sharding.Mesh([x.device for x in parts], ('rows',))
  here = _as_float(jax.make_array_from_single_device_arrays(
      (sum(len(x.data) for x in parts), *audio.shape[1:]),
      jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('rows')),
      [x.data for x in parts]))
  return jax.make_array_from_single_device_arrays(
      audio.shape, audio.sharding, [x.data for x in here.addressable_shards])


@jax.jit
def _as_float(audio):
  """Exact, as `audio_io.to_float`."""
  return audio.astype(np.float32) * np.float32(2**-15)
