"""Real processes on a store, really killed: the end has the same bits."""

import time

import numpy as np
import processes
import pytest
import stores
import test_kill

from audio_mae_jax import checkpoint
from audio_mae_jax import storage

pytestmark = pytest.mark.faults


@pytest.fixture(scope='module')
def whole(cache, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('whole')
  test_kill.finish(test_kill.start(workdir, cache))
  return cache, test_kill.end_of(workdir)


def steps_in(place):
  """Steps of which anything is there, and of those that are whole."""
  names = storage.below(f'{place}/checkpoints')
  return ({name.split('/')[0] for name in names},
          {name.split('/')[0] for name in names
           if name.count('/') == 1 and name.endswith('commit_success.txt')})


def settled(place):
  """`steps_in`, once the store has done what it was asked last."""
  found = None
  while (now := steps_in(place)) != found:
    found = now
    time.sleep(0.5)
  return found


@pytest.mark.parametrize('scheme', ['s3', 'gs'])
def test_a_run_killed_while_it_saves_to_a_store_ends_the_same(
    request, whole, scheme, tmp_path, monkeypatch):
  request.getfixturevalue(f'{scheme}_store')
  cache, end = whole
  place = stores.new_bucket(scheme) + '/run'
  monkeypatch.setenv('TMPDIR', str(tmp_path))

  def is_half_saved():
    some, finished = steps_in(place)
    return bool(some - finished) and len(finished) >= 2

  assert test_kill.kill_when(test_kill.start(place, cache), is_half_saved)
  _, finished = settled(place)
  process = test_kill.start(place, cache)
  output = test_kill.finish(process)
  # A killed process cannot give its lock back.
  assert 'Watching for up to 60 s' in output
  assert 'Nothing was heard of process ' in output
  assert f'Going on from step {max(map(int, finished))}.' in output
  with storage.local_copy(place) as copy:
    assert test_kill.end_of(copy) == end
  assert not list(tmp_path.glob('audio_mae_jax-*/*'))


def test_a_second_run_on_a_store_is_refused(s3_store, whole, tmp_path):
  cache, end = whole
  place = stores.new_bucket('s3') + '/run'
  first = test_kill.start(place, cache, **{
      'train.steps': 4000, 'optimizer.warmup_epochs': 0.05})
  while not storage.is_file(f'{place}/metrics.jsonl'):
    assert first.poll() is None, first.stdout.read()
    time.sleep(0.1)
  second = test_kill.start(place, cache)
  output, _ = second.communicate(timeout=120)
  assert second.returncode == 1
  assert 'error: Another run is at work in s3://' in output
  assert 'Traceback' not in output
  assert first.poll() is None
  first.kill()
  first.communicate()


@pytest.mark.parametrize('scheme', ['s3', 'gs'])
def test_two_processes_write_one_checkpoint_to_a_store(
    request, scheme, cache, tmp_path, monkeypatch):
  request.getfixturevalue(f'{scheme}_store')
  place = stores.new_bucket(scheme) + '/run'
  monkeypatch.setenv('TMPDIR', str(tmp_path))
  recipe = processes.write_recipe(
      tmp_path / 'recipe.py', processes.PRETRAIN | {
          'train.steps': 10, 'mesh.data': 1, 'mesh.fsdp': -1})
  with processes.Run(recipe, tmp_path / 'one', cache=cache) as run:
    run.finish()
  with processes.Run(recipe, place, count=2, cache=cache) as run:
    run.finish()
  with storage.local_copy(place) as copy:
    found, want = (processes.losses(path) for path in (copy, tmp_path / 'one'))
    assert processes.fingerprint(copy, 10)
  assert found.keys() == want.keys()
  for step, values in want.items():
    np.testing.assert_allclose(found[step], values, rtol=1e-5)
  # A run of one process reads what two have written.
  params, _ = checkpoint.read_params(place)
  assert all(np.isfinite(x).all() for x in params.values())
  if scheme == 's3':
    elsewhere = tmp_path / 'elsewhere'
    elsewhere.mkdir()
    with processes.Run(
        recipe, stores.new_bucket('s3') + '/run', count=2, cache=cache,
        env={1: {'TMPDIR': str(elsewhere)}}) as run:
      assert run.wait() == [1, 1], run.told()
    assert 'Process 1 does not see the folder' in run.told(0)
