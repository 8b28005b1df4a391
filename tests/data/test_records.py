"""Records as a source: chosen, cut, cached, drawn; damage is noticed."""

import dataclasses
import json
import os
import threading

import batching
import jax
import listing
import numpy as np
import pytest

from audio_mae_jax import config
from audio_mae_jax.data import audio_io
from audio_mae_jax.data import pipeline
from audio_mae_jax.data import placement
from audio_mae_jax.data import recordings
from audio_mae_jax.data import records
from audio_mae_jax.data import report
from audio_mae_jax.data import sources
from audio_mae_jax.prepare import records as conversion
from audio_mae_jax.prepare import shards

SPLITS = ['train', 'train', 'valid', 'train', 'test', 'train']


@pytest.fixture
def folder(write, tmp_path):
  """folder(encoding) -> records of six clips of a third to two seconds."""
  rng = np.random.default_rng(0)
  rows = []
  for i, split in enumerate(SPLITS):
    write(f'wav/{i}.wav', rng.normal(0, 0.1, 16000 * (i + 1) // 3))
    rows.append(dict(path=f'{i}.wav', label='abc'[i % 3], split=split,
                     fold=i % 2))
  path = listing.write_csv(tmp_path / 'wav' / 'm.csv', rows)

  def make(encoding='pcm16', per_shard=4):
    output = tmp_path / encoding
    if not output.exists():
      output.mkdir()
      conversion.write(
          listing.make('manifest', path=path), str(output),
          shards.Settings(encoding=encoding, clips_per_shard=per_shard), 2, 2)
    return output
  return make


def load(source, i):
  return audio_io.load(source[i], sample_rate_hz=16000, num_samples=10**6,
                       crop='start', rng=None)


def on_device(read, source, cfg):
  """The first five batches, as a step gets them."""
  batches = placement.to_device(
      read(source, cfg, labelled=True,
           report=report.BadFiles(source.num_files, cfg.data)),
      jax.sharding.SingleDeviceSharding(jax.devices()[0]), 1)
  return [{name: np.asarray(value) for name, value in batch.items()}
          for batch in batching.take(batches, 5)]


@pytest.mark.parametrize('encoding', shards.ENCODERS)
def test_batches_are_those_of_the_files(folder, settings, tmp_path, encoding):
  """For 16-bit files at the model's rate, bit by bit."""
  old = listing.make('manifest', path=str(tmp_path / 'wav' / 'm.csv'))
  new = listing.make('records', path=str(folder(encoding)))
  for fields in (dict(crop='cyclic'), dict(crop='random', clip_s=0.5),
                 dict(cache_gb=1.0), dict(sampling='balanced', epoch_clips=4)):
    cfg = settings(4, **fields)
    cfg = dataclasses.replace(cfg, model=config.Model(
        classifier=config.Classifier(num_classes=3)))
    for read in (pipeline.train_batches, pipeline.eval_batches):
      batching.assert_equal(
          on_device(read, old, cfg), on_device(read, new, cfg))
  # Half of the bytes up to there.
  assert batching.stored(new, settings(4), 2) == [np.int16] * 2
  assert batching.stored(new, settings(4, sample_rate_hz=8000), 1) == [
      np.float32]


def test_clips_are_chosen_by_split_fold_and_class(folder):
  make = lambda **fields: listing.make('records', path=str(folder()), **fields)
  assert listing.ids(make(split='train')) == [
      '0.wav', '1.wav', '3.wav', '5.wav']
  assert listing.ids(make(split='valid+test')) == ['2.wav', '4.wav']
  assert listing.ids(make(split='train', folds='!1')) == ['0.wav']
  source = make(classes=('c', 'a'))
  assert source.class_names == ['c', 'a']
  assert listing.labels(source) == [('a',), ('c',), ('a',), ('c',)]
  assert source.describe().startswith(f'records {folder()} (')
  assert source.describe().endswith('): 4 clips, 2 classes')
  with pytest.raises(ValueError, match="no rows of split 'dev'; its splits are "
                     "'test', 'train', 'valid'"):
    make(split='dev')
  with pytest.raises(ValueError, match="has no fold '7'"):
    make(folds='7')
  with pytest.raises(ValueError, match="no class 'd'"):
    make(classes=('d',))


@pytest.mark.parametrize('encoding', shards.ENCODERS)
def test_segments_are_cut_as_those_of_files(folder, tmp_path, encoding):
  old = listing.make(
      'manifest', path=str(tmp_path / 'wav' / 'm.csv'), segment_s=0.5)
  new = listing.make('records', path=str(folder(encoding)), segment_s=0.5)
  assert listing.ids(new) == listing.ids(old)
  assert new.num_files == old.num_files == 6 < len(new)
  for i in range(len(new)):
    np.testing.assert_array_equal(load(new, i), load(old, i))
    assert new.place_of(i)[1] == old.place_of(i)[1]


def flip(path, place):
  data = bytearray(path.read_bytes())
  data[place] ^= 1
  path.write_bytes(data)


@pytest.mark.parametrize('encoding', shards.ENCODERS)
def test_a_flipped_bit_is_bad_audio_and_the_others_are_good(
    folder, settings, encoding):
  place = folder(encoding)
  # Headers, samples, what lies between records, what says where they are.
  whole = [load(listing.make('records', path=str(place)), i) for i in range(6)]
  shard = min(place.glob('*.array_record'))
  size, reasons = shard.stat().st_size, []
  for byte in [*range(100, 110_000 if encoding == 'pcm16' else 80_000, 9973),
               *range(1, 200, 13), *range(size - 65536, size, 4091)]:
    flip(shard, byte)
    source = listing.make('records', path=str(place))
    for i in range(6):
      try:
        np.testing.assert_array_equal(load(source, i), whole[i])
      except recordings.BadAudio as error:
        reasons.append(str(error))
    flip(shard, byte)
  assert reasons
  assert all(reason.startswith('damaged, in clips-00000-of-00002.array_record:')
             for reason in reasons)


def test_a_damaged_record_is_counted_and_named(folder, settings):
  place = folder()
  shard = min(place.glob('*.array_record'))
  flip(shard, shard.read_bytes().index(b'\0' * 8 + b'\0') + 30_000)
  source = listing.make('records', path=str(place), segment_s=0.3)
  cfg = settings(4)
  bad = report.BadFiles(source.num_files, cfg.data)
  batches = batching.train(source, cfg, 12, bad)
  assert np.all(batching.column(batches, 'valid') == 1)
  assert bad.count == 1  # however many parts it has
  bad.write(place / 'bad.json')
  (name, reason), = json.loads((place / 'bad.json').read_text())['bad'].items()
  assert name in [f'{i}.wav' for i in range(6)]
  assert reason.startswith('damaged, in clips-00000-of-00002.array_record: '
                           'Corrupted Riegeli/records file')


def test_a_shard_that_is_missing_or_cut_is_named_at_once(folder):
  place = folder()
  first, last = sorted(place.glob('*.array_record'))
  last.write_bytes(last.read_bytes()[:-1])
  with pytest.raises(ValueError, match=(
      rf'{place} has files of another size than written: {last.name} \([\d,]+ '
      r'bytes, not [\d,]+\), of 2 shards. Copy the folder again')):
    listing.make('records', path=str(place))
  os.remove(first)
  with pytest.raises(FileNotFoundError, match=(
      f'{place} lacks: {first.name}, of 2 shards')):
    listing.make('records', path=str(place))


def test_a_shard_that_goes_away_stops_the_run(folder):
  place = folder()
  source = listing.make('records', path=str(place))
  for path in place.glob('*.array_record'):
    path.unlink()
  with pytest.raises(OSError, match=(
      r'clips-00000-of-00002.array_record cannot be opened: .*ulimit -n')):
    load(source, 0)


def test_a_record_of_another_length_is_bad(folder):
  place = folder()
  path = place / 'index.json'
  index = json.loads(path.read_text())
  index['num_samples'][1] += 1
  path.write_text(json.dumps(index))
  source = listing.make('records', path=str(place))
  with pytest.raises(recordings.BadAudio, match=(
      '^10666 samples in clips-00000-of-00002.array_record, 10667 in index')):
    source[1]


@pytest.mark.parametrize('content, message', [
    (None, 'is no folder of records, or one that is not finished'),
    ('{"format":', 'is not an index of records: JSONDecodeError'),
    ('[]', 'is not an index of records: TypeError'),
    ('{"format": "other", "version": 1}', "has format 'other', version 1; this "
     "code reads 'audio_mae_jax records', version 1. Write the records again")])
def test_what_is_no_index_is_said(tmp_path, content, message):
  if content is not None:
    (tmp_path / records.INDEX).write_text(content)
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    listing.make('records', path=str(tmp_path))


def test_an_address_says_what_to_do():
  with pytest.raises(ValueError, match=(
      'gs://bucket/x is an address, and array_record reads files of this '
      'machine alone. Copy the folder .* give that folder as config.data')):
    listing.make('records', path='gs://bucket/x')


def test_threads_read_at_once(folder):
  source = listing.make('records', path=str(folder(per_shard=2)))
  whole = [load(source, i) for i in range(6)]
  other = listing.make('records', path=str(folder(per_shard=2)))
  wrong = []

  def read(seed):
    for i in np.random.default_rng(seed).integers(0, 6, 50):
      if not np.array_equal(load(other, i), whole[i]):
        wrong.append(i)

  threads = [threading.Thread(target=read, args=(k,)) for k in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not wrong


def test_settings_of_other_sources_are_refused(folder):
  with pytest.raises(ValueError, match="labels_csv='x' has no effect with"):
    sources.make(config.Source(
        name='records', path=str(folder()), labels_csv='x'), config.Data())
