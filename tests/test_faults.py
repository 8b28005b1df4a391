"""What happens to runs of real processes, really done to them.

    pytest -m faults
"""

import json
import os
import random
import signal
import time

import processes
import pytest

from audio_mae_jax import record

pytestmark = pytest.mark.faults

LAST = 20
HEARTBEAT_S = 10
# The others notice within the heartbeat; each then ends within 5 s. The rest is
# for a loaded machine.
ENDED_S = HEARTBEAT_S + 30
SETTINGS = processes.PRETRAIN | {'log.eval_every_steps': -1,
                                 'model.encoder.width': 32}


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp('cache')


@pytest.fixture(scope='module')
def file(tmp_path_factory):
  return processes.write_recipe(
      tmp_path_factory.mktemp('recipe') / 'recipe.py', SETTINGS)


@pytest.fixture(scope='module')
def launch(file, cache):
  """Starts the same run, with `count` processes."""

  def start(workdir, *flags, count=2, **kwargs):
    return processes.Run(
        file, workdir, f'--heartbeat_s={HEARTBEAT_S}', *flags, count=count,
        cache=cache, **kwargs)

  return start


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
    launch, end, tmp_path, victim):
  with launch(tmp_path) as run:
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


def test_a_process_that_hangs_counts_as_lost(launch, end, tmp_path):
  with launch(tmp_path) as run:
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
    assert run.until(reaches(run, 7))
    for process in run.processes if to == 'all' else run.processes[1:]:
      process.send_signal(sent)
    assert run.wait() == [75, 75], run.told()
    assert 'Stopped by a signal at step' in run.told(0)
  go_on_to_the_end(launch, tmp_path, end)


def test_a_signal_is_a_clean_exit(launch, end, tmp_path):
  with launch(tmp_path, count=1) as run:
    assert run.until(reaches(run, 7))
    run.processes[0].terminate()
    run.finish()
  go_on_to_the_end(launch, tmp_path, end, count=1)


@pytest.mark.parametrize('seed', range(4))
def test_kills_at_random_moments_change_nothing(launch, end, tmp_path, seed):
  """Five rounds each, 20 in all: anybody dies, at any moment."""
  rng = random.Random(seed)
  for number in range(5):
    with launch(tmp_path) as run:
      # Every second round waits for a save to be under way.
      saving = number % 2 and run.until(run.is_saving, timeout=60)
      if not saving:
        run.until(reaches(run, min(LAST - 2, run.steps() + 1)))
        time.sleep(rng.uniform(0, 2))
      victims = rng.sample(run.processes, rng.choice([1, 2]))
      for process in victims:
        process.kill()
      run.wait(timeout=ENDED_S + 60)
  go_on_to_the_end(launch, tmp_path, end)


def test_a_full_disk_during_a_save_costs_no_checkpoint(
    launch, end, tmp_path):
  with launch(tmp_path, count=1) as run:
    assert run.until(lambda: (tmp_path / 'checkpoints' / '5').exists())
    with full_disk(run.processes[0].pid):
      status = run.wait(timeout=120)
    assert status != [0]
    assert 'error:' in run.told(0) and 'File too large' in run.told(0)
    whole = sorted(int(path.name) for path in
                   (tmp_path / 'checkpoints').iterdir() if path.name.isdigit())
    assert 5 in whole and LAST not in whole
  run = go_on_to_the_end(launch, tmp_path, end, count=1)
  assert f'Going on from step {whole[-1]}' in run.told(0)
