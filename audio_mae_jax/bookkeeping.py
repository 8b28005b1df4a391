"""What a run does besides updating: log, evaluate, draw, save."""

import collections
import dataclasses
import logging
import math
import os

import jax
import numpy as np

from audio_mae_jax import config as config_lib
from audio_mae_jax import distributed
from audio_mae_jax import evaluate
from audio_mae_jax import flops
from audio_mae_jax import pictures
from audio_mae_jax import progress as progress_lib
from audio_mae_jax import record
from audio_mae_jax import step as step_lib
from audio_mae_jax import storage
from audio_mae_jax import writer as writer_lib

_log = logging.getLogger(__name__)

# Steps that may be under way; more would only hold more batches in memory.
_AHEAD = 2


class NonFiniteLoss(RuntimeError):
  """The loss is no number any more; the message names step and clips."""


def check(log: config_lib.Log):
  """Raises ValueError for a setting under which no loss would be checked."""
  if log.every_steps < 0:
    raise ValueError(
        f'log.every_steps={log.every_steps}: give a number of steps, or 0 for '
        'one line an epoch. Losses are checked when they are logged.')


def is_due(step: int, every: int, program) -> bool:
  """`every` is a number of steps; 0 is an epoch, -1 never. The last step is."""
  if every < 0:
    return False
  return (step == program.total_steps
          or step % (every or program.steps_per_epoch) == 0)


def _learnt(lines, start) -> str:
  """What probes said of the encoder at the `start` and the end of the run."""
  probed = [line for line in lines
            if any(name.startswith('probe/') for name in line)]
  if len(probed) < 2:
    return ''
  first, last = probed[0], probed[-1]
  told = ', '.join(
      f'{name[6:].replace("_", " ")} {first[name]:.3f} -> {last[name]:.3f}'
      for name in last if name.startswith('probe/') and name in first
      and name != 'probe/num_clips')
  return (f'  What the frozen encoder knows, {start} -> now, on '
          f'{last["probe/num_clips"]:.0f} held-out clips: {told}.')


class Bookkeeper:
  """Everything that one run leaves behind."""

  def __init__(self, config, program, data, online, workdir, checkpoints, meta,
               start, unlogged):
    self._config, self._program, self._data = config, program, data
    self._online = online  # probe.Online, or None
    self._workdir, self._checkpoints = workdir, checkpoints
    self._meta, self._first = meta, start + 1
    self._pending = collections.deque()  # (step, metrics), not read yet
    self._unlogged = unlogged  # scalars of steps read since the last line
    self._announced = False
    self._profile_end = None  # while the profiler runs
    self._main = distributed.is_first()
    self._writer = writer_lib.Writer(
        workdir.folder, config.log, config.name or config.task,
        dataclasses.asdict(config), start, active=self._main)
    peak = flops.peak_tflops(program.mesh.devices.flat[0], config.log)
    self._progress = progress_lib.Progress(
        program.total_steps, start, config.log.progress and self._main,
        batch_size=config.train.batch_size,
        flops_per_clip=program.task.flops()['step'],
        peak_flops=(peak or 0) * 1e12 * program.mesh.size)

  def begin(self, state):
    """Before the first step of a new run: what an untrained encoder knows."""
    if self._online is not None:
      self._probe(0, state)

  def after_update(self, step, state, metrics):
    log, program = self._config.log, self._program
    self._pending.append((step, metrics))
    if step == self._first:  # compilation is over; speed is measured from here
      self._progress.update(step, float(metrics['scalars']['loss']))
    if len(self._pending) > _AHEAD:
      jax.block_until_ready(self._pending[-1 - _AHEAD][1]['scalars']['loss'])
    # The test split is looked at once, at the end; and a classifier has a
    # metric then, whatever is asked for on the way.
    last = step == program.total_steps and (
        self._data.test is not None
        or (program.task.labelled and self._data.valid is not None))
    evaluates = last or (
        (self._data.valid is not None or self._online is not None)
        and is_due(step, log.eval_every_steps, program))
    draws = program.picture is not None and is_due(
        step, log.picture_every_steps, program)
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

  def _read(self):
    """Takes from the devices what they have gathered, and checks it."""
    steps, metrics = zip(*self._pending) if self._pending else ((), ())
    self._pending.clear()
    for at, values in zip(steps, jax.device_get(metrics)):
      self._check(at, values)
      self._unlogged.append(
          {name: float(x) for name, x in values['scalars'].items()})

  def log(self, step):
    """A line of the record: means over the steps since the one before."""
    self._workdir.push_now_and_then()
    self._checkpoints.check()
    self._read()
    if not self._unlogged:
      return
    self._data.train.report.share()
    last = self._unlogged[-1]
    mean = {name: np.mean([scalars[name] for scalars in self._unlogged])
            for name in last if name not in ('learning_rate', 'grad_norm')}
    self._unlogged = []
    self._progress.update(step, mean['loss'])
    self._writer.scalars(step, {
        **{f'train/{name}': value for name, value in mean.items()},
        'train/grad_norm': last['grad_norm'], 'lr': last['learning_rate'],
        'epoch': step / self._program.steps_per_epoch,
        'bad_files': self._data.train.report.count,
        **self._progress.metrics()})
    self.report()
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
    names = [self._data.train.source.name_of(int(i)) for i in bad[:20]]
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

  def report(self):
    """Names the files that could not be used."""
    for name, split in self._data._asdict().items():
      if split is not None and self._main:
        split.report.write(self._workdir.folder / (
            'bad_files.json' if name == 'train' else f'bad_files_{name}.json'))

  def evaluate(self, step, state):
    """What is held out, by the weights of `step`; the last is kept in files."""
    last = step == self._program.total_steps
    for name, split in self._data._asdict().items():
      if split is None or name == 'train' or (name == 'test' and not last):
        continue
      found = evaluate.evaluate(
          self._program, state.best_params, split, self._config)
      self._writer.scalars(step, {
          f'{name}/{what}': value for what, value in found.values.items()})
      _log.info('Step %d: %s.', step, evaluate.summary(
          name, found, self._program.task.metric))
      if last and self._main:
        evaluate.write(
            self._workdir.folder / 'evaluation' / name, found, split,
            {'run': self._config.name, 'step': step, 'split': name})

    if self._online is not None:
      self._probe(step, state)

  def _probe(self, step, state):
    found = self._online.measure(state.best_params)
    self._writer.scalars(
        step, {f'probe/{name}': value for name, value in found.items()})
    _log.info('Step %d: probe %s.', step, ', '.join(
        f'{name.replace("_", " ")} {value:.4f}'
        for name, value in found.items() if name != 'num_clips'))

  def draw(self, step, state):
    """A picture of the same clips each time, of the held-out ones if any."""
    split = (self._data.valid or self._data.train).spread(step_lib.PICTURED)
    with evaluate.batches(self._program, split, self._config) as batches:
      batch = next(batches)
    shown = jax.device_get(self._program.picture(state.best_params, batch))
    if not self._main:
      return
    titles = [os.path.basename(split.source.name_of(i))
              for i in range(len(split.source))]
    folder = self._workdir.folder / 'pictures'
    folder.mkdir(exist_ok=True)
    rgb = pictures.reconstruction(
        *(shown[name][:len(titles)]
          for name in ('original', 'removed', 'reconstruction')),
        folder / f'step_{step:06d}.png', frontend=self._config.frontend,
        titles=titles, step=step)
    self._writer.image(step, 'reconstruction', rgb)
    self.draw_curve()

  def draw_curve(self):
    pictures.loss_curve(
        self._workdir.folder / record.NAME,
        self._workdir.folder / 'loss_curve.png')

  def save(self, step, state):
    self._writer.flush()
    self._workdir.push()
    self._checkpoints.save(
        step, state, {**self._meta, 'unlogged': self._unlogged})

  def profile(self, step):
    """Opens the profiler's window before `step`, or closes it.

    In a run that goes on beyond `profile_start` it opens at the second step,
    when compilation is over.
    """
    log = self._config.log
    if self._profile_end is not None:
      if step == self._profile_end:
        self._end_profile()
    elif log.profile_start >= 0 and step == max(
        log.profile_start, self._first + 1):
      jax.profiler.start_trace(str(self._workdir.folder / 'profile'))
      self._profile_end = step + log.profile_steps

  def _end_profile(self):
    if self._pending:
      jax.block_until_ready(self._pending[-1][1])
    jax.profiler.stop_trace()
    self._profile_end = None

  def stopped(self, step, state):
    """A signal came: everything is kept, and the next start goes on here."""
    self._read()  # but no line: the one that is due comes when it is due
    self.save(step, state)
    self._checkpoints.wait()
    _log.warning(
        'Stopped by a signal at step %d, which is saved in %s; the same '
        'command goes on from there.', step, self._checkpoints.folder)

  def finished(self, state):
    """One line: how it ended, and where everything is."""
    step = int(state.step)
    self._checkpoints.wait()
    if not self._main:
      return
    if step < self._first:
      _log.info('Nothing to do: the run already has its %d steps.', step)
    self.draw_curve()
    told, values = ('loss', self._program.task.metric), {}
    lines = record.read(self._workdir.folder / record.NAME)
    for line in lines:
      values |= {name: x for name, x in line.items()
                 if name.split('/')[-1] in told}
    end = ', '.join(f'{name} {x:.4f}' for name, x in values.items())
    self._workdir.push()
    home = self._workdir.address
    places = {
        'Checkpoint': home / 'checkpoints' / str(self._checkpoints.latest()),
        'Loss curve': home / 'loss_curve.png', 'Pictures': home / 'pictures',
        'Evaluation': home / 'evaluation', 'Record': home / record.NAME}
    _log.info('Done: %d steps, %s. %s%s', step, end, '  '.join(
        f'{name}: {place}' for name, place in places.items()
        if storage.exists(place)), _learnt(
            lines, 'as it began' if self._config.init_from
            else 'with random weights'))

  def close(self):
    if self._profile_end is not None:
      self._end_profile()
    self.report()
    self._progress.close()
    self._writer.close()
