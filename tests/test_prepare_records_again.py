"""Conversions to records again: stopped ones go on, others are refused."""

import os
import shutil
import signal
import subprocess
import sys
import time

import conversions
import pytest

from audio_mae_jax import storage
from audio_mae_jax.data import files
from audio_mae_jax.prepare import __main__ as command
from audio_mae_jax.prepare import records
from audio_mae_jax.prepare import shards

convert = conversions.convert
content = conversions.content
refuse = conversions.refuse


@pytest.fixture(autouse=True)
def no_data_root(monkeypatch):
  monkeypatch.delenv('AUDIO_MAE_DATA', raising=False)


@pytest.fixture
def corpus(tmp_path):
  return conversions.corpus(tmp_path / 'set')


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
    corpus, tmp_path, monkeypatch, capsys):
  convert(corpus, tmp_path / 'whole', '--clips_per_shard', '2')
  encoded = []
  encode = shards.encode

  def stopped(source, i, settings):
    encoded.append(i)
    if i == 5:
      raise KeyboardInterrupt
    return encode(source, i, settings)

  monkeypatch.setattr(os, '_exit', sys.exit)
  monkeypatch.setattr(shards, 'encode', stopped)
  with pytest.raises(SystemExit, match='130'):
    convert(corpus, tmp_path / 'out', '--clips_per_shard', '2',
            '--threads', '1')
  assert capsys.readouterr().err.endswith(
      '\nInterrupted. Whole shards stay: the same command goes on behind '
      'them.\n')
  names = sorted(content(tmp_path / 'out'))
  assert [name.split('-of-')[0] for name in names] == [
      'clips-00000', 'clips-00000', 'clips-00001', 'clips-00001',
      'clips-00002', 'plan.json']
  assert names[-2].endswith('.partial')
  with pytest.raises(FileNotFoundError, match='or one that is not finished'):
    conversions.opened('records', tmp_path / 'out')
  # A whole shard that another program has cut since is redone as well.
  path = tmp_path / 'out' / names[0]
  path.write_bytes(path.read_bytes()[:99])
  encoded.clear()
  monkeypatch.setattr(shards, 'encode', lambda source, i, settings: (
      encoded.append(i) or encode(source, i, settings)))
  convert(corpus, tmp_path / 'out', '--clips_per_shard', '2')
  assert sorted(encoded) == [0, 1, 4, 5, 6]
  assert content(tmp_path / 'out') == content(tmp_path / 'whole')
  assert '1 of 4 shards were there.' in capsys.readouterr().err
  encoded.clear()
  convert(corpus, tmp_path / 'out', '--clips_per_shard', '2')
  assert 'was there: nothing is written' in capsys.readouterr().err
  assert not encoded


@pytest.mark.parametrize('name', ['plan.json', 'index.json'])
def test_a_conversion_that_stopped_as_it_wrote_a_list_goes_on(
    corpus, tmp_path, monkeypatch, name):
  replace = os.replace

  def stopped(partial, path):
    if os.path.basename(path) == name:
      raise KeyboardInterrupt
    replace(partial, path)

  monkeypatch.setattr(os, '_exit', sys.exit)
  monkeypatch.setattr(os, 'replace', stopped)
  with pytest.raises(SystemExit, match='130'):
    convert(corpus, tmp_path / 'out')
  assert (tmp_path / 'out' / f'{name}.partial').exists()
  monkeypatch.setattr(os, 'replace', replace)
  convert(corpus, tmp_path / 'out')
  convert(corpus, tmp_path / 'whole')
  assert content(tmp_path / 'out') == content(tmp_path / 'whole')


@pytest.mark.faults
def test_a_killed_conversion_goes_on(tmp_path):
  place = tmp_path / 'set'
  place.mkdir()
  for i in range(400):
    conversions.sound(place / f'{i:03d}.wav', i, seconds=1, rate_hz=44100)
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


def test_other_files_of_the_same_names_are_refused(
    corpus, tmp_path, capsys, monkeypatch):
  options = ['--source', 'folder', '--path', 'set']
  out, other = tmp_path / 'out', tmp_path / 'other'
  shutil.copytree(corpus, other / 'set')  # with its times of change
  run = lambda root: command.main(
      ['records', *options, '--output', str(out), '--root', str(root)])
  # A conversion that is not finished must not go on with other files, either.
  encode = shards.encode
  monkeypatch.setattr(shards, 'encode', lambda *_: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    run(tmp_path)
  monkeypatch.setattr(shards, 'encode', encode)
  conversions.sound(other / 'set' / '1.wav', 100, seconds=0.11)
  for _ in range(2):
    before = content(out)
    with pytest.raises(SystemExit):
      run(other)
    assert "--source='6 clips, " in capsys.readouterr().err
    assert content(out) == before
    run(tmp_path)
    assert (out / 'index.json').exists()
  # The same files at another place are the same clips.
  shutil.copy2(corpus / '1.wav', other / 'set' / '1.wav')
  run(other)


def test_other_parts_of_the_same_files_are_refused(corpus, tmp_path, capsys):
  out = tmp_path / 'out'
  convert(corpus, out)
  listed = (corpus / 'manifest.csv').read_text()
  (corpus / 'manifest.csv').write_text(listed.replace('0.04', '0.03'))
  assert "--source='7 clips, " in refuse(capsys, corpus, out)
  (corpus / 'manifest.csv').write_text(listed)
  convert(corpus, out)


def test_files_at_another_address_are_refused_without_asking_for_each(
    tmp_path, monkeypatch):
  def convert_from(bucket):
    source = files.Files(
        '', [files.File(f'gs://{bucket}/x.wav', 'x.wav')], [], 0.0)
    records.write(source, str(tmp_path), shards.Settings(), 1, 1)

  monkeypatch.setattr(storage, 'filesystem', lambda path: 1 / 0)
  monkeypatch.setattr(shards, 'encode', lambda *_: 'unreadable')
  with pytest.raises(ValueError, match='None of the 1 clips'):
    convert_from('old')
  with pytest.raises(ValueError, match="--source='1 clips, "):
    convert_from('new')
  with pytest.raises(ValueError, match='None of the 1 clips'):
    convert_from('old')


def test_other_records_of_the_same_names_are_refused(
    corpus, tmp_path, capsys):
  for name in ('old', 'new'):
    convert(corpus, tmp_path / name)
    conversions.sound(corpus / '1.wav', 100, seconds=0.11)
  convert(tmp_path / 'old', tmp_path / 'out', source='records')
  assert "--source='7 clips, " in refuse(
      capsys, tmp_path / 'new', tmp_path / 'out', source='records')


def test_a_folder_in_use_is_refused(corpus, tmp_path, capsys, monkeypatch):
  out = tmp_path / 'out'
  monkeypatch.setattr(shards, 'write', lambda *_: refuse(capsys, corpus, out))
  with pytest.raises(TypeError):  # what that said is no shard
    convert(corpus, out)
  # The inner one was refused, not the outer.
  assert not (out / 'index.json').exists()
