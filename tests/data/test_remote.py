"""Audio and lists of it at addresses are read like those of this machine."""

import json

import numpy as np
import pytest
import soundfile

from audio_mae_jax import config
from audio_mae_jax import features
from audio_mae_jax import storage
from audio_mae_jax.data import audio_io
from audio_mae_jax.data import files
from audio_mae_jax.data import recordings
from audio_mae_jax.data import report
from audio_mae_jax.data import sources
from audio_mae_jax.data import splits

RATE_HZ = 16000


@pytest.fixture
def audio(bucket, tmp_path):
  """(folder, address) with the same files."""
  rng = np.random.default_rng(0)
  for name, suffix in (('a/1.wav', 'PCM_16'), ('a/2.flac', 'PCM_16'),
                       ('b/3.ogg', 'VORBIS')):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    soundfile.write(path, rng.uniform(-0.5, 0.5, 3 * RATE_HZ), RATE_HZ, suffix)
  (tmp_path / 'b' / '._3.wav').write_bytes(b'')
  (tmp_path / 'b' / 'notes.txt').write_bytes(b'text')
  names = [path.relative_to(tmp_path).as_posix()
           for path in tmp_path.rglob('*') if path.is_file()]
  storage.copy_out(tmp_path, f'{bucket}/data', names)
  return tmp_path, f'{bucket}/data'


def load(item, seed=0):
  if isinstance(item, str):
    item = {'audio': item, 'id': 'clip'}
  return audio_io.load(
      item, sample_rate_hz=RATE_HZ, num_samples=8000, crop='random',
      rng=np.random.default_rng(seed))


def made(settings, data, where='config.data.train'):
  return sources.make(config.Source(**settings), data, where)


def assert_same_clips(here, there):
  assert [here.name_of(i) for i in range(len(here))] == [
      there.name_of(i) for i in range(len(there))]
  for i in range(len(here)):
    assert here.labels_of(i) == there.labels_of(i)
    np.testing.assert_array_equal(load(here[i], i), load(there[i], i))


@pytest.mark.parametrize('segment_s', [0.0, 1.0])
def test_a_folder(audio, segment_s):
  here, there = (made({'name': 'folder', 'path': str(place),
                       'segment_s': segment_s}, config.Data())
                 for place in audio)
  assert len(there) == (9 if segment_s else 3)
  assert there.class_names == ['a', 'b']
  assert_same_clips(here, there)


def test_long_files_are_read_in_parts(audio, monkeypatch):
  monkeypatch.setattr(recordings, '_WHOLE_BYTES', 1000)
  monkeypatch.setattr(storage, '_BLOCK_BYTES', 4096)
  here, there = (made({'name': 'folder', 'path': str(place)}, config.Data())
                 for place in audio)
  assert_same_clips(here, there)


def test_a_manifest_and_what_it_lists(audio, monkeypatch):
  folder, address = audio
  (folder / 'list.csv').write_text(
      'path,label,start_s\n'
      f'a/1.wav,x,0\n{address}/a/2.flac,y,1\nb/3.ogg,x,0.5\n')
  (folder / 'list.json').write_text(json.dumps(
      {'data': [{'wav': 'b/3.ogg', 'labels': '/m/b,/m/a'}]}))
  (folder / 'classes.csv').write_text(
      'index,mid,display_name\n0,/m/a,A\n1,/m/b,B\n')
  storage.copy_out(folder, address, ['list.csv', 'list.json', 'classes.csv'])
  here = made({'name': 'manifest', 'path': str(folder / 'list.csv')},
              config.Data())
  assert_same_clips(here, made(
      {'name': 'manifest', 'path': 'list.csv'}, config.Data(root=address)))
  # A list of this machine, of files elsewhere; and the variable.
  (folder / 'alone').mkdir()
  (folder / 'alone' / 'list.csv').write_text('path\na/1.wav\n')
  alone = made({'name': 'manifest', 'path': str(folder / 'alone' / 'list.csv')},
               config.Data(root=address))
  assert alone.place_of(0)[0] == f'{address}/a/1.wav'
  monkeypatch.setenv(files.ROOT_VARIABLE, address)
  ast = made({'name': 'manifest', 'path': 'list.json',
              'labels_csv': 'classes.csv'}, config.Data())
  assert ast.labels_of(0) == (1, 0) and ast.class_names == ['A', 'B']
  assert ast.place_of(0)[0] == f'{address}/b/3.ogg'


def test_what_is_not_there_is_an_error_with_its_address(audio):
  _, address = audio
  for settings, message in (
      ({'name': 'folder', 'path': 'none'}, f'No folder {address}/none'),
      ({'name': 'manifest', 'path': 'none.csv'},
       f'No manifest at {address}/none.csv')):
    with pytest.raises(FileNotFoundError, match=message):
      made(settings, config.Data(root=address))
  storage.write_text(f'{address}/list.csv', 'path\nc/1.wav\n')
  with pytest.raises(FileNotFoundError, match='looked for .*/data/c/1.wav'):
    made({'name': 'manifest', 'path': 'list.csv'}, config.Data(root=address))


def test_bad_files_are_bad_audio(audio):
  _, address = audio
  with pytest.raises(recordings.BadAudio, match='no such file'):
    load(f'{address}/none.wav')
  storage.write_text(f'{address}/empty.wav', '')
  with pytest.raises(recordings.BadAudio, match='^empty$'):
    load(f'{address}/empty.wav')
  storage.write_text(f'{address}/text.wav', 'no audio')
  with pytest.raises(recordings.BadAudio, match='^unreadable'):
    load(f'{address}/text.wav')


@pytest.mark.parametrize('whole_bytes', [2**24, 1000])
def test_a_store_out_of_reach_is_no_bad_audio(
    audio, monkeypatch, whole_bytes):
  _, address = audio
  monkeypatch.setattr(recordings, '_WHOLE_BYTES', whole_bytes)
  monkeypatch.setattr(storage, '_BLOCK_BYTES', 4096)
  fs = storage.filesystem(address)
  if whole_bytes == 1000:  # the connection fails after some parts were read
    load(f'{address}/a/1.wav')
    opened = storage.open_blocks

    def breaks(path):
      file = opened(path)
      read, count = file._file.readinto, []

      def readinto(buffer):
        count.append(1)
        if len(count) > 8:
          raise ConnectionError('gone')
        return read(buffer)

      file._file.readinto = readinto
      return file

    monkeypatch.setattr(storage, 'open_blocks', breaks)
  else:
    def gone(*_, **__):
      raise ConnectionError('gone')
    monkeypatch.setattr(fs, 'cat_file', gone)
    monkeypatch.setattr(fs, 'info', gone)
  with pytest.raises(storage.Unreachable, match='gone'):
    load(f'{address}/a/1.wav')


def test_features_of_other_contents_are_others(audio):
  folder, address = audio
  cfg = config.typed(config.default())

  def fingerprint():
    source = made({'name': 'folder', 'path': address}, config.Data())
    return features.fingerprint(
        cfg, {}, splits.Split(source, report.BadFiles(3, config.Data())))

  first = fingerprint()
  assert fingerprint() == first
  soundfile.write(folder / 'a' / '1.wav', np.zeros(3 * RATE_HZ), RATE_HZ)
  storage.copy_out(folder, address, ['a/1.wav'])
  assert fingerprint() != first
  storage.remove(address, ['a/1.wav'])
  source = made({'name': 'folder', 'path': address}, config.Data())
  assert len(source) == 2
