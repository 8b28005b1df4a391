"""The table of data sets.

To add one: a function that takes the folder of the data set (and, as keywords,
the fields of `Options` that it wants) and returns a `layout.Found`; an entry
here; a section in docs/data.md; a test.
"""

from collections.abc import Callable
import dataclasses
import os

from audio_mae_jax import registry
from audio_mae_jax.prepare import advice
from audio_mae_jax.prepare import layout
from audio_mae_jax.prepare import own
from audio_mae_jax.prepare import sounds
from audio_mae_jax.prepare import speech


@dataclasses.dataclass(frozen=True)
class Dataset:
  """How one data set is read, and which recipes are for it."""
  read: Callable[..., layout.Found]  # the folder it lies in, options
  folder: str  # of the manifest, below the root
  clip_s: float  # of the recipe
  recipes: tuple[str, ...]
  flags: Callable[..., list[str]] | None = None  # (rows, report, clip_s)


@dataclasses.dataclass(frozen=True)
class Options:
  """What a reader may be told; each takes some."""
  name: str
  subset: str = ''
  manifest: str = ''
  path: str = ''
  valid: float = 0.1


DATASETS = {
    'audioset': Dataset(sounds.audioset, 'audioset', 10, (
        'finetune_as20k', 'finetune_as2m')),
    'esc50': Dataset(sounds.esc50, 'esc50', 5, ('finetune_esc50',)),
    'speech_commands_v2': Dataset(
        speech.speech_commands_v2, 'speech_commands_v2', 1, ('finetune_spc2',)),
    'speech_commands_v1': Dataset(
        speech.speech_commands_v1, 'speech_commands_v1', 1, ('finetune_spc1',)),
    'voxceleb1': Dataset(
        speech.voxceleb1, 'voxceleb1', 10, ('finetune_voxceleb1',)),
    'fsd50k': Dataset(
        sounds.fsd50k, 'fsd50k', 10, ('finetune_fsd50k',), advice.level),
    'csv': Dataset(own.table, 'own', 10, ('finetune_own',), advice.own),
    'folder': Dataset(own.folder, 'own', 10, ('finetune_own',), advice.own),
}


def read(root: str, options: Options) -> layout.Found:
  """The clips of data set `options.name` below `root`, as it should be.

  Raises ValueError for an unknown name or an option that its reader does not
  take, FileNotFoundError for a part that is not there.
  """
  part, keywords = registry.select(
      {name: dataset.read for name, dataset in DATASETS.items()}, options,
      'prepare')
  place = os.path.join(root, DATASETS[options.name].folder)
  found = part(place, **keywords)
  known = set(found.class_ids or ())
  for row in found.rows:
    for label in row.labels:
      if known and label not in known:
        raise ValueError(
            f'{row.path} has the label {label!r}, which the class table of '
            f'{place} lacks. Are both of the same release?')
  return found
