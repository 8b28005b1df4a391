"""Where a run leaves its numbers: the record, TensorBoard, Weights & Biases.

metrics.jsonl (`record.py`) is what counts; the others are copies to look at.
The files hold a number once the call returns: a SIGKILL costs none.
"""

import json
import os
import pathlib
import time
import uuid

from audio_mae_jax import config
from audio_mae_jax import record


class Writer:
  """Scalars and pictures of one run, from the process that is `active`.

  The others make the same calls and touch nothing. `settings` is the run's
  configuration as a plain nested dict, for the viewers; what was logged after
  `resume_step` is dropped.
  """

  def __init__(self, workdir: str | os.PathLike, log: config.Log, run_name: str,
               settings: dict, resume_step: int, *, active: bool = True):
    self._sinks = []
    if not active:
      return
    workdir = pathlib.Path(workdir)
    if log.tensorboard:
      self._sinks.append(
          _TensorBoard(workdir / 'tensorboard', settings, resume_step))
    if log.wandb_project:
      self._sinks.append(
          _Wandb(workdir, log.wandb_project, run_name, settings))
    # Made last: a start that fails leaves the record alone. Written first.
    self._sinks.insert(0, record.Record(workdir / record.NAME, resume_step))

  def scalars(self, step: int, values: dict[str, float]) -> None:
    """Numbers, also 0-d arrays, by name ('train/loss') at `step`."""
    for name in ('step', 'time'):
      if name in values:
        raise ValueError(
            f'Metric name {name!r} is taken by the record itself; got '
            f'{sorted(values)}. Rename it, say train/{name}.')
    if self._sinks:
      # Sorted: the lines of two runs agree however the dicts were put together.
      values = {name: float(values[name]) for name in sorted(values)}
    for sink in self._sinks:
      sink.scalars(int(step), values)

  def image(self, step: int, name: str, rgb) -> None:
    """A picture, uint8 [height, width, 3]."""
    for sink in self._sinks:
      sink.image(int(step), name, rgb)

  def flush(self) -> None:
    for sink in self._sinks:
      sink.flush()

  def close(self) -> None:
    for sink in self._sinks:
      sink.close()
    self._sinks = []

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


class _TensorBoard:
  """Event files, written without TensorFlow."""

  def __init__(self, path, settings, resume_step):
    try:
      from tensorboardX import event_file_writer
      from tensorboardX import summary
      from tensorboardX.proto import event_pb2
    except ImportError as error:
      raise ImportError(
          'log.tensorboard=True needs tensorboardX: pip install tensorboardX, '
          'or set --config.log.tensorboard=False.') from error
    self._summary, self._proto = summary, event_pb2
    path.mkdir(exist_ok=True)
    # Not tensorboardX.SummaryWriter: its thread would lose seconds to a kill.
    # The suffix, as names carry whole seconds only and a second file of one
    # second would replace the first.
    self._events = event_file_writer.EventsWriter(
        os.fspath(path / 'events'), f'.{time.time_ns()}')
    # Hides from viewers what an earlier process wrote at this step and after.
    self._write(resume_step + 1 if resume_step else 0,
                session_log=event_pb2.SessionLog(
                    status=event_pb2.SessionLog.START))
    text = json.dumps(settings, indent=2, default=str)
    self._write(resume_step,
                summary=summary.text('config', f'```json\n{text}\n```'))

  def _write(self, step, **content):
    self._events.write_event(
        self._proto.Event(wall_time=time.time(), step=step, **content))
    self._events.flush()

  def scalars(self, step, values):
    values = [self._summary.scalar(*item).value[0] for item in values.items()]
    self._write(step, summary={'value': values})

  def image(self, step, name, rgb):
    self._write(
        step, summary=self._summary.image(name, rgb, dataformats='HWC'))

  def flush(self):
    pass  # each event already is

  def close(self):
    self._events.close()


class _Wandb:
  """Weights & Biases; a restarted process continues the same run."""

  def __init__(self, workdir, project, run_name, settings):
    try:
      import wandb
    except ImportError as error:
      raise ImportError(
          f'log.wandb_project={project!r} needs Weights & Biases: pip install '
          'wandb, or leave log.wandb_project empty.') from error
    id_file = workdir / 'wandb_id.txt'
    run_id = id_file.read_text().strip() if id_file.exists() else ''
    if not run_id:
      run_id = uuid.uuid4().hex
      id_file.write_text(run_id + '\n')
    self._wandb = wandb
    self._run = wandb.init(
        project=project, name=run_name, id=run_id, resume='allow',
        dir=os.fspath(workdir), config=settings)
    # W&B's own step only grows, and would swallow what a resumed run repeats.
    self._run.define_metric('step')
    self._run.define_metric('*', step_metric='step')

  def scalars(self, step, values):
    self._run.log({'step': step, **values})

  def image(self, step, name, rgb):
    self._run.log({'step': step, name: self._wandb.Image(rgb)})

  def flush(self):
    pass  # W&B sends by itself

  def close(self):
    self._run.finish()
