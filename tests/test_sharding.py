"""Meshes and where parameters lie on them."""

import re

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import pytest

from audio_mae_jax import config
from audio_mae_jax import sharding


@pytest.mark.parametrize('data, fsdp, shape', [
    (-1, 1, (8, 1)), (1, -1, (1, 8)), (2, 4, (2, 4)), (-1, 2, (4, 2))])
def test_a_minus_one_takes_the_devices_that_are_left(data, fsdp, shape):
  mesh = sharding.make_mesh(config.Mesh(data, fsdp), 16)
  assert dict(mesh.shape) == {'data': shape[0], 'fsdp': shape[1]}


def test_a_mesh_can_be_made_of_some_devices():
  mesh = sharding.make_mesh(config.Mesh(), 3, jax.devices()[2:5])
  assert list(mesh.devices.flat) == jax.devices()[2:5]


@pytest.mark.parametrize('data, fsdp, batch, message', [
    (-1, -1, 8, 'mesh.data=-1, mesh.fsdp=-1: give positive sizes, and -1 for '
     'at most one'),
    (0, 1, 8, 'mesh.data=0, mesh.fsdp=1: give positive sizes'),
    (-2, 1, 8, 'mesh.data=-2, mesh.fsdp=1: give positive sizes'),
    (2, 2, 8, 'A mesh of data=2 x fsdp=2 needs 4 devices, and there are 8; '
     'set mesh.data=-1'),
    (-1, 3, 8, 'A mesh of data=2 x fsdp=3 needs 6 devices, and there are 8'),
    (-1, 16, 8, 'A mesh of data=1 x fsdp=16 needs 16 devices'),
    (-1, 1, 12, 'A batch of 12 clips cannot be split over 8 devices; set '
     'train.batch_size to 8 or 16, or'),
    (-1, 1, 3, 'A batch of 3 clips cannot be split over 8 devices; set '
     'train.batch_size to 8, or use fewer'),
])
def test_a_mesh_that_cannot_be_made_is_refused(data, fsdp, batch, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    sharding.make_mesh(config.Mesh(data, fsdp), batch)


@pytest.mark.parametrize('shape, dtype, spec', [
    ((512, 512), jnp.float32, P('fsdp')),  # 1 MiB exactly
    ((512, 511), jnp.float32, P()),  # just below
    ((512, 512), jnp.bfloat16, P()),
    ((512, 1024), jnp.float32, P(None, 'fsdp')),  # the largest dimension
    ((512, 1023), jnp.float32, P('fsdp')),  # the largest that is divisible
    ((1023, 1021), jnp.float32, P()),  # none is
    ((3, 512, 512), jnp.float32, P(None, 'fsdp')),
    ((), jnp.float32, P()),
])
def test_large_leaves_are_split_along_their_largest_divisible_axis(
    shape, dtype, spec):
  mesh = sharding.make_mesh(config.Mesh(2, 4), 8)
  leaf = jax.ShapeDtypeStruct(shape, dtype)
  assert sharding.state(mesh, {'leaf': leaf})['leaf'].spec == spec


def test_nothing_is_split_without_an_fsdp_axis():
  mesh = sharding.make_mesh(config.Mesh(8, 1), 8)
  leaf = jax.ShapeDtypeStruct((4096, 4096), jnp.float32)
  assert sharding.state(mesh, leaf).spec == P()


def test_a_batch_is_split_over_both_axes():
  mesh = sharding.make_mesh(config.Mesh(2, 4), 8)
  x = jax.device_put(jnp.arange(16), sharding.batch(mesh))
  assert [s.data.tolist() for s in x.addressable_shards] == [
      [2 * i, 2 * i + 1] for i in range(8)]
  assert sharding.replicated(mesh).spec == P()
