"""What has been embedded so far, whatever ends the run.

Results are written in parts to the folder OUTPUT.parts, each whole or not at
all; the end of the run makes the output of them and of what it held before. The
same command again embeds what is missing or has changed.
"""

import contextlib
import json
import os
import pathlib
import shutil
import time

import numpy as np

from audio_mae_jax import storage
from audio_mae_jax.embed import formats
from audio_mae_jax.embed import inputs

_PART_ROWS, _PART_S = 256, 30.0  # a part is written after so many, or so long
_SETTINGS = 'settings.json'


class Store:
  """The output `path`, and its parts, to be entered with `with`.

  `settings` say what makes its rows; 'fingerprint' and 'frames' of them must be
  those of the rows that are there. However the block ends, what was added is
  kept. There is one process at a time inside.
  """

  def __init__(self, path, settings: dict):
    if storage.is_remote(path):
      raise ValueError(
          f'--output={path}: it is written to the disk of this machine. Name a '
          'file or a folder there, and copy it.')
    self._path, self._settings = pathlib.Path(path), settings
    beside = lambda name: self._path.with_name(name.format(self._path.name))
    self._parts = beside('{}.parts')
    # With the suffix of the output: it says the format.
    self._partial, self._old = beside('.partial-{}'), beside('.old-{}')
    formats.check(path)
    self._columns = formats.COLUMNS + (
        formats.FRAMES if settings['frames'] else ())
    self._rows, self._since = [], time.monotonic()
    self._done, self._versions = {}, {}  # by the names of clips
    self._stack = contextlib.ExitStack()

  def __enter__(self) -> 'Store':
    self._parts.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
      stack.enter_context(storage.alone(self._parts))
      stack.callback(self.save)
      self._prepare()
      self._done = {
          name: version for rows in self._blocks(('names', 'versions'))
          for name, version in zip(rows['names'], rows['versions'])}
      self._stack = stack.pop_all()
    return self

  def __exit__(self, *_):
    self._stack.close()

  def _prepare(self):
    if self._old.exists() and not self._path.exists():
      os.replace(self._old, self._path)  # between the two lines of `finish`
    if self._path.exists():
      self._check(formats.read_settings(self._path), self._path)
    known = self._parts / _SETTINGS
    if self._numbered() and known.exists():  # else of no rows
      self._check(json.loads(known.read_text()), self._parts)
    partial = known.with_suffix('.partial')
    partial.write_text(json.dumps(self._settings))
    os.replace(partial, known)

  def _check(self, found, place):
    for key, what in (('fingerprint', 'of other weights or windows'),
                      ('frames', 'with and without frames')):
      if found.get(key) != self._settings[key]:
        raise ValueError(
            f'{place} has embeddings {what}: they do not belong in one file. '
            'Name another --output, or remove it.')

  def has(self, clip: inputs.Clip) -> bool:
    """Whether this clip, as it is now, is in the output or its parts."""
    version = self._versions[clip.name] = clip.version
    return self._done.get(clip.name, '') == version != ''

  @property
  def count(self) -> int:
    """Rows of the output, its parts, and what was added."""
    return len(self._done)

  def add(self, clip: inputs.Clip, row: dict):
    """Takes the other columns of a clip; from time to time writes a part."""
    # As it was when it was asked for: it may have changed since it was read.
    version = self._versions.get(clip.name) or clip.version
    self._rows.append(row | {
        'names': clip.name, 'labels': clip.label, 'versions': version})
    self._done[clip.name] = version
    if (len(self._rows) >= _PART_ROWS
        or time.monotonic() - self._since > _PART_S):
      self.save()

  def save(self):
    """Writes what was added as a part."""
    if self._rows:
      number = max((int(x.stem) for x in self._numbered()), default=-1) + 1
      place = self._parts / f'{number:06d}.npz'
      partial = place.with_suffix('.partial')
      with open(partial, 'wb') as file:
        np.savez(file, **self._as_columns())
      os.replace(partial, place)
    self._rows, self._since = [], time.monotonic()

  def _as_columns(self):
    columns = {name: [row[name] for row in self._rows]
               for name in self._columns}
    return {name: np.concatenate(x) if name in ('frames', 'times_s')
            else np.array(x) for name, x in columns.items()}

  def finish(self):
    """Makes the output; parts are gone once it is whole."""
    self.save()
    if self._numbered():
      _remove(self._partial)
      formats.write(self._partial, self._blocks, self._columns, self._settings)
      if self._path.is_dir():  # of which a folder cannot take the place at once
        _remove(self._old)
        os.replace(self._path, self._old)
      os.replace(self._partial, self._path)
      _remove(self._old)
    shutil.rmtree(self._parts)

  def _numbered(self):
    return sorted(self._parts.glob('[0-9]*.npz'))

  def _blocks(self, columns):
    """Rows of the output, then of the parts; of a name the last one."""
    places = [self._path] if self._path.exists() else []
    places += self._numbered()
    names = [formats.read(x, ('names',))['names'] for x in places]
    last = {name: (i, j) for i, found in enumerate(names)
            for j, name in enumerate(found)}
    for i, (place, found) in enumerate(zip(places, names)):
      kept = np.array([last[name] == (i, j) for j, name in enumerate(found)])
      for rows in formats.read_blocks(
          place, tuple(dict.fromkeys((*columns, 'names', 'counts')))):
        keep, kept = np.split(kept, [len(rows['names'])])
        if 'counts' in rows:
          frames = np.repeat(keep, rows['counts'])
        if keep.any():
          yield {name: x[frames if name in ('frames', 'times_s') else keep]
                 for name, x in rows.items()}


def _remove(path):
  if path.is_dir():
    shutil.rmtree(path)
  elif path.exists():
    path.unlink()
