"""Checkpoints at addresses that Orbax cannot write to: s3://.

Orbax writes to a folder of this machine; the finished checkpoint is copied in
the background, the file COMMITTED last. So what is half copied is no
checkpoint, as on gs://, where Orbax itself does so.
"""

from concurrent import futures
import contextlib
import os
import pathlib
import shutil

from etils import epath

from audio_mae_jax import config
from audio_mae_jax import distributed
from audio_mae_jax import storage

COMMITTED = 'commit_success.txt'  # Orbax's name for it


def are_needed(folder: epath.Path) -> bool:
  """Whether Orbax cannot read and write at `folder` by itself."""
  return os.fspath(folder).startswith('s3://')


def is_whole(path: epath.Path) -> bool:
  """Whether the checkpoint at `path` was finished."""
  # On this machine Orbax gives the folder its name when it is whole.
  return not storage.is_remote(path) or storage.is_file(
      os.fspath(path / COMMITTED))


@contextlib.contextmanager
def readable(path: epath.Path):
  """`path`, or a copy of it where Orbax cannot read it."""
  if not are_needed(path):
    yield path
    return
  with storage.local_copy(path) as place:
    yield place


class Copies:
  """Checkpoints in the folder `local`, and their copies at `address`."""

  def __init__(self, local: pathlib.Path, address: epath.Path,
               settings: config.Checkpoint):
    self._local, self._address = local, os.fspath(address)
    self._settings = settings
    self._thread = futures.ThreadPoolExecutor(1)
    self._running = None
    if distributed.is_first():
      for step, names in self._found().items():
        if COMMITTED not in names:  # of a run that was killed
          self._remove(step, names)

  def all_steps(self) -> list[int]:
    """Steps of whole checkpoints at the address."""
    return sorted(step for step, names in self._found().items()
                  if COMMITTED in names)

  def fetch(self, step: int):
    """Copies a checkpoint to the local folder, for all processes."""
    with distributed.together():
      if distributed.is_first():
        storage.copy_in(self._place(step), self._local / str(step),
                        self._found()[step])

  def forget(self, step: int):
    """Removes a checkpoint from the local folder."""
    shutil.rmtree(self._local / str(step))

  def put(self, step: int):
    """Begins to copy a checkpoint of the local folder to the address."""
    self.wait()
    if distributed.is_first():
      self._running = self._thread.submit(self._put, step)

  def wait(self):
    """Returns when what was begun is there; raises storage.Unreachable."""
    if self._running is not None:
      running, self._running = self._running, None
      running.result()

  def close(self):
    self.wait()
    self._thread.shutdown()

  def _put(self, step):
    folder = pathlib.Path(self._local, str(step))
    place = self._place(step)
    names = [path.relative_to(folder).as_posix()
             for path in folder.rglob('*') if path.is_file()]
    names.remove(COMMITTED)
    storage.copy_out(folder, place, names)
    storage.copy_out(folder, place, [COMMITTED])
    self._keep_newest()

  def _keep_newest(self):
    every = self._settings.keep_every_steps
    found = self._found()
    steps = sorted(step for step in found if not every or step % every)
    for step in steps[:-self._settings.keep]:
      self._remove(step, found[step])

  def _remove(self, step, names):
    place = self._place(step)
    # Without it the rest is no checkpoint any more, should it stay.
    if COMMITTED in names:
      storage.remove(place, [COMMITTED])
    storage.remove(place, [name for name in names if name != COMMITTED])

  def _place(self, step):
    return storage.join(self._address, str(step))

  def _found(self):
    """Names of the files of each step at the address."""
    found = {}
    for name in storage.below(self._address):
      step, _, rest = name.partition('/')
      if step.isdigit():
        found.setdefault(int(step), []).append(rest)
    return found
