"""The sources of clips, by name, and how their settings are read.

To add one: a function or class that takes the data settings, the name of its
own group of settings, and fields of `config.Source` as keywords, and returns a
`files.Source`; an entry in `SOURCES`; a test.
"""

import os
import pathlib

import numpy as np

from audio_mae_jax import config
from audio_mae_jax import registry
from audio_mae_jax import storage
from audio_mae_jax.data import files
from audio_mae_jax.data import manifests
from audio_mae_jax.data import records
from audio_mae_jax.data import tfds_source

_DEMO = pathlib.Path(__file__).parent / 'demo'
_SYNTHETIC_HZ = 16000


def make(settings: config.Source, data: config.Data,
         where: str = 'config.data.train') -> files.Source:
  """The source that `settings`, the group of settings `where`, describes."""
  part, keywords = registry.select(SOURCES, settings, where)
  if keywords.get('segment_s', 0) < 0:
    raise ValueError(
        f'{where}.segment_s={settings.segment_s}; it takes seconds, or 0 to '
        'leave recordings whole.')
  return part(data, where, **keywords)


def folder(data, where, *, path, classes, segment_s):
  """All audio files under a folder; the label is the parent folder's name."""
  place = files.resolve(
      data, path, f'{where}.path', 'the folder with your audio files')
  if not storage.is_dir(place):
    raise FileNotFoundError(
        f'No folder {place}. Put audio files ({", ".join(files.SUFFIXES)}) '
        f'there, or set {where}.path to the folder that has them.')
  found = files.walk(place)
  if not found:
    raise FileNotFoundError(
        f'No audio files under {place}. Looked for '
        f'{", ".join(files.SUFFIXES)} in it and in all folders below. Put some '
        f'there, or set {where}.path to the folder that has them.')
  parents = [os.path.basename(os.path.dirname(path)) for path in found]
  names = sorted(set(parents) - {''})
  numbers = {name: (i,) for i, name in enumerate(names)}
  listed = [
      files.File(storage.join(place, path), path, numbers.get(parent, ()))
      for path, parent in zip(found, parents, strict=True)]
  listed, names = files.only(listed, names, names, classes, where)
  return files.Files(f'folder {place}', listed, names, segment_s)


def manifest(data, where, *, path, split, folds, classes, labels_csv,
             segment_s):
  """The files that a manifest lists; see manifests.py for the formats."""
  place = files.resolve(data, path, f'{where}.path', 'the manifest')
  table = labels_csv and files.resolve(
      data, labels_csv, f'{where}.labels_csv', 'the class table')
  bases = [os.path.dirname(place)]
  if files.root(data):
    bases.append(storage.absolute(files.root(data)))
  rows = manifests.read(place)
  ids, names = _classes(rows, place, table)
  rows = manifests.choose(rows, split, folds, place, where)
  listed = _files(rows, ids, manifests.base_of(rows, place, bases))
  listed, names = files.only(listed, ids, names, classes, where)
  return files.Files(f'manifest {place}', listed, names, segment_s)


def demo(data, where, *, split, classes, segment_s):
  """The recordings that come with the package."""
  del data  # they lie in one place
  place = _DEMO / 'manifest.csv'
  if not place.is_file():
    raise FileNotFoundError(
        f'The bundled recordings are not at {place}: this installation is '
        'incomplete. Install the package again.')
  rows = manifests.read(str(place))
  ids, names = _classes(rows, str(place), '')
  rows = manifests.choose(rows, split, '', str(place), where)
  listed, names = files.only(
      _files(rows, ids, str(_DEMO)), ids, names, classes, where)
  return files.Files('demo recordings', listed, names, segment_s)


class Synthetic(files.Source):
  """Tones, chirps, chords and noise bursts, each a function of its index."""

  title = 'synthetic'
  class_names = ['tone', 'chirp', 'chord', 'noise']

  def __init__(self, data, where, *, num_clips):
    if num_clips < 1:
      raise ValueError(f'{where}.num_clips={num_clips}; it takes 1 or more.')
    self.num_files = num_clips
    self._clip_s = data.clip_s

  def __len__(self):
    return self.num_files

  def __getitem__(self, i):
    rng = np.random.default_rng(i)
    label, = self.labels_of(i)
    time = np.arange(round(self._clip_s * _SYNTHETIC_HZ)) / _SYNTHETIC_HZ
    hz, to_hz, beat_hz = rng.uniform((100, 500, 0.5), (2000, 6000, 4))
    if label == 0:
      samples = np.sin(2 * np.pi * hz * time)
    elif label == 1:
      slope = (to_hz - hz) / self._clip_s
      samples = np.sin(2 * np.pi * (hz + slope / 2 * time) * time)
    elif label == 2:
      chord = hz * np.array([[1.0], [1.25], [1.5]])
      samples = np.sin(2 * np.pi * chord * time).mean(axis=0)
    else:
      burst = np.sin(2 * np.pi * beat_hz * time) > 0
      samples = rng.uniform(-1, 1, len(time)) * burst
    # A little noise everywhere: silence is what real recordings do not have.
    samples = rng.uniform(0.1, 0.5) * samples + rng.normal(0, 1e-3, len(time))
    return {'audio': samples.astype(np.float32), 'id': self.name_of(i),
            'sample_rate_hz': _SYNTHETIC_HZ, 'start_s': 0.0,
            'duration_s': None, 'labels': (label,)}

  def name_of(self, i):
    return f'synthetic {i}'

  def labels_of(self, i):
    return (i % len(self.class_names),)


def _classes(rows, place, table):
  """Ids and names of the classes, those of the file `table` if there is one.

  Without it they are the labels of all rows, so that every split numbers them
  alike.
  """
  if not table:
    found = sorted({label for row in rows for label in row.labels})
    return found, found
  ids, names = manifests.read_classes(table)
  known = set(ids)
  for row in rows:
    for label in row.labels:
      if label not in known:
        raise ValueError(
            f'{place} labels {row.path} with {label!r}, which is not in the '
            f'mid column of {table}.')
  return ids, names


def _files(rows, ids, base):
  numbers = {name: i for i, name in enumerate(ids)}
  return [
      files.File(storage.join(base, row.path),
                 f'{row.path}@{row.start_s:g}s' if row.start_s else row.path,
                 tuple(numbers[label] for label in row.labels),
                 row.start_s, row.duration_s, row.split, row.fold)
      for row in rows]


SOURCES = {
    'folder': folder,
    'manifest': manifest,
    'records': records.records,
    'tfds': tfds_source.Tfds,
    'synthetic': Synthetic,
    'demo': demo,
}
