"""The one training loop. It runs any task on any mesh, and can always go on.

Order within a step, which exact resumption depends on: update, log, evaluate,
draw, save. What a checkpoint's step has left in the record was written before
the checkpoint; what came after is cut off on resume.
"""

import collections
import contextlib
import logging
import os
import signal

import jax

from audio_mae_jax import bookkeeping
from audio_mae_jax import checkpoint
from audio_mae_jax import config as config_lib
from audio_mae_jax import distributed
from audio_mae_jax import frontend
from audio_mae_jax import init_from
from audio_mae_jax import meta as meta_lib
from audio_mae_jax import probe
from audio_mae_jax import step as step_lib
from audio_mae_jax import tasks
from audio_mae_jax import trees
from audio_mae_jax import workdirs
from audio_mae_jax.data import opening
from audio_mae_jax.data import pipeline
from audio_mae_jax.data import placement

_log = logging.getLogger(__name__)


def train(config: config_lib.Config, devices=None) -> step_lib.TrainState:
  """Trains to the end of `config`, from the newest checkpoint if there is one.

  Returns the last state; after a SIGTERM, that of the step it came at.
  """
  return run(config, devices)[0]


def run(
    config: config_lib.Config, devices=None
) -> tuple[step_lib.TrainState, bool]:
  """`train`, and whether that is all: False after a signal."""
  # All that can be wrong with the settings is found before a file is written.
  with distributed.together():
    pipeline.check(config)
    checkpoint.check(config.checkpoint)
    bookkeeping.check(config.log)
    config, data = opening.for_training(config, tasks.is_labelled(config))
    classes = data.train.source.class_names if tasks.is_labelled(config) else []
    place = workdirs.place_of(config)
    config, initial = init_from.prepare(config, place, classes)
    program = step_lib.build(
        config, pipeline.steps_per_epoch(data.train.source, config), devices)
    online = probe.Online(config, program) if config.probe.online else None
    meta = meta_lib.of(
        config, opening.identity(
            data.train.source,
            program.task.labelled or config.data.sampling == 'balanced'),
        classes)
  opening.check_same(data._asdict() | (online.opened if online else {}))
  init_from.check_same(config, initial)
  with contextlib.ExitStack() as stack:
    with distributed.together():
      workdir = stack.enter_context(workdirs.opened(place))
    checkpoints = stack.enter_context(
        checkpoint.Checkpoints(workdir, config.checkpoint))
    stop = stack.enter_context(_StopSignal())
    start, state, stored = checkpoints.restore(program.shapes, meta) or (
        0, program.init(initial), {})
    del initial  # a copy of all parameters
    for line in summary(config, program, data, state):
      _log.info(line)
    _log.info('Work directory: %s. %s', workdir.address,
              f'Going on from step {start}.' if start else 'A new run.')
    keeper = bookkeeping.Bookkeeper(
        config, program, data, online, workdir, checkpoints, meta, start,
        stored.get('unlogged', []))
    stack.callback(keeper.close)
    if not start:
      keeper.begin(state)
    batches = stack.enter_context(contextlib.closing(placement.to_device(
        pipeline.train_batches(
            data.train.source, config, start_step=start,
            process_index=jax.process_index(),
            process_count=jax.process_count(), report=data.train.report,
            labelled=program.task.labelled),
        program.batch_sharding, config.data.prefetch_batches)))
    for step in range(start + 1, program.total_steps + 1):
      batch = next(batches)
      keeper.profile(step)
      # Inside the loop nothing goes to or from the device by accident.
      with jax.transfer_guard('disallow'):
        state, metrics = program.train_step(state, batch)
      keeper.after_update(step, state, metrics)
      if stop.requested():
        break
    step = int(state.step)
    if step < program.total_steps:
      keeper.stopped(step, state)
    else:
      keeper.finished(state)
    # After a signal no further fold begins, even if this run was just done.
    return state, not stop.wished


def summary(config, program, data, state) -> list[str]:
  """What is about to run: sizes, work, data, devices."""
  per_clip = program.task.flops()
  parts = ', '.join(f'{name} {trees.count(tree) / 1e6:.1f} M'
                    for name, tree in state.params.items())
  kinds = collections.Counter(d.device_kind for d in program.mesh.devices.flat)
  clips = program.total_steps * config.train.batch_size
  lines = [
      f'Task {config.task}: {trees.count(state.params):,} parameters '
      f'({parts}).',
      f'A clip of {config.data.clip_s:g} s costs '
      f'{per_clip["step"] / 1e9:.1f} GFLOP a step; the run {clips:,} clips, '
      f'{clips * per_clip["step"]:.3g} FLOP.',
      f'{program.total_steps:,} steps of {config.train.batch_size} clips, '
      f'{program.steps_per_epoch:,} an epoch.',
      *(f'{name.capitalize()}: {split.source.describe()}.'
        for name, split in data._asdict().items() if split is not None)]
  lines.append(
      'Devices: ' + ', '.join(f'{n} x {kind}' for kind, n in kinds.items())
      + f' as mesh {dict(program.mesh.shape)}, '
      f'{jax.process_count()} process(es).')
  return lines + list(warnings(config, data.train.source))


def warnings(config, source):
  """What is allowed and seldom meant."""
  if len(source) < config.train.batch_size:
    yield (f'Warning: a batch of {config.train.batch_size} is more than the '
           f'{len(source)} clips there are, so that each step has clips twice; '
           'lower train.batch_size.')
  frames = frontend.num_frames(pipeline.clip_samples(config), config.frontend)
  if not 0.75 < frames / config.frontend.num_frames < 1.25:
    yield (f'Warning: clips of data.clip_s={config.data.clip_s:g} have '
           f'{frames} frames, and the model takes frontend.num_frames='
           f'{config.frontend.num_frames}: the rest is '
           + ('never seen.' if frames > config.frontend.num_frames
              else 'padding.'))


class _StopSignal(contextlib.AbstractContextManager):
  """Turns SIGTERM and the first Ctrl-C into a wish that the loop asks for.

  Where processes were connected SIGTERM is JAX's, from then on: it tells the
  others, if there are any, and they agree on a step. Ctrl-C is passed on to it.
  """

  def __init__(self):
    self.wished = False
    self._handlers = {}

  def __enter__(self):
    connected = jax.distributed.is_initialized()
    numbers = {signal.SIGINT: self._pass_on} if connected else {
        signal.SIGTERM: self._note, signal.SIGINT: self._note}
    with contextlib.suppress(ValueError):  # not in the main thread
      for number, act in numbers.items():
        self._handlers[number] = signal.signal(number, act)
    return self

  def __exit__(self, *_):
    for number, handler in self._handlers.items():
      signal.signal(number, handler)

  def _note(self, number, _):
    self.wished = True
    signal.signal(number, self._handlers[number])  # a second one acts at once

  def _pass_on(self, number, _):
    signal.signal(number, self._handlers[number])
    os.kill(os.getpid(), signal.SIGTERM)

  def requested(self) -> bool:
    """All processes stop at the same step, whichever got the signal."""
    if jax.distributed.is_initialized():
      self.wished |= distributed.asked_to_stop()
    return self.wished
