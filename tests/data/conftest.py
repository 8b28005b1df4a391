"""Real audio files, written where a test asks for them."""

import dataclasses

import numpy as np
import pytest
import soundfile

from audio_mae_jax import config
from audio_mae_jax.data import report
from audio_mae_jax.data import sources

RATE_HZ = 16000
SUBTYPES = {'.opus': dict(format='OGG', subtype='OPUS')}


@pytest.fixture(autouse=True)
def no_data_root(monkeypatch):
  """The machine that runs the tests may have set one."""
  monkeypatch.delenv('AUDIO_MAE_DATA', raising=False)


@pytest.fixture
def write(tmp_path):
  """write(name, samples, rate_hz) -> path below the test's own folder."""
  def write_file(name, samples, rate_hz=RATE_HZ, **keywords):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    keywords = keywords or SUBTYPES.get(path.suffix, {})
    soundfile.write(path, samples, rate_hz, **keywords)
    return str(path)
  return write_file


@pytest.fixture
def tone():
  """tone(seconds, hz, rate_hz) -> float32 samples."""
  def make(seconds, hz=440.0, rate_hz=RATE_HZ):
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    return (0.5 * np.sin(2 * np.pi * hz * time)).astype(np.float32)
  return make


@pytest.fixture
def settings():
  """settings(batch_size=..., any field of config.Data) -> config.Config."""
  def make(batch_size=4, seed=0, sample_rate_hz=RATE_HZ, **data):
    data = {'clip_s': 0.1, 'num_threads': 2, **data}
    return config.Config(
        frontend=config.Frontend(sample_rate_hz=sample_rate_hz),
        data=config.Data(**data),
        train=config.Train(batch_size=batch_size, seed=seed))
  return make


@pytest.fixture
def numbered(write, tmp_path):
  """numbered(n) -> folder source; clip i is the constant (i + 1) / 100."""
  def make(count, bad=()):
    for i in range(count):
      name = f'{i:03d}.wav'
      if i in bad:
        (tmp_path / name).write_bytes(b'garbage')
      else:
        # Lengths differ, so that crops do.
        write(name, np.full(1700 + 50 * i, (i + 1) / 100), subtype='FLOAT')
    return sources.make(
        config.Source(name='folder', path=str(tmp_path)), config.Data())
  return make


@pytest.fixture
def bad_files():
  """bad_files(source, **fields of config.Data) -> report.BadFiles."""
  def make(source, **data):
    return report.BadFiles(
        source.num_files, dataclasses.replace(config.Data(), **data))
  return make
