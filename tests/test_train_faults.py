"""What a run does when its surroundings fail, seen from within the process.

tests/test_faults.py does the same to real processes.
"""

import errno
import os
import shutil

from etils import epath
import jax
from jax.experimental import multihost_utils
import orbax.checkpoint as ocp
import pytest
import test_train

from audio_mae_jax import bookkeeping
from audio_mae_jax import checkpoint
from audio_mae_jax import damage
from audio_mae_jax import distributed
from audio_mae_jax import init_from
from audio_mae_jax import storage
from audio_mae_jax import train

pytestmark = pytest.mark.usefixtures('compile_once')


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """The work directory of a run that nothing interrupted."""
  workdir = tmp_path_factory.mktemp('whole')
  test_train.run(test_train.tiny(workdir))
  return workdir


def test_what_cannot_be_read_now_stays_the_newest(
    whole, tmp_path, monkeypatch):
  workdir = tmp_path / 'run'
  shutil.copytree(whole, workdir)
  before = sorted(os.listdir(workdir / 'checkpoints'))

  def without_handles(*_, **__):
    raise OSError(errno.EMFILE, 'Too many open files')

  monkeypatch.setattr(ocp.StandardCheckpointHandler, 'restore', without_handles)
  with pytest.raises(damage.ReadError, match='checkpoints/12 cannot be read'):
    test_train.run(test_train.tiny(workdir))
  assert sorted(os.listdir(workdir / 'checkpoints')) == before
  assert not (workdir / 'damaged').exists()


def test_a_save_that_failed_is_told_at_the_next_line(tmp_path, monkeypatch):
  """And not at the next save, which may be an epoch away."""
  save, saved = bookkeeping.Bookkeeper.save, []

  def noting(self, step, state):
    save(self, step, state)
    saved.append(step)

  def failing(self):
    if saved:
      raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(bookkeeping.Bookkeeper, 'save', noting)
  monkeypatch.setattr(ocp.CheckpointManager, 'check_for_errors', failing)
  with pytest.raises(checkpoint.WriteError, match='No space left'):
    test_train.run(test_train.tiny(
        tmp_path, **{'log.every_steps': 1, 'checkpoint.every_steps': 6}))
  assert saved == [6]
  assert test_train.lines(tmp_path)[-1]['step'] == 6


@pytest.mark.parametrize('error, kind', [
    (ValueError('UNAVAILABLE: HTTP 503'), storage.Unreachable),
    (ValueError('PERMISSION_DENIED: HTTP 403'), checkpoint.WriteError)])
def test_a_store_that_is_away_during_a_save_is_worth_another_try(
    error, kind, monkeypatch):
  monkeypatch.setattr(checkpoint, 'steps_in', lambda _: [])
  checkpoints = object.__new__(checkpoint.Checkpoints)
  checkpoints._folder = epath.Path('gs://bucket/run/checkpoints')
  checkpoints._copies = None
  with pytest.raises(kind, match='could not be written in gs://bucket/run'):
    with checkpoints._writing():
      raise error


def test_other_weights_in_a_process_end_a_run_before_it_writes(
    tmp_path, monkeypatch):
  def other(config, params):
    assert params == {}  # there is nothing to start from
    raise ValueError('not the same weights')

  monkeypatch.setattr(init_from, 'check_same', other)
  with pytest.raises(ValueError, match='not the same weights'):
    test_train.run(test_train.tiny(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()


def test_nobody_but_the_loop_asks_jax_for_a_signal(tmp_path, monkeypatch):
  """JAX has one count for all who ask: with two of them it loses signals."""
  asked = []
  monkeypatch.setattr(
      multihost_utils, 'reached_preemption_sync_point', asked.append)
  test_train.run(test_train.tiny(tmp_path))
  assert sorted(os.listdir(tmp_path / 'checkpoints')) == ['12', '4', '8']
  assert not asked


def test_one_process_that_was_connected_asks_jax(tmp_path, monkeypatch):
  """SIGTERM is JAX's there from the start, and not the loop's handler's."""
  counts = iter(range(1, 100))
  monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: True)
  monkeypatch.setattr(
      distributed, 'asked_to_stop', lambda: next(counts) == 5)
  state, finished = train.run(
      test_train.tiny(tmp_path), devices=jax.devices()[:1])
  assert int(state.step) == 5 and not finished
  assert '5' in os.listdir(tmp_path / 'checkpoints')
