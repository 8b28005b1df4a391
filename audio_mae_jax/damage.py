"""Whether what cannot be read is damaged, or only out of reach.

A damaged checkpoint gives way to the one before it. One that a store, a disk or
a lack of memory keeps from being read does not: the same command, a little
later, finds it whole.
"""

import errno
import os
import re

import jax

from audio_mae_jax import distributed
from audio_mae_jax import storage

# What libraries say of a disk, a store or a device that gives nothing, however
# whole the files are. In their messages, as they raise what they like.
_NOT_NOW = re.compile(
    'UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|ABORTED|CANCELLED')
_NOT_YOU = re.compile(
    'PERMISSION_DENIED|UNAUTHENTICATED|Forbidden|Unauthorized|Access ?Denied')
# Errors of files on this machine that a damaged one can give.
_OF_FILES = (None, errno.ENOENT, errno.EIO, errno.EINVAL, errno.ENOTDIR,
             errno.EISDIR)


class ReadError(OSError):
  """A checkpoint could not be read, which says nothing of what is in it."""


def find(place: str | os.PathLike, read, *args):
  """`(read(*args), None)`; if what is at `place` is damaged `(None, reason)`.

  Raises:
    ReadError, storage.Unreachable: that cannot be told from how it failed.
  """
  try:
    return read(*args), None
  except (MemoryError, jax.errors.JaxRuntimeError, storage.Unreachable):
    raise
  except Exception as error:  # pylint: disable=broad-except
    # A damaged file can fail anywhere in three libraries.
    text = f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'
    if _is_of_files(error, storage.is_remote(place)):
      return None, text
    failed = storage.Unreachable if storage.is_remote(place) else ReadError
    raise failed(
        f'Checkpoint {place} cannot be read now ({text}). It may well be '
        'whole, so no other is taken for it; mend what keeps it from being '
        'read, and give the same command again.') from error


def is_refused(error: BaseException) -> bool:
  """Whether a store has said that these credentials may not."""
  return bool(_NOT_YOU.search(str(error)))


def _is_of_files(error, remote):
  """Whether `error` shows that files are damaged or missing."""
  if _NOT_NOW.search(str(error)) or is_refused(error):
    return False
  if isinstance(error, OSError):
    return isinstance(error, FileNotFoundError) or (
        not remote and error.errno in _OF_FILES)
  # Of a store, all but what reads what has come: its clients have errors of
  # their own.
  return not remote or isinstance(
      error, (ValueError, LookupError, TypeError, AttributeError, EOFError))


def find_all(place: str | os.PathLike, read, *args):
  """`find`, on which all processes agree: what one cannot read is damaged."""
  with distributed.together():
    found, reason = find(place, read, *args)
  reasons = [text for text in distributed.gather(reason) if text is not None]
  return (found, None) if not reasons else (None, reasons[0])
