"""How processes find each other, and what they must have in common."""

import errno
import re
import signal

import jax
import numpy as np
import pytest

from audio_mae_jax import config as config_lib
from audio_mae_jax import distributed
from audio_mae_jax import init_from
from audio_mae_jax import statuses
from audio_mae_jax import storage


@pytest.fixture
def given(monkeypatch):
  """What `jax.distributed.initialize` was given."""
  calls = []
  monkeypatch.setattr(
      jax.distributed, 'initialize', lambda **kwargs: calls.append(kwargs))
  return calls


def test_flags_name_the_others(given):
  distributed.initialize(
      distributed.Start('10.0.0.1:1234', 4, 2, heartbeat_s=7, wait_s=9), {})
  assert given == [{
      'coordinator_address': '10.0.0.1:1234', 'num_processes': 4,
      'process_id': 2, 'cluster_detection_method': 'deactivate',
      'local_device_ids': [], 'heartbeat_timeout_seconds': 7,
      'initialization_timeout': 9, 'shutdown_timeout_seconds': 30}]


def test_without_flags_jax_looks_for_a_cluster(given):
  distributed.initialize(distributed.Start(), {})
  assert set(given[0]) == {
      'heartbeat_timeout_seconds', 'initialization_timeout',
      'shutdown_timeout_seconds'}


def test_no_cluster_is_a_run_of_one_process(monkeypatch):
  for name in ('SLURM_JOB_ID', 'OMPI_MCA_orte_hnp_uri'):
    monkeypatch.delenv(name, raising=False)
  # The real one: what it raises without a cluster is what is relied on.
  monkeypatch.setattr(
      jax._src.xla_bridge, 'backends_are_initialized', lambda: False)
  distributed.initialize(distributed.Start(), {})
  assert not jax.distributed.is_initialized()
  assert not distributed.is_several() and distributed.is_first()


@pytest.mark.parametrize('start, message', [
    (dict(coordinator='a:1'), 'give all three to each process'),
    (dict(num_processes=2, process_id=0), 'give all three to each process'),
    (dict(coordinator='a:1', num_processes=2), "--process_id=None: give all"),
    (dict(coordinator='host', num_processes=2, process_id=0),
     "--coordinator='host' is not HOST:PORT"),
    (dict(coordinator='host:x', num_processes=2, process_id=0),
     "--coordinator='host:x' is not HOST:PORT"),
    (dict(coordinator='a:1', num_processes=2, process_id=2),
     '--process_id=2 of --num_processes=2: processes are numbered from 0'),
    (dict(coordinator='a:1', num_processes=2, process_id=-1),
     '--process_id=-1 of'),
])
def test_flags_that_make_no_run_are_refused(given, start, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    distributed.initialize(distributed.Start(**start), {})
  assert not given


SLURM = {'SLURM_STEP_NODELIST': 'n[1-2]', 'SLURM_LOCALID': '0',
         'SLURM_NODEID': '0'}


@pytest.mark.parametrize('environ, gpus', [
    # JAX's rule would leave seven of eight idle.
    (SLURM | {'SLURM_STEP_TASKS_PER_NODE': '1(x2)', 'SLURM_GPUS_ON_NODE': '8'},
     []),
    # One task for each GPU, all of which each sees.
    (SLURM | {'SLURM_STEP_TASKS_PER_NODE': '4(x2)', 'SLURM_GPUS_ON_NODE': '4',
              'SLURM_LOCALID': '3', 'CUDA_VISIBLE_DEVICES': '0,1,2,3'}, [3]),
    # A part of a node: GPUs 4 to 7 are the first to the fourth that it sees.
    (SLURM | {'SLURM_STEP_TASKS_PER_NODE': '2', 'SLURM_GPUS_ON_NODE': '4',
              'SLURM_LOCALID': '1', 'CUDA_VISIBLE_DEVICES': '4,5,6,7'}, [2, 3]),
    # Bound by the launcher: each task sees its own alone, as number 0.
    (SLURM | {'SLURM_STEP_TASKS_PER_NODE': '4', 'SLURM_GPUS_ON_NODE': '4',
              'SLURM_LOCALID': '3', 'CUDA_VISIBLE_DEVICES': '3'}, []),
    (SLURM | {'SLURM_STEP_TASKS_PER_NODE': '4', 'SLURM_GPUS_PER_TASK': '1',
              'SLURM_LOCALID': '3'}, []),
    # The third node has two tasks.
    (SLURM | {'SLURM_STEP_TASKS_PER_NODE': '4(x2),2', 'SLURM_NODEID': '2',
              'SLURM_GPUS_ON_NODE': '4', 'SLURM_LOCALID': '1'}, [2, 3]),
    ({'OMPI_COMM_WORLD_LOCAL_SIZE': '1', 'OMPI_COMM_WORLD_LOCAL_RANK': '0'},
     []),
    ({'OMPI_COMM_WORLD_LOCAL_SIZE': '2', 'OMPI_COMM_WORLD_LOCAL_RANK': '1',
      'CUDA_VISIBLE_DEVICES': '0,1,2,3'}, [2, 3]),
    # Not known, or more tasks than GPUs: JAX's rule.
    ({'OMPI_COMM_WORLD_LOCAL_SIZE': '2', 'OMPI_COMM_WORLD_LOCAL_RANK': '1'},
     None),
    (SLURM | {'SLURM_STEP_TASKS_PER_NODE': '8', 'SLURM_GPUS_ON_NODE': '4'},
     None),
    (SLURM, None), ({}, None)])
def test_each_process_of_a_node_has_its_gpus(given, environ, gpus):
  distributed.initialize(distributed.Start(), environ)
  assert given[0].get('local_device_ids') == gpus


def test_gpus_can_be_named(given):
  distributed.initialize(
      distributed.Start(local_device_ids=(1,)),
      SLURM | {'SLURM_STEP_TASKS_PER_NODE': '1'})
  assert given[0]['local_device_ids'] == [1]


def test_open_mpi_5_needs_mpi4py(given, monkeypatch):
  environ = {'OMPI_COMM_WORLD_SIZE': '4'}
  monkeypatch.setattr(
      distributed.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match='mpirun started 4 processes.*pip install'
                     ' mpi4py, or give --coordinator'):
    distributed.initialize(distributed.Start(), environ)
  assert not given
  monkeypatch.setattr(
      distributed.importlib.util, 'find_spec', lambda name: name)
  distributed.initialize(distributed.Start(), environ)
  assert given[0]['cluster_detection_method'] == 'mpi4py'
  # Open MPI 4 says where the first process is.
  distributed.initialize(distributed.Start(), environ | {
      'OMPI_MCA_orte_hnp_uri': '1.0;tcp://10.0.0.1:2'})
  assert 'cluster_detection_method' not in given[1]


def test_one_process_agrees_with_itself(tmp_path):
  assert distributed.gather({'a': [1, 'ä']}) == [{'a': [1, 'ä']}]
  distributed.check_same('settings', {'a': 1}, 'remedy')
  assert distributed.shares(tmp_path) == [True]
  with pytest.raises(KeyError, match='own'):
    with distributed.together():
      raise KeyError('own')


def test_sigterm_ends_what_has_nothing_to_save(monkeypatch):
  kept = signal.getsignal(signal.SIGTERM)
  try:
    for connected in (False, True):
      signal.signal(signal.SIGTERM, lambda *_: None)
      monkeypatch.setattr(jax.distributed, 'is_initialized',
                          lambda connected=connected: connected)
      distributed.end_at_sigterm()
      assert (signal.getsignal(signal.SIGTERM) == signal.SIG_DFL) == connected
  finally:
    signal.signal(signal.SIGTERM, kept)


class Peers:
  """As if there were others, which give `values`."""

  def __init__(self, monkeypatch, *values):
    monkeypatch.setattr(distributed, 'is_several', lambda: True)
    monkeypatch.setattr(jax, 'process_count', lambda: 1 + len(values))
    monkeypatch.setattr(
        distributed, 'gather', lambda value: [value, *map(
            lambda given: given(value) if callable(given) else given, values)])


def test_differences_are_named_with_the_process(monkeypatch):
  other = {'config.seed': 3, 'config.lr': 1.0}
  Peers(monkeypatch, lambda value: other if isinstance(value, dict) else -1)
  with pytest.raises(ValueError, match=re.escape(
      'The 2 processes of this run do not have the same settings:\n'
      '  config.seed: 0 in process 0, 3 in process 1\nSay the same.')):
    distributed.check_same(
        'settings', {'config.seed': 0, 'config.lr': 1.0}, 'Say the same.')


def test_an_error_of_another_process_is_one_here(monkeypatch):
  Peers(monkeypatch, None, ('Unreachable: no such bucket', 69))
  with pytest.raises(
      RuntimeError, match='Process 2 of this run ended: Unreachable: no such'
  ) as here:
    with distributed.together():
      pass
  assert statuses.of(here.value) == 69  # as there: launchers try both again


def test_others_hear_whether_to_try_again(monkeypatch):
  told = []
  Peers(monkeypatch, lambda value: told.append(value))
  for error, status in [
      (storage.Unreachable('away'), 69), (KeyError('a mistake'), 70),
      (OSError(errno.ENOSPC, 'full'), 1)]:
    with pytest.raises(type(error)):
      with distributed.together():
        raise error
    assert told.pop()[1] == status


def test_processes_that_read_other_weights_do_not_start(monkeypatch):
  config = config_lib.typed(config_lib.default())
  Peers(monkeypatch, lambda value: value)
  weights = {'encoder/a': np.zeros(3, np.float32), 'encoder/b': np.ones(2)}
  init_from.check_same(config, weights)
  Peers(monkeypatch, lambda value: (
      value | {'encoder/b': 7} if isinstance(value, dict) else -1))
  with pytest.raises(ValueError, match=re.compile(
      r'do not have the same weights:\n  encoder/b: .* 7 in process 1\n'
      r'.*config.init_from=.*checkpoints/STEP', re.DOTALL)):
    init_from.check_same(config, weights)


def test_a_folder_that_is_not_shared_is_seen(monkeypatch, tmp_path):
  Peers(monkeypatch, lambda value: False if value is True else None)
  assert distributed.shares(tmp_path) == [True, False]
  assert not list(tmp_path.iterdir())


def test_a_lost_process_is_told_from_other_errors(monkeypatch):
  error = jax.errors.JaxRuntimeError
  gone = error('UNKNOWN: Gloo AllGather failed: Connection closed by peer')
  assert not distributed.lost_process(gone)  # alone
  Peers(monkeypatch, None)
  assert distributed.lost_process(gone)
  assert not distributed.lost_process(error('RESOURCE_EXHAUSTED: memory'))
  assert not distributed.lost_process(ValueError('x'))
