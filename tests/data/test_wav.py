"""WAV files that are read without libsndfile, and those that are not."""

import struct

import numpy as np
import pytest
import soundfile

from audio_mae_jax.data import wav


def chunk(name, content, size=None):
  return name + struct.pack(
      '<I', len(content) if size is None else size) + content


def header(channels=1, rate_hz=16000, bits=16, kind=1):
  frame = channels * bits // 8
  return struct.pack(
      '<HHIIHH', kind, channels, rate_hz, rate_hz * frame, frame, bits)


def riff(*chunks, size=None):
  return chunk(b'RIFF', b'WAVE' + b''.join(chunks), size)


SAMPLES = np.arange(-3000, 3000, dtype='<i2')
DATA = chunk(b'data', SAMPLES.tobytes())


@pytest.fixture
def put(tmp_path):
  def write(content, name='a.wav'):
    path = tmp_path / name
    path.write_bytes(content)
    return str(path)
  return write


@pytest.mark.parametrize('content', [
    riff(chunk(b'fmt ', header()), DATA),
    riff(chunk(b'fmt ', header(channels=2)), DATA),
    riff(chunk(b'LIST', b'x' * 700), chunk(b'fmt ', header(rate_hz=8000)), DATA,
         chunk(b'LIST', b'INFO')),
    riff(chunk(b'fmt ', header()), DATA) + b'junk behind it',
    riff(chunk(b'fmt ', header()), DATA, size=2**32 - 1)],
    ids=['mono', 'stereo', 'other chunks', 'junk', 'streamed'])
def test_samples_are_those_of_libsndfile(put, content):
  path = put(content)
  want, rate_hz = soundfile.read(path, dtype='int16', always_2d=True)
  with wav.open_plain(path) as recording:
    assert (recording.num_frames, recording.num_channels) == want.shape
    assert recording.rate_hz == rate_hz
    np.testing.assert_array_equal(
        recording.read(0, len(want), None), want)
    out = np.zeros((1000, want.shape[1]), np.int16)
    got = recording.read(70, 1070, out)
    assert np.shares_memory(got, out)
    np.testing.assert_array_equal(got, want[70:1070])


@pytest.mark.parametrize('content', [
    b'', b'RIFF', b'garbage' * 99, riff(chunk(b'fmt ', header())),
    riff(chunk(b'fmt ', header()[:9]), DATA),
    riff(chunk(b'fmt ', header(bits=24)), DATA),
    riff(chunk(b'fmt ', header(bits=32, kind=3)), DATA),
    riff(chunk(b'fmt ', header(channels=0)), DATA),
    riff(chunk(b'fmt ', header(rate_hz=0)), DATA),
    riff(chunk(b'fmt ', header()), chunk(b'data', b'')),
    riff(chunk(b'fmt ', header()), DATA)[:-2],
    riff(chunk(b'fmt ', header()),
         chunk(b'data', SAMPLES.tobytes(), size=2**32 - 1))])
def test_anything_else_is_left_to_libsndfile(put, content):
  assert wav.open_plain(put(content)) is None


def test_other_names_and_places_are_left_to_libsndfile(put, tmp_path):
  content = riff(chunk(b'fmt ', header()), DATA)
  for place in (put(content, 'a.audio'), 'gs://bucket/a.wav', str(tmp_path),
                str(tmp_path / 'none.wav')):
    assert wav.open_plain(place) is None
  with wav.open_plain(put(content, 'B.WAV')) as recording:
    assert recording.num_frames == 6000


def test_a_file_that_was_cut_meanwhile_gives_fewer_frames(put):
  path = put(riff(chunk(b'fmt ', header()), DATA))
  with wav.open_plain(path) as recording:
    with open(path, 'r+b') as file:
      file.truncate(9044)
    assert len(recording.read(4000, 6000, None)) == 500
