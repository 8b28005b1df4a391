"""Files and addresses: what is read and written may lie in the cloud.

`gs://bucket/...` and `s3://bucket/...` go through fsspec, to gcsfs and s3fs;
they find credentials, endpoints and regions where Google's and Amazon's own
tools find them, and try again what fails for a moment. All else is a path on
this machine. docs/storage.md says how to use it.
"""

import contextlib
import fcntl
import importlib.util
import io
import os
import tempfile

from etils import epath
import fsspec

# Scheme -> (module, extra of this package).
SCHEMES = {'gs': ('gcsfs', 'gcs'), 's3': ('s3fs', 's3')}
# A listing that is remembered would hide what another process has written.
for _protocol in ('gs', 'gcs', 's3'):
  fsspec.config.conf.setdefault(_protocol, {}).setdefault(
      'use_listings_cache', False)
# One way to a bucket, whether or not TensorFlow happens to be installed.
os.environ.setdefault('EPATH_USE_TF', 'false')

_BLOCK_BYTES = 2**20  # of a file that is read in parts


class Unreachable(OSError):
  """A store that does not answer, or not to these credentials."""


def is_remote(path: str | os.PathLike) -> bool:
  return '://' in os.fspath(path)


def check(path: str | os.PathLike):
  """Raises ValueError or ImportError if no library here can reach `path`."""
  if not is_remote(path):
    scheme, slash, _ = os.fspath(path).partition(':/')
    if slash and scheme in SCHEMES:
      raise ValueError(
          f'{os.fspath(path)!r} is neither an address nor a path: write '
          f'{scheme}://BUCKET/PATH, with two slashes.')
    return
  scheme = os.fspath(path).split('://')[0]
  if scheme not in SCHEMES:
    raise ValueError(
        f'{os.fspath(path)!r}: there is no store {scheme}://. Give a path of '
        'this machine, gs://BUCKET/PATH or s3://BUCKET/PATH.')
  module, extra = SCHEMES[scheme]
  if not importlib.util.find_spec(module):
    raise ImportError(
        f'{os.fspath(path)} needs {module}: pip install '
        f"'audio_mae_jax[{extra}]'.")


def absolute(path: str | os.PathLike) -> str:
  """`path` from the root of this machine; an address as it is."""
  path = os.fspath(path)
  check(path)
  if is_remote(path):
    return path.rstrip('/')
  return os.path.abspath(os.path.expanduser(path))


def join(base: str, path: str) -> str:
  """`path`, from `base` if it is relative."""
  return path if is_remote(path) else os.path.join(base, path)


def path_of(path: str | os.PathLike) -> epath.Path:
  """`absolute(path)`, as a path to read, write and list by."""
  return epath.Path(absolute(path))


def filesystem(path: str | os.PathLike) -> fsspec.AbstractFileSystem:
  check(path)
  with reaching(path):
    return fsspec.core.url_to_fs(os.fspath(path))[0]


@contextlib.contextmanager
def reaching(path: str | os.PathLike):
  """What goes wrong with an address in the block is `Unreachable`.

  Only that a file is not there, or is there already, or that a library is
  missing, stays what it is; and everything about the files of this machine.
  """
  try:
    yield
  except (FileNotFoundError, FileExistsError, ImportError, Unreachable):
    raise
  except Exception as error:  # pylint: disable=broad-except
    # Three libraries each, with errors of their own.
    if not is_remote(path):
      raise
    text = ' '.join(str(error).split())[:300]
    raise Unreachable(
        f'{os.fspath(path)} cannot be reached ({type(error).__name__}: '
        f'{text}). Check the bucket, the network and the credentials, which '
        'are those of gcloud (`gcloud auth application-default login`) or of '
        'the AWS command line (`aws configure`).') from error


def exists(path: str | os.PathLike) -> bool:
  if not is_remote(path):
    return os.path.exists(path)
  with reaching(path):
    return filesystem(path).exists(os.fspath(path))


def is_file(path: str | os.PathLike) -> bool:
  if not is_remote(path):
    return os.path.isfile(path)
  with reaching(path):
    return filesystem(path).isfile(os.fspath(path))


def is_dir(path: str | os.PathLike) -> bool:
  """Of an address: whether there is anything below it."""
  if not is_remote(path):
    return os.path.isdir(path)
  with reaching(path):
    return filesystem(path).isdir(os.fspath(path))


def below(path: str) -> list[str]:
  """All files below an address, sorted, as paths from there."""
  fs = filesystem(path)
  with reaching(path):
    found = fs.find(path)
  start = fs._strip_protocol(path).rstrip('/') + '/'
  return sorted(name.removeprefix(start) for name in found
                if name.startswith(start) and not name.endswith('/'))


def open_text(path: str):
  """A text file to read, UTF-8 with or without a mark, line ends kept."""
  if not is_remote(path):
    return open(path, encoding='utf-8-sig', newline='')
  with reaching(path):
    content = filesystem(path).cat_file(path)
  return io.TextIOWrapper(
      io.BytesIO(content), encoding='utf-8-sig', newline='')


def write_text(path: str | os.PathLike, text: str):
  """Writes a file, whole or not at all."""
  if is_remote(path):
    with reaching(path):
      filesystem(path).pipe_file(os.fspath(path), text.encode())
    return
  partial = f'{os.fspath(path)}.partial'
  with open(partial, 'w', encoding='utf-8') as file:
    file.write(text)
  os.replace(partial, path)


def read_up_to(path: str, limit: int) -> bytes | None:
  """The whole file at an address, in one request; None if it is longer."""
  fs = filesystem(path)
  try:
    with reaching(path):
      content = fs.cat_file(path, start=0, end=limit + 1)
  except Unreachable:
    # A store has no range of an empty file.
    with reaching(path):
      if fs.info(path)['size']:
        raise
    return b''
  return content if len(content) <= limit else None


def open_blocks(path: str) -> 'Blocks':
  """The file at an address, of which only those parts are read that are used.
  """
  with reaching(path):
    return Blocks(filesystem(path).open(
        path, 'rb', block_size=_BLOCK_BYTES, cache_type='blockcache',
        cache_options={'maxblocks': 8}), path)


class Blocks(io.RawIOBase):
  """A file at an address, for readers in C, which cannot pass errors on.

  It seems to end where reading fails, and `check` tells.
  """

  def __init__(self, file, path):
    self._file, self._path = file, path
    self._error = None

  def readable(self):
    return True

  def seekable(self):
    return True

  def seek(self, offset, whence=os.SEEK_SET):
    return self._file.seek(offset, whence)

  def tell(self):
    return self._file.tell()

  def readinto(self, buffer):
    try:
      with reaching(self._path):
        return self._file.readinto(buffer)
    except OSError as error:
      self._error = error
      return 0

  def check(self):
    """Raises what went wrong, if something did."""
    if self._error is not None:
      raise self._error

  def close(self):
    self._file.close()
    super().close()


def version(path: str) -> tuple:
  """Tells the content of a file from what it was: (size, mark), or () if it
  cannot be looked at."""
  try:
    if not is_remote(path):
      status = os.stat(path)
      return status.st_size, status.st_mtime_ns
    with reaching(path):
      found = filesystem(path).info(path)
  except Unreachable:
    raise
  except OSError:
    return ()
  mark = found.get('ETag') or found.get('generation') or found.get('etag')
  return found['size'], str(mark)


def copy_in(path: str, folder: str | os.PathLike, names: list[str]):
  """Copies the files `names` below an address to a folder of this machine."""
  for name in names:
    os.makedirs(os.path.dirname(os.path.join(folder, name)), exist_ok=True)
  if names:
    with reaching(path):
      filesystem(path).get([join(path, name) for name in names],
                           [os.path.join(folder, name) for name in names])


def copy_out(folder: str | os.PathLike, path: str, names: list[str]):
  """Copies the files `names` of a folder of this machine to below an address.
  """
  if names:
    with reaching(path):
      filesystem(path).put([os.path.join(folder, name) for name in names],
                           [join(path, name) for name in names])


@contextlib.contextmanager
def local_copy(path: str | os.PathLike):
  """A folder of this machine with the files of `path`: itself, or a copy."""
  path = os.fspath(path)
  if not is_remote(path):
    yield epath.Path(path)
    return
  with tempfile.TemporaryDirectory() as folder:
    copy_in(path, folder, below(path))
    yield epath.Path(folder)


def move(path: str | os.PathLike, place: str | os.PathLike):
  """Moves a folder; at an address, by a copy of which the original goes last.
  """
  path, place = os.fspath(path), os.fspath(place)
  if not is_remote(path):
    os.makedirs(os.path.dirname(place), exist_ok=True)
    os.rename(path, place)
    return
  fs, names = filesystem(path), below(path)
  with reaching(path):
    fs.copy([join(path, name) for name in names],
            [join(place, name) for name in names])
  remove(path, names)


def remove(path: str, names: list[str] | None = None):
  """Removes the files `names`, or all, below an address."""
  names = below(path) if names is None else names
  if names:
    with reaching(path):
      filesystem(path).rm([join(path, name) for name in names])


@contextlib.contextmanager
def alone(folder):
  """Keeps a second process out of `folder`."""
  handle = os.open(folder, os.O_RDONLY)
  try:
    try:
      fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise ValueError(
          f'Another process is writing {folder}. Wait for it, or stop it.'
          ) from None
    except OSError:  # a file system without locks
      pass
    yield
  finally:
    os.close(handle)
