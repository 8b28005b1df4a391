"""Recordings in blocks are the recordings, however they are cut."""

import numpy as np
import pytest
import soundfile

from audio_mae_jax.data import audio_io
from audio_mae_jax.data import blocks
from audio_mae_jax.data import recordings

HZ = 16000


def noise(samples):
  return np.random.default_rng(0).normal(0, 0.1, samples).astype(np.float32)


@pytest.mark.parametrize('rate', [8000, 16000, 44100, 192000])
def test_a_file_in_blocks_is_the_file_resampled_at_once(
    rate, tmp_path, monkeypatch):
  samples = np.stack([noise(2 * rate), -0.5 * noise(2 * rate)], 1)
  path = tmp_path / 'a.wav'
  soundfile.write(path, samples, rate, subtype='FLOAT')
  item = {'audio': path, 'id': 'a', 'start_s': 0.25, 'duration_s': 1.5}
  wanted = audio_io.load(
      item, sample_rate_hz=HZ, num_samples=24000, crop='start', rng=None)
  for length in (997, 2**18):
    monkeypatch.setattr(blocks, '_BLOCK_SAMPLES', length)
    found = np.concatenate(list(blocks.read(item, sample_rate_hz=HZ)))
    np.testing.assert_array_equal(found[:24000], wanted)
    assert 0 <= len(found) - 24000 <= 1


def test_what_is_bad_ends_the_blocks(tmp_path, monkeypatch):
  monkeypatch.setattr(blocks, '_BLOCK_SAMPLES', 1000)
  samples = noise(5000)
  samples[2500] = np.nan
  soundfile.write(tmp_path / 'a.wav', samples, HZ, subtype='FLOAT')
  found = blocks.read({'audio': tmp_path / 'a.wav'}, sample_rate_hz=HZ)
  assert len(next(found)) == len(next(found)) == 1000
  with pytest.raises(recordings.BadAudio, match='NaN or infinite samples'):
    next(found)
