"""Clips at rest: a folder of array_record files and an index.

`python -m audio_mae_jax.prepare records` writes them, of any other source:

    index.json                          what is in them; written last
    clips-00000-of-00042.array_record   one record a clip, uncompressed

A record is one channel at the rate that the index gives: 16-bit little-endian
samples ('pcm16'), or a FLAC file of such samples ('flac'). array_record keeps a
checksum of each record and compares it whenever the record is read; the index
has the size and the SHA-256 of each shard. Columns of the index say of each
clip of the source, in its order, which record it is: a clip that is listed
twice is one record.
"""

import dataclasses
import hashlib
import json
import os

from array_record.python import array_record_data_source
import numpy as np

from audio_mae_jax import storage
from audio_mae_jax.data import files
from audio_mae_jax.data import manifests
from audio_mae_jax.data import recordings

INDEX = 'index.json'
FORMAT, VERSION = 'audio_mae_jax records', 1
# What audio_io.load takes, of the bytes of a record.
ENCODINGS = {
    'pcm16': lambda record: np.frombuffer(record, '<i2'),
    'flac': lambda record: record,
}
SAMPLE_BYTES = 2
# Of index['clips']: lists with an entry for each clip.
COLUMNS = ('id', 'labels', 'split', 'fold', 'record', 'file', 'start_s')
_SHOWN = 3  # shards in a message


@dataclasses.dataclass(frozen=True, slots=True)
class Clip:
  """A record, or a part of one."""
  name: str
  path: str  # the name of the whole record
  labels: tuple[int, ...]
  split: str
  fold: str
  record: int  # its place in all shards, one after another
  file: int  # of the source: clips of one file share the number
  start_s: float  # of the record, in that file
  start: int  # of the part, in samples of the record
  num_samples: int  # of the part


class Records(files.Source):
  """`clips` of the folder of records `place`; safe in threads."""

  def __init__(self, place: str, index: dict, clips: list[Clip],
               class_names: list[str], title: str):
    self.title, self.class_names = title, class_names
    self.num_files = len({clip.record for clip in clips})
    self._place, self._clips = place, clips
    self._rate_hz = index['sample_rate_hz']
    self._encoding = index['encoding']
    self._num_samples = index['num_samples']
    shards = index['shards']
    self._shards = [shard['name'] for shard in shards]
    self._stops = np.cumsum([shard['records'] for shard in shards])
    # Told how many records there are, it opens a shard when it is needed.
    self._records = array_record_data_source.ArrayRecordDataSource([
        f'{os.path.join(place, shard["name"])}[0:{shard["records"]}]'
        for shard in shards])

  def __len__(self):
    return len(self._clips)

  def __getitem__(self, i):
    """As in every source; raises BadAudio if the record is damaged."""
    clip = self._clips[i]
    return {'audio': ENCODINGS[self._encoding](self._read(clip.record)),
            'id': clip.name, 'sample_rate_hz': self._rate_hz,
            'start_s': clip.start / self._rate_hz,
            'duration_s': clip.num_samples / self._rate_hz,
            'labels': clip.labels}

  def name_of(self, i):
    return self._clips[i].name

  def file_of(self, i):
    return self._clips[i].path

  def labels_of(self, i):
    return self._clips[i].labels

  def place_of(self, i):
    clip = self._clips[i]
    start_s = clip.start_s + clip.start / self._rate_hz
    return (f'{self._place}/{clip.file}', start_s,
            start_s + clip.num_samples / self._rate_hz)

  def split_of(self, i):
    return self._clips[i].split, self._clips[i].fold

  def _read(self, record):
    name = self._shards[np.searchsorted(self._stops, record, side='right')]
    try:
      content = self._records[record]
    except (RuntimeError, ValueError) as error:
      if 'open() failed' in str(error):  # of no file: too many, or it is gone
        raise OSError(
            f'{os.path.join(self._place, name)} cannot be opened: {error}. It '
            'was there at the start; each shard that is read stays open '
            '(`ulimit -n`).') from error
      raise recordings.BadAudio(
          f'damaged, in {name}: {_short(error)}') from error
    held = len(content) // SAMPLE_BYTES
    if self._encoding == 'pcm16' and held != self._num_samples[record]:
      raise recordings.BadAudio(
          f'{held} samples in {name}, {self._num_samples[record]} in {INDEX}')
    return content


def records(data, where, *, path, split, folds, classes, segment_s):
  """The clips of a folder of records."""
  place = files.resolve(data, path, f'{where}.path', 'the folder of records')
  index, digest = read_index(place, f'{where}.path')
  clips = manifests.choose(clips_of(index), split, folds, place, where)
  names = index['class_names']
  clips, names = files.only(clips, names, names, classes, where)
  return Records(
      place, index, _segments(clips, segment_s, index['sample_rate_hz']), names,
      f'records {place} ({digest})')


def read_index(place: str, where: str) -> tuple[dict, str]:
  """The index of the folder `place`, and a mark that tells it from others.

  Raises ValueError or FileNotFoundError for an address, a folder without an
  index, another format, or shards that are missing or of another size; `where`
  is the setting to correct.
  """
  if storage.is_remote(place):
    raise ValueError(
        f'{place} is an address, and array_record reads files of this machine '
        'alone. Copy the folder to its disk (gcloud storage rsync -r, aws s3 '
        'sync), or mount the bucket (gcsfuse, mount-s3), and give that folder '
        f'as {where}.')
  path = os.path.join(place, INDEX)
  if not os.path.isfile(path):
    raise FileNotFoundError(
        f'No {path}: {place} is no folder of records, or one that is not '
        'finished. `python -m audio_mae_jax.prepare records` writes one, and '
        'goes on where it was stopped.')
  with open(path, 'rb') as file:
    content = file.read()
  try:
    index = json.loads(content)
    known = index['format'], index['version']
  except (ValueError, TypeError, KeyError) as error:
    raise ValueError(
        f'{path} is not an index of records: {error!r}.') from error
  if known != (FORMAT, VERSION):
    raise ValueError(
        f'{path} has format {known[0]!r}, version {known[1]}; this code reads '
        f'{FORMAT!r}, version {VERSION}. Write the records again.')
  _check_shards(place, index['shards'])
  return index, hashlib.sha256(content).hexdigest()[:8]


def _check_shards(place, shards):
  """Raises if shards are missing or cut; what is in them is read later."""
  missing, other = [], []
  for shard in shards:
    path = os.path.join(place, shard['name'])
    if not os.path.isfile(path):
      missing.append(shard['name'])
    elif os.path.getsize(path) != shard['bytes']:
      other.append(f'{shard["name"]} ({os.path.getsize(path):,} bytes, not '
                   f'{shard["bytes"]:,})')
  for found, what, kind in (
      (missing, 'lacks', FileNotFoundError),
      (other, 'has files of another size than written', ValueError)):
    if found:
      raise kind(
          f'{place} {what}: {", ".join(found[:_SHOWN])}'
          f'{f" and {len(found) - _SHOWN} more" if found[_SHOWN:] else ""}, of '
          f'{len(shards)} shards. Copy the folder again.')


def clips_of(index: dict) -> list[Clip]:
  """All clips of an index, whole."""
  return [
      Clip(name, name, tuple(labels), split, fold, record, file, start_s, 0,
           index['num_samples'][record])
      for name, labels, split, fold, record, file, start_s in zip(
          *(index['clips'][key] for key in COLUMNS), strict=True)]


def _segments(clips, segment_s, rate_hz):
  """Parts of `segment_s`, as `files.segment` cuts; 0 leaves clips whole."""
  if not segment_s:
    return clips
  parts = []
  for clip in clips:
    total = clip.num_samples
    count = max(int(total / rate_hz / segment_s + 0.5), 1)
    cuts = [round(i * segment_s * rate_hz) for i in range(count)] + [total]
    for i in range(count):
      name = f'{clip.name}+{i * segment_s:g}s' if count > 1 else clip.name
      parts.append(dataclasses.replace(
          clip, name=name, start=cuts[i], num_samples=cuts[i + 1] - cuts[i]))
  return parts


def _short(error):
  """What array_record says, without what follows it: places and numbers."""
  return str(error).split(' (')[0].split(';')[0]
