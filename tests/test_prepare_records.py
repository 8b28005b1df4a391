"""Any source becomes a folder of records: the same clips, the same labels."""

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import labelled
import numpy as np
import pytest
import soundfile
import tiny

from audio_mae_jax import config as config_lib
from audio_mae_jax import modes
from audio_mae_jax.data import audio_io
from audio_mae_jax.data import sources
from audio_mae_jax.prepare import __main__ as command
from audio_mae_jax.prepare import shards


@pytest.fixture(autouse=True)
def no_data_root(monkeypatch):
  monkeypatch.delenv('AUDIO_MAE_DATA', raising=False)


def sound(path, seed, seconds=0.1, rate_hz=16000, channels=1, scale=0.1,
          **keywords):
  rng = np.random.default_rng(seed)
  samples = np.clip(rng.normal(0, scale, (round(seconds * rate_hz), channels)),
                    -1.5, 1.5)
  soundfile.write(path, samples, rate_hz, **keywords)


@pytest.fixture
def corpus(tmp_path):
  """A manifest of seven clips in splits and folds, in several formats."""
  place = tmp_path / 'set'
  place.mkdir()
  rows = [('path', 'labels', 'split', 'fold', 'start_s', 'duration_s')]
  for i in range(5):
    sound(place / f'{i}.wav', i, seconds=0.1 + 0.01 * i)
    rows.append((f'{i}.wav', 'ab'[i % 2], 'train', i % 2, '', ''))
  sound(place / 'stereo.flac', 9, rate_hz=44100, channels=2)
  rows.append(('stereo.flac', 'a;b', 'valid', 1, '', ''))
  rows.append(('1.wav', 'b', 'valid', 0, 0.05, 0.04))
  with open(place / 'manifest.csv', 'w', newline='') as file:
    csv.writer(file).writerows(rows)
  return place


def convert(place, output, *options, source='manifest'):
  path = place / 'manifest.csv' if source == 'manifest' else place
  command.main(['records', '--source', source, '--path', str(path),
                '--output', str(output), *options])
  return json.loads((output / 'index.json').read_text())


def opened(name, path, **fields):
  return sources.make(config_lib.Source(name=name, path=str(path), **fields),
                      config_lib.Data())


def load(source, i, **keywords):
  keywords = {'num_samples': 10**6, 'crop': 'start'} | keywords
  return audio_io.load(
      source[i], sample_rate_hz=16000, rng=np.random.default_rng(0), **keywords)


def content(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def refuse(capsys, *arguments):
  with pytest.raises(SystemExit) as stop:
    convert(*arguments)
  assert stop.value.code == 1
  said = capsys.readouterr().err
  assert said.startswith('\nerror: ')
  return said


@pytest.mark.parametrize('encoding', shards.ENCODERS)
def test_records_are_the_clips_of_their_source(corpus, tmp_path, encoding):
  convert(corpus, tmp_path / 'out', '--encoding', encoding,
          '--clips_per_shard', '3')
  old = opened('manifest', corpus / 'manifest.csv')
  new = opened('records', tmp_path / 'out')
  assert new.class_names == old.class_names == ['a', 'b']
  assert len(new) == len(old) == new.num_files == 7
  for i in range(7):
    assert new.name_of(i) == old.name_of(i) == new[i]['id']
    assert new.labels_of(i) == old.labels_of(i) == new[i]['labels']
    assert new.split_of(i) == old.split_of(i)
    assert new.place_of(i)[1:] == pytest.approx(
        (0.05, 0.09) if i == 6 else (0, len(load(old, i)) / 16000))
    # What is resampled or mixed is rounded to 16 bits once more.
    np.testing.assert_allclose(
        load(new, i), load(old, i), rtol=0, atol=2**-16 if i == 5 else 0)
    np.testing.assert_array_equal(
        load(new, i, num_samples=300, crop='cyclic'),
        load(new, i)[np.arange(*_cycle(new, i)) % len(load(new, i))])
  assert new.place_of(1)[0] == new.place_of(6)[0] != new.place_of(0)[0]


def _cycle(source, i):
  start = int(np.random.default_rng(0).integers(len(load(source, i))))
  return start, start + 300


def test_the_index_says_what_is_there(corpus, tmp_path, capsys):
  (corpus / '2.wav').write_bytes(b'no audio')
  os.remove(corpus / '3.wav')
  sound(corpus / '4.wav', 4, scale=1.0, subtype='FLOAT')
  index = convert(corpus, tmp_path / 'out', '--clips_per_shard', '2')
  report = index['report']
  assert report['splits']['train']['clips'] == 3
  assert report['folds'] == {'0': 3, '1': 2}
  assert report['missing'] == ['3.wav']
  assert report['broken'] == {'2.wav': 'unreadable: Format not recognised'}
  assert report['clipped'] == ['4.wav']
  assert report['classes'] == {'a': 3, 'b': 3}
  assert report['hours'] == pytest.approx(0.45 / 3600, abs=1e-4)
  assert report['frontend']['clips'] == 3  # of the split train
  assert index['clips']['id'] == [
      '0.wav', '1.wav', '4.wav', 'stereo.flac', '1.wav@0.05s']
  assert [shard['records'] for shard in index['shards']] == [2, 0, 2, 1]
  for shard in index['shards']:
    data = (tmp_path / 'out' / shard['name']).read_bytes()
    assert len(data) == shard['bytes']
    assert hashlib.sha256(data).hexdigest() == shard['sha256']
  assert sorted(content(tmp_path / 'out')) == sorted(
      [shard['name'] for shard in index['shards']] + ['index.json'])
  said = capsys.readouterr().out
  assert '  missing: 1 files, e.g. 3.wav' in said
  assert '    2.wav: unreadable: Format not recognised' in said
  assert ('1 records were louder than full scale and are clipped, e.g. 4.wav'
          in said)
  assert f'--config.data.train.path={tmp_path}/out' in said


def test_a_clip_that_is_listed_twice_is_one_record(corpus, tmp_path):
  with open(corpus / 'manifest.csv', 'a') as file:
    file.write('0.wav,b,train,0,,\n1.wav,a,train,1,0.05,0.04\n')
  index = convert(corpus, tmp_path / 'out')
  assert len(index['num_samples']) == 7
  assert index['clips']['record'] == [*range(7), 0, 6]
  source = opened('records', tmp_path / 'out')
  assert (len(source), source.num_files) == (9, 7)
  assert (source.labels_of(0), source.labels_of(7)) == ((0,), (1,))
  np.testing.assert_array_equal(load(source, 7), load(source, 0))


def test_two_conversions_are_the_same_bits(corpus, tmp_path):
  for name, threads in (('one', '1'), ('two', '5')):
    convert(corpus, tmp_path / name, '--threads', threads,
            '--clips_per_shard', '2', '--encoding', 'flac')
  assert content(tmp_path / 'one') == content(tmp_path / 'two')
  # Once more does nothing.
  before = (tmp_path / 'two' / 'index.json').stat().st_mtime_ns
  convert(corpus, tmp_path / 'two', '--clips_per_shard', '2',
          '--encoding', 'flac')
  assert (tmp_path / 'two' / 'index.json').stat().st_mtime_ns == before


def test_what_was_written_stays_and_a_half_shard_is_redone(
    corpus, tmp_path, monkeypatch):
  convert(corpus, tmp_path / 'whole', '--clips_per_shard', '2')
  encoded = []
  encode = shards.encode

  def stopped(source, i, settings):
    encoded.append(i)
    if i == 5:
      raise KeyboardInterrupt
    return encode(source, i, settings)

  monkeypatch.setattr(shards, 'encode', stopped)
  with pytest.raises(KeyboardInterrupt):
    convert(corpus, tmp_path / 'out', '--clips_per_shard', '2',
            '--threads', '1')
  names = sorted(content(tmp_path / 'out'))
  assert [name.split('-of-')[0] for name in names] == [
      'clips-00000', 'clips-00000', 'clips-00001', 'clips-00001',
      'clips-00002', 'plan.json']
  assert names[-2].endswith('.partial')
  with pytest.raises(FileNotFoundError, match='or one that is not finished'):
    opened('records', tmp_path / 'out')
  # A whole shard that another program has cut since is redone as well.
  path = tmp_path / 'out' / names[0]
  path.write_bytes(path.read_bytes()[:99])
  encoded.clear()
  monkeypatch.setattr(shards, 'encode', lambda source, i, settings: (
      encoded.append(i) or encode(source, i, settings)))
  convert(corpus, tmp_path / 'out', '--clips_per_shard', '2')
  assert sorted(encoded) == [0, 1, 4, 5, 6]
  assert content(tmp_path / 'out') == content(tmp_path / 'whole')


@pytest.mark.faults
def test_a_killed_conversion_goes_on(tmp_path):
  place = tmp_path / 'set'
  place.mkdir()
  for i in range(400):
    sound(place / f'{i:03d}.wav', i, seconds=1, rate_hz=44100)
  options = ['--clips_per_shard', '20']
  convert(place, tmp_path / 'whole', *options, source='folder')
  arguments = [
      sys.executable, '-m', 'audio_mae_jax.prepare', 'records', '--source',
      'folder', '--path', str(place), '--output', str(tmp_path / 'out'),
      *options]
  for shards_before in (2, 9):
    with subprocess.Popen(arguments) as process:
      while len(list(tmp_path.glob('out/*.json'))) < 1 + shards_before:
        assert process.poll() is None
        time.sleep(0.01)
      process.send_signal(signal.SIGKILL)
    assert not (tmp_path / 'out' / 'index.json').exists()
  subprocess.run(arguments, check=True)
  assert content(tmp_path / 'out') == content(tmp_path / 'whole')


def test_another_conversion_in_the_same_folder_is_refused(
    corpus, tmp_path, capsys):
  out = tmp_path / 'out'
  convert(corpus, out, '--clips_per_shard', '2')
  before = content(out)
  said = refuse(capsys, corpus, out, '--encoding', 'flac')
  assert ("is of another conversion: --encoding='pcm16' there, 'flac' now; "
          '--clips_per_shard=2 there, 4096 now. Repeat') in said
  with open(corpus / 'manifest.csv', 'a') as file:
    file.write('0.wav,b,train,0,,\n')
  assert "--source='7 clips, " in refuse(
      capsys, corpus, out, '--clips_per_shard', '2')
  assert content(out) == before


def test_a_folder_in_use_is_refused(corpus, tmp_path, capsys, monkeypatch):
  out = tmp_path / 'out'
  monkeypatch.setattr(shards, 'write', lambda *_: refuse(capsys, corpus, out))
  with pytest.raises(TypeError):  # what that said is no shard
    convert(corpus, out)
  # The inner one was refused, not the outer.
  assert not (out / 'index.json').exists()


def test_what_cannot_be_written_is_said(corpus, tmp_path, capsys):
  out = tmp_path / 'out'
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine' / 'thesis.txt').write_text('')
  assert 'mine holds other files. Name a new folder' in refuse(
      capsys, corpus, tmp_path / 'mine')
  assert "--encoding='mp3' is not known" in refuse(
      capsys, corpus, out, '--encoding', 'mp3')
  assert '--clips_per_shard=0; it takes 1 or more' in refuse(
      capsys, corpus, out, '--clips_per_shard', '0')
  assert '--threads=-1; it takes 0 or more' in refuse(
      capsys, corpus, out, '--threads', '-1')
  assert 'split' in refuse(capsys, corpus, out, '--split', 'nosuch')
  for path in corpus.glob('*.*a*'):
    if path.suffix != '.csv':
      path.write_bytes(b'garbage')
  assert ('None of the 7 clips can be used; the first, 0.wav: unreadable'
          in refuse(capsys, corpus, out))


def test_an_address_is_refused(corpus, capsys):
  with pytest.raises(SystemExit):
    command.main(['records', '--source', 'demo', '--output', 'gs://b/x'])
  assert 'writes files of this machine alone' in capsys.readouterr().err


def test_a_full_disk_says_what_to_do(corpus):
  source = opened('manifest', corpus / 'manifest.csv')
  with pytest.raises(OSError, match=(
      r'/nosuch/x.partial cannot be written: .*Make room, or choose another')):
    shards.write('/nosuch/x', source, [0], shards.Settings(), 1, None)


def test_records_can_be_written_anew(corpus, tmp_path):
  """From one encoding to another, without the files they were made of."""
  convert(corpus, tmp_path / 'pcm16')
  convert(tmp_path / 'pcm16', tmp_path / 'flac', '--encoding', 'flac',
          source='records')
  old, new = (opened('records', tmp_path / name) for name in ('pcm16', 'flac'))
  for i in range(7):
    assert old.name_of(i) == new.name_of(i)
    assert old.split_of(i) == new.split_of(i)
    np.testing.assert_array_equal(load(old, i), load(new, i))


@pytest.mark.slow
def test_a_run_from_records_is_the_run_from_their_files(tmp_path):
  labelled.corpus(tmp_path)
  command.main(['records', '--root', str(tmp_path), '--path', 'manifest.csv',
                '--output', str(tmp_path / 'records.d')])
  told = []
  for name, path in (('manifest', 'manifest.csv'), ('records', 'records.d')):
    changes = {'data.root': str(tmp_path), 'workdir': str(tmp_path / name),
               'train.batch_size': 8, 'train.epochs': 0.0, 'train.steps': 4}
    for split in ('train', 'valid'):
      changes |= {f'data.{split}.name': name, f'data.{split}.path': path}
    modes.run(tiny.config(labelled.RUN | changes))
    lines = (tmp_path / name / 'metrics.jsonl').read_text().splitlines()
    told.append([{key: value for key, value in json.loads(line).items()
                  if 'loss' in key or 'accuracy' in key} for line in lines])
  assert told[0] == told[1] and any(told[0])
