"""Builders of TensorFlow datasets; Apache Beam spreads the work over machines.

A clip is what `prepare records` makes of it: 16-bit samples of one channel at
the model's rate. It is stored as a Tensor of bytes, which is fast and read
without TensorFlow; `tfds.features.Audio` is neither.

Rows reach the workers through files, not inside the pipeline: AudioSet has two
million. So the data set and the output must lie where all workers see them.
"""

import functools
import json
import os

import apache_beam as beam
import numpy as np
import tensorflow_datasets as tfds

from audio_mae_jax.data import manifests
from audio_mae_jax.prepare import check
from audio_mae_jax.prepare import datasets
from audio_mae_jax.prepare import shards

_SETTINGS = shards.Settings()
_BAD = 'bad'


class _DataSet(tfds.core.BeamBasedBuilder, skip_registration=True):
  """The data set `name` (datasets.py) below `root`.

  Files that cannot be used are left out, and listed in `bad_path`.
  """
  VERSION = tfds.core.Version('1.0.0')

  def __init__(self, *, root: str, **keywords):
    self._root = root
    super().__init__(file_format='array_record', **keywords)

  @property
  def bad_path(self) -> str:
    """JSON lines [split, id, reason] of the last run."""
    return self._beside('bad.jsonl')

  @functools.cached_property
  def _found(self):
    return datasets.read(self._root, datasets.Options(self.name))

  @functools.cached_property
  def _rows(self):
    finish = self._found.finish
    return finish(self._found.rows) if finish else self._found.rows

  @functools.cached_property
  def _class_ids(self):
    return self._found.class_ids or sorted(
        {label for row in self._rows for label in row.labels})

  def _info(self):
    label = tfds.features.ClassLabel(
        names=self._found.class_names or self._class_ids)
    return tfds.core.DatasetInfo(
        builder=self,
        metadata=tfds.core.MetadataDict(sample_rate=_SETTINGS.sample_rate_hz),
        features=tfds.features.FeaturesDict({
            'audio': tfds.features.Tensor(
                shape=(None,), dtype=np.int16, encoding='bytes'),
            'id': tfds.features.Text(),
            **({'labels': tfds.features.Sequence(label)} if self._is_several
               else {'label': label})}))

  @property
  def _is_several(self):
    return any(len(row.labels) != 1 for row in self._rows)

  def _split_generators(self, dl_manager, pipeline):
    del dl_manager  # nothing is downloaded
    made, bad = {}, []
    for split, path in self._write_lists().items():
      good, failed = (
          pipeline
          | f'{split}: list' >> beam.io.ReadFromText(path)
          | f'{split}: spread' >> beam.Reshuffle()
          | f'{split}: decode' >> beam.FlatMap(
              example, split=split, is_several=self._is_several
          ).with_outputs(_BAD, main='good'))
      made[split] = good
      bad.append(failed)
    _ = (bad | 'bad: all' >> beam.Flatten()
         | 'bad: list' >> beam.io.WriteToText(
             self.bad_path, num_shards=1, shard_name_template=''))
    return made

  def _generate_examples(self):
    raise NotImplementedError  # _split_generators returns them

  def _write_lists(self):
    """A file for each split, a line for each of its clips."""
    numbers = {name: i for i, name in enumerate(self._class_ids)}
    home = os.path.join(
        self._root, datasets.DATASETS[self.name].folder)
    lists = {}
    for i, row in enumerate(self._rows):
      split = row.split or (f'fold_{row.fold}' if row.fold else 'train')
      lists.setdefault(split, []).append(json.dumps([
          f'{i:08d}', _id(row, home), row.path, row.start_s, row.duration_s,
          [numbers[label] for label in row.labels]]))
    paths = {}
    for split, lines in lists.items():
      paths[split] = self._beside(f'{split}.jsonl')
      with open(paths[split], 'w', encoding='utf-8') as file:
        file.write('\n'.join(lines) + '\n')
    return paths

  def _beside(self, name):
    """The path of a file beside the versions of this dataset."""
    folder = os.path.join(self._data_dir_root, self.name)
    os.makedirs(folder, exist_ok=True)
    return os.path.join(folder, name)


def _id(row, home):
  path = os.path.relpath(row.path, home)
  return f'{path}@{row.start_s:g}s' if row.start_s else path


def example(line: str, split: str, is_several: bool):
  """Yields (key, example) of a line of a list, or an output tagged as bad."""
  key, name, path, start_s, duration_s, labels = json.loads(line)
  item = check.item_of(
      manifests.Row(path, start_s=start_s, duration_s=duration_s))
  clip = shards.encode([item], 0, _SETTINGS)
  if isinstance(clip, str):
    yield beam.pvalue.TaggedOutput(_BAD, json.dumps([split, name, clip]))
    return
  label = {'labels': labels} if is_several else {'label': labels[0]}
  yield key, {'audio': np.frombuffer(clip.content, '<i2'), 'id': name, **label}


class Audioset(_DataSet, skip_registration=True):
  """527 classes, several a clip; splits balanced, unbalanced, eval."""


class Esc50(_DataSet, skip_registration=True):
  """50 classes; a split for each fold: fold_1 to fold_5."""


class SpeechCommandsV1(_DataSet, skip_registration=True):
  """12 classes; clips of `train` are repeated as in the manifest."""


class SpeechCommandsV2(_DataSet, skip_registration=True):
  """35 classes; splits train, valid, test."""


class Voxceleb1(_DataSet, skip_registration=True):
  """1,251 speakers; splits train, valid, test."""


BUILDERS = {
    'audioset': Audioset,
    'esc50': Esc50,
    'speech_commands_v1': SpeechCommandsV1,
    'speech_commands_v2': SpeechCommandsV2,
    'voxceleb1': Voxceleb1,
}
