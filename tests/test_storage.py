"""Files at addresses, against emulators of both stores."""

import io
import os
import sys

import fsspec
import pytest

from audio_mae_jax import config
from audio_mae_jax import storage
from audio_mae_jax import workdirs


def put(address, content=b'text'):
  storage.filesystem(address).pipe_file(address, content)


def test_what_is_at_an_address_can_be_listed_read_and_copied(bucket, tmp_path):
  place = f'{bucket}/a/b'
  put(f'{place}/x.txt', '\ufeffgrüße\r\n'.encode())
  put(f'{place}/c/y.txt')
  put(f'{bucket}/a/bb/other.txt')
  assert storage.below(place) == ['c/y.txt', 'x.txt']
  assert storage.exists(place) and storage.is_dir(place)
  assert not storage.is_dir(f'{place}/x.txt')
  assert storage.is_file(f'{place}/x.txt')
  assert not storage.exists(f'{place}/none')
  with storage.open_text(f'{place}/x.txt') as file:
    assert file.read() == 'grüße\r\n'
  (tmp_path / 'c').mkdir()
  storage.copy_in(place, tmp_path, ['c/y.txt', 'x.txt'])
  assert (tmp_path / 'c' / 'y.txt').read_bytes() == b'text'
  storage.copy_out(tmp_path, f'{bucket}/copy', ['c/y.txt'])
  assert storage.below(f'{bucket}/copy') == ['c/y.txt']


def test_what_others_write_is_seen_at_once(bucket):
  put(f'{bucket}/a/old')
  assert [x.name for x in storage.path_of(f'{bucket}/a').iterdir()] == ['old']
  assert storage.below(f'{bucket}/a') == ['old']
  other = fsspec.filesystem(bucket.split(':')[0], skip_instance_cache=True)
  other.pipe_file(f'{bucket}/a/new', b'1')
  assert storage.below(f'{bucket}/a') == ['new', 'old']
  assert storage.exists(f'{bucket}/a/new')


def test_folders_move_and_go(bucket):
  put(f'{bucket}/run/1/state/x')
  put(f'{bucket}/run/1/meta')
  put(f'{bucket}/run/10/meta')
  storage.move(f'{bucket}/run/1', f'{bucket}/damaged/1.0')
  assert storage.below(bucket) == [
      'damaged/1.0/meta', 'damaged/1.0/state/x', 'run/10/meta']
  storage.remove(f'{bucket}/damaged/1.0')
  assert storage.below(bucket) == ['run/10/meta']


@pytest.mark.parametrize('size', [0, 5, 6, 7])
def test_small_files_take_one_request_and_large_ones_none(bucket, size):
  put(f'{bucket}/file', b'x' * size)
  found = storage.read_up_to(f'{bucket}/file', 6)
  assert found == (b'x' * size if size <= 6 else None)


def test_a_file_is_read_in_parts(bucket, monkeypatch):
  content = os.urandom(300_000)
  put(f'{bucket}/file', content)
  monkeypatch.setattr(storage, '_BLOCK_BYTES', 1000)
  file = storage.open_blocks(f'{bucket}/file')
  file.seek(-1500, os.SEEK_END)
  assert io.BufferedReader(file).read() == content[-1500:]


def test_versions_differ_where_contents_do(bucket, tmp_path):
  found = []
  for content in (b'one', b'two'):
    put(f'{bucket}/file', content)
    found.append(storage.version(f'{bucket}/file'))
  assert found[0] != found[1]
  assert found[1] == storage.version(f'{bucket}/file')
  assert found[0][0] == 3
  assert storage.version(f'{bucket}/none') == ()
  (tmp_path / 'file').write_text('four')
  assert storage.version(tmp_path / 'file')[0] == 4


def test_text_is_written_here_and_there(bucket, tmp_path):
  for place in (str(tmp_path / 'x.json'), f'{bucket}/x.json'):
    storage.write_text(place, '{"ä": 1}\n')
    with storage.open_text(place) as file:
      assert file.read() == '{"ä": 1}\n'
  assert os.listdir(tmp_path) == ['x.json']


def test_paths_and_addresses_are_told_apart(s3_store, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert storage.absolute('a/../b') == str(tmp_path / 'b')
  assert storage.absolute('s3://bucket/run/') == 's3://bucket/run'
  assert os.fspath(storage.path_of('s3://bucket/run')) == 's3://bucket/run'
  assert storage.join('s3://bucket', 'a/b.wav') == 's3://bucket/a/b.wav'
  assert storage.join('/data', 's3://bucket/b.wav') == 's3://bucket/b.wav'


def test_a_store_that_nothing_here_can_reach_is_an_error(monkeypatch):
  with pytest.raises(ValueError, match=r'no store http://.*gs://BUCKET'):
    storage.filesystem('http://host/file')
  for path in 'gs:/bucket/run', 's3:/bucket/run':
    with pytest.raises(ValueError, match=rf'write {path[:2]}://BUCKET/PATH'):
      workdirs.place_of(config.Config(workdir=path))
  monkeypatch.setitem(sys.modules, 's3fs', None)
  monkeypatch.setattr(
      storage.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ImportError, match=r"needs s3fs.*audio_mae_jax\[s3\]"):
    storage.absolute('s3://bucket/file')


def test_a_store_that_refuses_is_no_missing_file(s3_store, bucket):
  with pytest.raises(storage.Unreachable, match='credentials'):
    with storage.reaching(f'{bucket}/file'):
      raise PermissionError('Forbidden')
  with pytest.raises(FileNotFoundError):
    with storage.reaching(f'{bucket}/file'):
      storage.filesystem(bucket).cat_file(f'{bucket}/file')


def test_what_a_reader_swallows_is_remembered(bucket, monkeypatch):
  put(f'{bucket}/file', b'x' * 10)
  file = storage.open_blocks(f'{bucket}/file')
  file.check()

  def fails(buffer):
    raise ConnectionError('gone')

  monkeypatch.setattr(file._file, 'readinto', fails)
  assert file.read(3) == b''
  with pytest.raises(storage.Unreachable, match='ConnectionError: gone'):
    file.check()
