"""Runs of several real processes on this machine, for tests."""

import contextlib
import json
import os
import pathlib
import random
import socket
import subprocess
import sys
import time

from audio_mae_jax import record

ROOT = pathlib.Path(__file__).parents[1]
MAIN = 'audio_mae_jax.main'
# One device a process: XLA's threads on few cores starve with more. Compiled as
# quickly as what the tests themselves compile (conftest.py).
_ENV = {'JAX_PLATFORMS': 'cpu', 'NPROC': '16',
        'XLA_FLAGS': os.environ.get('XLA_FLAGS', '') +
                     ' --xla_force_host_platform_device_count=1',
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
# A leaf of 1 MiB, so that fsdp has something to split.
PRETRAIN = {
    'frontend.num_frames': 64, 'patch.size': (8, 16),
    'augment.gain_concentration': 0.0,  # a second to compile
    'model.encoder.width': 256, 'model.encoder.depth': 1,
    'model.encoder.heads': 2, 'model.decoder.width': 16,
    'model.decoder.depth': 2, 'model.decoder.heads': 2,
    'data.train.name': 'synthetic', 'data.train.num_clips': 48,
    'data.clip_s': 0.64, 'data.valid.name': 'synthetic',
    'data.valid.num_clips': 6,
    'train.batch_size': 4, 'train.steps': 20, 'optimizer.warmup_epochs': 0.05,
    'optimizer.base_lr': 0.01,
    'checkpoint.every_steps': 5, 'log.every_steps': 1,
    'log.eval_every_steps': 10, 'log.picture_every_steps': -1,
    'log.tensorboard': False}
FINETUNE = PRETRAIN | {
    'task': 'classify', 'mask.name': '', 'optimizer.layer_decay': 0.75,
    'optimizer.ema_decay': 0.9, 'augment.mixup': 0.5,
    'labels.multilabel': False, 'labels.loss': 'ce'}


def write_recipe(path, settings):
  """A recipe as a user writes it, with these settings by dotted name."""
  path.write_text(
      'from audio_mae_jax import config\n\n\n'
      'def get_config():\n'
      f'  recipe = config.default({settings.get("task", "pretrain")!r})\n'
      f'  recipe.update_from_flattened_dict({settings!r})\n'
      '  return recipe\n')
  return path


def _free_port():
  """Below those that the system gives to connections, which come at any time:
  it is still free when the service of the run takes it."""
  while True:
    port = random.SystemRandom().randrange(20000, 32000)
    with socket.socket() as trial, contextlib.suppress(OSError):
      trial.bind(('localhost', port))
      return port


class Run:
  """`count` processes of one command."""

  def __init__(self, recipe, workdir, *flags, count=1, cache, each=None,
               env=None):
    """`each` has further flags by process, `env` variables by process."""
    self.workdir = pathlib.Path(workdir)
    address = f'localhost:{_free_port()}'
    self.logs, self.processes = [], []
    for i in range(count):
      several = [f'--coordinator={address}', f'--num_processes={count}',
                 f'--process_id={i}'] if count > 1 else []
      log = recipe.parent / f'log_{time.time_ns()}_{i}.txt'
      self.logs.append(log)
      with open(log, 'w') as file:
        self.processes.append(subprocess.Popen(
            [sys.executable, '-m', MAIN if i == 0 else 'tests.writing_main',
             f'--config={recipe}',
             f'--config.workdir={workdir}', *several, *flags,
             *(each or {}).get(i, ())],
            cwd=ROOT, stdout=file, stderr=subprocess.STDOUT,
            env={**os.environ, **_ENV, 'JAX_COMPILATION_CACHE_DIR': str(cache),
                 **(env or {}).get(i, {})}))

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for process in self.processes:
      process.kill()
      process.wait()

  def steps(self) -> int:
    """The last step in the record."""
    try:
      lines = record.read(self.workdir / record.NAME)
    except FileNotFoundError:
      return 0
    return lines[-1]['step'] if lines else 0

  def is_saving(self) -> bool:
    return any('tmp' in path.name
               for path in (self.workdir / 'checkpoints').glob('*'))

  def until(self, condition, timeout=400, every_s=0.02) -> bool:
    """Waits for `condition()`; False if a process ended before it held.

    It is asked `every_s` seconds: oftener takes from the runs the processor
    that they need.
    """
    end = time.monotonic() + timeout
    while not condition():
      if any(process.poll() is not None for process in self.processes):
        return False
      assert time.monotonic() < end, self.told()
      time.sleep(every_s)
    return True

  def wait(self, timeout=400) -> list[int]:
    """Exit statuses; a process that does not end is an error."""
    end = time.monotonic() + timeout
    for process in self.processes:
      try:
        process.wait(max(0.1, end - time.monotonic()))
      except subprocess.TimeoutExpired:
        raise AssertionError(f'It hangs:\n{self.told()}') from None
    return [process.returncode for process in self.processes]

  def finish(self, timeout=400):
    assert set(self.wait(timeout)) == {0}, self.told()
    return self

  def told(self, i=None) -> str:
    """What process `i`, or each, has printed."""
    if i is None:
      return '\n'.join(f'--- {k}\n{self.told(k)}'
                       for k in range(len(self.logs)))
    return self.logs[i].read_text()


def losses(workdir) -> dict[int, list[float]]:
  """Losses of training and evaluation by step."""
  return {line['step']: [line[name] for name in sorted(line)
                         if name.endswith('/loss')]
          for line in record.read(pathlib.Path(workdir) / record.NAME)}


def fingerprint(workdir, step) -> dict[str, int]:
  """Checksums of all arrays of a checkpoint."""
  folder = pathlib.Path(workdir) / 'checkpoints' / str(step) / 'meta'
  return next(json.loads(path.read_text())['fingerprint']
              for path in folder.iterdir()
              if 'fingerprint' in path.read_text(errors='ignore'))
