"""The step compiled for devices that need not be there."""

import dataclasses
import importlib.util
import json

import jax
import pytest
import recipes
import tiny

from audio_mae_jax import benchmark_table
from audio_mae_jax import compile_for
from audio_mae_jax import config as config_lib
from audio_mae_jax import flops
from audio_mae_jax import measure
from audio_mae_jax import sharding
from audio_mae_jax import step
from audio_mae_jax import tasks
from audio_mae_jax import trees

needs_compiler = pytest.mark.skipif(
    not importlib.util.find_spec('libtpu'),
    reason="the TPU compiler is not installed: pip install -e '.[tpu]'")


def test_the_step_is_compiled_for_the_devices_of_this_host(monkeypatch):
  monkeypatch.setattr(sharding, 'MIN_BYTES', 2**10)  # split a small one too
  config = tiny.config(tiny.MODEL, {
      'data.clip_s': 0.7, 'train.batch_size': 8, 'mesh.data': 1,
      'mesh.fsdp': 8, 'model.encoder.width': 256, 'model.decoder.width': 64,
      'augment.roll': False, 'augment.gain_concentration': 0.0,
      'model.decoder.name': 'global', 'model.decoder.depth': 1})
  x = compile_for.compile_for(config, 'host')
  json.dumps(x, allow_nan=False)
  assert x['fits'] and x['setup']['devices'] == 8
  assert x['setup']['mesh'] == {'data': 1, 'fsdp': 8}
  memory = x['memory']
  # The state is taken and given back in the same place.
  assert 0 < memory['alias_bytes'] <= memory['argument_bytes']
  assert memory['total_bytes'] == (
      memory['argument_bytes'] + memory['temp_bytes'] + memory['output_bytes']
      - memory['alias_bytes'] + memory['code_bytes'])
  # Parameters are gathered, once each way at the most, and gradients summed:
  # activations stay where they are.
  moved = x['collectives']
  parameters = 4 * trees.count(tasks.make(config).init(jax.random.key(0)))
  assert set(moved) == {'all-gather', 'all-reduce'}
  assert 0.5 * parameters < moved['all-gather']['bytes'] < 2.2 * parameters
  assert 0.5 * parameters < moved['all-reduce']['bytes'] < 1.1 * parameters
  assert memory['argument_bytes'] < 3 * parameters / 2
  assert x['compiled']['cycles'] is None and 'projection' not in x
  text = benchmark_table.table(x)
  assert 'memory a device' in text and 'all-reduce' in text


def test_of_probing_the_pass_over_the_data_is_compiled(monkeypatch):
  monkeypatch.setattr(sharding, 'MIN_BYTES', 2**10)
  config = tiny.config(tiny.MODEL, {
      'mode': 'probe', 'data.clip_s': 0.7, 'train.batch_size': 8,
      'mesh.data': 1, 'mesh.fsdp': 8, 'model.encoder.width': 64})
  x = compile_for.compile_for(config, 'host')
  work = x['flops_per_clip']
  assert work['step'] == work['forward'] == flops.encode(
      config, (8, 8))['forward']
  # Parameters are gathered, and each clip's features; nothing is summed.
  assert set(x['collectives']) == {'all-gather'}
  assert x['memory']['alias_bytes'] == 0
  assert x['compiled']['flops_per_device'] > 8 / 8 * work['forward']


def test_a_missing_compiler_is_told_of(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ImportError, match=r"pip install -e '\.\[tpu\]'"):
    compile_for.devices('v5e:4x4')


OUT_OF_MEMORY = [
    ('RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required '
     'for HLO temporaries (27.79G) exceeds available HBM (15.75G).'),
    ('RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory '
     'in memory space hbm. Used 27.79G of 15.75G hbm. Exceeded hbm capacity '
     'by 12.04G.'),
]


class Step:
  """One that does not compile."""

  def __init__(self, message):
    self.message = message

  def lower(self, *args):
    return self

  def compile(self):
    raise jax.errors.JaxRuntimeError(self.message)


@pytest.mark.parametrize('message', OUT_OF_MEMORY)
def test_what_does_not_fit_is_a_result_that_says_by_how_much(
    message, monkeypatch):
  config = tiny.config(tiny.MODEL, {'train.batch_size': 16})
  program = step.build(config, 1)
  monkeypatch.setattr(step, 'build', lambda *args: dataclasses.replace(
      program, train_step=Step(message)))
  x = compile_for.compile_for(config, 'host')
  assert not x['fits'] and 'compiled' not in x
  assert x['memory']['total_bytes'] == pytest.approx(27.79 * 2**30)
  assert x['memory']['device_bytes'] == pytest.approx(15.75 * 2**30)
  text = benchmark_table.table(x)
  assert 'DOES NOT FIT: 27.79 GiB of 15.75 GiB' in text
  assert '--config.model.remat=dots' in text and '--config.mesh.fsdp' in text


@pytest.mark.parametrize('total, fits', [(15.9, True), (16.1, False)])
def test_what_adds_up_to_more_than_there_is_is_told(total, fits):
  sizes = {f'{name}_bytes': 2**30 for name in (
      'temp', 'argument', 'output', 'alias', 'code')}
  text = benchmark_table.table({'memory': sizes | {
      'total_bytes': total * 2**30, 'device_bytes': 16 * 2**30},
      'recipe': 'r', 'task': 't', 'flops_per_clip': {'step': 1.0},
      'setup': {'devices': 1, 'device': 'd', 'mesh': {}, 'processes': 1,
                'jax': '0', 'batch_size': 1, 'clip_s': 1.0, 'dtype': 'x',
                'remat': 'none', 'scan_layers': False}})
  assert f'{total:.2f} GiB of 16.00 GiB' in text
  assert ('DOES NOT FIT' not in text) == fits


def test_clips_per_second_are_projected_from_cycles_and_bytes():
  chip = flops.Chip(16, 200, 4 * 128**2, peak_tflops=197)
  assert chip.clock_ghz == pytest.approx(1.503, abs=1e-3)
  x = compile_for.projection(
      tiny.config({'train.batch_size': 512}), {
          'setup': {'devices': 16}, 'flops_per_clip': {'step': 2e11},
          'compiled': {'cycles': 0.15 * chip.clock_ghz * 1e9},
          # Sent twice: summed, and handed on.
          'collectives': {'all-reduce': {'count': 1, 'bytes': 4e9},
                          'all-gather': {'count': 1, 'bytes': 2e9}}}, chip)
  assert x['compute_s'] == pytest.approx(0.15)
  assert x['collectives_s'] == pytest.approx(10e9 / 200e9)
  assert x['clips_per_s'] == pytest.approx(512 / 0.2)
  assert x['of_peak'] == pytest.approx(2560 * 2e11 / (16 * 197e12))
  assert x['clips_per_s_at_utilisation'] == pytest.approx(
      0.4 * 16 * 197e12 / 2e11)


@needs_compiler
@pytest.mark.tpu
@pytest.mark.parametrize('name', ['v5e:4x5', 'v5e', 'v9:2x2', 'nonsense'])
def test_an_unknown_topology_is_refused(name):
  with pytest.raises(ValueError, match=f'--compile_for={name} is no topology'):
    compile_for.devices(name)


@needs_compiler
@pytest.mark.tpu
@pytest.mark.parametrize('name, count, kind', [
    ('v4:4x4x4', 64, 'TPU v4'), ('v5e:16x16', 256, 'TPU v5 lite'),
    ('v5p:4x4x4', 64, 'TPU v5'), ('v6e:16x16', 256, 'TPU v6 lite')])
def test_topologies_have_their_chips_and_meshes_in_process_order(
    name, count, kind):
  devices = compile_for.devices(name)
  assert len(devices) == count and devices[0].device_kind == kind
  assert flops.chip(devices[0]).clock_ghz == pytest.approx(1.4, abs=0.4)
  for fsdp in (1, 4, count):
    mesh = sharding.make_mesh(
        config_lib.Mesh(fsdp=fsdp), count, devices)
    hosts = [d.process_index for d in mesh.devices.flat]
    assert hosts == sorted(hosts)


@needs_compiler
@pytest.mark.tpu
@pytest.mark.parametrize('name', [
    'v4:2x2x1', 'v5p:2x2x1', 'v5e:2x2', 'v6e:2x2'])
def test_every_generation_takes_the_step(name):
  config = tiny.config(tiny.MODEL, {
      'data.clip_s': 0.7, 'train.batch_size': 8, 'model.dtype': 'bfloat16'})
  x = compile_for.compile_for(config, name)
  assert x['fits'] and x['setup']['devices'] == 4
  assert set(x['collectives']) <= {'all-reduce', 'collective-permute'}
  assert x['compiled']['cycles'] > 0 and x['projection']['clips_per_s'] > 0


LOOPED = {'model.scan_layers': True}  # compiled in a third of the time


@needs_compiler
@pytest.mark.tpu
@pytest.mark.parametrize('recipe, topology, overrides', [
    ('pretrain_as2m', 'v5e:4x4', {}),  # as it is
    ('pretrain_as2m', 'v5e:4x4', LOOPED),
    ('finetune_as2m', 'v5e:4x4', LOOPED | {
        'model.classifier.num_classes': 527}),
    ('pretrain_as2m', 'v5e:16x16', LOOPED),
    ('pretrain_as2m_h', 'v5e:16x16', {}),
])
def test_the_step_of_a_recipe_fits_a_tpu(recipe, topology, overrides):
  settings = recipes.load(recipe)
  settings.update_from_flattened_dict(overrides)
  config, _ = measure.open_clips(config_lib.typed(settings), 'synthetic')
  x = compile_for.compile_for(config, topology)
  assert x['fits'], x['memory']
  assert x['memory']['total_bytes'] < 15.75 * 2**30
  assert x['memory']['device_bytes'] == 16 * 2**30
  # Nothing large moves between chips but parameters and their gradients: each
  # in bfloat16, forth, back, and summed (that may be written as two).
  assert 'all-to-all' not in x['collectives']
  parameters = trees.count(jax.eval_shape(
      tasks.make(config).init, jax.random.key(0)))
  moved = sum(y['bytes'] for y in x['collectives'].values())
  assert moved < 4 * 2 * parameters
  assert x['compiled']['unknown_loops'] == 0
  assert x['projection']['clips_per_s'] > 0
