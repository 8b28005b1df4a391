"""The record survives any kill; TensorBoard and W&B get the same numbers."""

import json
import os
import pathlib
import struct
import subprocess
import sys
import types

import numpy as np
import pytest

from audio_mae_jax import config
from audio_mae_jax import record
from audio_mae_jax import writer

JSONL_ONLY = config.Log(tensorboard=False)


def open_writer(workdir, resume_step=0, log=JSONL_ONLY, **kwargs):
  return writer.Writer(workdir, log, 'run', {'name': 'run', 'size': (16, 16)},
                       resume_step, **kwargs)


def write_steps(workdir, steps, resume_step=0, log=JSONL_ONLY):
  pathlib.Path(workdir).mkdir(exist_ok=True)
  with open_writer(workdir, resume_step, log) as w:
    for step in steps:
      w.scalars(step, {'train/loss': 1 / step, 'lr': 1e-4 * step})


def lines_without_times(path):
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  return [{k: v for k, v in line.items() if k != 'time'} for line in lines]


def refuse_constants(name):
  raise AssertionError(f'{name} is not JSON')


def test_record_is_strict_json_with_a_fixed_key_order(tmp_path):
  with open_writer(tmp_path) as w:
    w.scalars(np.int64(3), {'z': np.float32(0.1), 'a': float('nan'),
                            'b': -np.inf, 'c': np.array(np.inf), 'd': 2})
  text = (tmp_path / record.NAME).read_text()
  line = json.loads(text, parse_constant=refuse_constants)
  assert text.endswith('}\n') and text.count('\n') == 1
  assert list(line) == ['step', 'time', 'a', 'b', 'c', 'd', 'z']
  assert (line['step'], line['d']) == (3, 2.0)
  assert line['z'] == float(np.float32(0.1))  # every bit of it
  assert (line['a'], line['b'], line['c']) == ('NaN', '-Infinity', 'Infinity')


def test_non_finite_values_are_read_back_as_numbers(tmp_path):
  with open_writer(tmp_path) as w:
    w.scalars(1, {'a': float('nan'), 'b': float('-inf')})
  line, = record.read(tmp_path / record.NAME)
  assert np.isnan(line['a']) and line['b'] == -np.inf


def test_a_run_cut_at_any_byte_and_resumed_leaves_the_same_record(tmp_path):
  write_steps(tmp_path / 'whole', range(1, 10))
  whole = (tmp_path / 'whole' / record.NAME).read_bytes()
  checkpoint = sum(map(len, whole.splitlines(keepends=True)[:6]))
  workdir = tmp_path / 'killed'
  workdir.mkdir()
  for size in range(checkpoint, len(whole) + 1):
    (workdir / record.NAME).write_bytes(whole[:size])
    write_steps(workdir, range(7, 10), resume_step=6)
    assert (lines_without_times(workdir / record.NAME)
            == lines_without_times(tmp_path / 'whole' / record.NAME))


def test_a_whole_last_line_without_its_newline_is_kept(tmp_path):
  write_steps(tmp_path, range(1, 4))
  path = tmp_path / record.NAME
  path.write_bytes(path.read_bytes()[:-1])
  write_steps(tmp_path, [4], resume_step=3)
  assert [r['step'] for r in lines_without_times(path)] == [1, 2, 3, 4]


@pytest.mark.parametrize('garbage', [
    b'{"step": 4, "tim', b'[]', b'7', b'{"time": 1}', b'{"step": 2, "a": "x"}',
    b'{"step": 2, "a": null}', b'{"step": Infinity}', b'\0\0\0', b'\xff\xfe'])
def test_torn_lines_are_skipped_by_readers_and_dropped_on_resume(
    tmp_path, garbage):
  write_steps(tmp_path, range(1, 4))
  path = tmp_path / record.NAME
  whole = path.read_bytes()
  path.write_bytes(whole + garbage)
  assert [r['step'] for r in record.read(path)] == [1, 2, 3]
  open_writer(tmp_path, 3).close()
  assert path.read_bytes() == whole


def test_without_a_checkpoint_the_record_starts_anew(tmp_path):
  with open_writer(tmp_path) as w:
    w.scalars(0, {'valid/loss': 1.0})
    w.scalars(1, {'train/loss': 1.0})
  open_writer(tmp_path, 0).close()
  assert (tmp_path / record.NAME).read_bytes() == b''


def test_a_kill_while_the_record_is_cut_loses_nothing(tmp_path, monkeypatch):
  write_steps(tmp_path, range(1, 6))
  before = (tmp_path / record.NAME).read_bytes()

  def killed(*_):
    raise KeyboardInterrupt
  monkeypatch.setattr(os, 'replace', killed)
  with pytest.raises(KeyboardInterrupt):
    open_writer(tmp_path, 3)
  assert (tmp_path / record.NAME).read_bytes() == before
  monkeypatch.undo()
  open_writer(tmp_path, 3).close()
  steps = [r['step'] for r in record.read(tmp_path / record.NAME)]
  assert steps == [1, 2, 3]
  assert os.listdir(tmp_path) == [record.NAME]


def test_sigkill_loses_no_line_that_was_written(tmp_path):
  program = (
      'import sys, itertools\n'
      'from audio_mae_jax import config, writer\n'
      'log = config.Log(tensorboard=False)\n'
      'w = writer.Writer(sys.argv[1], log, "", {}, 0)\n'
      'for step in itertools.count(1):\n'
      '  w.scalars(step, {"loss": 1.0})\n'
      '  print(step, flush=True)\n')
  root = pathlib.Path(writer.__file__).parents[1]
  child = subprocess.Popen(
      [sys.executable, '-c', program, str(tmp_path)], cwd=root,
      stdout=subprocess.PIPE)
  for _ in range(50):
    last = int(child.stdout.readline())
  child.kill()
  last = max([last] + [int(x) for x in child.communicate()[0].split()])
  steps = [r['step'] for r in record.read(tmp_path / record.NAME)]
  assert steps[:last] == list(range(1, last + 1)) and len(steps) <= last + 1


def test_names_of_the_record_itself_are_refused(tmp_path):
  with open_writer(tmp_path) as w:
    with pytest.raises(ValueError, match=r"'time' is taken.*train/time"):
      w.scalars(1, {'time': 2.0})


def test_inactive_writer_touches_nothing(tmp_path):
  log = config.Log(wandb_project='project')
  with open_writer(tmp_path / 'run', log=log, active=False) as w:
    w.scalars(1, {'loss': 1.0})
    w.image(1, 'picture', np.zeros((4, 4, 3), np.uint8))
    w.flush()
  assert not (tmp_path / 'run').exists()


def read_events(folder):
  """Events of all files in the order in which a viewer reads them."""
  from tensorboardX.proto import event_pb2
  events = []
  for path in sorted(folder.iterdir()):
    data = path.read_bytes()
    while data:  # length, its checksum, the event, its checksum
      size, = struct.unpack('<Q', data[:8])
      events.append(event_pb2.Event.FromString(data[12:12 + size]))
      data = data[16 + size:]
  return events


def visible_scalars(folder, tag):
  """[(step, value)] after the purges that a viewer applies."""
  seen = []
  for event in read_events(folder):
    if event.session_log.status == event.session_log.START:
      seen = [(step, value) for step, value in seen if step < event.step]
    for value in event.summary.value:
      if value.tag == tag:
        seen.append((event.step, value.simple_value))
  return seen


def test_tensorboard_has_scalars_pictures_and_the_config(tmp_path):
  with open_writer(tmp_path, log=config.Log()) as w:
    w.scalars(5, {'train/loss': 0.5})
    w.image(5, 'pictures/valid', np.full((6, 8, 3), 200, np.uint8))
    # Read before it is closed: what a kill would leave.
    folder = tmp_path / 'tensorboard'
    assert visible_scalars(folder, 'train/loss') == [(5, 0.5)]
    values = {v.tag: v for e in read_events(folder) for v in e.summary.value}
  picture = values['pictures/valid'].image
  assert (picture.height, picture.width, picture.colorspace) == (6, 8, 3)
  text = values['config/text_summary'].tensor.string_val[0].decode()
  assert '"name": "run"' in text


@pytest.mark.parametrize('resume_step', [0, 3])
def test_resumed_tensorboard_curves_do_not_double(tmp_path, resume_step):
  log = config.Log()
  write_steps(tmp_path, range(1, 6), log=log)
  write_steps(tmp_path, range(resume_step + 1, 6), resume_step, log)
  curve = visible_scalars(tmp_path / 'tensorboard', 'train/loss')
  assert curve == [(s, np.float32(1 / s)) for s in range(1, 6)]


def test_missing_tensorboardx_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorboardX', None)
  with pytest.raises(ImportError, match='pip install tensorboardX, or set'):
    open_writer(tmp_path, log=config.Log())


def test_missing_wandb_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  log = config.Log(tensorboard=False, wandb_project='mae')
  with pytest.raises(ImportError, match="'mae' needs .* pip install wandb"):
    open_writer(tmp_path, log=log)


def test_wandb_gets_everything_and_resumes_the_same_run(tmp_path, monkeypatch):
  calls = []

  class Run:
    def define_metric(self, *args, **kwargs):
      calls.append(('define', args, kwargs))

    def log(self, values):
      calls.append(('log', values))

    def finish(self):
      calls.append(('finish',))

  def init(**kwargs):
    calls.append(('init', kwargs))
    return Run()

  stub = types.SimpleNamespace(
      init=init, Image=lambda rgb: ('image', rgb.shape))
  monkeypatch.setitem(sys.modules, 'wandb', stub)
  log = config.Log(tensorboard=False, wandb_project='mae')
  for resume_step in (0, 2):
    with open_writer(tmp_path, resume_step, log) as w:
      w.scalars(3, {'train/loss': np.float32(0.5)})
      w.image(3, 'picture', np.zeros((4, 5, 3), np.uint8))
  first, second = [c[1] for c in calls if c[0] == 'init']
  assert first == second and len(first['id']) == 32
  assert (first['project'], first['name']) == ('mae', 'run')
  assert (first['resume'], first['config']['name']) == ('allow', 'run')
  assert ('define', ('*',), {'step_metric': 'step'}) in calls
  assert ('log', {'step': 3, 'train/loss': 0.5}) in calls
  assert ('log', {'step': 3, 'picture': ('image', (4, 5, 3))}) in calls
  assert calls[-1] == ('finish',)
