"""Exit statuses: what an error means for who would start the run again.

docs/reliability.md has the table; the launchers act on it.
"""

import errno
import os
import traceback

from audio_mae_jax import storage

# An error that the user can mend.
USERS = 1
# What is out of reach, a process or a store, may be there at the next try.
OUT_OF_REACH = 69
CRASH = 70

# Of an OSError: no space, no quota, a larger file than allowed, read only.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class OtherEnded(RuntimeError):
  """Another process of the run met an error that ends it with `status`."""

  def __init__(self, message: str, status: int):
    super().__init__(message)
    self.status = status


def of(error: BaseException) -> int:
  """The status that a process which ends with `error` has."""
  if isinstance(error, OtherEnded):
    return error.status
  if isinstance(error, storage.Unreachable):
    return OUT_OF_REACH
  return USERS if is_full(error) or is_users(error) else CRASH


def is_users(error: BaseException) -> bool:
  """Whether this package raised `error` on purpose, to tell the user."""
  frames = traceback.extract_tb(error.__traceback__)
  home = os.path.dirname(os.path.abspath(__file__)) + os.sep
  return (isinstance(error, (ValueError, OSError, ImportError, RuntimeError))
          and bool(frames) and frames[-1].filename.startswith(home)
          and frames[-1].line.startswith('raise '))


def is_full(error: BaseException) -> bool:
  """Whether a disk is full, which can be met anywhere."""
  return isinstance(error, OSError) and error.errno in _FULL
