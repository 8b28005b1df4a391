"""TensorFlow Datasets by random access, without TensorFlow."""

import io
import sys

import batching
import numpy as np
import pytest
import soundfile

from audio_mae_jax import config
from audio_mae_jax.data import audio_io
from audio_mae_jax.data import pipeline
from audio_mae_jax.data import report
from audio_mae_jax.data import sources

tfds = pytest.importorskip('tensorflow_datasets')
RATE_HZ = 8000


def pcm(i):
  return np.full(800 + 10 * i, 1000 * (i + 1), np.int16)


def flac(i, rate_hz=RATE_HZ):
  buffer = io.BytesIO()
  soundfile.write(buffer, pcm(i), rate_hz, format='FLAC')
  return buffer.getvalue()


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  VERSION = tfds.core.Version('1.0.0')
  audio = 'audio'
  feature = tfds.features.Tensor(
      shape=(None,), dtype=np.int16, encoding='bytes')
  label = ('label', tfds.features.ClassLabel(names=['low', 'high']))
  labels_of = staticmethod(lambda i: i % 2)
  encode = staticmethod(pcm)
  metadata = {'sample_rate': RATE_HZ}

  def _info(self):
    return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(
            {self.audio: self.feature, self.label[0]: self.label[1]}),
        metadata=tfds.core.MetadataDict(self.metadata))

  def _split_generators(self, dl_manager):
    return {'train': self._generate_examples(range(4)),
            'test': self._generate_examples(range(4, 6))}

  def _generate_examples(self, numbers):
    for i in numbers:
      yield i, {self.audio: self.encode(i), self.label[0]: self.labels_of(i)}


class PcmSet(_Builder, skip_registration=True):
  pass


class FlacSet(_Builder, skip_registration=True):
  feature = tfds.features.Scalar(np.object_)
  encode = staticmethod(flac)
  label = ('labels', tfds.features.Sequence(
      tfds.features.ClassLabel(names=['a', 'b', 'c'])))
  labels_of = staticmethod(lambda i: [2, 0][:i % 3])
  metadata = {}


class Audio(tfds.features.Tensor):
  """As that of TFDS with lazy_decode=True, which cannot be made without
  TensorFlow: int16 by its name, a data source hands out the file's bytes."""

  def __init__(self, shape=(None,), dtype=np.int16, **keywords):
    super().__init__(shape=shape, dtype=dtype, serialized_dtype=np.object_,
                     serialized_shape=(), **keywords)
    self.sample_rate = RATE_HZ

  def encode_example(self, content):
    return content

  def decode_example_np(self, content):
    return content


class LazySet(_Builder, skip_registration=True):
  feature = Audio()
  encode = staticmethod(lambda i: flac(i, 2 * RATE_HZ))


class RatelessSet(_Builder, skip_registration=True):
  metadata = {}


class AudiolessSet(_Builder, skip_registration=True):
  audio = 'noise'


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """prepared(class) -> folder of the dataset, made once per class."""
  folders = {}

  def prepare(builder_class):
    if builder_class not in folders:
      builder = builder_class(
          data_dir=str(tmp_path_factory.mktemp('tfds')),
          file_format='array_record')
      builder.download_and_prepare()
      folders[builder_class] = str(builder.data_dir)
    return folders[builder_class]
  return prepare


def make(**fields):
  root = fields.pop('root', '')
  return sources.make(
      config.Source(name='tfds', **fields), config.Data(root=str(root)))


def load(source, i):
  return audio_io.load(source[i], sample_rate_hz=RATE_HZ, num_samples=10**4,
                       crop='start', rng=None)


@pytest.mark.parametrize('builder_class', [PcmSet, FlacSet])
def test_a_prepared_dataset_is_read_without_tensorflow(prepared, builder_class):
  source = make(path=prepared(builder_class))
  assert len(source) == source.num_files == 6
  seen = set()
  for i in range(6):
    samples = load(source, i)
    number = round(samples[0] * 2**15 / 1000) - 1
    np.testing.assert_array_equal(samples, np.float32(pcm(number)) / 2**15)
    expected = ((number % 2,) if builder_class is PcmSet
                else (2, 0)[:number % 3])
    assert source[i]['labels'] == expected == source.labels_of(i)
    seen.add(number)
  assert seen == set(range(6))
  assert source.class_names == (
      ['low', 'high'] if builder_class is PcmSet else ['a', 'b', 'c'])
  assert 'tensorflow' not in sys.modules


def test_splits_are_chosen_in_the_syntax_of_tfds(prepared):
  path = prepared(PcmSet)
  assert len(make(path=path, split='test')) == 2
  source = make(path=path, split='train[:50%]')
  assert len(source) == 2
  assert source.name_of(1) == source[1]['id'] == (
      'pcm_set/1.0.0 train[:50%][1]')
  assert source.describe() == (
      'tfds pcm_set/1.0.0, train[:50%]: 2 clips, 2 classes')
  with pytest.raises(ValueError, match="Unknown split 'valid'"):
    make(path=path, split='valid')


def test_batches_come_from_tfds(prepared, settings):
  source = make(path=prepared(FlacSet))
  cfg = settings(3, sample_rate_hz=RATE_HZ)
  batches = pipeline.eval_batches(
      source, cfg, report=report.BadFiles(6, cfg.data))
  assert [batch['audio'].shape for batch in batches] == [(3, 800)] * 2


def test_pcm_travels_as_it_is_stored(prepared, settings):
  source, cfg = make(path=prepared(PcmSet)), settings(
      3, sample_rate_hz=RATE_HZ)
  assert batching.stored(source, cfg, 1) == [np.int16]
  batch, = batching.train(source, cfg, 1)
  assert set(batch['audio'][:, 0] * 2**15) <= {1000 * (i + 1) for i in range(6)}


def test_whole_files_of_another_rate_are_resampled(prepared, settings):
  source = make(path=prepared(LazySet))
  assert isinstance(source[0]['audio'], bytes)
  batch, = batching.train(source, settings(3, sample_rate_hz=RATE_HZ), 1)
  assert batch['audio'].dtype == np.float32
  assert all(0.02 < peak < 0.5 for peak in np.abs(batch['audio']).max(axis=1))


def test_splits_are_known_where_whole_ones_are_asked(prepared):
  path = prepared(PcmSet)
  split = lambda **fields: [make(path=path, **fields).split_of(i)[0]
                            for i in range(2, 5)]
  assert split() == ['train', 'train', 'test']
  assert split(split='test+train') == ['train', 'train', 'train']
  assert split(split='train[:50%]+test')[:2] == ['', '']


def test_a_dataset_that_needs_tensorflow_names_the_extra(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorflow', None)
  with pytest.raises(ImportError, match=(
      r'speech_commands needs TensorFlow to be read \((.|\n)*\): pip install '
      r"'audio_mae_jax\[tfds\]'")):
    make(dataset='speech_commands', root=tmp_path)


def test_missing_tfds_names_the_extra(monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
  with pytest.raises(ImportError, match=(
      r"needs TensorFlow Datasets: pip install 'audio_mae_jax\[tfds\]'")):
    make(dataset='speech_commands')


def test_an_unknown_dataset_is_named(tmp_path):
  with pytest.raises(ValueError, match=(
      "dataset='speach_commands' is no TFDS builder. Did you mean "
      r"'speech_commands'\? Of a dataset of your own, .*train.path")):
    make(dataset='speach_commands', root=tmp_path)


def test_a_folder_without_a_dataset_is_an_error(tmp_path):
  with pytest.raises(FileNotFoundError, match='not a prepared TFDS dataset'):
    make(path=str(tmp_path))


def test_an_unprepared_dataset_says_how_to_prepare_it(tmp_path, monkeypatch):
  monkeypatch.setattr(tfds, 'builder', lambda name, data_dir: PcmSet(
      data_dir=data_dir))
  with pytest.raises(FileNotFoundError, match=(
      f'TFDS dataset pcm_set is not prepared in {tmp_path}/.*'
      r"file_format='array_record'\).download_and_prepare\(\)")):
    make(dataset='pcm_set', root=tmp_path)


def test_a_format_without_random_access_says_what_to_do(
    prepared, monkeypatch):
  def refuse(self, split):
    raise NotImplementedError(split)
  monkeypatch.setattr(
      tfds.core.read_only_builder.ReadOnlyBuilder, 'as_data_source', refuse)
  with pytest.raises(ValueError, match=(
      "without random access. Prepare it again with file_format='array_rec")):
    make(path=prepared(PcmSet))


def test_a_dataset_without_rate_or_audio_is_an_error(prepared):
  with pytest.raises(ValueError, match='rateless_set does not say its sample'):
    make(path=prepared(RatelessSet))
  with pytest.raises(ValueError, match=(
      'audioless_set has no audio: its features are .*noise')):
    make(path=prepared(AudiolessSet))


@pytest.mark.parametrize('fields', [{}, dict(dataset='x', path='y')])
def test_a_dataset_is_given_in_one_way(fields):
  with pytest.raises(ValueError, match='Set one of config.data.train.dataset'):
    make(**fields)


@pytest.mark.parametrize('settings, data', [
    ({'path': 'gs://bucket/pcm_set/1.0.0'}, {}),
    ({'dataset': 'yes_no'}, {'root': 's3://bucket/tfds'}),
])
def test_an_address_is_refused(settings, data):
  with pytest.raises(ValueError, match='://bucket.* folders of this machine'):
    sources.make(config.Source(name='tfds', **settings), config.Data(**data),
                 'config.data.train')
