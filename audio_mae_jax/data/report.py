"""Which files could not be used, and how many may be before the run stops."""

import contextlib
import json
import os
import threading

from audio_mae_jax import config
from audio_mae_jax import distributed
from audio_mae_jax import registry

_LISTED = 20  # files in a message; the report file has them all


class TooManyBadFiles(ValueError):
  """More files are bad than the settings allow; the message lists them."""


class BadFiles:
  """The bad files of one source, by name, each with its first reason.

  The limit is `data.max_bad_fraction` of the source's files, but a positive
  fraction always tolerates one bad file: a share of ten files says little.
  That all files are bad is never tolerated. Each process counts the files it
  meets, until it is told of those of the others (`share`); a resumed run counts
  afresh.
  """

  def __init__(self, num_files: int, data: config.Data):
    registry.lookup(ON_BAD, data.on_bad, 'config.data.on_bad')
    if not 0 <= data.max_bad_fraction <= 1:
      raise ValueError('config.data.max_bad_fraction is a share of the files, '
                       f'0 to 1; got {data.max_bad_fraction}.')
    self._num_files = num_files
    self._data = data
    limit = int(data.max_bad_fraction * num_files)
    self._limit = max(limit, 1) if data.max_bad_fraction else 0
    self._lock = threading.Lock()
    self._reasons = {}
    self._news = {}  # of them, what other processes were not told of
    self._any_good = False

  @property
  def count(self) -> int:
    """Bad files so far, each once."""
    return len(self._reasons)

  def saw_good(self):
    """Notes that at least one file can be read."""
    self._any_good = True

  def add(self, name: str, reason: str):
    """Records a bad file; raises TooManyBadFiles when that is one too many."""
    with self._lock:
      if name not in self._reasons:
        self._reasons[name] = self._news[name] = reason
      count = len(self._reasons)
    if self._data.on_bad == 'stop':
      raise TooManyBadFiles(
          f'Bad audio file: {name} ({reason}). Repair or remove it, or set '
          "config.data.on_bad='skip' to go on without such files.")
    if count > self._limit or (
        count >= self._num_files and not self._any_good):
      self.stop()

  def share(self):
    """Adds what other processes have found; all of them must call it.

    Raises TooManyBadFiles, in all processes, when together it is too much.
    """
    with self._lock:
      news, self._news = self._news, {}
    for others, any_good in distributed.gather([news, self._any_good]):
      self._any_good |= any_good
      with self._lock:
        self._reasons = others | self._reasons
    if self.count > self._limit:
      self.stop()

  def stop(self):
    """Raises TooManyBadFiles with the list of what was found."""
    with self._lock:  # other threads may go on adding
      found = sorted(self._reasons.items())
    if not self._any_good:
      raise TooManyBadFiles(
          f'No readable file: all {len(found)} tried so far (of '
          f'{self._num_files}) are bad. Is this the right folder or manifest, '
          f'and does libsndfile read this format?\n{_listing(found)}')
    raise TooManyBadFiles(
        f'{len(found)} of {self._num_files} files are bad, more than '
        f'config.data.max_bad_fraction={self._data.max_bad_fraction} allows. '
        'Repair or remove them, or raise the limit (1.0: none).\n'
        f'{_listing(found)}')

  def listing(self) -> str:
    """The bad files and their reasons, a line each; of many the first."""
    with self._lock:
      return _listing(sorted(self._reasons.items()))

  def write(self, path: str | os.PathLike):
    """Writes all bad files and their reasons as JSON, in one step.

    Files that an earlier start of the run has found stay in the list.
    """
    with self._lock:
      files = dict(self._reasons)
    if not files:
      return
    with contextlib.suppress(OSError, ValueError, KeyError):
      with open(path, encoding='utf-8') as file:
        files = json.load(file)['bad'] | files
    files = dict(sorted(files.items()))
    content = {
        'num_files': self._num_files, 'num_bad': len(files), 'bad': files}
    partial = f'{os.fspath(path)}.partial'
    with open(partial, 'w', encoding='utf-8') as file:
      json.dump(content, file, indent=1, ensure_ascii=False)
    os.replace(partial, path)


def _listing(found):
  lines = [f'  {name}: {reason}' for name, reason in found[:_LISTED]]
  if len(found) > _LISTED:
    lines.append(f'  and {len(found) - _LISTED} more')
  return '\n'.join(lines)


ON_BAD = {
    'skip': 'another clip takes its place, until there are too many',
    'stop': 'the first one ends the run',
}
