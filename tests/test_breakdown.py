"""Where the time of a step goes."""

import json
import math
import types

import jax
import pytest
import tiny

from audio_mae_jax import benchmark
from audio_mae_jax import breakdown
from audio_mae_jax import hlo
from audio_mae_jax import measure

WIDTH, DEPTH, CLIPS, CLIP_S = 24, 2, 8, 0.7
SMALL = {
    'frontend.num_frames': 64, 'data.clip_s': CLIP_S, 'mask.ratio': 0.5,
    'augment.gain_concentration': 0.0, 'train.batch_size': CLIPS,
    'model.encoder.width': WIDTH, 'model.encoder.depth': DEPTH,
    'model.encoder.heads': 2, 'model.decoder.width': 16,
    'model.decoder.depth': 2, 'model.decoder.heads': 2}


@pytest.fixture(scope='module')
def measured():
  return measure.measure(
      tiny.config(SMALL),
      measure.Options(steps=2, input='resident', part='breakdown'))


def test_every_part_of_a_step_has_its_time_work_and_bytes(measured):
  found = measured['breakdown']
  parts = found['parts']
  inside = ('MLPs', 'qkv and proj', 'attention', 'norms')
  assert set(parts) >= {
      'front end, augmentation, masks', 'head and loss', 'optimizer',
      'encoder: tokens', 'decoder: tokens', 'decoder: order and sums',
      *(f'{stage}: {what}' for stage in ('encoder', 'decoder')
        for what in inside)}
  assert all(x['time_s'] > 0 and x['bytes'] > 0 for x in parts.values())
  assert 0 < found['busy_s'] <= found['step_s']
  assert found['busy_s'] == pytest.approx(
      sum(x['time_s'] for x in parts.values()))
  # Next to nothing has no name.
  rest = parts.pop(breakdown.OTHERS, {'bytes': 0})
  assert rest['bytes'] < 0.02 * sum(x['bytes'] for x in parts.values())
  for name, x in parts.items():
    assert 0 <= x['products_s'] <= x['time_s']
    assert bool(x['products_s']) == bool(x['flops']), name
  assert not parts['encoder: norms']['flops'] + parts['optimizer']['flops']


def test_flops_are_those_of_the_formula(measured):
  devices, parts = jax.device_count(), measured['breakdown']['parts']
  tokens = 1 + 4 * 8 // 2  # of 64 frames and 128 bands, in patches of 16
  one = 2 * tokens * WIDTH**2  # a product of D x D
  each = 3 * DEPTH * CLIPS / devices * one  # forth, and twice back
  assert parts['encoder: MLPs']['flops'] == 8 * each
  assert parts['encoder: qkv and proj']['flops'] == 4 * each
  # What a clip needs, and on the way back attention's scores once more.
  step = CLIPS / devices * measured['flops_per_clip']['step']
  counted = sum(x['flops'] for x in parts.values())
  counted -= parts['front end, augmentation, masks']['flops']
  network = 3 * 2 * 2 * 256 * 384 * (2 + 2)  # of relative positions, whole
  assert step < counted < 1.05 * step + network


def test_the_table_has_every_part(measured):
  lines = benchmark.table(measured).splitlines()
  for name in [*measured['breakdown']['parts'], 'nothing at work']:
    assert sum(f' {name} ' in line for line in lines) == 1
  json.dumps(measured, allow_nan=False)


def test_at_each_time_the_innermost_of_each_line_has_its_share():
  lines = [
      # A loop with two in it, and one that begins as another ends.
      [(0, 10, 'loop'), (1, 3, 'a'), (4, 6, 'b'), (4, 5, 'c'), (10, 11, 'a')],
      [(2, 4, 'd'), (12, 14, 'd')], []]
  found = breakdown.shares(lines)
  assert found == {
      'loop': 1 + 0.5 + 4, 'a': 1 + 0.5 + 1, 'd': 0.5 + 0.5 + 2, 'c': 1, 'b': 1}
  assert math.isclose(sum(found.values()), 11 + 2)


def event(name, start, end, **stats):
  return types.SimpleNamespace(
      name=name, start_ns=start * 1e9, end_ns=end * 1e9, stats=stats.items())


@pytest.mark.parametrize('planes, want', [
    # Kernels of a GPU say of what they are; the second one is not looked at.
    ({'/host:CPU': [event('launch', 0, 9, hlo_op='x', hlo_module='jit_step')],
      '/device:GPU:0': [
          event('kernel_7', 1, 2, hlo_op='dot.7', hlo_module='jit_step'),
          event('kernel_7', 3, 4, hlo_op='dot.7', hlo_module='jit_init'),
          event('Memcpy', 5, 6)],
      '/device:GPU:1': [
          event('kernel_7', 1, 2, hlo_op='y', hlo_module='jit_step')]},
     [[(1, 2, 'dot.7')]]),
    ({'/device:TPU:0': [event('%fusion.1 = f32[8]{0} fusion(%p)', 1, 2)]},
     [[(1, 2, 'fusion.1')]])])
def test_events_are_told_by_the_first_device(
    planes, want, tmp_path, monkeypatch):
  # Not seen on such devices: as XLA's sources write them.
  (tmp_path / 'a.xplane.pb').touch()
  monkeypatch.setattr(
      jax.profiler.ProfileData, 'from_file', lambda path: types.SimpleNamespace(
          planes=[types.SimpleNamespace(
              name=name, lines=[types.SimpleNamespace(events=events)])
                  for name, events in planes.items()]))
  assert breakdown._read(tmp_path, 'jit_step') == want
  planes.clear()
  with pytest.raises(RuntimeError, match='no instruction of jit_step'):
    breakdown._read(tmp_path, 'jit_step')


FUSED = '''HloModule jit_step

%body.1 (p: f32[100,8], i: s32[]) -> f32[100,8] {
  %p = f32[100,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %one = f32[1,8]{1,0} dynamic-slice(%p, %i, %i)
  ROOT %set = f32[100,8]{1,0} dynamic-update-slice(%p, %one, %i, %i)
}

%body.2 (p.2: f32[100,8], i.2: s32[]) -> f32[1,8] {
  %p.2 = f32[100,8]{1,0} parameter(0)
  %i.2 = s32[] parameter(1)
  ROOT %two = f32[1,8]{1,0} dynamic-slice(%p.2, %i.2, %i.2)
}

ENTRY %main.1 (x: f32[100,8], at: s32[]) -> f32[1,8] {
  %x = f32[100,8]{1,0} parameter(0)
  %at = s32[] parameter(1)
  %copy.1 = f32[100,8]{1,0} copy(%x)
  %fusion.1 = f32[100,8]{1,0} fusion(%copy.1, %at), kind=kLoop, calls=%body.1
  ROOT %fusion.2 = f32[1,8]{1,0} fusion(%fusion.1, %at), calls=%body.2, NAME
}
'''.replace('NAME', 'metadata={op_name="mlp"}')


def test_of_what_is_sliced_the_slice_counts():
  computations, _ = hlo.parse(FUSED)
  found = {run.instruction.name: hlo.moved(run, computations)
           for run in hlo.executed(FUSED, whole=True)}
  row, index = 8 * 4, 4
  assert found == {
      'x': 0, 'at': 0, 'copy.1': 2 * 100 * row,
      'fusion.1': row + index + row, 'fusion.2': row + index + row}
  # What has no name is of what reads it.
  assert hlo.scopes(computations)['copy.1'] == 'mlp'


def test_convolutions_count_a_kernel_for_each_number():
  x = jax.ShapeDtypeStruct((2, 3, 50), 'float32')
  kernel = jax.ShapeDtypeStruct((5, 3, 7), 'float32')
  text = jax.jit(lambda x, k: jax.lax.conv_general_dilated(
      x, k, (2,), 'VALID', feature_group_count=1)).lower(x, kernel).as_text(
          'hlo')
  got = sum(map(hlo.flops, hlo.executed(text)))
  assert got == 2 * (2 * 5 * 22) * 3 * 7
