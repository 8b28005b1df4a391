"""metrics.jsonl: the record of a run, one line of numbers per log step.

Strict JSON, {"step": 50, "time": seconds since 1970, "train/loss": ...}. It
is cut back to the checkpoint on resume, so that a run that was killed and
started again leaves the steps and losses of one that ran through; times, speeds
and counts of bad files are each process' own. For that a step is logged before
its checkpoint is saved.
"""

import json
import math
import os
import pathlib
import time

from absl import logging

NAME = 'metrics.jsonl'


class Record:
  """Appends to the record at `path`, without what follows `resume_step`."""

  def __init__(self, path: str | os.PathLike, resume_step: int):
    path = pathlib.Path(path)
    if path.exists():
      _cut(path, resume_step)
    # Unbuffered, and a line is a single write: after it the line is the
    # operating system's, which a killed process cannot take back.
    self._file = open(path, 'ab', buffering=0)

  def scalars(self, step: int, values: dict[str, float]) -> None:
    line = {'step': step, 'time': round(time.time(), 3)}
    line |= {name: _encode(value) for name, value in values.items()}
    line = memoryview(json.dumps(line, allow_nan=False).encode() + b'\n')
    try:
      while line:  # a raw file may take only a part
        line = line[self._file.write(line):]
    except OSError as error:
      error.filename = self._file.name
      raise

  def image(self, step, name, rgb):
    pass  # the pictures are files of their own

  def flush(self):
    os.fsync(self._file.fileno())

  def close(self):
    self._file.close()


def read(path: str | os.PathLike) -> list[dict]:
  """The record's lines; a line torn by a kill is left out."""
  lines = pathlib.Path(path).read_bytes().split(b'\n')
  return [record for record in map(_parse, lines) if record is not None]


def _cut(path, resume_step):
  """Drops lines after `resume_step` and torn ones; all or nothing, if killed.

  With no checkpoint to resume from (0) nothing stays, not even an evaluation
  at step 0, which the new run makes again.
  """
  old = path.read_bytes()
  kept, torn = [], 0
  for line in old.split(b'\n'):
    record = _parse(line)
    if record is None:
      torn += bool(line.strip())
    elif resume_step > 0 and record['step'] <= resume_step:
      kept.append(line + b'\n')
  new = b''.join(kept)
  if torn:
    logging.warning('Dropped %d incomplete line(s) of %s.', torn, path)
  if new == old:
    return
  temporary = path.with_name(path.name + '.tmp')
  with open(temporary, 'wb') as file:
    file.write(new)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)


def _parse(line: bytes) -> dict | None:
  """One line of the record, or None if it is blank or not whole."""
  try:
    record = json.loads(line)
    return {'step': int(record['step'])} | {
        name: float(value) for name, value in record.items() if name != 'step'}
  except (ValueError, TypeError, LookupError, OverflowError):
    return None


def _encode(value: float) -> float | str:
  """JSON has no NaN; these words are protobuf's, and `float` reads them."""
  if math.isnan(value):
    return 'NaN'
  if math.isinf(value):
    return 'Infinity' if value > 0 else '-Infinity'
  return value
