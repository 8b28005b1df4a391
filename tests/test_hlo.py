"""What is read from the text of a compiled program."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import pytest

from audio_mae_jax import config
from audio_mae_jax import hlo
from audio_mae_jax import sharding


def test_a_collective_in_a_loop_counts_as_often_as_it_runs():
  mesh = sharding.make_mesh(config.Mesh(1, 8), 8)
  whole = NamedSharding(mesh, P())

  def body(x, w):  # w is gathered for each of five layers
    w = jax.lax.with_sharding_constraint(w, whole)
    return jnp.tanh(x @ w), None

  weights = jax.ShapeDtypeStruct(
      (5, 64, 64), jnp.float32,
      sharding=NamedSharding(mesh, P(None, 'fsdp')))
  x = jax.ShapeDtypeStruct((16, 64), jnp.float32,
                           sharding=sharding.batch(mesh))
  loop = jax.jit(lambda x, ws: jax.lax.scan(body, x, ws)[0])
  text = loop.lower(x, weights).compile().as_text()
  assert hlo.collectives(text) == {
      'all-gather': {'count': 5.0, 'bytes': 5.0 * 64 * 64 * 4}}
  assert hlo.unknown_loops(text) == 0
  assert hlo.cycles(text) is None  # this compiler does not say


# As the TPU compiler writes it, shortened.
TEXT = '''HloModule jit_step, is_scheduled=true

%add.1 (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %add = f32[]{:T(128)} add(%a, %b)
}

%fused.1 (p: bf16[8,128]) -> bf16[64,128] {
  %p = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  ROOT %all-gather.1 = bf16[64,128]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=3, dimensions={0}
}

%fused.2 (p: bf16[8,128]) -> bf16[64,128] {
  %p = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  ROOT %all-gather.2 = bf16[64,128]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=3, dimensions={0}
}

%cond.1 (s: (s32[], f32[512])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(12)
  %s = (s32[]{:T(128)}, /*index=1*/f32[512]{0:T(512)S(1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %constant.1), direction=LT
}

%body.1 (s: (s32[], f32[512])) -> (s32[], f32[512]) {
  %s.1 = (s32[]{:T(128)}, /*index=1*/f32[512]{0:T(512)S(1)}) parameter(0)
  %x = f32[512]{0:T(512)S(1)} get-tuple-element(%s.1), index=1
  %reduce-scatter.1 = f32[64]{0:T(512)} reduce-scatter(%x), dimensions={0}, to_apply=%add.1
  %work = f32[512]{0:T(512)S(1)} fusion(%reduce-scatter.1), calls=%fused.1, backend_config={"estimated_cycles":"100"}
  %more = f32[512]{0:T(512)S(1)} fusion(%work), calls=%fused.2, backend_config={"estimated_cycles":"50"}
  ROOT %out = (s32[]{:T(128)}, f32[512]{0:T(512)S(1)}) tuple(%i.1, %work)
}

ENTRY %main (p0: f32[512]) -> f32[512] {
  %p0 = f32[512]{0:T(512)} parameter(0)
  %ar-start = f32[512]{0:T(512)} all-reduce-start(%p0), to_apply=%add.1
  %ar = (f32[512]{0:T(512)}, pred[3]{0}) all-reduce-done(%ar-start)
  %init = (s32[]{:T(128)}, f32[512]{0:T(512)S(1)}) tuple(%zero, %ar)
  %once = f32[512]{0:T(512)} fusion(%p0), calls=%add.1, backend_config={"estimated_cycles":"7"}
  ROOT %loop = (s32[]{:T(128)}, f32[512]{0:T(512)S(1)}) while(%init), condition=%cond.1, body=%body.1
}
'''  # noqa: E501


def test_what_the_tpu_compiler_writes_is_read():
  assert hlo.collectives(TEXT) == {
      # In a loop, and in two fusions that share its work.
      'all-gather': {'count': 12.0, 'bytes': 12.0 * 64 * 128 * 2},
      # Started and done is once; of a tuple, all counts.
      'all-reduce': {'count': 1.0, 'bytes': 512.0 * 4 + 3},
      # What it takes is larger than what it gives.
      'reduce-scatter': {'count': 12.0, 'bytes': 12.0 * 512 * 4}}
  assert hlo.cycles(TEXT) == 12 * 150 + 7
  assert hlo.unknown_loops(TEXT) == 0


def test_a_loop_of_unknown_length_counts_once_and_is_told_of():
  text = TEXT.replace('constant(12)', 'parameter(1)')
  assert hlo.unknown_loops(text) == 1
  assert hlo.collectives(text)['all-gather']['count'] == 1
  noted = text.replace(
      'body=%body.1', 'body=%body.1, backend_config='
      '{"known_trip_count":{"n":"4"}}')
  assert hlo.unknown_loops(noted) == 0
  assert hlo.collectives(noted)['all-gather']['count'] == 4


@pytest.mark.parametrize('shape, size', [
    ('f32[2,3]{1,0:T(8,128)}', 24), ('bf16[5]', 10), ('pred[]', 1),
    ('(s8[3], f8e4m3fn[4]{0}, /*index=2*/u64[2])', 23), ('token[]', 0)])
def test_bytes_of_a_shape(shape, size):
  assert hlo.num_bytes(shape) == size


def test_what_has_no_name_is_of_its_neighbours():
  text = '''HloModule m

%inside (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %n = f32[8]{0} negate(%p), metadata={op_name="inner"}
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %copy = f32[8]{0} copy(%x)
  %fused = f32[8]{0} fusion(%copy), calls=%inside
  %dull = f32[8]{0} add(%fused, %fused), metadata={op_name="dull"}
  ROOT %last = f32[8]{0} copy(%dull)
}
'''
  computations, _ = hlo.parse(text)
  found = hlo.scopes(computations, lambda scope: scope not in ('', 'dull'))
  assert found == dict.fromkeys(
      ('p', 'n', 'x', 'copy', 'fused', 'dull', 'last'), 'inner')
  assert hlo.scopes(computations)['last'] == 'dull'
  runs = {run.instruction.name: run for run in hlo.executed(text)}
  assert runs['n'].scope == '//inner'
  whole = [run.instruction.name for run in hlo.executed(text, whole=True)]
  assert whole == ['x', 'copy', 'fused', 'dull', 'last']


def test_what_is_mapped_over_devices_counts_for_each():
  twice = jax.shard_map(
      lambda x: x @ x.T, mesh=sharding.make_mesh(config.Mesh(8, 1), 8),
      in_specs=P('data'), out_specs=P('data'))
  text = jax.jit(twice).lower(
      jax.ShapeDtypeStruct((16, 4), jnp.float32)).as_text('hlo')
  for devices in (1, 8):
    dots = [run.times for run in hlo.executed(text, devices=devices)
            if run.instruction.operation == 'dot']
    assert dots == [devices]
