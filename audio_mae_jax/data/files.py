"""Audio files on disk: where they are, what to call them, how to cut them."""

import concurrent.futures
import dataclasses
import difflib
import math
import os
import pathlib

import soundfile

from audio_mae_jax import config
from audio_mae_jax import storage

SUFFIXES = (
    '.wav', '.flac', '.ogg', '.oga', '.opus', '.mp3', '.aiff', '.aif')
ROOT_VARIABLE = 'AUDIO_MAE_DATA'
_LISTED = 20  # classes in a message
_HEADER_THREADS = 16  # reading headers waits for the disk, not for the core


class Source:
  """Random access to clips that nothing has decoded yet.

  `source[i]` is a dict for `audio_io.load`; the order and the labels depend on
  the data alone. `num_files` counts what can be bad; `class_names` may be
  empty.
  """
  title: str
  num_files: int
  class_names: list[str]

  def __len__(self) -> int:
    raise NotImplementedError

  def __getitem__(self, i: int) -> dict:
    raise NotImplementedError

  def name_of(self, i: int) -> str:
    """What a message calls clip i."""
    raise NotImplementedError

  def file_of(self, i: int) -> str:
    """What the report of bad files calls clip i: parts of a file share it."""
    return self.name_of(i)

  def labels_of(self, i: int) -> tuple[int, ...]:
    """Indices into `class_names`; a source overrides it where it costs less."""
    return self[i]['labels']

  def place_of(self, i: int) -> tuple[str, float, float] | None:
    """(file, from s, to s) of clip i; None where clips are no files."""
    return None

  def split_of(self, i: int) -> tuple[str, str]:
    """The split and the fold of clip i, where the data name them, or ''."""
    return '', ''

  def describe(self) -> str:
    """One line for the start of a run."""
    parts = [f'{self.title}: {len(self):,} clips']
    if self.num_files != len(self):
      parts[0] += f' of {self.num_files:,} files'
    if self.class_names:
      parts.append(f'{len(self.class_names)} classes')
    return ', '.join(parts)


@dataclasses.dataclass(frozen=True, slots=True)
class File:
  """A file, or a part of it."""
  path: str
  id: str
  labels: tuple[int, ...] = ()
  start_s: float = 0.0
  duration_s: float | None = None  # None: to the end
  split: str = ''
  fold: str = ''


class Files(Source):
  """Audio files, or parts of them, in a fixed order."""

  def __init__(self, title: str, files: list[File], class_names: list[str],
               segment_s: float):
    self.title = title
    self.class_names = class_names
    self.num_files = len({file.path for file in files})
    self._files = segment(files, segment_s) if segment_s else files

  def __len__(self):
    return len(self._files)

  def __getitem__(self, i):
    file = self._files[i]
    return {'audio': file.path, 'id': file.id, 'start_s': file.start_s,
            'duration_s': file.duration_s, 'labels': file.labels}

  def name_of(self, i):
    return self._files[i].id

  def file_of(self, i):
    return self._files[i].path

  def labels_of(self, i):
    return self._files[i].labels

  def place_of(self, i):
    file = self._files[i]
    length_s = math.inf if file.duration_s is None else file.duration_s
    return file.path, file.start_s, file.start_s + length_s

  def split_of(self, i):
    return self._files[i].split, self._files[i].fold


def root(data: config.Data) -> str:
  """The folder or address that relative paths start at; empty: none is set.
  """
  return os.path.expanduser(data.root or os.environ.get(ROOT_VARIABLE, ''))


def resolve(data: config.Data, path: str, where: str, what: str) -> str:
  """The setting `where`=`path` as an absolute path, or an address.

  A relative one starts at the data root or, when none is set, at the current
  folder.
  """
  if not path:
    raise ValueError(f'{where} is empty; set it to {what}.')
  path = os.path.expanduser(path)
  if storage.is_remote(path) or os.path.isabs(path) or root(data):
    return storage.absolute(storage.join(root(data), path))
  if os.path.exists(path):
    return os.path.abspath(path)
  raise FileNotFoundError(
      f'{where}={path!r} ({what}) is a relative path, is not in the current '
      'folder, and no data root is set. Say where your data lies: set '
      f'--config.data.root=DIR or the environment variable {ROOT_VARIABLE}, '
      f'so that DIR/{path} exists.')


def walk(place: str) -> list[str]:
  """Audio files under `place`, sorted, as relative paths with slashes."""
  if storage.is_remote(place):
    return [path for path in storage.below(place)
            if _is_audio(path.split('/')[-1])]
  found, visited = [], set()
  for parent, folders, names in os.walk(place, followlinks=True):
    real = os.path.realpath(parent)
    if real in visited:  # a link that leads back up
      folders.clear()
      continue
    visited.add(real)
    folders.sort()  # decides which of two links to one folder is followed
    found += [os.path.relpath(os.path.join(parent, name), place)
              for name in names if _is_audio(name)]
  return sorted(pathlib.PurePath(path).as_posix() for path in found)


def _is_audio(name):
  # Hidden files are no recordings: other systems leave ._NAME.wav behind.
  return name.lower().endswith(SUFFIXES) and name[0] != '.'


def segment(files: list[File], segment_s: float) -> list[File]:
  """Cuts each file into parts of `segment_s`; the last takes a short rest.

  Lengths come from the headers. A rest of half a segment or more is a part of
  its own. A file without a readable header stays whole: loading it will say
  what is wrong.
  """
  with concurrent.futures.ThreadPoolExecutor(_HEADER_THREADS) as pool:
    lengths = list(pool.map(_length_s, files))
  parts = []
  for file, length_s in zip(files, lengths, strict=True):
    count = max(int(length_s / segment_s + 0.5), 1)
    for i in range(count):
      offset_s = i * segment_s
      duration_s = segment_s
      if i == count - 1:  # to where the file, or the listed part of it, ends
        duration_s = file.duration_s and file.duration_s - offset_s
      parts.append(dataclasses.replace(
          file, start_s=file.start_s + offset_s, duration_s=duration_s,
          id=f'{file.id}+{offset_s:g}s' if count > 1 else file.id))
  return parts


def _length_s(file):
  """Seconds of `file`, or 0 when its header is unreadable."""
  if file.duration_s is not None:
    return file.duration_s
  try:
    header = _header(file.path)
  except storage.Unreachable:
    raise
  except (OSError, RuntimeError, TypeError):
    return 0.0
  if header.frames > 2**62:  # libsndfile's word for an unknown length
    return 0.0
  return max(header.duration - file.start_s, 0.0)


def _header(path):
  if not storage.is_remote(path):
    return soundfile.info(path)
  with storage.open_blocks(path) as file:
    try:
      return soundfile.info(file)
    finally:
      file.check()


def only(listed, ids, names, classes, where):
  """The clips with a label among `classes`, and the class names: `classes`.

  A class is named by its id or its display name. Other labels of one that
  stays are dropped. Empty `classes` leave everything as it is.
  """
  if not classes:
    return listed, names
  number = {name: i for i, name in enumerate(names)}
  number |= {name: i for i, name in enumerate(ids)}
  for name in classes:
    if name not in number:
      raise ValueError(_no_class(f'{where}.classes', name, names, number))
  place = {number[name]: i for i, name in enumerate(classes)}
  if len(place) < len(classes):
    raise ValueError(f'{where}.classes={classes} names a class twice.')
  kept = []
  for file in listed:
    labels = tuple(place[label] for label in file.labels if label in place)
    if labels:
      kept.append(dataclasses.replace(file, labels=labels))
  if not kept:
    raise ValueError(
        f'{where}.classes={classes} leaves none of the {len(listed)} clips '
        f'that the other settings of {where} choose: none has such a label.')
  return kept, list(classes)


def _no_class(where, name, names, known):
  near = difflib.get_close_matches(name, list(known), n=1)
  hint = f' Did you mean {near[0]!r}?' if near else ''
  more = len(names) - _LISTED
  return (f'{where}: the data has no class {name!r}.{hint} Its classes: '
          f'{", ".join(names[:_LISTED]) or "none"}'
          f'{f" and {more} more" if more > 0 else ""}.')
