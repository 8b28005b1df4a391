"""Work directories: made, kept from other runs, copied to where they belong.

A folder of this machine is used as it is. For an address (gs://, s3://) there
is a copy in the folder for temporary files (TMPDIR), as nothing can be appended
to an object: process 0 writes there, and what has changed is copied up, now and
then in the background, and before each checkpoint. A new start begins with what
is at the address. Checkpoints have ways of their own (`checkpoint.py`).
"""

from concurrent import futures
import contextlib
import fcntl
import hashlib
import logging
import os
import pathlib
import shutil
import tempfile
import time
import uuid

from etils import epath

from audio_mae_jax import config
from audio_mae_jax import distributed
from audio_mae_jax import lease
from audio_mae_jax import storage

_log = logging.getLogger(__name__)

PUSH_S = 30.0
# A server keeps the lock of a host that is gone, NFS 4 for 90 s by default.
KEPT_S, _RETRY_S = 120.0, 3.0
_NETWORK = ('nfs', 'nfs4', 'cifs', 'smb3', 'ceph', 'lustre', 'gpfs', 'beegfs')
_OWN_WAYS = ('checkpoints', 'damaged', 'wandb')  # are not copied with the rest
# A run adds to these and does not read them.
_WRITTEN = ('tensorboard', 'pictures', 'profile')
_REMEDY = 'Choose a place that you may write: --config.workdir=runs/NAME.'


def place_of(cfg: config.Config) -> str:
  """Where the run of `config` lives, if it does not say: runs/NAME.

  Raises ValueError or ImportError if that cannot be reached.
  """
  place = cfg.workdir or os.path.join('runs', cfg.name or cfg.task)
  storage.check(place)
  return place


class Workdir:
  """Files are written in `folder`; they belong at `address`.

  The two are the same on this machine. Process 0 alone writes.
  """

  def __init__(self, folder: pathlib.Path, address: epath.Path,
               lock: lease.Lease | None):
    self.folder, self.address = folder, address
    self._lock = lock
    self._pushes = storage.is_remote(address) and distributed.is_first()
    self._pushed = {}  # (size, time of change) by name
    self._thread = futures.ThreadPoolExecutor(1)
    self._running, self._next = None, 0.0

  def check(self):
    """Raises lease.Lost if the work directory is another run's by now."""
    if self._lock is not None:
      self._lock.check()

  def check_shared(self):
    """Raises ValueError unless all processes can write a checkpoint here."""
    if (not distributed.is_several()
        or os.fspath(self.address).startswith('gs://')):
      return
    seen = distributed.shares(self.folder)
    if not all(seen):
      raise ValueError(
          f'Process {seen.index(False)} does not see the folder {self.folder} '
          'of process 0, and each process writes its part of a checkpoint '
          'there. Give a --config.workdir that all hosts share: a network '
          'folder, or gs://. For s3://, set TMPDIR to a shared folder.')

  def pull(self):
    """Makes `folder` anew, with what is at the address."""
    shutil.rmtree(self.folder, ignore_errors=True)
    self.folder.mkdir(parents=True)
    names = [name for name in storage.below(os.fspath(self.address))
             if _is_copied(name) and name.split('/')[0] not in _WRITTEN]
    storage.copy_in(os.fspath(self.address), self.folder, names)
    self._pushed = self._present()

  def push(self):
    """Copies up what has changed; then it is there.

    Raises storage.Unreachable or lease.Lost.
    """
    self.check()
    if self._pushes:
      self._finish()
      self._push()

  def push_now_and_then(self):
    """`push` in the background, if the last one is PUSH_S ago.

    A failure is a warning: the next one copies the same.
    """
    self.check()
    if not self._pushes or time.monotonic() < self._next:
      return
    if self._running is not None and not self._running.done():
      return
    self._finish()
    self._next = time.monotonic() + PUSH_S
    self._running = self._thread.submit(self._push)

  def close(self):
    self._finish()
    self._thread.shutdown()

  def _finish(self):
    if self._running is not None:
      error, self._running = self._running.exception(), None
      if error is not None:
        _log.warning('Warning: the record is not copied up yet: %s', error)

  def _push(self):
    present = self._present()
    changed = [name for name, state in present.items()
               if self._pushed.get(name) != state]
    storage.copy_out(self.folder, os.fspath(self.address), changed)
    self._pushed = present

  def _present(self):
    found = {}
    for path in self.folder.rglob('*'):
      name = path.relative_to(self.folder).as_posix()
      if path.is_file() and _is_copied(name):
        found[name] = storage.version(path)
    return found


def _is_copied(name):
  parts = name.split('/')
  return (parts[0] not in _OWN_WAYS
          and not any(part.startswith('.') for part in parts)
          and not name.endswith(('.partial', '.tmp')))


@contextlib.contextmanager
def opened(place: str | os.PathLike):
  """The work directory at `place`, made if need be, for this run alone.

  Raises:
    ValueError: nothing can be written there, or another run is at work there.
    storage.Unreachable: the store does not answer.
  """
  if not storage.is_remote(place):
    folder = prepare(place)
    with lock(folder) as held:
      yield Workdir(folder, storage.path_of(folder), held)
    return
  address = storage.path_of(place)
  folder = copy_of(address)
  if not distributed.is_first():
    yield Workdir(folder, address, None)
    return
  with _at(address) as held:
    workdir = Workdir(folder, address, held)
    workdir.pull()
    try:
      yield workdir
    except BaseException:
      try:
        workdir.push()
      except (lease.Lost, OSError) as error:
        _log.warning('Warning: the record is not copied up: %s', error)
      raise
    else:
      workdir.push()
    finally:
      workdir.close()
  shutil.rmtree(folder)


def copy_of(address: epath.Path) -> pathlib.Path:
  """The folder of this machine for the files of a work directory elsewhere."""
  name = hashlib.sha256(os.fspath(address).encode()).hexdigest()[:16]
  return pathlib.Path(
      tempfile.gettempdir(), f'audio_mae_jax-{os.getuid()}', name)


def prepare(path: str | os.PathLike) -> pathlib.Path:
  """Makes a folder; ValueError if a file cannot be written in it."""
  path = pathlib.Path(path).expanduser()
  probe = path / f'.probe-{uuid.uuid4().hex}'
  try:
    path.mkdir(parents=True, exist_ok=True)
    # Permission bits say little on network file systems and full disks.
    probe.write_bytes(b'probe')
    probe.unlink()
  except OSError as error:
    raise ValueError(
        f'Cannot write in work directory {str(path)!r}: '
        f'{error.strerror or error}. {_REMEDY}') from error
  return path


@contextlib.contextmanager
def _at(address):
  """Keeps other runs out of an address; gives the lease."""
  held = lease.Lease(os.fspath(address / '.lease'), os.fspath(address))
  with contextlib.ExitStack() as stack:
    try:
      stack.enter_context(held)
    except FileNotFoundError as error:
      raise ValueError(
          f'Cannot write in work directory {os.fspath(address)!r}: there is no '
          f'such bucket. Create it first. {_REMEDY}') from error
    yield held


@contextlib.contextmanager
def lock(folder: str | os.PathLike):
  """Keeps other runs out of a folder of this machine while in use.

  The operating system lets go of the lock when the process ends, however it
  ends; on a network file system not at once if the host has ended, too. Process
  0 holds it for all of its run. On file systems that have no locks a lease does
  the same, and is given.
  """
  if not distributed.is_first():
    yield None
    return
  with contextlib.ExitStack() as stack:
    file = stack.enter_context(open(os.path.join(folder, '.lock'), 'w'))
    try:
      _flock(file, folder)
    except BlockingIOError:
      raise ValueError(
          f'Another process is training in {os.fspath(folder)!r}. Wait for '
          'it, stop it, or choose another --config.workdir.') from None
    except OSError:
      yield stack.enter_context(lease.Lease(
          os.path.abspath(os.path.join(folder, '.lease')), os.fspath(folder)))
      return
    yield None


def _flock(file, folder):
  """Locks `file`; BlockingIOError if another process has it, and keeps it."""
  end, told = time.monotonic() + KEPT_S, False
  while True:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      return
    except BlockingIOError:
      if _kind_of(folder) not in _NETWORK or time.monotonic() > end:
        raise
    if not told:
      told = True
      _log.info(
          '%s is locked, by another process or for a host that is gone: then '
          'its file server gives the lock back, in a minute or two. Trying for '
          'up to %g s ...', os.fspath(folder), KEPT_S)
    time.sleep(_RETRY_S)


def _kind_of(folder, mounts='/proc/self/mountinfo'):
  """The kind of file system that `folder` is on, or '' if that is not known."""
  device = os.stat(folder).st_dev
  number = f'{os.major(device)}:{os.minor(device)}'
  try:
    with open(mounts, encoding='utf-8', errors='replace') as file:
      for line in file:
        # 36 35 0:52 / /mnt rw,noatime shared:1 - nfs4 server:/dir rw,vers=4.2
        mount, _, kind = line.partition(' - ')
        if mount.split()[2] == number:
          return kind.split()[0]
  except OSError:  # not Linux
    pass
  return ''
