"""Work directories: made, locked, and at an address kept up to date."""

import contextlib
import errno
import os
import pathlib
import threading
import time

import pytest

from audio_mae_jax import lease
from audio_mae_jax import storage
from audio_mae_jax import workdirs


def test_workdir_is_made_and_left_empty(tmp_path):
  path = workdirs.prepare(str(tmp_path / 'a' / 'b'))
  assert path == tmp_path / 'a' / 'b' and not list(path.iterdir())


@pytest.mark.parametrize('name', ['file', 'file/run'])
def test_workdir_that_is_or_lies_in_a_file_is_refused(tmp_path, name):
  (tmp_path / 'file').write_text('')
  with pytest.raises(
      ValueError, match=rf"Cannot write in .*{name}'.*--config\.workdir"):
    workdirs.prepare(tmp_path / name)


def test_workdir_that_takes_no_files_is_refused(tmp_path, monkeypatch):
  def denied(*_):
    raise PermissionError(13, 'Permission denied')
  monkeypatch.setattr(pathlib.Path, 'write_bytes', denied)
  with pytest.raises(ValueError, match='Cannot write .*Permission denied'):
    workdirs.prepare(tmp_path)


def test_a_bucket_that_is_not_there_is_named(bucket):
  with pytest.raises(ValueError, match=r'-none/run.: there is no such bucket'):
    with workdirs.opened(f'{bucket}-none/run'):
      raise AssertionError('opened')


@pytest.fixture
def quick(monkeypatch):
  monkeypatch.setattr(lease, 'RENEW_S', 0.1)
  monkeypatch.setattr(lease, 'WATCH_S', 2.0)


@pytest.fixture(params=['bucket', 'folder'])
def place(request, tmp_path):
  """Where there are no locks: a bucket, or a folder of such a file system."""
  if request.param == 'folder':
    return str(tmp_path / 'run')
  request.getfixturevalue('s3_store')
  import stores
  return stores.new_bucket('s3') + '/run'


@pytest.fixture
def without_flock(monkeypatch):
  def none(*_):
    raise OSError(errno.ENOLCK, 'No locks available')
  monkeypatch.setattr(workdirs.fcntl, 'flock', none)


def test_a_second_run_is_refused_while_the_first_lives(
    place, quick, without_flock):
  with workdirs.opened(place):
    with pytest.raises(
        ValueError, match=r'Another run is at work in .*: process \d+ on .*'
        r'--config\.workdir'):
      with workdirs.opened(place):
        raise AssertionError('opened')
    time.sleep(0.3)  # the refused one has left the lock alone
    with pytest.raises(lease.Taken):
      with workdirs.opened(place):
        raise AssertionError('opened')
  with workdirs.opened(place):  # at once
    assert storage.exists(storage.join(place, '.lease'))
  assert not storage.exists(storage.join(place, '.lease'))


@pytest.fixture
def device(tmp_path, monkeypatch):
  """device(kind) makes `tmp_path` one of a file system of this kind."""
  kind_of, status = workdirs._kind_of, os.stat(tmp_path)

  def make(kind):
    major, minor = os.major(status.st_dev), os.minor(status.st_dev)
    mounts = tmp_path / 'mountinfo'
    mounts.write_text(
        '21 1 999:1 / / rw,relatime - ext4 /dev/vda rw\n'
        f'36 35 {major}:{minor} /dir /mnt/a\\040b rw,noatime shared:1 master:2 '
        f'- {kind} server:/dir rw,vers=4.2\n'
        '37 1 999:2 / /x rw - nfs4 other:/ rw\n')
    monkeypatch.setattr(
        workdirs, '_kind_of', lambda folder: kind_of(folder, str(mounts)))

  return make


def test_a_lock_that_a_file_server_keeps_for_a_lost_host_is_waited_for(
    device, tmp_path, monkeypatch, caplog):
  device('nfs4')
  first = contextlib.ExitStack()
  first.enter_context(workdirs.lock(tmp_path))
  slept = []

  def sleep(seconds):
    slept.append(seconds)
    if len(slept) == 3:  # the server gives it back
      first.close()

  monkeypatch.setattr(workdirs.time, 'sleep', sleep)
  with caplog.at_level('INFO', 'audio_mae_jax'):
    with workdirs.lock(tmp_path):
      assert slept == [3.0] * 3
  assert caplog.text.count('Trying for up to 120 s ...') == 1


@pytest.mark.parametrize('kind, waits_s', [
    ('nfs4', 120), ('nfs', 120), ('lustre', 120), ('ext4', 0), ('tmpfs', 0)])
def test_a_lock_that_is_not_given_back_is_anothers(
    device, tmp_path, monkeypatch, kind, waits_s):
  device(kind)
  now = [1000.0]
  monkeypatch.setattr(workdirs.time, 'monotonic', lambda: now[0])
  monkeypatch.setattr(workdirs.time, 'sleep',
                      lambda seconds: now.append(now.pop() + seconds))
  with workdirs.lock(tmp_path):
    with pytest.raises(ValueError, match='Another process is training in'):
      with workdirs.lock(tmp_path):
        raise AssertionError('locked')
  assert waits_s <= now[0] - 1000 <= waits_s + 5


def test_the_kind_of_a_file_system_is_found_where_linux_tells_it(tmp_path):
  assert workdirs._kind_of('/proc') == 'proc'
  assert workdirs._kind_of(tmp_path, str(tmp_path / 'none')) == ''


def test_a_killed_run_is_taken_over(bucket, quick, caplog):
  path = f'{bucket}/run/.lease'
  storage.write_text(path, '{"owner": "process 1 on a, since then"}')
  begun = time.monotonic()
  with caplog.at_level('INFO', 'audio_mae_jax'):
    with workdirs.opened(f'{bucket}/run'):
      assert time.monotonic() - begun > lease.WATCH_S
  assert 'belongs to process 1 on a' in caplog.text
  assert 'Nothing was heard of process 1 on a, since then' in caplog.text


def test_two_that_find_a_dead_lock_do_not_both_take_it(bucket, quick):
  path, held, refused = f'{bucket}/run/.lease', [], []
  storage.write_text(path, '{"owner": "process 1 on a"}')

  def take(name):
    try:
      with lease.Lease(path, 'the run') as mine:
        end = time.monotonic() + 20
        while len(refused) < 3 and time.monotonic() < end:
          mine.check()
          time.sleep(0.05)
        held.append(name)
    except (lease.Taken, lease.Lost):
      refused.append(name)

  threads = [threading.Thread(target=take, args=(i,)) for i in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(held) == 1 and len(refused) == 3


def test_a_run_that_lost_its_place_stops_and_writes_nothing(
    bucket, quick, caplog):
  place = f'{bucket}/run'
  with pytest.raises(lease.Lost, match='process 2 on b has taken over'):
    with workdirs.opened(place) as workdir:
      workdir.push()
      # The first may be just about to renew: the other one goes on, too.
      for _ in range(10):
        storage.write_text(f'{place}/.lease', '{"owner": "process 2 on b"}')
        time.sleep(0.1)
      (workdir.folder / 'metrics.jsonl').write_text('mine')
      workdir.push_now_and_then()
  assert storage.below(place) == ['.lease']
  assert 'process 2' in caplog.text


def test_a_store_out_of_reach_for_a_while_loses_no_lock(
    bucket, quick, monkeypatch, caplog):
  with workdirs.opened(f'{bucket}/run') as workdir:
    with monkeypatch.context() as patch:
      def away(*_, **__):
        raise ConnectionError('gone')
      patch.setattr(storage.filesystem(bucket), 'cat_file', away)
      time.sleep(0.5)
      workdir.check()
    time.sleep(0.3)
    workdir.check()
  assert 'cannot be renewed' in caplog.text
  assert storage.below(bucket) == []


def test_a_holder_that_could_not_renew_asks_before_it_goes_on(
    tmp_path, monkeypatch):
  """Another process may have taken over by now, and nothing has told of it."""
  path = tmp_path / '.lease'
  with lease.Lease(str(path), 'the folder') as held:
    before = path.read_bytes()
    held.check()
    assert path.read_bytes() == before  # it was renewed just now
    monkeypatch.setattr(lease, 'WATCH_S', lease.RENEW_S)
    held.check()
    assert path.read_bytes() != before
    path.write_text('{"owner": "process 2 on b"}')
    with pytest.raises(lease.Lost, match='process 2 on b has taken over'):
      held.check()


def test_a_lease_in_a_folder_outlives_errors_of_its_file_system(
    quick, tmp_path, monkeypatch, caplog):
  with lease.Lease(str(tmp_path / '.lease'), 'the folder') as held:
    with monkeypatch.context() as patch:
      def stale():
        raise OSError('Stale file handle')
      patch.setattr(held, '_read', stale)
      time.sleep(0.5)
    before = (tmp_path / '.lease').read_bytes()
    time.sleep(0.5)
    assert (tmp_path / '.lease').read_bytes() != before  # it is renewed again
    held.check()
  assert 'cannot be renewed' in caplog.text


def test_what_changed_is_copied_up_and_found_by_the_next_start(
    bucket, monkeypatch):
  place = f'{bucket}/runs/a'
  with workdirs.opened(place) as workdir:
    home = workdir.folder
    for name in ('metrics.jsonl', 'evaluation/valid/metrics.json',
                 'pictures/1.png', 'checkpoints/1/x', 'x.partial', '.hidden'):
      (home / name).parent.mkdir(parents=True, exist_ok=True)
      (home / name).write_text('1')
    workdir.push()
    assert storage.below(place) == [
        '.lease', 'evaluation/valid/metrics.json', 'metrics.jsonl',
        'pictures/1.png']
    copied = []
    monkeypatch.setattr(
        storage, 'copy_out', lambda _, __, names: copied.extend(names))
    (home / 'metrics.jsonl').write_text('12')
    workdir.push()
    assert copied == ['metrics.jsonl']
    monkeypatch.undo()
    (home / 'metrics.jsonl').write_text('123')
  assert not home.exists()
  with storage.open_text(f'{place}/metrics.jsonl') as file:
    assert file.read() == '123'
  with workdirs.opened(place) as workdir:
    found = sorted(p.relative_to(workdir.folder).as_posix()
                   for p in workdir.folder.rglob('*') if p.is_file())
    assert found == ['evaluation/valid/metrics.json', 'metrics.jsonl']


def test_copying_in_the_background_may_fail_and_is_made_up_for(
    bucket, monkeypatch, caplog):
  place = f'{bucket}/run'
  monkeypatch.setattr(workdirs, 'PUSH_S', 0.0)
  with workdirs.opened(place) as workdir:
    (workdir.folder / 'metrics.jsonl').write_text('1')
    with monkeypatch.context() as patch:
      def away(*_):
        raise storage.Unreachable('the store is gone')
      patch.setattr(storage, 'copy_out', away)
      workdir.push_now_and_then()
      workdir.push_now_and_then()  # notices
      workdir.close()
      with pytest.raises(storage.Unreachable):
        workdir.push()
    assert 'not copied up yet: the store is gone' in caplog.text
    workdir.push()
    assert storage.is_file(f'{place}/metrics.jsonl')
