"""Any source becomes a folder of records: the same clips, the same labels."""

import hashlib
import json
import os

import conversions
import labelled
import numpy as np
import pytest
import tiny

from audio_mae_jax import modes
from audio_mae_jax.prepare import __main__ as command
from audio_mae_jax.prepare import shards

convert = conversions.convert
load = conversions.load
opened = conversions.opened
refuse = conversions.refuse
sound = conversions.sound


@pytest.fixture(autouse=True)
def no_data_root(monkeypatch):
  monkeypatch.delenv('AUDIO_MAE_DATA', raising=False)


@pytest.fixture
def corpus(tmp_path):
  return conversions.corpus(tmp_path / 'set')


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
  assert sorted(conversions.content(tmp_path / 'out')) == sorted(
      [shard['name'] for shard in index['shards']] + ['index.json'])
  said = capsys.readouterr().out
  assert '  missing: 1 files, e.g. 3.wav' in said
  assert '    2.wav: unreadable: Format not recognised' in said
  assert ('1 records were louder than full scale and are clipped, e.g. 4.wav'
          in said)
  assert f'--config.data.train.path={tmp_path}/out' in said
  assert '--config.data.train.split' not in said  # it has one


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


def test_errors_and_flags_are_those_of_the_command(corpus, tmp_path, capsys):
  run = lambda *options: command.main([
      'records', '--root', str(corpus), '--output', str(tmp_path / 'out'),
      *options])
  for options, told in (
      (('--path', '.'), '--path=. is a folder'),
      (('--path', '.'), 'give --source folder'),
      (('--source', 'folder', '--path', 'nosuch'), 'or set --path to'),
      (('--source', 'folder', '--path', '.', '--num_clips', '3'),
       "--num_clips=3 has no effect with --source='folder'")):
    with pytest.raises(SystemExit):
      run(*options)
    assert told in capsys.readouterr().err
  (corpus / 'binary.csv').write_bytes(b'\xff\xfe')  # an error with more parts
  with pytest.raises(SystemExit):
    run('--path', 'binary.csv')
  assert "error: 'utf-8' codec" in capsys.readouterr().err
  # Recipes ask for a split, and a folder has none.
  run('--source', 'folder', '--path', '.')
  assert '--config.data.train.split=\n' in capsys.readouterr().out


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
