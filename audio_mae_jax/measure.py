"""Measurements of a recipe's speed and memory, for any task.

Three things are timed: the compiled train step on one batch that stays on the
device; the input pipeline on its own; and the step fed by the pipeline, as in
training. What the third takes longer than the first is waiting for input.
"""

import collections
import contextlib
import dataclasses
import functools
import os
import time

import jax
import jax.numpy as jnp
import numpy as np

from audio_mae_jax import breakdown
from audio_mae_jax import config as config_lib
from audio_mae_jax import flops
from audio_mae_jax import memory
from audio_mae_jax import registry
from audio_mae_jax import sharding
from audio_mae_jax import step as step_lib
from audio_mae_jax import tasks
from audio_mae_jax.data import labels
from audio_mae_jax.data import pipeline
from audio_mae_jax.data import placement
from audio_mae_jax.data import splits

INPUTS = {
    'synthetic': 'clips made on the fly by the source "synthetic"',
    'real': 'the clips of config.data.train',
    'resident': 'no pipeline: one batch, on the device from the start',
}
PARTS = {
    'all': 'everything',
    'step': 'only the step, on a resident batch',
    'input': 'only the input pipeline',
    'breakdown': 'where the time of a step goes, by its parts',
    'embed': 'no training: the encoder embeds clips, with --windows at once',
}
# The square product that shows what a device can do: its side, and how many in
# one call, which launching the call must not weigh against.
_DENSE = {'cpu': (2048, 1)}
_DENSE_ACCELERATOR = (8192, 8)
_AHEAD = 2  # steps under way, as in the training loop


@dataclasses.dataclass(frozen=True)
class Options:
  steps: int = 20  # timed, in each measurement
  warmup: int = 2  # run before and not timed
  input: str = 'synthetic'  # a key of INPUTS
  part: str = 'all'  # a key of PARTS

  def __post_init__(self):
    registry.lookup(INPUTS, self.input, '--input')
    registry.lookup(PARTS, self.part, '--part')
    if self.steps < 1 or self.warmup < 1:
      raise ValueError(
          f'--steps={self.steps} --warmup={self.warmup}: at least one step is '
          'timed, and one is run before (the first of all is never typical).')
    if self.part in ('embed', 'breakdown') and self.input == 'real':
      raise ValueError(
          f'--part={self.part} reads no data, and --input=real asks for them. '
          'Leave one of the two out.')
    if self.part == 'input' and self.input == 'resident':
      raise ValueError(
          '--part=input --input=resident measures nothing: a resident batch '
          'has no pipeline. Use --input=synthetic or --input=real.')


def measure(config: config_lib.Config, options: Options) -> dict:
  """Numbers of `config`; docs/performance.md says what each entry means."""
  config, split = open_clips(config, options.input)
  program = step_lib.build(
      config, pipeline.steps_per_epoch(split.source, config))
  result = {
      'recipe': config.name, 'task': config.task,
      'options': dataclasses.asdict(options),
      'setup': _setup(config, program, split),
      'flops_per_clip': program.task.flops()}
  if options.part != 'input':
    result |= _measure_step(config, options, program, split)
  if options.part in ('all', 'input') and options.input != 'resident':
    result['input'] = _measure_input(config, options, program, split)
  result['setup']['bad_files'] = split.report.count
  result['memory_peak'] = memory.peak(program.mesh.local_devices)
  return result


def open_clips(config: config_lib.Config, source: str):
  """`config` for the clips of `source`, of INPUTS; and those, not yet read."""
  settings = config.data.train
  if source != 'real':
    settings = config_lib.Source(
        name='synthetic', num_clips=config.train.batch_size)
    config = dataclasses.replace(config, data=dataclasses.replace(
        config.data, sampling='shuffle', epoch_clips=0, replacement=False))
  split = splits.Split.open(settings, config.data, 'config.data.train')
  if split is None:
    raise ValueError(
        '--input=real reads config.data.train, and its name is empty. Name a '
        'source, or use --input=synthetic.')
  if tasks.is_labelled(config) and config.model.classifier.num_classes < 0:
    config = labels.with_classes(
        config, split.source.class_names, 'config.data.train')
  return config, split


def _setup(config, program, split):
  devices = program.mesh.devices
  return {
      'jax': jax.__version__,
      'platform': devices.flat[0].platform,
      'device': devices.flat[0].device_kind,
      'devices': devices.size,
      'processes': jax.process_count(),
      'cores': os.cpu_count(),
      'mesh': dict(program.mesh.shape),
      'dtype': config.model.dtype,
      'remat': config.model.remat,
      'scan_layers': config.model.scan_layers,
      'batch_size': config.train.batch_size,
      'clip_s': config.data.clip_s,
      'source': split.source.describe(),
      'compilation_cache': bool(jax.config.jax_compilation_cache_dir)}


def _measure_step(config, options, program, split):
  with _batches(config, program, split) as batches:
    batch = jax.block_until_ready(next(batches))
  with breakdown.named(options.part == 'breakdown'):
    runner, lowered, compiled, start = _start(program, batch)
  for _ in range(options.warmup - 1):
    runner.timed(batch)
  if options.part == 'breakdown':
    return {'start': start, 'breakdown': breakdown.measure(
        lowered, compiled, program.mesh.size,
        lambda: runner.timed(batch)[0], options.steps)}
  timed = [runner.timed(batch) for _ in range(options.steps)]
  walls, cpus = np.array(timed).T
  step_s = runner.window(lambda: batch, options.steps)
  rate = config.train.batch_size / step_s
  result = {
      'start': start,
      'step': _spread(walls) | {'cpu_s': float(np.median(cpus))},
      'throughput': {'step_s': step_s, 'clips_per_s': rate},
      'work': _work(config, program, rate),
      'compiler': _compiler(config, program, lowered, compiled),
      'prepare': _measure_prepare(options, program, batch, walls)}
  if options.part == 'all' and options.input != 'resident':
    result['fed'] = _measure_fed(config, options, program, split, runner, rate)
  return result


def _start(program, batch):
  """What a run does up to its first step, and the seconds of each part."""
  marks = [time.perf_counter()]
  lap = lambda: marks.append(time.perf_counter())
  lowered = program.train_step.lower(program.shapes, batch)
  lap()
  with _cache_hits() as hits:
    compiled = lowered.compile()
  lap()
  runner = _Runner(compiled, jax.block_until_ready(program.init()))
  lap()
  runner.timed(batch)
  lap()
  seconds = dict(zip(('lower_s', 'compile_s', 'init_s', 'first_step_s'),
                     np.diff(marks).tolist()))
  return runner, lowered, compiled, seconds | {
      'compiled_before': bool(hits), 'to_first_step_s': marks[-1] - marks[0]}


@contextlib.contextmanager
def _cache_hits():
  """A list that grows with each program that was compiled before."""
  hits = []
  listen = lambda event, **_: (
      hits.append(event) if event == '/jax/compilation_cache/cache_hits'
      else None)
  jax.monitoring.register_event_listener(listen)
  try:
    yield hits
  finally:
    jax.monitoring.unregister_event_listener(listen)


class _Runner:
  """Runs the step on a state that it donates from one call to the next."""

  def __init__(self, train_step, state):
    self._train_step, self._state = train_step, state

  def timed(self, batch) -> tuple[float, float]:
    """Seconds and processor seconds of one step, from idle to idle."""
    wall, cpu = time.perf_counter(), time.process_time()
    self._state, metrics = self._train_step(self._state, batch)
    jax.block_until_ready((self._state, metrics))
    return time.perf_counter() - wall, time.process_time() - cpu

  def window(self, next_batch, steps: int) -> float:
    """Seconds per step over `steps` that follow each other as in training."""
    pending = collections.deque()
    begin = time.perf_counter()
    for _ in range(steps):
      self._state, metrics = self._train_step(self._state, next_batch())
      pending.append(metrics)
      if len(pending) > _AHEAD:
        jax.block_until_ready(pending.popleft())
    jax.block_until_ready(self._state)
    return (time.perf_counter() - begin) / steps


def _spread(seconds):
  points = {'min_s': 0, 'p10_s': 10, 'median_s': 50, 'p90_s': 90}
  return {name: float(np.percentile(seconds, point))
          for name, point in points.items()}


def _work(config, program, rate):
  """Model FLOP rates of all devices, against data sheet and a dense product."""
  devices = program.mesh.devices
  achieved = program.task.flops()['step'] * rate / 1e12
  peak = flops.peak_tflops(devices.flat[0], config.log)
  peak = peak and peak * devices.size
  dense = _dense_tflops(config, program)
  return {'model_tflops': achieved, 'peak_tflops': peak,
          'of_peak': peak and achieved / peak,
          'dense_tflops': dense, 'of_dense': achieved / dense}


def _dense_tflops(config, program):
  """Rate of square products in the model's dtype, on all devices at once."""
  mesh, dtype = program.mesh, jnp.dtype(config.model.dtype)
  platform = mesh.devices.flat[0].platform
  n, products = _DENSE.get(platform, _DENSE_ACCELERATOR)

  # Random: the power that a device draws depends on the numbers.
  random = lambda shape, place: jax.jit(
      lambda: jax.random.normal(jax.random.key(0), shape, dtype) * n**-0.5,
      out_shardings=place)()
  x = random((mesh.size, n, n), sharding.batch(mesh))
  w = random((n, n), sharding.replicated(mesh))
  multiply = jax.jit(
      lambda x, w: jax.lax.fori_loop(0, products, lambda _, y: y @ w, x),
      out_shardings=sharding.batch(mesh))
  seconds = _repeat(lambda: multiply(x, w), warmup=1, steps=4)
  return mesh.size * products * 2 * n**3 / min(seconds) / 1e12


def _compiler(config, program, lowered, compiled):
  """What XLA says: work before optimisation, bytes of the compiled program.

  It counts the body of a loop (`scan_layers`, `accumulate`) once.
  """
  work = (lowered.cost_analysis() or {}).get('flops')
  moved = (compiled.cost_analysis() or {}).get('bytes accessed')
  memory = compiled.memory_analysis()
  size = lambda name: memory and getattr(memory, f'{name}_size_in_bytes')
  clips = config.train.batch_size
  return {'flops_per_clip': work and work / clips,
          'bytes_per_clip': moved and moved * program.mesh.size / clips,
          **{f'{name}_bytes_per_device': size(name)
             for name in ('temp', 'argument', 'output', 'alias')}}


def _measure_prepare(options, program, batch, walls):
  """All of the step before the model, alone; inside it can only be cheaper."""
  prepare = sharding.jit(
      program.mesh,
      lambda rng, batch: program.task.prepare(batch, rng, train=True),
      in_shardings=(None, program.batch_sharding))
  rng = jax.random.key(0)
  seconds = _spread(_repeat(
      lambda: prepare(rng, batch), options.warmup, options.steps))
  return seconds | {'of_step': seconds['median_s'] / float(np.median(walls))}


def _repeat(call, warmup, steps):
  """Seconds of each of `steps` calls."""
  seconds = []
  for _ in range(warmup + steps):
    begin = time.perf_counter()
    jax.block_until_ready(call())
    seconds.append(time.perf_counter() - begin)
  return seconds[warmup:]


def _batches(config, program, split):
  return contextlib.closing(placement.to_device(
      pipeline.train_batches(
          split.source, config, process_index=jax.process_index(),
          process_count=jax.process_count(), report=split.report,
          labelled=program.task.labelled),
      program.batch_sharding, config.data.prefetch_batches))


def _unprimed(config, options):
  """Batches to leave out: those that were ready before the clock started."""
  return max(options.warmup, config.data.prefetch_batches + 1)


def _measure_input(config, options, program, split):
  """Clips/s that the pipeline puts on the devices when nothing else runs."""
  with _batches(config, program, split) as batches:
    for _ in range(_unprimed(config, options)):
      jax.block_until_ready(next(batches))
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(options.steps):
      jax.block_until_ready(next(batches))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
  clips = options.steps * config.train.batch_size
  return {'clips_per_s': clips / wall, 'cpu_s_per_clip': cpu / clips}


def _measure_fed(config, options, program, split, runner, resident_rate):
  """The step with input from the pipeline, as in training."""
  with _batches(config, program, split) as batches:
    feed = functools.partial(next, batches)
    runner.window(feed, _unprimed(config, options))
    step_s = runner.window(feed, options.steps)
  rate = config.train.batch_size / step_s
  return {'step_s': step_s, 'clips_per_s': rate,
          'waiting': max(0.0, 1 - rate / resident_rate)}
