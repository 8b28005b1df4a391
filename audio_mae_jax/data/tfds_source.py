"""TensorFlow Datasets as a source, by random access, without tf.data.

A builder whose audio is a `tfds.features.Tensor` (PCM samples) or a
`tfds.features.Scalar` of bytes (a whole file) is read without TensorFlow. One
with a `tfds.features.Audio`, as all that TFDS ships, needs it installed.
"""

import difflib
import functools

import numpy as np

from audio_mae_jax import config
from audio_mae_jax import storage
from audio_mae_jax.data import files

_EXTRA = "pip install 'audio_mae_jax[tfds]'"


class Tfds(files.Source):
  """The examples of a prepared builder that has an audio feature.

  `dataset` names a builder that TFDS knows, whose data lie under the data root
  (default: TFDS' own folder); `path` is the folder of any prepared dataset, one
  with a dataset_info.json in it. `split` takes TFDS' syntax ('train[:90%]');
  empty: all splits.
  """

  def __init__(self, data: config.Data, where: str, *, dataset: str, path: str,
               split: str):
    if bool(dataset) == bool(path):
      raise ValueError(
          f'Set one of {where}.dataset (a TFDS name) and {where}.path (the '
          f'folder of a prepared dataset); got {dataset!r} and {path!r}.')
    place = path and files.resolve(
        data, path, f'{where}.path', 'the folder of a prepared dataset')
    home = place or files.root(data)
    if storage.is_remote(home):
      raise ValueError(
          f'{home} is an address, and the source tfds reads folders of this '
          'machine alone. Copy or mount the data, and give its folder as '
          f'{where}.path or config.data.root.')
    builder = _builder(dataset, place, home, where)
    info = builder.info
    if not info.splits:
      raise FileNotFoundError(
          f'TFDS dataset {info.name} is not prepared in {builder.data_dir}. '
          'Prepare it once: python -c "import tensorflow_datasets as tfds; '
          f"tfds.builder('{info.name}', data_dir='{builder.data_dir_root}', "
          "file_format='array_record').download_and_prepare()\"")
    self._builder = builder
    self._split = split or '+'.join(info.splits)
    self._examples = _with_tensorflow(
        lambda: builder.as_data_source(self._split), info.name)
    self._audio = _audio_feature(info)
    self._rate_hz = _sample_rate_hz(info, self._audio)
    self._label, self.class_names = _label_feature(info)
    self._name = info.full_name
    self._splits = _splits_of(self._split, info.splits)
    self.title = f'tfds {info.full_name}, {self._split}'
    self.num_files = len(self._examples)

  def __len__(self):
    return self.num_files

  def __getitem__(self, i):
    example = self._examples[i]
    labels = np.atleast_1d(example[self._label]) if self._label else ()
    return {'audio': example[self._audio], 'id': self.name_of(i),
            'sample_rate_hz': self._rate_hz, 'start_s': 0.0,
            'duration_s': None, 'labels': tuple(map(int, labels))}

  def labels_of(self, i):
    return self._labels[i] if self._label else ()

  @functools.cached_property
  def _labels(self):
    """Of all examples, without decoding their audio."""
    import tensorflow_datasets as tfds
    examples = self._builder.as_data_source(
        self._split, decoders={self._audio: tfds.decode.SkipDecoding()})
    return [tuple(map(int, np.atleast_1d(example[self._label])))
            for example in examples]

  def split_of(self, i):
    return (self._splits[i] if self._splits else ''), ''

  def name_of(self, i):
    return f'{self._name} {self._split}[{i}]'


def _builder(dataset, place, data_dir, where):
  try:
    import tensorflow_datasets as tfds  # heavy, and an extra of the package
  except ImportError as error:
    raise ImportError(
        f'The source tfds needs TensorFlow Datasets: {_EXTRA}.') from error
  if not place:
    try:
      return _with_tensorflow(
          lambda: tfds.builder(dataset, data_dir=data_dir or None), dataset)
    except tfds.core.registered.DatasetNotFoundError as error:
      known = tfds.list_builders(with_community_datasets=False)
      near = difflib.get_close_matches(dataset, known, n=1)
      hint = f' Did you mean {near[0]!r}?' if near else ''
      raise ValueError(
          f'{where}.dataset={dataset!r} is no TFDS builder.{hint} Of a dataset '
          f'of your own, give the prepared folder as {where}.path.') from error
  try:
    return _with_tensorflow(lambda: tfds.builder_from_directory(place), place)
  except (FileNotFoundError, tfds.core.dataset_info.DatasetInfoFileError) as e:
    raise FileNotFoundError(
        f'{place} is not a prepared TFDS dataset: no readable '
        'dataset_info.json and features.json in it. Name the folder of one '
        'version, such as DIR/speech_commands/0.0.3.') from e


def _splits_of(wanted, splits):
  """The split of each example, or none where parts of splits are wanted."""
  names = wanted.split('+')
  if not all(name in splits for name in names):
    return []
  return [name for name in names for _ in range(splits[name].num_examples)]


def _with_tensorflow(call, name):
  """call(), and the remedy when it fails for want of TensorFlow or a format."""
  try:
    return call()
  except ImportError as error:
    raise ImportError(
        f'TFDS dataset {name} needs TensorFlow to be read ({error}): {_EXTRA}. '
        'A dataset whose audio is a Tensor or bytes needs none.') from error
  except NotImplementedError as error:
    raise ValueError(
        f'TFDS dataset {name} is stored in a format without random access. '
        "Prepare it again with file_format='array_record'.") from error


def _audio_feature(info):
  """The feature of class Audio, else the one called audio."""
  for name, feature in info.features.items():
    if type(feature).__name__ == 'Audio':
      return name
  if 'audio' in info.features:
    return 'audio'
  raise ValueError(
      f'TFDS dataset {info.name} has no audio: its features are '
      f'{", ".join(info.features)}; one must be a tfds.features.Audio or be '
      'called "audio".')


def _sample_rate_hz(info, audio):
  """Of the samples; None when each example holds a whole file."""
  feature = info.features[audio]
  if feature.np_dtype == np.object_:
    return None
  rate_hz = (getattr(feature, 'sample_rate', None) or
             (info.metadata or {}).get('sample_rate'))
  if not rate_hz:
    raise ValueError(
        f'TFDS dataset {info.name} does not say its sample rate. Build it '
        'with tfds.features.Audio(sample_rate=...) or with '
        'metadata=tfds.core.MetadataDict(sample_rate=...).')
  return rate_hz


def _label_feature(info):
  """The class label (or sequence of them) called label or labels, its names."""
  for name in ('label', 'labels'):
    if name in info.features:
      feature = info.features[name]
      names = getattr(getattr(feature, 'feature', feature), 'names', None)
      if names:
        return name, list(names)
  return None, []
