"""Several processes as one run: starting them, agreeing, ending together.

The engine is JAX's own: `jax.distributed` connects the processes to a service
in process 0, which notices when one is gone. On Cloud TPU, GKE, Slurm and Open
MPI it finds the others by itself; elsewhere flags name them.

What the processes must have in common is compared before anything is written:
settings, data, versions. Otherwise they would train on different things, or
wait for each other for ever.
"""

from collections.abc import Mapping
import contextlib
import dataclasses
import importlib.util
import itertools
import json
import logging
import os
import pathlib
import re
import signal
import sys
import time
import uuid
import zlib

import jax
from jax.experimental import multihost_utils
import numpy as np

from audio_mae_jax import config as config_lib
from audio_mae_jax import statuses

_log = logging.getLogger(__name__)

# Seconds until processes that wait for a lost one end. JAX's own default is
# 100; its heartbeats come from a thread of their own, which neither compiling
# nor decoding holds up.
HEARTBEAT_S = 60
WAIT_S = 300  # for the others to start; JAX's default
# After the last step all have met already: this is no wait for work.
_SHUTDOWN_S = 30
_LEAVE_S = 10  # for others with the same error to say so
_SHARED_S = 10  # for a file of one host to be seen by another
_asked = itertools.count(1)
_LISTED = 20  # differences in a message


@dataclasses.dataclass(frozen=True)
class Start:
  """How the processes find each other, where no cluster says it."""
  coordinator: str = ''  # HOST:PORT of process 0
  num_processes: int | None = None
  process_id: int | None = None
  local_device_ids: tuple[int, ...] | None = None  # of this process; None: all
  heartbeat_s: int = HEARTBEAT_S
  wait_s: int = WAIT_S

  def check(self):
    """Raises ValueError if only some of the three are given."""
    given = [bool(self.coordinator), self.num_processes is not None,
             self.process_id is not None]
    if any(given) and not all(given):
      raise ValueError(
          f'--coordinator={self.coordinator!r}, --num_processes='
          f'{self.num_processes}, --process_id={self.process_id}: give all '
          'three to each process, or none (on Cloud TPU, GKE, Slurm and Open '
          'MPI they are found).')
    if not any(given):
      return
    host, _, port = self.coordinator.rpartition(':')
    if not host or not port.isdecimal():
      raise ValueError(
          f'--coordinator={self.coordinator!r} is not HOST:PORT: the address '
          'of process 0 and a free port there, e.g. 10.0.0.1:1234.')
    if not 0 <= self.process_id < self.num_processes:
      raise ValueError(
          f'--process_id={self.process_id} of --num_processes='
          f'{self.num_processes}: processes are numbered from 0.')


def initialize(start: Start, environ: Mapping[str, str] = os.environ):
  """Connects this process to the others, if there are others.

  Must come before anything that touches a device.

  Raises:
    ValueError: the flags contradict each other, or processes were started in a
      way that does not tell them of each other.
    RuntimeError: a cluster does not say what it should.

  When the others do not come in `start.wait_s` seconds, JAX ends this process
  (status 134) and says DEADLINE_EXCEEDED.
  """
  start.check()
  if start.coordinator:
    arguments = {'coordinator_address': start.coordinator,
                 'num_processes': start.num_processes,
                 'process_id': start.process_id,
                 'cluster_detection_method': 'deactivate'}
  else:
    arguments = _cluster(environ)
  devices = start.local_device_ids
  if devices is None:
    devices = () if start.coordinator else _local_gpus(environ)
  if devices is not None:
    arguments['local_device_ids'] = list(devices)
  if start.coordinator:
    _log.info('Waiting up to %d s for %d processes at %s.', start.wait_s,
              start.num_processes, start.coordinator)
  try:
    jax.distributed.initialize(
        **arguments, heartbeat_timeout_seconds=start.heartbeat_s,
        initialization_timeout=start.wait_s,
        shutdown_timeout_seconds=_SHUTDOWN_S)
  except ValueError as error:
    # What JAX says when it finds no cluster: a run of one process.
    if start.coordinator or 'coordinator_address' not in str(error):
      raise


def _cluster(environ):
  """What JAX has to be told of the cluster that `environ` shows."""
  if ('OMPI_MCA_orte_hnp_uri' in environ
      or environ.get('OMPI_COMM_WORLD_SIZE', '1') == '1'):
    return {}
  # Open MPI 5 leaves no address in the environment: MPI itself must say it.
  if not importlib.util.find_spec('mpi4py'):
    raise ValueError(
        f'mpirun started {environ["OMPI_COMM_WORLD_SIZE"]} processes, and Open '
        'MPI 5 tells them of each other only through mpi4py: pip install '
        'mpi4py, or give --coordinator, --num_processes and --process_id.')
  return {'cluster_detection_method': 'mpi4py'}


def _local_gpus(environ) -> tuple[int, ...] | None:
  """Which of the GPUs that it sees are this process' own; () is all.

  JAX gives the i-th process of a node its i-th GPU. That is wrong for one
  process on a node of several GPUs (seven of eight would idle) and where the
  launcher has already shown each process its own ones.
  """
  if 'SLURM_STEP_NODELIST' in environ:
    place, count = environ.get('SLURM_LOCALID'), _tasks_on_node(environ)
  else:
    place = environ.get('OMPI_COMM_WORLD_LOCAL_RANK')
    count = int(environ.get('OMPI_COMM_WORLD_LOCAL_SIZE', 0))
  if place is None or not count:
    return None
  if count == 1 or 'SLURM_GPUS_PER_TASK' in environ:
    return ()
  seen = environ.get('CUDA_VISIBLE_DEVICES', '')
  seen = len(seen.split(',')) if seen else 0
  there = int(environ.get('SLURM_GPUS_ON_NODE') or seen)
  if seen and seen < there:  # bound by the launcher
    return ()
  each, left = divmod(there, count)
  if not each or left:
    return None
  return tuple(range(int(place) * each, (int(place) + 1) * each))


def _tasks_on_node(environ):
  """Of Slurm's '4(x2),1': tasks of the first, second and third node."""
  node, per_node = int(environ.get('SLURM_NODEID', 0)), []
  for part in environ.get('SLURM_STEP_TASKS_PER_NODE', '').split(','):
    found = re.fullmatch(r'(\d+)(?:\(x(\d+)\))?', part)
    if not found:
      return 0
    per_node += [int(found[1])] * int(found[2] or 1)
  return per_node[node] if node < len(per_node) else 0


def asked_to_stop() -> bool:
  """Whether a SIGTERM came, to any process: True in all at the same call.

  All must call it equally often. JAX stops at the call after the latest that
  any process has made, so what it counts must never be set back or leap.
  """
  return multihost_utils.reached_preemption_sync_point(next(_asked))


def end_at_sigterm():
  """Lets SIGTERM end this process, as it does where nothing is to be saved.

  JAX takes the signal for itself, and waits for a training loop to ask for it.
  """
  if jax.distributed.is_initialized():
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def is_several() -> bool:
  # Not `process_count` alone: it would take hold of the devices.
  return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
  """Whether this process writes what there is only one of."""
  return jax.process_index() == 0


def gather(value) -> list:
  """`value`, which JSON can hold, of each process, on all of them.

  All processes must call it, as often and in the same order.
  """
  if not is_several():
    return [value]
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.int64(len(text)))
  # Few lengths: each new one is compiled.
  padded = np.zeros(1 << int(max(sizes) - 1).bit_length(), np.uint8)
  padded[:len(text)] = text
  rows = multihost_utils.process_allgather(padded)
  return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes)]


def meet():
  """Waits, for as long as it takes, until all processes have come here."""
  gather(None)


def shares(folder: pathlib.Path) -> list[bool]:
  """Of each process: whether its `folder` is that of process 0."""
  name = gather(f'.shared-{uuid.uuid4().hex}')[0]
  with together():
    if is_first():
      (folder / name).touch()
  seen = gather(_is_there(folder / name))
  if is_first():
    (folder / name).unlink()
  return seen


def _is_there(path):
  """A network file system may be late."""
  end = time.monotonic() + _SHARED_S
  while not path.exists():
    if time.monotonic() > end:
      return False
    time.sleep(0.5)
  return True


def check_same(what: str, values: dict, remedy: str):
  """Raises ValueError on all processes unless `values` are the same on all.

  The message names the fields, which are those of a nested dict, in which a
  process differs from process 0.
  """
  if not is_several():
    return
  digest = zlib.crc32(json.dumps(values, sort_keys=True).encode())
  if len(set(gather(digest))) == 1:
    return
  every = gather(values)
  lines = [
      f'  {name}: {old!r} in process 0, {new!r} in process {number}'
      for number, other in enumerate(every)
      for name, old, new in config_lib.differences(every[0], other)]
  listed = '\n'.join(lines[:_LISTED])
  raise ValueError(
      f'The {jax.process_count()} processes of this run do not have the same '
      f'{what}:\n{listed}\n{remedy}')


@contextlib.contextmanager
def together():
  """What fails in the block in one process is an error in all of them.

  Without it the others would wait for one that has given up. The block must not
  exchange anything between the processes.

  Raises:
    statuses.OtherEnded: the block failed elsewhere; with the status there.
  """
  error = None
  try:
    yield
  except Exception as raised:  # pylint: disable=broad-except
    error = raised
  told = gather(None if error is None else
                (f'{type(error).__name__}: {error}', statuses.of(error)))
  if error is not None:
    raise error
  for number, ended in enumerate(told):
    if ended is not None:
      text, status = ended
      raise statuses.OtherEnded(
          f'Process {number} of this run ended: {text}', status)


def lost_process(error: BaseException) -> bool:
  """Whether `error` is what an exchange with a process that is gone gives."""
  if not is_several() or 'RESOURCE_EXHAUSTED' in str(error):
    return False
  # jaxlib gives some of the errors of the CPU's exchange as a ValueError.
  return (isinstance(error, jax.errors.JaxRuntimeError)
          or 'Gloo' in str(error) and not isinstance(error, OSError))


def leave(status: int):
  """Ends this process after an error, without the wait that exits have.

  Processes that end well wait for each other; after an error the others may be
  waiting for this one.
  """
  if not is_several():
    sys.exit(status)
  sys.stdout.flush()
  sys.stderr.flush()
  if is_first():
    # With it goes the service, and whoever still speaks is cut off by JAX.
    time.sleep(_LEAVE_S)
  os._exit(status)
