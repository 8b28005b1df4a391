"""Placement on devices. Models know of it only that a parameter may be split
(`layers.whole`); the rest is left to XLA's partitioner.

One mesh of two axes: 'data' (each member holds a copy of the parameters) and
'fsdp' (parameters and optimizer state are split). A batch is split over both.
"""

import functools

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from audio_mae_jax import config as config_lib

# Smaller leaves stay whole: splitting every bias of ViT-B over 8 devices makes
# 302 all-gathers a step out of 97, for the same bytes.
MIN_BYTES = 2**20
BATCH = P(('data', 'fsdp'))


def make_mesh(settings: config_lib.Mesh, batch_size: int,
              devices=None) -> Mesh:
  """The ('data', 'fsdp') mesh over `devices` (all of them).

  They lie in it in the order of their processes, so that the rows of a batch
  that a process makes are those of its own devices (data/pipeline.py).
  `jax.make_mesh` would mix the processes of a TPU's hosts, for shorter ways.

  Raises:
    ValueError: the axes do not multiply to the devices, or the devices do not
      divide `batch_size`.
  """
  devices = jax.devices() if devices is None else devices
  sizes = [settings.data, settings.fsdp]
  if any(s < 1 and s != -1 for s in sizes) or sizes.count(-1) == 2:
    raise ValueError(
        f'mesh.data={sizes[0]}, mesh.fsdp={sizes[1]}: give positive sizes, and '
        '-1 for at most one of them (it takes what is left).')
  if -1 in sizes:
    rest = max(len(devices) // abs(sizes[0] * sizes[1]), 1)
    sizes = [rest if s == -1 else s for s in sizes]
  if sizes[0] * sizes[1] != len(devices):
    fits = [str(n) for n in range(1, len(devices) + 1) if not len(devices) % n]
    raise ValueError(
        f'A mesh of data={sizes[0]} x fsdp={sizes[1]} needs '
        f'{sizes[0] * sizes[1]} devices, and there are {len(devices)}; set '
        f'mesh.data=-1, and mesh.fsdp to {" or ".join(fits)}.')
  if batch_size % len(devices):
    down = batch_size - batch_size % len(devices)
    near = ' or '.join(str(n) for n in (down, down + len(devices)) if n)
    raise ValueError(
        f'A batch of {batch_size} clips cannot be split over {len(devices)} '
        f'devices; set train.batch_size to {near}, or use fewer devices.')
  # Explicit axes (the default) refuse plain reshapes of a sharded batch.
  ordered = sorted(devices, key=lambda d: (d.process_index, d.id))
  return Mesh(np.array(ordered).reshape(sizes), ('data', 'fsdp'),
              axis_types=(AxisType.Auto,) * 2)


def known(mesh: Mesh, fn):
  """`fn`, to be compiled, with its devices known to the models inside."""

  @functools.wraps(fn)
  def call(*args):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return fn(*args)

  return call


# Of XLA, by platform; only what was measured (docs/performance.md). cuBLAS adds
# biases in its products, is faster, and compiles in half of the time.
OPTIONS = {'gpu': {'xla_gpu_enable_triton_gemm': False}}


def jit(mesh: Mesh, fn, **settings):
  """`jax.jit` for the devices of `mesh`, that are known inside (`known`)."""
  return jax.jit(
      known(mesh, fn), **settings,
      compiler_options=OPTIONS.get(mesh.devices.flat[0].platform))


def batch(mesh: Mesh) -> NamedSharding:
  """Rows over all devices."""
  return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())


def state(mesh: Mesh, shapes):
  """Shardings for a tree of shapes: large leaves split over 'fsdp'.

  A leaf of 1 MiB or more is split along its largest dimension that 'fsdp'
  divides; what cannot be split is replicated.
  """
  parts = mesh.shape['fsdp']

  def place(leaf):
    size = np.prod(leaf.shape, dtype=np.int64) * np.dtype(leaf.dtype).itemsize
    axes = [a for a, n in enumerate(leaf.shape) if n % parts == 0]
    if parts == 1 or size < MIN_BYTES or not axes:
      return NamedSharding(mesh, P())
    axis = max(axes, key=lambda a: leaf.shape[a])
    return NamedSharding(
        mesh, P(*('fsdp' if a == axis else None for a in range(axis + 1))))

  return jax.tree.map(place, shapes)
