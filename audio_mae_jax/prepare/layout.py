"""What a reader of a data set returns, and how it asks for a part on disk."""

from collections.abc import Callable
import csv
import dataclasses
import os

from audio_mae_jax.data import manifests


@dataclasses.dataclass(frozen=True)
class Found:
  """A data set as it should be; whether its files can be used is not known.

  Paths of rows are absolute. `expected` are the published numbers of clips, by
  split ('': all); parts of recordings do not count. `train` are the splits to
  measure the level on (empty: all rows). `finish` makes the manifest's rows
  from those whose clips are good, for instance to balance them.
  """
  rows: list[manifests.Row]
  expected: dict[str, int] = dataclasses.field(default_factory=dict)
  class_ids: list[str] | None = None  # in the official order, if there is one
  class_names: list[str] | None = None
  train: tuple[str, ...] = ('train',)
  finish: Callable[[list], list] | None = None
  note: str = ''  # a sentence for the summary


def need(place: str, part: str, what: str, home: str) -> str:
  """The path of `part` of the data set in folder `place`.

  Raises:
    FileNotFoundError: it is not there; says what it is and where to get it.
  """
  path = os.path.join(place, part)
  if not os.path.exists(path):
    raise FileNotFoundError(
        f'No {path}, which is {what}. Get it from {home} and unpack it there; '
        'docs/data.md shows the whole layout.')
  return path


def inside(place: str, name: str) -> str:
  """`place`/`name` if that is a folder (an archive brought it), or `place`."""
  nested = os.path.join(place, name)
  return nested if os.path.isdir(nested) else place


def read_csv(path: str, columns: tuple[str, ...]) -> list[dict[str, str]]:
  """The rows of a CSV with a header that has `columns`, or a ValueError."""
  with open(path, encoding='utf-8-sig', newline='') as file:
    reader = csv.DictReader(file)
    there = reader.fieldnames or ()
    missing = [name for name in columns if name not in there]
    if missing:
      raise ValueError(
          f'{path} lacks the column {missing[0]!r}; its first line names '
          f'{", ".join(there) or "nothing"}. Is it the file as published?')
    return list(reader)


def read_lines(path: str) -> list[str]:
  """The lines of a text file that are not empty."""
  with open(path, encoding='utf-8-sig') as file:
    return [line.strip() for line in file if line.strip()]
