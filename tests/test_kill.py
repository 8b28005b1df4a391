"""Real processes, really killed: the end is the same, bit for bit."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from audio_mae_jax import record

ROOT = pathlib.Path(__file__).parents[1]
SHRUNK = {
    'probe.online': '()',
    'model.encoder.width': 24, 'model.encoder.depth': 1,
    'model.encoder.heads': 2, 'model.decoder.width': 16,
    'model.decoder.depth': 2, 'model.decoder.heads': 2,
    'train.batch_size': 4, 'train.steps': 40, 'optimizer.warmup_epochs': 0.05,
    'checkpoint.every_steps': 5, 'log.every_steps': 1,
    'log.eval_every_steps': -1, 'log.picture_every_steps': -1,
}
LAST = str(SHRUNK['train.steps'])


def start(workdir, cache, **overrides):
  """The README's first command on a shrunk model, as a process of its own."""
  settings = {**SHRUNK, 'workdir': workdir, **overrides}
  env = {**os.environ, 'JAX_COMPILATION_CACHE_DIR': str(cache),
         'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
         'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu'}
  return subprocess.Popen(
      [sys.executable, '-m', 'audio_mae_jax.main',
       '--config=configs/quickstart.py',
       *(f'--config.{name}={value}' for name, value in settings.items())],
      cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
      text=True)


def finish(process):
  output, _ = process.communicate(timeout=300)
  assert process.returncode == 0, output
  return output


def end_of(workdir):
  """What the run's end is: each array's checksum, and the record's losses."""
  folder = pathlib.Path(workdir) / 'checkpoints' / LAST / 'meta'
  meta = next(json.loads(p.read_text()) for p in folder.iterdir()
              if 'fingerprint' in p.read_text(errors='ignore'))
  lines = record.read(pathlib.Path(workdir) / record.NAME)
  return meta['fingerprint'], [(x['step'], x['train/loss']) for x in lines]


def steps_logged(workdir):
  try:
    lines = record.read(pathlib.Path(workdir) / record.NAME)
  except FileNotFoundError:
    return 0
  return lines[-1]['step'] if lines else 0


def is_saving(workdir):
  return any('tmp' in p.name for p in
             (pathlib.Path(workdir) / 'checkpoints').glob('*'))


def kill_when(process, condition):
  """SIGKILL as soon as `condition()` holds; returns whether it came in time."""
  while process.poll() is None:
    if condition():
      process.kill()
      process.wait()
      return True
    time.sleep(0.001)
  process.stdout.read()
  return False


@pytest.fixture(scope='module')
def whole(cache, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('whole')
  finish(start(workdir, cache))
  return cache, end_of(workdir)


@pytest.mark.faults
def test_a_run_killed_while_saving_and_while_training_ends_the_same(
    whole, tmp_path):
  cache, end = whole
  assert kill_when(start(tmp_path, cache),
                   lambda: steps_logged(tmp_path) >= 5 and is_saving(tmp_path))
  before = steps_logged(tmp_path)
  assert kill_when(start(tmp_path, cache),
                   lambda: steps_logged(tmp_path) >= before + 6)
  output = finish(start(tmp_path, cache))
  assert 'Going on from step' in output
  assert end_of(tmp_path) == end


@pytest.mark.faults
def test_sigterm_saves_and_exits_cleanly(whole, tmp_path):
  cache, end = whole
  process = start(tmp_path, cache)
  while steps_logged(tmp_path) < 7:
    assert process.poll() is None, process.stdout.read()
    time.sleep(0.01)
  process.send_signal(signal.SIGTERM)
  output = finish(process)
  assert 'Stopped by a signal at step' in output
  finish(start(tmp_path, cache))
  assert end_of(tmp_path) == end


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(5))
def test_any_number_of_kills_at_random_moments_changes_nothing(
    whole, tmp_path, seed):
  cache, end = whole
  rng = random.Random(seed)
  for _ in range(4):
    process = start(tmp_path, cache)
    moment = time.monotonic() + rng.uniform(2, 12)
    kill_when(process, lambda moment=moment: time.monotonic() > moment)
  finish(start(tmp_path, cache))
  assert end_of(tmp_path) == end
