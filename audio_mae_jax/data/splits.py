"""A split of the data: its clips, and the report of what could not be read."""

import dataclasses

from audio_mae_jax import config as config_lib
from audio_mae_jax.data import files
from audio_mae_jax.data import report as report_lib
from audio_mae_jax.data import sources


class Chosen(files.Source):
  """Some clips of another source."""

  def __init__(self, source: files.Source, indices: list[int]):
    self.title, self.class_names = source.title, source.class_names
    self.num_files = source.num_files
    self._source, self._indices = source, indices

  def __len__(self):
    return len(self._indices)

  def __getitem__(self, i):
    return self._source[self._indices[i]]

  def name_of(self, i):
    return self._source.name_of(self._indices[i])


@dataclasses.dataclass(frozen=True)
class Split:
  """`source` gives clips; `report` notes those that cannot be used."""
  source: files.Source
  report: report_lib.BadFiles

  @classmethod
  def open(cls, settings: config_lib.Source, data: config_lib.Data,
           where: str) -> 'Split | None':
    """The split that the group of settings `where` describes; None: none."""
    if not settings.name:
      return None
    source = sources.make(settings, data, where)
    return cls(source, report_lib.BadFiles(source.num_files, data))

  def spread(self, count: int) -> 'Split':
    """`count` clips from all over the split, always the same."""
    total = len(self.source)
    indices = [i * total // count for i in range(count)][:total]
    return Split(Chosen(self.source, sorted(set(indices))), self.report)
