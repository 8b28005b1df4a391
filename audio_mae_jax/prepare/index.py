"""The index of a folder of records: clips, shards, bad files, statistics."""

import collections
import json

from audio_mae_jax.data import files
from audio_mae_jax.data import records
from audio_mae_jax.prepare import report
from audio_mae_jax.prepare import shards


def distinct(source: files.Source) -> tuple[list[int], list[int]]:
  """The clips of `source` that differ, and for each clip which of them it is.
  """
  first, clips, number_of = {}, [], []
  for i in range(len(source)):
    key = source.place_of(i) or i
    if key not in first:
      first[key] = len(clips)
      clips.append(i)
    number_of.append(first[key])
  return clips, number_of


def make(source: files.Source, settings: shards.Settings,
         written: dict[str, dict], plan: dict) -> dict:
  """The index of the shards `written`, by name; the level is still to be added.

  Raises ValueError if none of the clips can be used.
  """
  clips, number_of = distinct(source)
  record_of, bad, clipped = _outcome(source, clips, settings, written)
  if not record_of:
    name, reason = next(iter(bad.items()))
    raise ValueError(f'None of the {len(clips):,} clips can be used; the '
                     f'first, {name}: {reason}.')
  index = {
      'format': records.FORMAT, 'version': records.VERSION,
      'source': source.describe(), 'plan': plan,
      'sample_rate_hz': settings.sample_rate_hz, 'encoding': settings.encoding,
      'report': {},
      'class_names': source.class_names,
      'shards': [
          {'name': name, **{key: shard[key]
                            for key in ('records', 'bytes', 'sha256')}}
          for name, shard in written.items()],
      'num_samples': [
          n for shard in written.values() for n in shard['num_samples']],
      'clips': _columns(source, number_of, record_of)}
  index['report'] = _report(index, bad, clipped)
  return index


def _outcome(source, clips, settings, written):
  """The record of each clip by its number, and names of the bad and clipped."""
  record_of, bad, clipped = {}, {}, []
  size = settings.clips_per_shard
  for k, shard in enumerate(written.values()):
    for place, i in enumerate(clips[k * size:(k + 1) * size]):
      if str(place) in shard['bad']:
        bad[source.name_of(i)] = shard['bad'][str(place)]
      else:
        record_of[k * size + place] = len(record_of)
    clipped += [source.name_of(clips[k * size + place])
                for place in shard['clipped']]
  return record_of, bad, clipped


def _columns(source, number_of, record_of):
  columns = {key: [] for key in records.COLUMNS}
  numbers = {}
  for i, number in enumerate(number_of):
    if number in record_of:
      path, start_s, _ = source.place_of(i) or (number, 0.0, 0.0)
      row = (source.name_of(i), source.labels_of(i), *source.split_of(i),
             record_of[number], numbers.setdefault(path, len(numbers)), start_s)
      for key, value in zip(records.COLUMNS, row, strict=True):
        columns[key].append(value)
  return columns


def _report(index, bad, clipped):
  """As of a data set (report.py), of what was written."""
  clips = records.clips_of(index)
  seconds = [n / index['sample_rate_hz'] for n in index['num_samples']]
  splits = collections.Counter(clip.split for clip in clips)
  classes = collections.Counter(
      label for clip in clips for label in clip.labels)
  return {
      'splits': {name: {'clips': count, 'files': count, 'published': None,
                        'rows': count} for name, count in splits.items()},
      'folds': dict(sorted(collections.Counter(
          clip.fold for clip in clips if clip.fold).items())),
      'hours': round(sum(seconds) / 3600, 4),
      'duration_s': report.spread(seconds),
      'sample_rates_hz': {str(index['sample_rate_hz']): len(seconds)},
      'missing': sorted(
          name for name, why in bad.items() if why == 'no such file'),
      'broken': {name: why for name, why in sorted(bad.items())
                 if why != 'no such file'},
      'clipped': sorted(clipped),
      'unlabelled': sum(not clip.labels for clip in clips),
      'clips_per_class': report.spread(
          [classes[c] for c in range(len(index['class_names']))]),
      'classes': {name: classes[c]
                  for c, name in enumerate(index['class_names'])},
      'note': clipped and (
          f'{len(clipped):,} records were louder than full scale and are '
          f'clipped, e.g. {clipped[0]}.') or '',
  }


def text(index: dict) -> str:
  """JSON with a line for each entry: the columns are long."""
  lines = [f'{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}'
           for key, value in index.items()]
  return '{' + ',\n'.join(lines) + '}\n'
