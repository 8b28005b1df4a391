"""Where the time of a step goes."""

import json
import math
import types
from unittest import mock

import jax
from jax.experimental.compilation_cache import compilation_cache
import pytest
import tiny

from audio_mae_jax import benchmark_table
from audio_mae_jax import breakdown
from audio_mae_jax import config as config_lib
from audio_mae_jax import measure

WIDTH, DEPTH, CLIPS, TOKENS = 24, 1, 8, 1 + 16 * 8 - 32
# As many tokens as make attention a loop in a `shard_map` on a CPU.
SMALL = {
    'frontend.num_frames': 256, 'data.clip_s': 2.6, 'mask.ratio': 0.25,
    'augment.gain_concentration': 0.0, 'train.batch_size': CLIPS,
    'model.encoder.width': WIDTH, 'model.encoder.depth': DEPTH,
    'model.encoder.heads': 2, 'model.decoder.width': 16,
    'model.decoder.depth': 1, 'model.decoder.heads': 2}

DEEP = {'model.encoder.depth': 3, 'model.decoder.depth': 4}


@pytest.fixture(scope='module')
def measured():
  with mock.patch.object(breakdown, 'named', wraps=breakdown.named) as named:
    found = measure.measure(
        tiny.config(SMALL),
        measure.Options(steps=2, input='resident', part='breakdown'))
  named.assert_called_once_with(True)  # a cached program may lack its names
  return found


def test_every_part_of_a_step_has_its_time_work_and_bytes(measured):
  found = measured['breakdown']
  parts = dict(found['parts'])
  inside = ('MLPs', 'qkv and proj', 'attention', 'norms')
  assert set(parts) >= {
      'front end, augmentation, masks', 'head and loss', 'optimizer',
      'encoder: tokens', 'decoder: tokens', 'decoder: order and sums',
      *(f'{stage}: {what}' for stage in ('encoder', 'decoder')
        for what in inside)}
  assert 0 < found['busy_s'] <= found['step_s']
  assert found['busy_s'] == pytest.approx(
      sum(x['time_s'] for x in parts.values()))
  # Next to nothing has no name.
  rest = parts.pop(breakdown.OTHERS, {'bytes': 0, 'time_s': 0})
  for cost in rest:
    assert rest[cost] <= 0.01 * sum(x[cost] for x in parts.values())
  for name, x in parts.items():
    assert x['time_s'] > 0 and x['bytes'] > 0
    assert 0 <= x['products_s'] <= x['time_s']
    assert bool(x['products_s']) == bool(x['flops']), name
  assert not parts['encoder: norms']['flops'] + parts['optimizer']['flops']


def test_flops_are_those_of_the_formula(measured):
  devices, parts = jax.device_count(), measured['breakdown']['parts']
  each = DEPTH * CLIPS / devices * 2 * TOKENS * WIDTH  # a row by a matrix
  # Forth, and twice back.
  assert parts['encoder: MLPs']['flops'] == 3 * 8 * WIDTH * each
  assert parts['encoder: qkv and proj']['flops'] == 3 * 4 * WIDTH * each
  # Two products, and the first or both are computed again.
  attention = parts['encoder: attention']['flops'] / (TOKENS * each)
  assert attention in (7, 8)
  # What a clip needs, and on the way back attention's scores once more.
  step = CLIPS / devices * measured['flops_per_clip']['step']
  counted = sum(x['flops'] for x in parts.values())
  counted -= parts['front end, augmentation, masks']['flops']
  network = 3 * 2 * 256 * 384 * (2 + 2)  # of relative positions, whole
  assert step < counted < 1.05 * step + network


@pytest.mark.slow
@pytest.mark.parametrize('settings', [
    {'model.scan_layers': True, **DEEP}, {'model.remat': 'full'},
    {'model.scan_layers': True, 'model.remat': 'dots', **DEEP},
    {'optimizer.accumulate': 2, 'optimizer.ema_decay': 0.9}])
def test_parts_have_their_names_in_every_program(settings, measured):
  got = measure.measure(
      tiny.config(SMALL | settings | {'train.batch_size': 2 * CLIPS}),
      measure.Options(steps=2, input='resident', part='breakdown'))
  parts = got['breakdown']['parts']
  assert set(parts) - {breakdown.OTHERS} == set(
      measured['breakdown']['parts']) - {breakdown.OTHERS}
  if breakdown.OTHERS in parts:
    assert parts[breakdown.OTHERS]['time_s'] < 0.02 * got['breakdown']['busy_s']
  if settings.get('model.remat') != 'full':
    times = 2 * settings.get('model.encoder.depth', 1)
    assert parts['encoder: MLPs']['flops'] == times * (
        measured['breakdown']['parts']['encoder: MLPs']['flops'])


@pytest.mark.slow
def test_fine_tuning_has_its_parts():
  settings = config_lib.default('classify')
  settings.update_from_flattened_dict({'model.classifier.num_classes': 5} | {
      name: value for name, value in SMALL.items() if not name.startswith(
          ('model.decoder', 'mask'))})
  got = measure.measure(
      config_lib.typed(settings),
      measure.Options(steps=2, input='resident', part='breakdown'))
  parts = got['breakdown']['parts']
  assert not any(name.startswith('decoder') for name in parts)
  assert set(parts) >= {'encoder: MLPs', 'head and loss', 'optimizer'}
  assert parts['head and loss']['flops'] == 3 * 2 * WIDTH * 5 * CLIPS / (
      jax.device_count())


def test_the_table_has_every_part(measured):
  lines = benchmark_table.table(measured).splitlines()
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


@pytest.mark.parametrize('scope, part', [
    ('jit(step)/transpose(jvp(loss))/AudioMAE/decoder/decoder.blocks/blocks/'
     'jit(one_period)/WindowBlock/attn/bias/fc1/dot_general',
     'decoder: attention'),
    ('jit(step)/jvp(loss)/AudioMAE/encoder/patch_embed/add', 'encoder: tokens'),
    ("state.opt_state[0].mu['encoder']['blocks']['00']['mlp']['fc1']['kernel']",
     'optimizer'),
    ("state.params['encoder']['blocks']['00']['norm1']['scale']",
     'encoder: norms'),
    ('jit(step)/jvp(loss)/AudioMAE/pred/dot_general', 'head and loss'),
    ('jit(step)/add', 'the rest'), ('', 'the rest')])
def test_a_name_says_which_part_it_is_of(scope, part):
  assert breakdown.part_of(scope) == part


def event(name, start, end, **stats):
  return types.SimpleNamespace(
      name=name, start_ns=start * 1e9, end_ns=end * 1e9, stats=stats.items())


@pytest.mark.parametrize('planes, want', [
    # Kernels of a GPU say of what they are; the second one is not looked at.
    ({'/host:CPU': [event('launch', 0, 9, hlo_op='x', hlo_module='jit_step')],
      '/device:GPU:0': [
          event('kernel_7', 1, 2, hlo_op='dot.7', hlo_module='jit_step'),
          event('kernel_8', 2, 3, hlo_op='while.1::dot.8',
                hlo_module='jit_step'),
          event('kernel_7', 3, 4, hlo_op='dot.7', hlo_module='jit_init'),
          event('Memcpy', 5, 6)],
      '/device:GPU:1': [
          event('kernel_7', 1, 2, hlo_op='y', hlo_module='jit_step')]},
     [[(1, 2, 'dot.7'), (2, 3, 'dot.8')]]),
    ({'/device:CUSTOM:Megascale Trace': [],
      '/device:TPU:0': [event('%fusion.1 = f32[8]{0} fusion(%p)', 1, 2)],
      '/device:TPU:0 SparseCore 0': []},
     [[(1, 2, 'fusion.1')]]),
    ({'/host:CPU': [event('x', 1, 2)]}, None)])
def test_events_are_told_by_the_first_device(
    planes, want, tmp_path, monkeypatch):
  # Not seen on such devices: as XLA's sources write them.
  (tmp_path / 'a.xplane.pb').touch()
  monkeypatch.setattr(
      jax.profiler.ProfileData, 'from_file', lambda path: types.SimpleNamespace(
          planes=[types.SimpleNamespace(name=name, lines=[
              types.SimpleNamespace(name='XLA Ops', events=events)])
                  for name, events in planes.items()]))
  if want:
    assert breakdown._read(tmp_path, 'jit_step') == want
  else:
    with pytest.raises(RuntimeError, match='no instruction of jit_step'):
      breakdown._read(tmp_path, 'jit_step')


def test_what_a_tpu_does_beside_is_not_looked_at(tmp_path, monkeypatch):
  (tmp_path / 'a.xplane.pb').touch()
  lines = [
      types.SimpleNamespace(name=name, events=[event(f'%{name[0]} = x', 1, 2)])
      for name in ('Async XLA Ops', 'XLA Ops', 'Steps')]
  monkeypatch.setattr(
      jax.profiler.ProfileData, 'from_file', lambda path: types.SimpleNamespace(
          planes=[types.SimpleNamespace(name='/device:TPU:0', lines=lines)]))
  assert breakdown._read(tmp_path, 'jit_step') == [[(1, 2, 'X')]]


def test_names_are_not_those_of_an_older_program(tmp_path):
  settings = {'jax_compilation_cache_dir': str(tmp_path),
              'jax_persistent_cache_min_compile_time_secs': 0.0}
  before = {name: getattr(jax.config, name) for name in settings}

  def compiled(name, named):
    def fn(x):
      with jax.named_scope(name):
        return jax.numpy.sin(x) * 3
    with breakdown.named(named):
      return jax.jit(fn).lower(jax.numpy.ones(4)).compile().as_text()

  def use(settings):
    compilation_cache.reset_cache()
    for option, value in settings.items():
      jax.config.update(option, value)

  use(settings)
  try:
    assert 'old' in compiled('old', False)
    assert 'new' not in compiled('new', False)  # the cache knows no names
    assert 'new' in compiled('new', True)
  finally:
    use(before)


def test_a_program_without_names_is_refused():
  lowered = jax.jit(lambda x: x + 1).lower(1.0)
  with pytest.raises(RuntimeError, match='parts cannot be told'):
    breakdown.measure(lowered, lowered.compile(), 1, lambda: 0.0, 1)
