"""The whole train step, compiled for devices that need not be there.

For a TPU it takes the compiler alone (`pip install -e '.[tpu]'`): the topology
comes by name, and the step is the one that training would run. What the
compiler says is exact for memory and collectives, and an estimate for time.
"""

import importlib.util
import os
import re
import time

import jax
from jax.experimental import topologies
import jax.numpy as jnp

from audio_mae_jax import config as config_lib
from audio_mae_jax import features
from audio_mae_jax import flops
from audio_mae_jax import hlo
from audio_mae_jax import sharding
from audio_mae_jax import step as step_lib
from audio_mae_jax import weights
from audio_mae_jax.data import pipeline
from audio_mae_jax.models import encoder as encoder_lib

HOST = 'host'  # the devices that are there
UTILISATION = 0.4  # of the peak, for the projection that no compiler makes
_STEPS_PER_EPOCH = 1000  # of the schedule, which no figure depends on
# What a chip sends of the array of a collective of many chips, at the least.
_SENT = {'all-reduce': 2}
_GIB = 2**30


def devices(name: str) -> list[jax.Device]:
  """The devices of the topology `name`, e.g. v5e:4x4; of this host for 'host'.

  Raises:
    ValueError: there is no such topology.
    ImportError: the TPU compiler is not installed.
  """
  if name == HOST:
    return jax.devices()
  if not importlib.util.find_spec('libtpu'):
    raise ImportError(
        f'--compile_for={name} needs the TPU compiler, and libtpu is not '
        "installed: pip install -e '.[tpu]' brings the one of this jax. (For "
        f'the devices of this machine: --compile_for={HOST}.)')
  # The compiler neither asks Google's metadata server for a TPU, nor takes one.
  os.environ['TPU_SKIP_MDS_QUERY'] = '1'
  os.environ['ALLOW_MULTIPLE_LIBTPU_LOAD'] = '1'
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  if not jax.config.jax_platforms:
    jax.config.update('jax_platforms', 'cpu')
  # Two cores of a v4 are one device, as on a TPU VM; later chips are so anyway.
  settings = {'chip_config_name': 'megacore'} if name.startswith('v4') else {}
  try:
    return list(topologies.get_topology_desc(
        platform='tpu', topology_name=name, **settings).devices)
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(
        f'--compile_for={name} is no topology of TPUs that the compiler knows. '
        'Give a generation and its chips, as v5e:4x4, v5e:16x16, v6e:16x16, '
        f'v4:4x4x4 or v5p:4x4x8; or {HOST}. ({_first_line(error)})') from error


def compile_for(config: config_lib.Config, name: str) -> dict:
  """Figures of the step of `config` on the topology `name`.

  docs/scaling.md says what each means. What does not fit in the memory of a
  chip is a result too: then 'fits' is False. If the compiler refused it, there
  is no more than that.
  """
  mesh, work, lower = _program(config, devices(name))
  device = mesh.devices.flat[0]
  chip = flops.chip(device)
  result = {
      'recipe': config.name, 'task': config.task, 'compile_for': name,
      'setup': {
          'jax': jax.__version__, 'device': device.device_kind,
          'devices': mesh.size, 'mesh': dict(mesh.shape),
          'processes': len({d.process_index for d in mesh.devices.flat}),
          'batch_size': config.train.batch_size, 'clip_s': config.data.clip_s,
          'dtype': config.model.dtype, 'remat': config.model.remat,
          'scan_layers': config.model.scan_layers},
      'flops_per_clip': work}
  begin = time.perf_counter()
  lowered = lower()
  lowered_at = time.perf_counter()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    return result | {'memory': _too_much(str(error)), 'fits': False}
  result['start'] = {'lower_s': lowered_at - begin,
                     'compile_s': time.perf_counter() - lowered_at}
  text = compiled.as_text()
  costs = compiled.cost_analysis() or {}
  memory = _memory(compiled, chip)
  result |= {
      'memory': memory,
      # The compiler has been seen to take what adds up to more than there is.
      'fits': not chip or memory['total_bytes'] <= memory['device_bytes'],
      'collectives': hlo.collectives(text),
      'compiled': {
          'flops_per_device': costs.get('flops'),
          'bytes_per_device': costs.get('bytes accessed'),
          'optimal_s': costs.get('optimal_seconds'),
          'cycles': hlo.cycles(text),
          'unknown_loops': hlo.unknown_loops(text)}}
  if chip:
    result['projection'] = projection(config, result, chip)
  return result


def _program(config, devices):
  """(mesh, FLOPs of a clip, a call that lowers) of what `config` repeats: a
  step of training, or of the pass over the data before it is probed."""
  if config.mode == 'probe':
    mesh = sharding.make_mesh(config.mesh, config.train.batch_size, devices)
    encoder = encoder_lib.make(config)
    embed = features.embedder(encoder, config, mesh)
    return (mesh, flops.encode(config, weights.grid_of(config)),
            lambda: embed.lower(features.placed(encoder, config, mesh),
                                batch(config, mesh, labelled=False)))
  program = step_lib.build(config, _STEPS_PER_EPOCH, devices)
  return (program.mesh, program.task.flops(),
          lambda: program.train_step.lower(program.shapes, batch(
              config, program.mesh, program.task.labelled)))


def batch(config: config_lib.Config, mesh: jax.sharding.Mesh,
          labelled: bool) -> dict:
  """Shapes of a batch, as the pipeline makes it."""
  b = config.train.batch_size
  shapes = {'audio': ((b, pipeline.clip_samples(config)), jnp.float32),
            'num_samples': ((b,), jnp.int32), 'index': ((b,), jnp.int32),
            'valid': ((b,), jnp.float32)}
  if labelled:
    shapes['labels'] = (
        (b, config.model.classifier.num_classes), jnp.float32)
  return {name: jax.ShapeDtypeStruct(
      *shape, sharding=sharding.batch(mesh))
          for name, shape in shapes.items()}


def _memory(compiled, chip):
  """Bytes on each device; the state that a step takes is updated in place."""
  x = compiled.memory_analysis()
  sizes = {name: getattr(x, f'{name}_size_in_bytes')
           for name in ('argument', 'temp', 'output', 'alias')}
  code = x.generated_code_size_in_bytes
  total = (sizes['argument'] + sizes['temp'] + sizes['output']
           - sizes['alias'] + code)
  return {**{f'{name}_bytes': size for name, size in sizes.items()},
          'code_bytes': code, 'total_bytes': total,
          'device_bytes': chip and int(chip.memory_gib * _GIB)}


def _too_much(message):
  """What the compiler needed and had, of either of its two messages."""
  sizes = re.search(
      r'\(([\d.]+)G\) exceeds available HBM \(([\d.]+)G\)|'
      r'Used ([\d.]+)G of ([\d.]+)G hbm', message)
  needed, had = [float(x) * _GIB for x in sizes.groups() if x] if sizes else (
      None, None)
  return {'total_bytes': needed, 'device_bytes': had,
          'message': message.splitlines()[0]}


def projection(config, result, chip) -> dict:
  """Clips/s: by the compiler's estimate, and at a share of the peak.

  Nothing of it is measured. The first adds the time of the collectives at the
  data sheet's bandwidth, as if nothing else ran beside them.
  """
  count, clips = result['setup']['devices'], config.train.batch_size
  sent = sum(_SENT.get(kind, 1) * x['bytes']
             for kind, x in result['collectives'].items())
  cycles = result['compiled']['cycles']
  compute_s = cycles and cycles / (chip.clock_ghz * 1e9)
  collectives_s = sent / (chip.interconnect_gb_s * 1e9)
  step_s = compute_s and compute_s + collectives_s
  peak = UTILISATION * chip.peak_tflops * 1e12 * count
  return {
      'compute_s': compute_s, 'collectives_s': collectives_s, 'step_s': step_s,
      'clips_per_s': step_s and clips / step_s,
      'of_peak': step_s and (
          result['flops_per_clip']['step'] * clips
          / (step_s * chip.peak_tflops * 1e12 * count)),
      'utilisation': UTILISATION,
      'clips_per_s_at_utilisation': peak / result['flops_per_clip']['step']}


def _first_line(error):
  return str(error).splitlines()[0]
