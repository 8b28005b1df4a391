"""A lock where no file system keeps one: an object that its holder renews.

The system does not take it back when a process is killed. So whoever finds one
watches whether it still changes; no clock is compared with another one.
"""

import json
import logging
import os
import random
import socket
import threading
import time
import uuid

from audio_mae_jax import storage

_log = logging.getLogger(__name__)

RENEW_S = 15.0
WATCH_S = 60.0  # four renewals: a store may be out of reach for some of them


class Taken(ValueError):
  """Another process holds the lease."""


class Lost(RuntimeError):
  """Another process has taken the lease, so this one must not go on."""


class Lease:
  """The object at `path`, to be held in a `with`; `what` it protects.

  A second `with` somewhere raises Taken within RENEW_S; of a holder that was
  killed, it takes the object over after WATCH_S.
  """

  def __init__(self, path: str, what: str):
    self._path, self._what = path, what
    self._fs = storage.filesystem(path)
    self._id, self._count = uuid.uuid4().hex, 0
    self._owner = (f'process {os.getpid()} on {socket.gethostname()}, since '
                   f'{time.strftime("%Y-%m-%d %H:%M:%S %Z")}')
    self._lost_to, self._renewed = None, time.monotonic()
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._keep, daemon=True)

  def __enter__(self):
    found = self._read()
    if found is not None:
      self._watch(found)
      # Of several that have watched, one is first: the others see its lease.
      time.sleep(random.uniform(0, RENEW_S / 5))
      if self._read() == found:
        self._remove()
    try:
      self._write('create')
    except FileExistsError:
      raise Taken(
          f'Another run is at work in {self._what}: {_owner(self._read())}. '
          'Wait for it, stop it, or choose another --config.workdir.'
      ) from None
    self._renewed = time.monotonic()
    self._thread.start()
    return self

  def __exit__(self, *_):
    self._ended.set()
    self._thread.join()
    try:
      if self._is_own(self._read()):
        self._remove()
    except OSError as error:
      _log.warning('The lock stays, for %g s: %s', WATCH_S, error)

  def check(self):
    """Raises Lost if another process has taken over, or may have soon.

    Unreachable if the store was away for so long that another process would
    have taken over, and still is.
    """
    if time.monotonic() - self._renewed > WATCH_S - RENEW_S:
      self._renew()
    if self._lost_to is not None:
      raise Lost(
          f'{self._lost_to} has taken over {self._what}, which this process '
          'had not been heard of in for some time. It stops, and leaves all '
          'to the other one.')

  def _watch(self, found):
    """Returns when the holder has shown life or has ended, or time is up."""
    _log.info(
        '%s belongs to %s. Watching for up to %g s whether that still runs ...',
        self._what, _owner(found), WATCH_S)
    end = time.monotonic() + WATCH_S
    while time.monotonic() < end:
      time.sleep(RENEW_S / 5)
      if self._read() != found:
        return
    _log.warning('Nothing was heard of %s: this run takes over.',
                 _owner(found))

  def _keep(self):
    while self._lost_to is None and not self._ended.wait(RENEW_S):
      try:
        self._renew()
      except OSError as error:
        _log.warning('The lock cannot be renewed: %s', error)

  def _renew(self):
    asked = time.monotonic()  # not later: it may have been written at once
    found = self._read()
    if self._is_own(found):
      self._write('overwrite')
      self._renewed = asked
    else:
      self._lost_to = _owner(found)

  def _is_own(self, content):
    return content is not None and self._id.encode() in content

  def _read(self):
    try:
      with storage.reaching(self._path):
        return self._fs.cat_file(self._path)
    except FileNotFoundError:
      return None

  def _write(self, mode):
    self._count += 1
    content = json.dumps(
        {'owner': self._owner, 'id': self._id, 'renewed': self._count})
    with storage.reaching(self._path):
      self._fs.pipe_file(self._path, content.encode(), mode=mode)

  def _remove(self):
    try:
      with storage.reaching(self._path):
        self._fs.rm_file(self._path)
    except FileNotFoundError:
      _log.info('%s: the lock was removed already.', self._what)


def _owner(content: bytes | None) -> str:
  try:
    return json.loads(content)['owner']
  except (ValueError, TypeError, LookupError):  # it is being written
    return 'another process'
