"""What was found in a data set: a dict for report.json, lines for people."""

import collections
import statistics

from audio_mae_jax.data import manifests
from audio_mae_jax.prepare import check
from audio_mae_jax.prepare import layout
from audio_mae_jax.prepare import levels

_LISTED = 10  # files or classes in the summary; the report has all


def make(found: layout.Found, good: dict[manifests.Row, check.Clip],
         rows: list[manifests.Row], missing: set[manifests.Row],
         broken: dict[manifests.Row, str], level: levels.Level | None) -> dict:
  """The report, of plain JSON types.

  `good` are the clips that can be used, `rows` those of the manifest (clips may
  be repeated), `missing` those without a file, `broken` the other bad ones with
  their reasons.
  """
  durations = [clip.duration_s for clip in good.values()]
  rates = collections.Counter(clip.rate_hz for clip in good.values())
  return {
      'splits': _splits(found, good, rows),
      'folds': dict(sorted(collections.Counter(
          row.fold for row in good if row.fold).items())),
      'hours': round(sum(durations) / 3600, 4),
      'duration_s': spread(durations),
      'sample_rates_hz': {
          str(rate): count for rate, count in rates.most_common()},
      'missing': sorted({row.path for row in missing}),
      'broken': dict(sorted(
          (_name(row), reason) for row, reason in broken.items())),
      'unlabelled': sum(not row.labels for row in good),
      'clips_per_class': spread(list(_classes(found, good).values())),
      'classes': _classes(found, good),
      'frontend': level and {'mean': level.mean, 'std': level.std,
                             'clips': level.clips, 'frames': level.frames},
      'note': found.note,
  }


def _name(row):
  return f'{row.path}@{row.start_s:g}s' if row.start_s else row.path


def _splits(found, good, rows):
  """Clips found by split, those published, and the manifest's rows."""
  # Published counts are of files: parts of recordings are this project's own.
  clips = collections.Counter(row.split for row in good)
  whole = collections.Counter(
      row.split for row in good if row.duration_s is None)
  listed = collections.Counter(row.split for row in rows)
  names = [*found.expected, *sorted(set(clips) - set(found.expected))]
  return {name: {'clips': clips[name], 'files': whole[name],
                 'published': found.expected.get(name),
                 'rows': listed[name]} for name in names}


def _classes(found, good):
  """Clips by class, also of classes that have none, by display name."""
  count = collections.Counter(label for row in good for label in row.labels)
  ids = found.class_ids or sorted(count)
  names = found.class_names or ids
  return {name: count[key] for key, name in zip(ids, names, strict=True)}


def spread(values: list) -> dict | None:
  """Least, median and most of `values`; None of none."""
  if not values:
    return None
  return {'min': min(values), 'median': statistics.median(values),
          'max': max(values)}


def lines(report: dict) -> list[str]:
  """The summary of `report`."""
  told = [f'  {_split_line(name, split)}'
          for name, split in report['splits'].items()]
  if report['folds']:
    told.append('  folds: ' + ', '.join(
        f'{name} ({count:,})' for name, count in report['folds'].items()))
  if report['note']:
    told.append(f'  {report["note"]}')
  told += _bad_lines(report)
  classes, spread = report['classes'], report['clips_per_class']
  if spread:
    told.append(
        f'  {len(classes)} classes of {spread["min"]:,} to {spread["max"]:,} '
        f'clips, median {spread["median"]:,g}')
    empty = [name for name, count in classes.items() if not count]
    if empty:
      told.append(f'  without clips: {_some(empty)}')
  if report['unlabelled']:
    told.append(f'  without a label: {report["unlabelled"]:,} clips')
  spread = report['duration_s']
  told.append(
      f'  {report["hours"]:.2f} h; clips of {spread["min"]:.2f} to '
      f'{spread["max"]:.2f} s, median {spread["median"]:.2f} s; ' + ', '.join(
          f'{rate} Hz ({count:,})'
          for rate, count in report['sample_rates_hz'].items()))
  if report['frontend']:
    level = report['frontend']
    told.append(
        f'  log-mel of {level["clips"]:,} clips ({level["frames"]:,} frames): '
        f'--config.frontend.mean={level["mean"]:.7g} '
        f'--config.frontend.std={level["std"]:.7g}')
  return told


def _split_line(name, split):
  text = f'{name or "all"}: {split["clips"]:,} clips'
  published, files = split['published'], split['files']
  if published is not None and files != published:
    text += (f'; {files:,} files, {published:,} published '
             f'({files - published:+,})')
  elif published is not None:
    text += ', as published' if files == split['clips'] else (
        f'; {files:,} files, as published')
  if split['rows'] != split['clips']:
    text += f', {split["rows"]:,} rows with repeats'
  return text


def _bad_lines(report):
  """Clips that are left out, by name."""
  told = []
  if report['missing']:
    told.append(f'  missing: {len(report["missing"]):,} files, e.g. '
                f'{_some(report["missing"], 3)}')
  if report['broken']:
    told.append(f'  broken, left out: {len(report["broken"]):,}')
    told += [f'    {path}: {reason}'
             for path, reason in list(report['broken'].items())[:_LISTED]]
    if len(report['broken']) > _LISTED:
      told.append(f'    and {len(report["broken"]) - _LISTED:,} more, all in '
                  'the report')
  return told


def _some(names, count=_LISTED):
  more = len(names) - count
  return ', '.join(names[:count]) + (f' and {more:,} more' if more > 0 else '')
