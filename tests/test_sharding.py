"""Meshes and where parameters lie on them."""

import dataclasses
import re

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import pytest
import tiny

from audio_mae_jax import config
from audio_mae_jax import sharding
from audio_mae_jax import step
from audio_mae_jax import trees


@pytest.mark.parametrize('data, fsdp, shape', [
    (-1, 1, (8, 1)), (1, -1, (1, 8)), (2, 4, (2, 4)), (-1, 2, (4, 2))])
def test_a_minus_one_takes_the_devices_that_are_left(data, fsdp, shape):
  mesh = sharding.make_mesh(config.Mesh(data, fsdp), 16)
  assert dict(mesh.shape) == {'data': shape[0], 'fsdp': shape[1]}


def test_a_mesh_can_be_made_of_some_devices():
  mesh = sharding.make_mesh(config.Mesh(), 3, jax.devices()[2:5])
  assert list(mesh.devices.flat) == jax.devices()[2:5]


@dataclasses.dataclass(frozen=True)
class Device:
  """What a mesh asks of a device."""
  id: int
  process_index: int
  platform: str = 'cpu'
  device_kind: str = 'cpu'


@pytest.mark.parametrize('data, fsdp', [(16, 1), (4, 4), (1, 16), (8, 2)])
def test_a_process_has_neighbouring_rows_of_a_batch(data, fsdp):
  """As data/pipeline.py makes them, whatever the devices' own order."""
  # Numbered row by row over hosts of 2 x 2 chips, as TPUs are.
  hosts = [2 * (i // 8) + i % 4 // 2 for i in range(16)]
  mesh = sharding.make_mesh(
      config.Mesh(data, fsdp), 64,
      [Device(i, hosts[i]) for i in reversed(range(16))])
  places = sharding.batch(mesh).devices_indices_map((64,))
  for device, (rows,) in places.items():
    first = 16 * device.process_index
    assert first <= rows.start < rows.stop <= first + 16


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


@pytest.mark.parametrize('overrides', [{}, {
    'optimizer.clip_norm': 1.0, 'optimizer.ema_decay': 0.99,
    'optimizer.layer_decay': 0.75}])
def test_the_optimizer_state_is_split_with_the_parameters(overrides):
  program = step.build(tiny.config({
      'mesh.data': 2, 'mesh.fsdp': 4, 'model.encoder.depth': 1,
      'model.decoder.depth': 1, **overrides}), steps_per_epoch=100)
  shapes = program.shapes
  params = {name: leaf.sharding.spec
            for name, leaf in trees.flatten(shapes.params).items()}
  split = {name for name, spec in params.items() if 'fsdp' in spec}
  assert {'encoder/blocks/00/attn/qkv/kernel',
          'decoder/blocks/00/mlp/fc1/kernel'} <= split
  seen = []
  for name, leaf in trees.flatten((shapes.opt_state, shapes.ema)).items():
    of = [p for p in params if name.endswith(f'/{p}')]
    if of:
      seen += of
      assert leaf.sharding.spec == params[max(of, key=len)], name
    else:
      assert leaf.size == 1, name  # counters
  # Both moments, and the average if there is one.
  copies = 3 if overrides else 2
  assert all(seen.count(name) >= copies for name in params)
