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

  def file_of(self, i):
    return self._source.file_of(self._indices[i])

  def labels_of(self, i):
    return self._source.labels_of(self._indices[i])

  def place_of(self, i):
    return self._source.place_of(self._indices[i])

  def split_of(self, i):
    return self._source.split_of(self._indices[i])


class Relabelled(files.Source):
  """Another source, its labels numbered as in another list of classes."""

  def __init__(self, source: files.Source, class_names: list[str], where: str):
    self.title, self.class_names = source.title, list(class_names)
    self.num_files = source.num_files
    self._source = source
    places = {name: i for i, name in enumerate(class_names)}
    self._number = [places.get(name) for name in source.class_names]
    used = {label for i in range(len(source)) for label in source.labels_of(i)}
    missing = sorted(source.class_names[label] for label in used
                     if self._number[label] is None)
    if missing:
      raise ValueError(
          f'{where} has labels that are missing from the class list: '
          f'{some(missing)}. The list has {len(class_names)} classes, '
          f'{some(class_names)}. Correct the labels, leave those clips out '
          f'(--{where}.classes), or train with them.')

  def __len__(self):
    return len(self._source)

  def __getitem__(self, i):
    item = self._source[i]
    return item | {'labels': self._renumbered(item['labels'])}

  def name_of(self, i):
    return self._source.name_of(i)

  def file_of(self, i):
    return self._source.file_of(i)

  def labels_of(self, i):
    return self._renumbered(self._source.labels_of(i))

  def place_of(self, i):
    return self._source.place_of(i)

  def split_of(self, i):
    return self._source.split_of(i)

  def _renumbered(self, labels):
    return tuple(self._number[label] for label in labels)


def some(names, count=5) -> str:
  """The first few of `names`, and how many more there are."""
  shown = ', '.join(map(repr, names[:count]))
  return shown + (f' and {len(names) - count} more' if len(names) > count
                  else '')


@dataclasses.dataclass(frozen=True)
class Split:
  """`source` gives clips; `report` notes those that cannot be used."""
  source: files.Source
  report: report_lib.BadFiles

  @classmethod
  def open(cls, settings: config_lib.Source, data: config_lib.Data,
           where: str, class_names: list[str] | None = None) -> 'Split | None':
    """The split that the group of settings `where` describes; None: none.

    With `class_names`, labels are indices into it; one that it has not is a
    ValueError.
    """
    if not settings.name:
      return None
    source = sources.make(settings, data, where)
    if class_names is not None and class_names != source.class_names:
      source = Relabelled(source, class_names, where)
    return cls(source, report_lib.BadFiles(source.num_files, data))

  def spread(self, count: int) -> 'Split':
    """`count` clips from all over the split, always the same."""
    total = len(self.source)
    indices = [i * total // count for i in range(count)][:total]
    return Split(Chosen(self.source, sorted(set(indices))), self.report)
