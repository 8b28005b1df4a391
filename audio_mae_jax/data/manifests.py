"""Lists of audio files: CSV, JSONL, and the JSON of the AST code base.

    CSV    a header line with `path` and, where wanted, `label` (one name) or
           `labels` (several, separated by ';' or ','), `split`, `fold`,
           `start_s`, `duration_s`; other columns are ignored
    JSONL  one object per line with the same keys; `labels` may be a list
    JSON   {"data": [{"wav": path, "labels": "/m/a,/m/b"}]}, whose labels are
           named by a class_labels_indices.csv with index, mid, display_name
"""

import contextlib
import contextvars
import csv
import dataclasses
import json
import math
import os
import re

from audio_mae_jax import registry
from audio_mae_jax import storage

_PROBED = 100  # rows that are looked for on disk to find where paths start
_parsed = contextvars.ContextVar('rows by path', default=None)


@dataclasses.dataclass(frozen=True)
class Row:
  """One clip: where it is and what it is called."""
  path: str  # as written in the manifest
  labels: tuple[str, ...] = ()
  split: str = ''
  fold: str = ''  # of a cross-validation
  start_s: float = 0.0
  duration_s: float | None = None  # None: to the end of the file


@contextlib.contextmanager
def parsed_once():
  """In the block, or function, each manifest is parsed at its first use alone.

  Several splits are often of one file, and AudioSet's takes 20 s. Its rows stay
  in memory for no longer than that.
  """
  if _parsed.get() is not None:  # a block within another
    yield
    return
  token = _parsed.set({})
  try:
    yield
  finally:
    _parsed.reset(token)


def read(path: str) -> list[Row]:
  """The rows of the manifest at `path`, in its order; not to be changed."""
  parsed = _parsed.get()
  if parsed is None:
    return _read(path)
  if path not in parsed:
    parsed[path] = _read(path)
  return parsed[path]


def _read(path):
  if not storage.is_file(path):
    raise FileNotFoundError(
        f'No manifest at {path}. Put one there, or name another: a '
        f'{", ".join(FORMATS)} file that lists audio files.')
  suffix = os.path.splitext(path)[1].lower()
  rows = registry.lookup(FORMATS, suffix, f'{path}: suffix')(path)
  if not rows:
    raise ValueError(f'The manifest {path} has no rows.')
  return rows


def choose(rows: list[Row], split: str, folds: str, place: str,
           where: str) -> list[Row]:
  """The rows of `split` (several: 'a+b') and `folds` ('1,2', or not: '!1').

  Empty takes all. `place` is the manifest and `where` the group of settings,
  for the ValueError that says which of the two left nothing.
  """
  if split:
    splits = sorted({row.split for row in rows})
    wanted = {split} if split in splits else set(split.split('+'))
    for name in sorted(wanted - set(splits)):
      raise ValueError(
          f'{place} has no rows of split {name!r}; its splits are '
          f'{", ".join(map(repr, splits))}. Set {where}.split to one of them, '
          "or to several ('a+b').")
    rows = [row for row in rows if row.split in wanted]
  if folds:
    kept = [row for row in rows if _in(folds, row.fold)]
    known = sorted({row.fold for row in rows} - {''}, key=_by_number)
    wrong = [fold for fold in _names(folds) if fold not in known]
    if wrong or not kept:
      raise ValueError(_no_folds(f'{where}.folds={folds!r}', wrong, known,
                                 place, split))
    loose = [row.path for row in kept if not row.fold]
    if loose:
      raise ValueError(
          f'{where}.folds={folds!r}, and {len(loose)} rows of {place} have no '
          f'fold, the first of them {loose[0]}: they would be trained on in '
          'every fold and tested in none. Give them a fold, or a split of '
          'their own to leave them out.')
    rows = kept
  return rows


def _names(folds):
  return [name.strip() for name in folds.removeprefix('!').split(',')]


def _in(folds, fold):
  return (fold in _names(folds)) != folds.startswith('!')


def _by_number(fold):
  return len(fold), fold


def _no_folds(setting, wrong, known, place, split):
  of = f' of split {split!r}' if split else ''
  if not known:
    return (f'{setting}, but the rows{of} in {place} have no folds. Give it a '
            'column "fold", or leave the setting empty.')
  if wrong:
    return (f"{setting}: {place} has no fold {wrong[0]!r}{of}; it has "
            f"{', '.join(known)}. Name some ('1,2'), or all but some ('!1').")
  return (f'{setting} leaves no row{of} of {place}: its folds are '
          f'{", ".join(known)}.')


def base_of(rows: list[Row], place: str, bases: list[str]) -> str:
  """The first of the folders `bases` in which one of the first rows exists.

  A few missing files are bad files, to be counted and reported; when all are
  missing the folder is wrong, and that is worth a FileNotFoundError at once.
  """
  for base in bases:
    if any(storage.exists(storage.join(base, row.path))
           for row in rows[:_PROBED]):
      return base
  looked = dict.fromkeys(storage.join(base, rows[0].path) for base in bases)
  raise FileNotFoundError(
      f'None of the first {len(rows[:_PROBED])} files in {place} exists; '
      f'looked for {" and ".join(looked)}. Paths in a manifest are absolute, '
      'or start at its own folder or at config.data.root (or '
      '$AUDIO_MAE_DATA).')


def write(path: str, rows: list[Row]):
  """Writes `rows` as a CSV manifest, with the columns that they need.

  Raises ValueError for a row that CSV cannot hold: one of several labels, one
  of which has a comma or a semicolon.
  """
  several = any(len(row.labels) > 1 for row in rows)
  columns = ['path', 'labels' if several else 'label']
  columns += [name for name in ('split', 'fold', 'start_s', 'duration_s')
              if any(getattr(row, name) for row in rows)]
  entries = []
  for row in rows:
    if several and any(re.search('[;,]', label) for label in row.labels):
      raise ValueError(
          f'{row.path} has the labels {row.labels}; in a manifest of several '
          'labels per clip they are separated by ; or , and cannot hold one. '
          'Rename them.')
    entry = dataclasses.asdict(row)
    labels = ';'.join(row.labels)
    entries.append(entry | {'label': labels, 'labels': labels})
  _write_csv(path, columns, entries)


def write_classes(path: str, ids: list[str], names: list[str]):
  """Writes a class table, which `read_classes` reads."""
  _write_csv(path, ['index', 'mid', 'display_name'], [
      dict(index=index, mid=mid, display_name=name)
      for index, (mid, name) in enumerate(zip(ids, names, strict=True))])


def _write_csv(path, columns, entries):
  partial = f'{path}.partial'
  with open(partial, 'w', encoding='utf-8', newline='') as file:
    writer = csv.DictWriter(
        file, columns, extrasaction='ignore', lineterminator='\n')
    writer.writeheader()
    writer.writerows(entries)
  os.replace(partial, path)


def read_classes(path: str) -> tuple[list[str], list[str]]:
  """Class ids and their display names, in the order of the index column."""
  if not storage.is_file(path):
    raise FileNotFoundError(
        f'No class table at {path}. Put a class_labels_indices.csv there, or '
        'leave labels_csv empty to take the labels from the manifest.')
  with storage.open_text(path) as file:
    reader = csv.DictReader(file)
    missing = {'index', 'mid', 'display_name'} - set(reader.fieldnames or ())
    if missing:
      raise ValueError(
          f'{path} lacks the columns {", ".join(sorted(missing))}; it needs '
          'index, mid and display_name.')
    rows = list(reader)
  for row in rows:
    if not row['index'].isdecimal():
      raise ValueError(f'{path}: index {row["index"]!r} is not a number.')
  table = sorted(
      (int(row['index']), row['mid'], row['display_name']) for row in rows)
  if [index for index, _, _ in table] != list(range(len(table))):
    raise ValueError(f'The index column of {path} does not count 0, 1, 2, ...')
  return [mid for _, mid, _ in table], [name for _, _, name in table]


def _csv(path):
  with storage.open_text(path) as file:
    reader = csv.DictReader(file)
    if 'path' not in (reader.fieldnames or ()):
      raise ValueError(
          f'{path} has no column "path"; its first line names '
          f'{", ".join(reader.fieldnames or ()) or "nothing"}. A CSV manifest '
          'needs a header with path and may have label or labels, split, '
          'fold, start_s and duration_s.')
    return [_row(entry, f'{path}, line {reader.line_num}') for entry in reader]


def _jsonl(path):
  rows = []
  with storage.open_text(path) as file:
    for number, line in enumerate(file, 1):
      if line.strip():
        rows.append(_row(_parse(line, f'{path}, line {number}'),
                         f'{path}, line {number}'))
  return rows


def _json(path):
  with storage.open_text(path) as file:
    content = _parse(file.read(), path)
  if not isinstance(content.get('data'), list):
    raise ValueError(
        f'{path} is not {{"data": [{{"wav": ..., "labels": ...}}, ...]}}. '
        'Save one object per line with the suffix .jsonl instead?')
  return [_row(entry, f'{path}, entry {number}')
          for number, entry in enumerate(content['data'])]


def _parse(text, where):
  try:
    content = json.loads(text)
  except json.JSONDecodeError as error:
    raise ValueError(f'{where} is not JSON: {error}.') from error
  if not isinstance(content, dict):
    raise ValueError(f'{where} is not a JSON object but {text[:60]!r}.')
  return content


def _row(entry, where):
  if not isinstance(entry, dict):
    raise ValueError(f'{where} is not an object: {entry!r}.')
  path = entry.get('path') or entry.get('wav')
  if not isinstance(path, str):
    raise ValueError(f'{where} has no path: {entry!r}.')
  labels = entry.get('labels')
  if isinstance(labels, str):
    labels = [label.strip() for label in re.split('[;,]', labels)]
  elif not isinstance(labels, list):  # one number, or none
    labels = [labels]
  labels = [*labels, entry.get('label')]
  return Row(
      path=path,
      labels=tuple(str(label) for label in labels if label not in (None, '')),
      split=_text(entry.get('split')),
      fold=_text(entry.get('fold')),
      start_s=_seconds(entry, 'start_s', where) or 0.0,
      duration_s=_seconds(entry, 'duration_s', where))


def _text(value):
  return '' if value is None else str(value).strip()  # 0 is a fold's name


def _seconds(entry, key, where):
  value = entry.get(key)
  if value is None or value == '':
    return None
  try:
    seconds = float(value)
  except (TypeError, ValueError):
    seconds = math.nan
  if not 0 <= seconds < math.inf:
    raise ValueError(f'{where}: {key} is {value!r}, not a number of seconds.')
  return seconds


FORMATS = {'.csv': _csv, '.jsonl': _jsonl, '.json': _json}
