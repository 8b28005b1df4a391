"""What happens to runs of real processes, really done to them.

    pytest -m faults
"""

import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import time

import numpy as np
import processes
import pytest
import soundfile

from audio_mae_jax import record

pytestmark = pytest.mark.faults

# JAX looks once a second for a signal that came: after the step at which a test
# sends one, there are a few seconds of steps.
LAST, EVERY = 24, 6
HEARTBEAT_S = 10  # where losing a process is what is tested
WAIT_S = 60  # for a process that was killed before it had come
# The others notice within the heartbeat and then end within some seconds. The
# rest is for a loaded machine.
ENDED_S = HEARTBEAT_S + 50
# The smallest model: what is under test is everything around it.
SETTINGS = processes.PRETRAIN | {
    'train.steps': LAST, 'checkpoint.every_steps': EVERY,
    'log.eval_every_steps': -1, 'model.encoder.width': 32,
    'model.decoder.name': 'global', 'model.decoder.depth': 1}
FOLDER = {name: value for name, value in SETTINGS.items()
          if name != 'data.train.num_clips'} | {
              'data.train.name': 'folder', 'data.train.path': '.'}


@pytest.fixture(scope='module')
def file(tmp_path_factory):
  return processes.write_recipe(
      tmp_path_factory.mktemp('recipe') / 'recipe.py', SETTINGS)


@pytest.fixture(scope='module')
def launch(file, cache):
  """Starts the same run, with `count` processes."""

  def start(workdir, *flags, count=2, **kwargs):
    return processes.Run(
        file, workdir, f'--wait_s={WAIT_S}', *flags, count=count, cache=cache,
        **kwargs)

  return start


@pytest.fixture(scope='module')
def launch_alert(launch):
  """The same; a process that is silent counts as lost soon."""
  return lambda workdir: launch(workdir, f'--heartbeat_s={HEARTBEAT_S}')


@pytest.fixture(scope='module')
def end(launch, tmp_path_factory):
  """The end of a run that nothing happens to, by number of processes.

  Bits are those of one mesh: on another one sums come in another order.
  """
  found = {}

  def of(count):
    if count not in found:
      workdir = tmp_path_factory.mktemp('whole') / str(count)
      with launch(workdir, count=count) as run:
        run.finish()
      found[count] = end_of(workdir)
    return found[count]

  return of


def end_of(workdir):
  lines = record.read(workdir / record.NAME)
  return (processes.fingerprint(workdir, LAST),
          [(line['step'], line['train/loss']) for line in lines])


def go_on_to_the_end(launch, workdir, end, count=2):
  with launch(workdir, count=count) as run:
    run.finish()
    assert end_of(workdir) == end(count), run.told(0)
    return run


def reaches(run, step):
  return lambda: run.steps() >= step


@pytest.mark.parametrize('victim', [0, 1])
def test_when_a_process_is_killed_the_others_end_and_say_so(
    launch, launch_alert, end, tmp_path, victim):
  with launch_alert(tmp_path) as run:
    assert run.until(reaches(run, 7))
    run.processes[victim].kill()
    began = time.monotonic()
    status = run.wait(timeout=ENDED_S)[1 - victim]
    assert time.monotonic() - began < ENDED_S
    assert status != 0
    told = run.told(1 - victim)
    # Ours, when an exchange fails; JAX's, when the service notices first.
    assert ('Another process of this run has ended' in told
            or 'another task died' in told), told
  go_on_to_the_end(launch, tmp_path, end)


def test_a_process_that_hangs_counts_as_lost(
    launch, launch_alert, end, tmp_path):
  with launch_alert(tmp_path) as run:
    assert run.until(reaches(run, 7))
    run.processes[1].send_signal(signal.SIGSTOP)
    end_status = None
    limit = time.monotonic() + ENDED_S
    while end_status is None and time.monotonic() < limit:
      end_status = run.processes[0].poll()
      time.sleep(0.1)
    assert end_status, run.told(0)
    assert 'heartbeat' in run.told(0)
  go_on_to_the_end(launch, tmp_path, end)


@pytest.mark.parametrize('to, sent', [
    ('all', signal.SIGTERM), ('one', signal.SIGTERM), ('one', signal.SIGINT)])
def test_a_signal_stops_all_at_one_step_with_all_saved(
    launch, end, tmp_path, to, sent):
  with launch(tmp_path, '--stopped_status=75') as run:
    assert run.until(reaches(run, 2))
    for process in run.processes if to == 'all' else run.processes[1:]:
      process.send_signal(sent)
    assert run.wait() == [75, 75], run.told()
    assert 'Stopped by a signal at step' in run.told(0)
  go_on_to_the_end(launch, tmp_path, end)


def test_a_signal_is_a_clean_exit(launch, end, tmp_path):
  with launch(tmp_path, count=1) as run:
    assert run.until(reaches(run, 2))
    run.processes[0].terminate()
    run.finish()
    assert 'Stopped by a signal at step' in run.told(0)
  go_on_to_the_end(launch, tmp_path, end, count=1)


@pytest.mark.parametrize('seed', range(4))
def test_kills_at_random_moments_change_nothing(
    launch, launch_alert, end, tmp_path, seed):
  """Five rounds each, 20 in all: one of two or both, at any moment."""
  rng, during_a_save = random.Random(seed), 0
  for number in range(5):
    with launch_alert(tmp_path) as run:
      # Every second round waits for a save of its own to be under way; what an
      # earlier one has left is gone once there is a new line of the record.
      run.until(reaches(run, min(LAST - 2, run.steps() + 1)))
      if number % 2 and run.until(run.is_saving, every_s=0.005):
        during_a_save += 1
      else:
        time.sleep(rng.uniform(0, 2))
      victims = rng.sample(run.processes, rng.choice([1, 2]))
      for process in victims:
        process.kill()
      run.wait(timeout=ENDED_S + WAIT_S)
  assert during_a_save
  go_on_to_the_end(launch, tmp_path, end)


@contextlib.contextmanager
def small_disk(path):
  """A file system of its own in `path`, or None where that is not allowed."""
  path.mkdir()
  mounted = not subprocess.run(
      ['mount', '-t', 'tmpfs', '-o', 'size=64m', 'tmpfs', str(path)],
      capture_output=True).returncode
  try:
    yield path if mounted else None
  finally:
    if mounted:
      subprocess.run(['umount', '-l', str(path)], check=True)


def fill(folder):
  with open(folder / 'filler', 'wb', buffering=0) as file:
    with contextlib.suppress(OSError):
      while True:
        file.write(bytes(4096))


@pytest.mark.parametrize('count', [1, 2])
def test_a_full_disk_during_a_save_costs_no_checkpoint(
    launch, end, tmp_path, count):
  with small_disk(tmp_path / 'disk') as disk:
    workdir = tmp_path / 'disk' / 'run'
    with launch(workdir, count=count) as run:
      first = workdir / 'checkpoints' / str(EVERY)
      assert run.until(first.exists)
      if disk:
        fill(disk)
      else:  # the next best: files may not grow
        for process in run.processes:
          resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (16384, 16384))
      statuses = run.wait()
      assert 0 not in statuses, run.told()
      assert 'could not be written' in run.told() or (
          'No space left' in run.told(0)), run.told()
      assert 'goes on from' in run.told()
    (workdir.parent / 'filler').unlink(missing_ok=True)
    assert not (workdir / 'checkpoints' / str(LAST)).exists()
    assert first.exists()
    go_on_to_the_end(launch, workdir, end, count)


def truncate(path):
  os.truncate(path, path.stat().st_size // 2)


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def largest(folder):
  return max((path for path in folder.rglob('*') if path.is_file()),
             key=lambda path: path.stat().st_size)


@pytest.mark.parametrize('damage', [truncate, flip])
def test_a_damaged_checkpoint_falls_back_in_all_processes(
    launch, end, tmp_path, damage):
  with launch(tmp_path) as run:
    run.finish()
  state = tmp_path / 'checkpoints' / str(LAST) / 'state'
  damage(largest(state))
  run = go_on_to_the_end(launch, tmp_path, end)
  assert f'Checkpoint {state.parent} is damaged' in run.told(0)
  assert f'Going on from step {LAST - EVERY}' in run.told(0)
  assert (tmp_path / 'damaged' / f'{LAST}.0').exists()


def test_damage_that_one_process_alone_meets_is_damage_for_all(cache, tmp_path):
  """Each reads its part of what is split; the others cannot know."""
  file = processes.write_recipe(tmp_path / 'recipe.py', processes.PRETRAIN | {
      'log.eval_every_steps': -1, 'mesh.fsdp': 2, 'train.steps': 10})
  with processes.Run(file, tmp_path / 'run', count=2, cache=cache) as run:
    run.finish()
  whole = processes.losses(tmp_path / 'run')
  parts = tmp_path / 'run/checkpoints/10/state/ocdbt.process_1'
  truncate(largest(parts))
  with processes.Run(file, tmp_path / 'run', count=2, cache=cache) as run:
    run.finish()
    assert 'Going on from step 5' in run.told(0)
  assert processes.losses(tmp_path / 'run') == whole


@pytest.mark.parametrize('to', [0, 1])
def test_a_signal_before_the_first_step_of_a_resumed_run_is_heard(
    launch, end, tmp_path, to):
  with launch(tmp_path) as run:
    assert run.until((tmp_path / 'checkpoints' / str(EVERY)).exists)
    for process in run.processes:
      process.kill()
    run.wait()
  with launch(tmp_path, '--stopped_status=75') as run:
    assert run.until(lambda: 'Task pretrain' in run.told(0))
    run.processes[to].terminate()
    assert run.wait() == [75, 75], run.told()
  go_on_to_the_end(launch, tmp_path, end)


def test_files_that_disappear_are_replaced_and_named(cache, tmp_path):
  """By both processes: each knows of the files that the other one misses."""
  folder = tmp_path / 'audio'
  folder.mkdir()
  names = [f'{i:02}.wav' for i in range(32)]
  for i, name in enumerate(names):
    soundfile.write(folder / name, np.random.default_rng(i).normal(
        0, 0.1, 10240), 16000)
  file = processes.write_recipe(tmp_path / 'recipe.py', FOLDER | {
      'data.train.path': str(folder), 'data.max_bad_fraction': 0.5,
      'train.steps': 40})
  with processes.Run(file, tmp_path / 'run', count=2, cache=cache) as run:
    assert run.until(reaches(run, 3))
    for name in names[:8]:
      (folder / name).unlink()
    run.finish()
  told = json.loads((tmp_path / 'run' / 'bad_files.json').read_text())
  assert sorted(map(os.path.basename, told['bad'])) == names[:8]
  lines = record.read(tmp_path / 'run' / record.NAME)
  assert lines[-1]['bad_files'] == 8


def test_a_process_with_another_seed_stops_all(launch, tmp_path):
  with launch(tmp_path, each={1: ['--config.train.seed=7']}) as run:
    assert run.wait() == [1, 1]
    for i in range(2):
      assert ('config.train.seed: 0 in process 0, 7 in process 1'
              in run.told(i))
  assert not (tmp_path / record.NAME).exists()


def test_a_process_with_other_data_stops_all(cache, tmp_path):
  roots = []
  for clips in (8, 9):
    roots.append(tmp_path / str(clips))
    roots[-1].mkdir()
    for i in range(clips):
      soundfile.write(roots[-1] / f'{i}.wav', np.full(10240, 0.1), 16000)
  file = processes.write_recipe(tmp_path / 'recipe.py', FOLDER)
  with processes.Run(file, tmp_path / 'run', count=2, cache=cache, each={
      i: [f'--config.data.root={root}'] for i, root in enumerate(roots)}
  ) as run:
    assert run.wait() == [1, 1]
    assert 'train.clips: 8 in process 0, 9 in process 1' in run.told(0)


def test_a_process_without_data_stops_all(cache, tmp_path):
  (tmp_path / 'here').mkdir()
  soundfile.write(tmp_path / 'here' / 'a.wav', np.full(10240, 0.1), 16000)
  file = processes.write_recipe(tmp_path / 'recipe.py', FOLDER)
  with processes.Run(file, tmp_path / 'run', count=2, cache=cache, each={
      0: [f'--config.data.root={tmp_path}/here'],
      1: [f'--config.data.root={tmp_path}/gone']}) as run:
    assert run.wait() == [1, 1]
    assert 'Process 1 of this run ended: FileNotFoundError' in run.told(0)
    assert f'No folder {tmp_path}/gone' in run.told(1)


# Half a day off: files, logs and timeouts of that process disagree with ours.
CLOCK = """
import time
real, real_ns = time.time, time.time_ns
time.time = lambda: real() + 43200
time.time_ns = lambda: real_ns() + 43200 * 10**9
"""


def test_a_clock_that_differs_changes_nothing(launch, end, tmp_path):
  hook = tmp_path / 'hook'
  hook.mkdir()
  (hook / 'sitecustomize.py').write_text(CLOCK)
  workdir = tmp_path / 'run'
  with launch(workdir, env={1: {'PYTHONPATH': str(hook)}}) as run:
    run.finish()
  assert end_of(workdir) == end(2)


def test_a_second_run_in_the_same_folder_is_refused(launch, end, tmp_path):
  with launch(tmp_path, count=1) as first:
    assert first.until(reaches(first, 1))
    # It would be done before the second one has begun.
    first.processes[0].send_signal(signal.SIGSTOP)
    with launch(tmp_path) as second:
      assert second.wait() == [1, 1]
      assert 'Another process is training in' in second.told(0)
    first.processes[0].send_signal(signal.SIGCONT)
    first.finish()
  assert processes.fingerprint(tmp_path, LAST) == end(1)[0]


def test_sigterm_ends_an_evaluation(launch, tmp_path):
  with launch(tmp_path) as run:
    run.finish()
  with launch(tmp_path, '--config.mode=evaluate',
              '--config.data.valid.num_clips=100000') as run:
    assert run.until(lambda: 'Evaluating' in run.told(0))
    time.sleep(1)  # it would take hours
    for process in run.processes:
      process.terminate()
    assert run.wait() == [-signal.SIGTERM] * 2, run.told()


def test_evaluation_of_other_data_stops_all(launch, tmp_path):
  with launch(tmp_path, count=1) as run:
    run.finish()
  table = {}
  for clips in (8, 9):
    root = tmp_path / str(clips)
    root.mkdir()
    for i in range(clips):
      soundfile.write(root / f'{i}.wav', np.full(10240, 0.1), 16000)
    table[clips - 8] = [f'--config.data.valid.path={root}']
  with launch(tmp_path, '--config.mode=evaluate',
              '--config.data.valid.name=folder',
              '--config.data.valid.num_clips=1024', each=table) as run:
    assert run.wait() == [1, 1]
    assert 'valid.clips: 8 in process 0, 9 in process 1' in run.told(0)


def test_a_process_that_never_comes_is_not_waited_for_for_ever(
    launch, tmp_path):
  with launch(tmp_path, '--wait_s=5') as run:
    run.processes[1].kill()
    assert run.wait()[0] not in (0, None)
    assert 'Waiting up to 5 s for 2 processes' in run.told(0)
