"""The one training loop. It runs any task on any mesh, and can always go on.

Order within a step, which exact resumption depends on: update, log, evaluate,
draw, save. What a checkpoint's step has left in the record was written before
the checkpoint; what came after is cut off on resume.
"""

import collections
import contextlib
import dataclasses
import hashlib
import logging
import math
import os
import signal

import jax
from jax.experimental import multihost_utils
import numpy as np

from audio_mae_jax import checkpoint
from audio_mae_jax import config as config_lib
from audio_mae_jax import evaluate
from audio_mae_jax import flops
from audio_mae_jax import pictures
from audio_mae_jax import progress as progress_lib
from audio_mae_jax import record
from audio_mae_jax import step as step_lib
from audio_mae_jax import trees
from audio_mae_jax import writer as writer_lib
from audio_mae_jax.data import files
from audio_mae_jax.data import pipeline
from audio_mae_jax.data import report as report_lib
from audio_mae_jax.data import sources

_log = logging.getLogger(__name__)

# Steps that may be under way; more would only hold more batches in memory.
_AHEAD = 2


class NonFiniteLoss(RuntimeError):
  """The loss is no longer a number; the message names the step and the clips."""


@dataclasses.dataclass(frozen=True)
class Split:
  """A source of clips and the report of what could not be read."""
  source: files.Source
  report: report_lib.BadFiles

  @classmethod
  def open(cls, settings: config_lib.Source, config: config_lib.Config,
           where: str) -> 'Split | None':
    if not settings.name:
      return None
    source = sources.make(settings, config.data, where)
    return cls(source, report_lib.BadFiles(source.num_files, config.data))


def workdir_of(config: config_lib.Config) -> str:
  return config.workdir or os.path.join('runs', config.name or config.task)


def train(config: config_lib.Config, devices=None) -> step_lib.TrainState:
  """Trains to the end of `config`, from the newest checkpoint if there is one.

  Returns the last state; after a SIGTERM, that of the step it came at.
  """
  # All that can be wrong with the settings is found before a file is written.
  train_split = Split.open(config.data.train, config, 'config.data.train')
  if train_split is None:
    raise ValueError(
        'config.data.train.name is empty: say what to train on, one of '
        f'{", ".join(sources.SOURCES)}.')
  valid_split = Split.open(config.data.valid, config, 'config.data.valid')
  program = step_lib.build(
      config, pipeline.steps_per_epoch(
          train_split.source, config.train.batch_size), devices)
  workdir = writer_lib.prepare_workdir(workdir_of(config))
  meta = checkpoint.meta_of(config, _identity(train_split.source))
  with contextlib.ExitStack() as stack:
    checkpoints = checkpoint.Checkpoints(workdir, config.checkpoint)
    stack.callback(checkpoints.close)
    restored = checkpoints.restore(program.shapes, meta)
    start, state = restored or (0, program.init())
    for line in summary(config, program, train_split, valid_split, state):
      _log.info(line)
    _log.info('Work directory: %s. %s', workdir,
                 f'Going on from step {start}.' if start else 'A new run.')
    run = _Run(config, program, train_split, valid_split, workdir, checkpoints,
               meta, start)
    stack.callback(run.close)
    stop = stack.enter_context(_StopSignal())
    batches = stack.enter_context(contextlib.closing(pipeline.to_device(
        pipeline.train_batches(
            train_split.source, config, start_step=start,
            process_index=jax.process_index(),
            process_count=jax.process_count(), report=train_split.report),
        program.batch_sharding, config.data.prefetch_batches)))
    for step in range(start + 1, program.total_steps + 1):
      batch = next(batches)
      run.profile(step)
      # Inside the loop nothing goes to or from the device by accident.
      with jax.transfer_guard('disallow'):
        state, metrics = program.train_step(state, batch)
      run.after_update(step, state, metrics)
      if stop.requested(step) and step < program.total_steps:
        run.stopped(step, state)
        return state
    run.finished(state)
    return state


def summary(config, program, train_split, valid_split, state) -> list[str]:
  """What is about to run: sizes, work, data, devices."""
  per_clip = program.task.flops()
  parts = ', '.join(f'{name} {trees.count(tree) / 1e6:.1f} M'
                    for name, tree in state.params.items())
  kinds = collections.Counter(d.device_kind for d in program.mesh.devices.flat)
  clips = program.total_steps * config.train.batch_size
  lines = [
      f'Task {config.task}: {trees.count(state.params):,} parameters ({parts}).',
      f'A clip of {config.data.clip_s:g} s costs '
      f'{per_clip["step"] / 1e9:.1f} GFLOP a step; the run {clips:,} clips, '
      f'{clips * per_clip["step"]:.3g} FLOP.',
      f'{program.total_steps:,} steps of {config.train.batch_size} clips, '
      f'{program.steps_per_epoch:,} an epoch.',
      f'Train: {train_split.source.describe()}.']
  if valid_split is not None:
    lines.append(f'Valid: {valid_split.source.describe()}.')
  lines.append(
      'Devices: ' + ', '.join(f'{n} x {kind}' for kind, n in kinds.items())
      + f' as mesh {dict(program.mesh.shape)}, {jax.process_count()} process(es).')
  return lines


def _identity(source) -> dict:
  """Tells one set of clips from another: the order depends on it."""
  names = hashlib.sha256()
  for i in range(len(source)):
    names.update(source.name_of(i).encode() + b'\n')
  return {'clips': len(source), 'names': names.hexdigest()[:16]}


def is_due(step: int, every: int, program) -> bool:
  """`every` is a number of steps; 0 is an epoch, -1 never. The last step is."""
  if every < 0:
    return False
  return (step == program.total_steps
          or step % (every or program.steps_per_epoch) == 0)


class _Run:
  """What a run does besides updating: log, evaluate, draw, save."""

  def __init__(self, config, program, train_split, valid_split, workdir,
               checkpoints, meta, start):
    self._config, self._program = config, program
    self._train, self._valid = train_split, valid_split
    self._workdir, self._checkpoints = workdir, checkpoints
    self._meta, self._first = meta, start + 1
    self._pending = collections.deque()  # (step, metrics), not read yet
    self._last = {}
    self._profiling = self._announced = False
    self._main = jax.process_index() == 0
    self._writer = writer_lib.Writer(
        workdir, config.log, config.name or config.task,
        dataclasses.asdict(config), start, active=self._main)
    peak = flops.peak_tflops(program.mesh.devices.flat[0], config.log)
    self._progress = progress_lib.Progress(
        program.total_steps, start, config.log.progress and self._main,
        batch_size=config.train.batch_size,
        flops_per_clip=program.task.flops()['step'],
        peak_flops=(peak or 0) * 1e12 * program.mesh.size)

  def after_update(self, step, state, metrics):
    log, program = self._config.log, self._program
    self._pending.append((step, metrics))
    if step == self._first:  # compilation is over; speed is measured from here
      self._progress.update(step, float(metrics['scalars']['loss']))
    if len(self._pending) > _AHEAD:
      jax.block_until_ready(self._pending[-1 - _AHEAD][1]['scalars']['loss'])
    evaluates = self._valid is not None and is_due(
        step, log.eval_every_steps, program)
    draws = is_due(step, log.picture_every_steps, program)
    saves = is_due(step, self._config.checkpoint.every_steps, program)
    if is_due(step, log.every_steps, program) or evaluates or draws or saves:
      self.log(step)
    else:
      self._progress.update(step)
    if evaluates or draws or saves:
      with self._progress.pause():
        if evaluates:
          self.evaluate(step, state)
        if draws:
          self.draw(step, state)
        if saves:
          self.save(step, state)

  def log(self, step):
    """Reads what the devices have gathered since the last time; checks it."""
    if not self._pending:
      return
    steps, metrics = zip(*self._pending)
    self._pending.clear()
    metrics = jax.device_get(metrics)
    for at, values in zip(steps, metrics):
      self._check(at, values)
    last = metrics[-1]['scalars']
    mean = {name: np.mean([m['scalars'][name] for m in metrics], dtype=np.float64)
            for name in last if name not in ('learning_rate', 'grad_norm')}
    self._last['loss'] = mean['loss']
    self._progress.update(step, mean['loss'])
    self._writer.scalars(step, {
        **{f'train/{name}': value for name, value in mean.items()},
        'train/grad_norm': last['grad_norm'], 'lr': last['learning_rate'],
        'epoch': step / self._program.steps_per_epoch,
        'bad_files': self._train.report.count,
        **self._progress.metrics()})
    if self._train.report.count and self._main:
      self._train.report.write(self._workdir / 'bad_files.json')
    if not self._announced and self._progress.eta_s is not None:
      self._announced = True
      _log.info(
          '%.1f clips/s: about %.2f h of training for the %d steps left.',
          self._progress.clips_per_second, self._progress.eta_s / 3600,
          self._program.total_steps - step)

  def _check(self, step, metrics):
    """A loss that is no number ends the run, before it reaches a checkpoint."""
    if math.isfinite(metrics['scalars']['loss']) and math.isfinite(
        metrics['scalars']['grad_norm']):
      return
    bad = metrics['clip_index'][~np.isfinite(metrics['clip_loss'])]
    names = [self._train.source.name_of(int(i)) for i in bad[:20]]
    if not names:
      what = 'every clip has a finite loss, so the gradient overflowed'
    elif len(bad) == len(metrics['clip_index']):
      what = f'all {len(bad)} clips of the batch, so the weights diverged'
    else:
      what = f'{len(bad)} of {len(metrics["clip_index"])} clips'
    raise NonFiniteLoss(
        f'Step {step}: loss {metrics["scalars"]["loss"]}, gradient norm '
        f'{metrics["scalars"]["grad_norm"]}; {what}.'
        + (f' Clips: {", ".join(names)}.' if names else '')
        + ' Nothing was saved since the last checkpoint. Listen to the clips, '
        'lower optimizer.base_lr, or set optimizer.clip_norm=1.')

  def evaluate(self, step, state):
    values = evaluate.evaluate(
        self._program, state.best_params, self._valid.source, self._config,
        self._valid.report)
    self._last['valid loss'] = values['loss']
    self._writer.scalars(
        step, {f'valid/{name}': value for name, value in values.items()})
    _log.info('Step %d: valid loss %.4f over %d clips.', step, values['loss'],
              values['num_clips'])

  def draw(self, step, state):
    """A picture of the same clips each time, of the held-out ones if any."""
    split = self._valid or self._train
    with evaluate.batches(self._program, split.source, self._config,
                          split.report) as batches:
      batch = next(batches)
    shown = jax.device_get(self._program.picture(state.best_params, batch))
    if not self._main:
      return
    titles = [os.path.basename(split.source.name_of(i))
              for i in range(min(step_lib.PICTURED, len(split.source)))]
    folder = self._workdir / 'pictures'
    folder.mkdir(exist_ok=True)
    rgb = pictures.reconstruction(
        *(shown[name][:len(titles)]
          for name in ('original', 'removed', 'reconstruction')),
        folder / f'step_{step:06d}.png', frontend=self._config.frontend,
        titles=titles, step=step)
    self._writer.image(step, 'reconstruction', rgb)
    pictures.loss_curve(
        self._workdir / record.NAME, self._workdir / 'loss_curve.png')

  def save(self, step, state):
    self._writer.flush()
    self._checkpoints.save(step, state, self._meta)

  def profile(self, step):
    """Opens and closes the profiler's window, counted in this run's steps."""
    log = self._config.log
    if log.profile_start < 0:
      return
    if step == log.profile_start and not self._profiling:
      jax.profiler.start_trace(str(self._workdir / 'profile'))
      self._profiling = True
    elif self._profiling and step >= log.profile_start + log.profile_steps:
      self._end_profile()

  def _end_profile(self):
    if self._pending:
      jax.block_until_ready(self._pending[-1][1])
    jax.profiler.stop_trace()
    self._profiling = False

  def stopped(self, step, state):
    """A signal came: everything is kept, and the next start goes on here."""
    self.log(step)
    self.save(step, state)
    self._checkpoints.wait()
    _log.warning(
        'Stopped by a signal at step %d, which is saved in %s; the same command '
        'goes on from there.', step, self._checkpoints.folder)

  def finished(self, state):
    step = int(state.step)
    if not self._last:
      _log.info('Nothing to do: the run already has its %d steps.', step)
    losses = ', '.join(f'{name} {x:.4f}' for name, x in self._last.items())
    self._checkpoints.wait()
    _log.info(
        'Done: %d steps%s. Checkpoint: %s  Loss curve: %s  Pictures: %s  '
        'Record: %s', step, f', {losses}' if losses else '',
        self._checkpoints.latest(), self._workdir / 'loss_curve.png',
        self._workdir / 'pictures', self._workdir / record.NAME)

  def close(self):
    if self._profiling:
      self._end_profile()
    self._progress.close()
    self._writer.close()


class _StopSignal(contextlib.AbstractContextManager):
  """Turns SIGTERM and the first Ctrl-C into a wish that the loop asks for."""

  def __init__(self):
    self._wished = False
    self._handlers = {}

  def __enter__(self):
    for number in (signal.SIGTERM, signal.SIGINT):
      with contextlib.suppress(ValueError):  # not in the main thread
        self._handlers[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *_):
    for number, handler in self._handlers.items():
      signal.signal(number, handler)

  def _note(self, number, _):
    self._wished = True
    signal.signal(number, self._handlers[number])  # a second one acts at once

  def requested(self, step: int) -> bool:
    """All processes stop at the same step, whichever got the signal."""
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._wished
