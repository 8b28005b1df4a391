"""A damaged checkpoint is told from one that cannot be read now."""

import errno
import json

import jax
import pytest

from audio_mae_jax import damage
from audio_mae_jax import storage


def fails(error):
  def read():
    raise error
  return read


def test_what_can_be_read_is_given():
  assert damage.find('place', lambda x: x + 1, 2) == (3, None)


@pytest.mark.parametrize('place', ['/runs/a/8', 'gs://b/8', 's3://b/8'])
@pytest.mark.parametrize('error', [
    ValueError('DATA_LOSS: CRC-32C checksum verification failed'),
    ValueError('Error reading "c/0": FAILED_PRECONDITION: invalid header'),
    json.JSONDecodeError('Expecting value', '', 0), KeyError('params'),
    FileNotFoundError('state/d/9f'), EOFError('ends early')])
def test_bad_content_is_damage(place, error):
  found, reason = damage.find(place, fails(error))
  assert found is None and reason.startswith(type(error).__name__)


@pytest.mark.parametrize('error', [
    OSError(errno.EIO, 'Input/output error'), OSError('not a gzipped file'),
    NotADirectoryError(errno.ENOTDIR, 'Not a directory')])
def test_a_disk_that_fails_is_damage(error):
  assert damage.find('/runs/a', fails(error))[1]


@pytest.mark.parametrize('error', [
    OSError(errno.EMFILE, 'Too many open files'),
    OSError(errno.ESTALE, 'Stale file handle'),
    PermissionError(errno.EACCES, 'Permission denied'),
    ValueError('RESOURCE_EXHAUSTED: Error opening "d/3": too many open files'),
    ValueError('PERMISSION_DENIED: Error opening "d/3"')])
def test_a_machine_that_gives_nothing_now_is_no_damage(error):
  with pytest.raises(
      damage.ReadError, match='/runs/a cannot be read now .*same command'):
    damage.find('/runs/a', fails(error))


@pytest.mark.parametrize('error', [
    ValueError('UNAVAILABLE: Error reading "gs://b/8/d/3": HTTP 503'),
    ValueError('DEADLINE_EXCEEDED: Error reading "gs://b/8/d/3"'),
    ConnectionResetError(errno.ECONNRESET, 'Connection reset by peer'),
    TimeoutError(), OSError('Anonymous caller: Forbidden'),
    RuntimeError('HttpError 503')])
def test_a_store_that_is_away_is_no_damage(error):
  with pytest.raises(storage.Unreachable, match='gs://b/8 cannot be read now'):
    damage.find('gs://b/8', fails(error))


@pytest.mark.parametrize('error', [
    MemoryError(), jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: memory'),
    storage.Unreachable('s3://b cannot be reached')])
def test_what_says_itself_what_it_is_stays_what_it_is(error):
  with pytest.raises(type(error)):
    damage.find('/runs/a', fails(error))
