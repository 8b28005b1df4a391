"""Checkpoints: {state, position, config}, written by Orbax in the background.

What happens when a run starts again in the same work directory:
1. The newest checkpoint is read. What a killed run had not finished writing is
   not a checkpoint (Orbax renames a folder when it is whole; at an address the
   last file makes it one), and is removed.
2. Its configuration and data are compared with the present ones: fields that
   change the result must agree.
3. Its arrays are read onto the present mesh, whatever mesh wrote them, and
   their fingerprint is compared with the one taken before they were written.
4. If 2 finds a damaged file or 3 a difference, the checkpoint before is tried;
   the damaged one is moved to `damaged/`, never deleted.

The position in the data is the step: the pipeline finds its place from it.
"""

import contextlib
import logging

from etils import epath
from etils import epy
import jax
import numpy as np

from audio_mae_jax import config as config_lib
from audio_mae_jax import copies
from audio_mae_jax import damage
from audio_mae_jax import distributed
from audio_mae_jax import fingerprint
from audio_mae_jax import meta as meta_lib
from audio_mae_jax import storage
from audio_mae_jax import trees
from audio_mae_jax import workdirs

with epy.lazy_imports():  # a third of what importing this package would take
  import orbax.checkpoint as ocp

_log = logging.getLogger(__name__)

class WriteError(OSError):
  """A checkpoint could not be written; the message says which are whole."""


def check(settings: config_lib.Checkpoint):
  """Raises ValueError for a setting that would lose what was trained."""
  if settings.keep < 1:
    raise ValueError(
        f'checkpoint.keep={settings.keep} would keep none; give 1 or more, '
        'and checkpoint.keep_every_steps to keep some for good.')


class Checkpoints:
  """The checkpoints of one work directory."""

  def __init__(self, workdir: workdirs.Workdir,
               settings: config_lib.Checkpoint):
    self._folder = self._place = workdir.address / 'checkpoints'
    self._copies = None
    if copies.are_needed(self._folder):
      self._place = epath.Path(workdir.folder / 'checkpoints')
      self._copies = copies.Copies(self._place, self._folder, settings)
    workdir.check_shared()
    self._manager = ocp.CheckpointManager(
        self._place,
        options=ocp.CheckpointManagerOptions(
            max_to_keep=settings.keep,
            keep_period=settings.keep_every_steps or None,
            create=True, cleanup_tmp_directories=True,
            enable_async_checkpointing=True))
    # Orbax would ask JAX whether a SIGTERM came, with steps: JAX has one count
    # for all who ask, `distributed.asked_to_stop` has another, and where one
    # sets back the other's the signal is never heard.
    self._manager.reached_preemption = lambda step: False

  def save(self, step: int, state, meta: dict):
    """Starts to write; returns when `state` may be donated.

    Saving a step twice does nothing: it would be the same bits.
    """
    if step in self._manager.all_steps():
      return
    meta = {**meta, 'fingerprint': fingerprint.of(state)}
    with self._writing():
      if self._copies:
        self._copies.wait()  # the manager may remove what is being copied
      self._manager.save(step, force=True, args=ocp.args.Composite(
          state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)))
      if self._copies:
        self._manager.wait_until_finished()
        self._copies.put(step)

  def restore(self, target, meta: dict):
    """The newest whole checkpoint as `(step, state, meta)`, or None.

    Args:
      target: state of ShapeDtypeStructs with shardings.
      meta: of the present run; `meta.check` compares it with the stored one.

    Raises:
      ValueError: settings differ, or there are checkpoints and none is whole.
      damage.ReadError, storage.Unreachable: one cannot be read now. It is not
        taken for damaged, and nothing is moved.
    """
    steps = distributed.gather(sorted(
        (self._copies or self._manager).all_steps(), reverse=True))[0]
    damaged = {}
    for step in steps:
      if self._copies:
        self._copies.fetch(step)
        self._manager.reload()
      place = self._place / str(step)
      stored, reason = damage.find_all(place, self._read_meta, step)
      if reason is None:
        meta_lib.check(stored, meta, self._folder)
        state, reason = damage.find_all(place, self._read_state, step, target)
      if reason is None:
        _, reason = damage.find_all(
            place, fingerprint.check, state, stored['fingerprint'])
      if reason is None:
        self._set_aside(damaged, step)
        return step, state, stored
      damaged[step] = reason
      _log.error('Checkpoint %s is damaged: %s', self._folder / str(step),
                    reason)
    if damaged:
      raise ValueError(
          f'None of the {len(damaged)} checkpoints in {self._folder} is whole: '
          + '; '.join(f'{step}: {why}' for step, why in damaged.items())
          + '. Restore one from a backup, or start again in another workdir.')
    return None

  # By the handlers: the manager's restore ends in an exchange between the
  # processes, to which one that cannot read its part would not come.

  def _read_meta(self, step):
    return ocp.JsonCheckpointHandler().restore(
        self._place / str(step) / 'meta')

  def _read_state(self, step, target):
    return ocp.StandardCheckpointHandler().restore(
        self._place / str(step) / 'state',
        args=ocp.args.StandardRestore(target))

  def _set_aside(self, damaged, step):
    """Moves damaged checkpoints away: their steps will be saved again."""
    if not damaged:
      return
    _log.warning(
        'Falling back to checkpoint %d; %s moved to %s.', step,
        sorted(damaged), self._folder.parent / 'damaged')
    if distributed.is_first():
      aside = self._folder.parent / 'damaged'
      for bad in damaged:
        number = 0
        while storage.is_dir(aside / f'{bad}.{number}'):
          number += 1
        storage.move(self._folder / str(bad), aside / f'{bad}.{number}')
        if self._copies:
          self._copies.forget(bad)
    distributed.meet()
    self._manager.reload()

  @property
  def folder(self) -> epath.Path:
    return self._folder

  def latest(self) -> int | None:
    """Step of the newest checkpoint."""
    return self._manager.latest_step()

  def check(self):
    """Raises WriteError if what is being written has failed so far."""
    with self._writing():
      self._manager.check_for_errors()

  def wait(self):
    """Returns when what was begun is written."""
    with self._writing():
      self._manager.wait_until_finished()
      if self._copies:
        self._copies.wait()

  def close(self):
    with self._writing():
      self._manager.close()  # waits, too
      if self._copies:
        self._copies.close()

  @contextlib.contextmanager
  def _writing(self):
    """An error in here is one of writing: now, or since the last call."""
    try:
      yield
    # Of the step before, or of its loss; and what says itself what to do.
    except (jax.errors.JaxRuntimeError, storage.Unreachable):
      raise
    except Exception as error:
      if distributed.lost_process(error):
        raise
      text = ' '.join(str(error).split())
      if not self._copies and storage.is_remote(self._folder) and not (
          damage.is_refused(error)):
        raise storage.Unreachable(
            f'A checkpoint could not be written in {self._folder} '
            f'({type(error).__name__}: {text[:300]}).') from error
      try:
        whole = sorted(
            int(path.name) for path in steps_in(self._folder.parent))
      except storage.Unreachable:
        whole = ['not known']
      raise WriteError(
          f'A checkpoint could not be written in {self._folder} '
          f'({type(error).__name__}: {text[:300]}). Whole there: '
          f'{", ".join(map(str, whole)) or "none"}. Is the disk full, or are '
          'there rights missing? Mend it, and the same command goes on from '
          'the newest whole one.') from error

  def __enter__(self):
    return self

  def __exit__(self, kind, error, _):
    if error is None:
      self.close()
    elif not distributed.is_several():
      with contextlib.suppress(WriteError):  # `error` came first
        self.close()
    # Else Orbax would wait for processes that this one may have lost.


def read_params(folder) -> tuple[dict, dict]:
  """Parameters by name, as NumPy arrays, and meta of the newest checkpoint.

  A damaged one is passed over. The parameters are those that evaluation used:
  the average, if there was one.

  Args:
    folder: a run's work directory, or the folder of one checkpoint in it.

  Raises:
    ValueError: there is no checkpoint, or none is whole.
  """
  return _newest(folder, _read_params)


def read_meta(folder) -> dict:
  """What is stored beside the arrays; arguments as of `read_params`."""
  return _newest(folder, _read_meta)


def steps_in(workdir) -> list[epath.Path]:
  """Folders of the checkpoints of a run, the newest first."""
  with storage.reaching(workdir):
    found = [
        path for path in (storage.path_of(workdir) / 'checkpoints').glob('*')
        if path.name.isdigit() and copies.is_whole(path)]
  return sorted(found, key=lambda path: int(path.name), reverse=True)


def _newest(folder, read):
  folder = storage.path_of(folder)  # Orbax takes no relative paths
  reasons = []
  for path in [folder] if is_checkpoint(folder) else steps_in(folder):
    found, reason = damage.find(path, read, path)
    if reason is None:
      return found
    reasons.append(f'{path}: {reason}')
    _log.error('Checkpoint %s is damaged: %s', path, reason)
  raise ValueError(
      f'No checkpoint in {folder} could be read'
      + (f': {"; ".join(reasons)}. Restore one from a backup.' if reasons else
         '; give the work directory of a run, e.g. runs/NAME, or '
         'runs/NAME/checkpoints/STEP.'))


def is_checkpoint(folder) -> bool:
  """Whether `folder` is that of one checkpoint of a run."""
  return storage.is_dir(storage.path_of(folder) / 'state')


def _read_params(path):
  handler = ocp.PyTreeCheckpointHandler()
  with copies.readable(path / 'state') as place:
    shapes = handler.metadata(place).tree
    name = 'ema' if shapes['ema'] is not None else 'params'
    item = {name: jax.tree.map(lambda _: 0, shapes[name])}
    found = handler.restore(place, args=ocp.args.PyTreeRestore(
        item=item, partial_restore=True, restore_args=jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)))
  meta = _read_meta(path)
  fingerprint.check(found, meta['fingerprint'])
  return trees.flatten(found[name]), meta


def _read_meta(path):
  with copies.readable(path / 'meta') as place:
    return ocp.JsonCheckpointHandler().restore(place)
