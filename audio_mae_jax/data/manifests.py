"""Lists of audio files: CSV, JSONL, and the JSON of the AST code base.

    CSV    a header line with `path` and, where wanted, `label` (one name) or
           `labels` (several, separated by ';' or ','), `split`, `start_s`,
           `duration_s`; other columns are ignored
    JSONL  one object per line with the same keys; `labels` may be a list
    JSON   {"data": [{"wav": path, "labels": "/m/a,/m/b"}]}, whose labels are
           named by a class_labels_indices.csv with index, mid, display_name
"""

import csv
import dataclasses
import json
import math
import os
import re

from audio_mae_jax import config


@dataclasses.dataclass(frozen=True)
class Row:
  """One clip: where it is and what it is called."""
  path: str  # as written in the manifest
  labels: tuple[str, ...] = ()
  split: str = ''
  start_s: float = 0.0
  duration_s: float | None = None  # None: to the end of the file


def read(path: str) -> list[Row]:
  """The rows of the manifest at `path`, in its order."""
  if not os.path.isfile(path):
    raise FileNotFoundError(
        f'No manifest at {path}. Put one there, or name another: a '
        f'{", ".join(FORMATS)} file that lists audio files.')
  suffix = os.path.splitext(path)[1].lower()
  rows = config.lookup(FORMATS, suffix, f'{path}: suffix')(path)
  if not rows:
    raise ValueError(f'The manifest {path} has no rows.')
  return rows


def read_classes(path: str) -> tuple[list[str], list[str]]:
  """Class ids and their display names, in the order of the index column."""
  if not os.path.isfile(path):
    raise FileNotFoundError(
        f'No class table at {path}. Put a class_labels_indices.csv there, or '
        'leave labels_csv empty to take the labels from the manifest.')
  with open(path, encoding='utf-8-sig', newline='') as file:
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
  with open(path, encoding='utf-8-sig', newline='') as file:
    reader = csv.DictReader(file)
    if 'path' not in (reader.fieldnames or ()):
      raise ValueError(
          f'{path} has no column "path"; its first line names '
          f'{", ".join(reader.fieldnames or ()) or "nothing"}. A CSV manifest '
          'needs a header with path and may have label or labels, split, '
          'start_s and duration_s.')
    return [_row(entry, f'{path}, line {reader.line_num}') for entry in reader]


def _jsonl(path):
  rows = []
  with open(path, encoding='utf-8-sig') as file:
    for number, line in enumerate(file, 1):
      if line.strip():
        rows.append(_row(_parse(line, f'{path}, line {number}'),
                         f'{path}, line {number}'))
  return rows


def _json(path):
  with open(path, encoding='utf-8-sig') as file:
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
      split=str(entry.get('split') or ''),
      start_s=_seconds(entry, 'start_s', where) or 0.0,
      duration_s=_seconds(entry, 'duration_s', where))


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
