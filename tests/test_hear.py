"""The HEAR and X-ARES interfaces, by what their own checkers ask."""

import importlib.machinery
import sys
import types

import embedding
from embedding import HZ
from embedding import noise
import numpy as np
import pytest

from audio_mae_jax import weights

torch = pytest.importorskip('torch')

from audio_mae_jax import hear  # noqa: E402
from audio_mae_jax import xares_encoder  # noqa: E402


@pytest.fixture(scope='module', autouse=True)
def programs(compile_once):
  """Each model compiles what the one before has compiled."""


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  place = tmp_path_factory.mktemp('weights') / 'encoder'
  weights.save(place, embedding.encoder())
  return str(place)


@pytest.fixture(scope='module')
def model(checkpoint):
  return hear.load_model(checkpoint)


@pytest.fixture
def validator(monkeypatch):
  """hear-validator; it needs TensorFlow for the type of its modules alone."""
  if 'tensorflow' not in sys.modules:
    stub = types.ModuleType('tensorflow')
    stub.__spec__ = importlib.machinery.ModuleSpec('tensorflow', None)
    stub.Module = type('Module', (), {})
    monkeypatch.setitem(sys.modules, 'tensorflow', stub)
  return pytest.importorskip('hearvalidator.validate')


@pytest.mark.filterwarnings('ignore:::hearvalidator')
def test_hear_validator_passes(validator, checkpoint, capsys):
  validator.ValidateModel('audio_mae_jax.hear', checkpoint, 'cpu')()
  assert 'Received embedding of shape: (4, 16)' in capsys.readouterr().out


def test_scenes_and_timestamps_are_those_of_the_model(model):
  audio = torch.from_numpy(np.stack([noise(30000, i) for i in range(3)]))
  scenes = hear.get_scene_embeddings(audio, model)
  np.testing.assert_allclose(
      scenes, embedding.model().embed(audio.numpy(), HZ), atol=1e-5)
  assert (model.sample_rate, model.scene_embedding_size,
          model.timestamp_embedding_size) == (HZ, 16, 16)
  embeddings, times_ms = hear.get_timestamp_embeddings(audio, model)
  assert embeddings.shape == (3, times_ms.shape[1], 16)
  # Columns are 80 ms long: encoded twice, they come each 40 ms.
  np.testing.assert_allclose(np.diff(times_ms), 40, atol=1e-3)
  coarse = embedding.model().embed_frames(audio.numpy()[1], HZ)
  np.testing.assert_allclose(embeddings[1, ::2], coarse.embeddings, atol=1e-5)
  np.testing.assert_allclose(
      times_ms[1, ::2] / 1000, coarse.times_s, atol=1e-6)
  later = embedding.model().embed_frames(audio.numpy()[1, 640:], HZ)
  np.testing.assert_allclose(embeddings[1, 1::2], later.embeddings, atol=1e-5)


def test_audio_shorter_than_a_window_is_padded(model):
  audio = torch.full((2, 10), 0.1)
  assert hear.get_scene_embeddings(audio, model).shape == (2, 16)
  embeddings, times_ms = hear.get_timestamp_embeddings(audio, model)
  assert embeddings.shape == (2, 1, 16) and times_ms.shape == (2, 1)


def test_hear_wants_weights_and_a_batch(model):
  with pytest.raises(ValueError, match='There are no default weights'):
    hear.load_model()
  with pytest.raises(ValueError, match=r'audio has the shape \(5,\); HEAR'):
    hear.get_scene_embeddings(torch.zeros(5), model)


def test_the_check_of_x_ares_passes(checkpoint):
  checker = pytest.importorskip('xares.audio_encoder_checker')
  assert checker.check_audio_encoder(
      xares_encoder.AudioMAEEncoder(checkpoint))


@pytest.mark.slow
def test_the_encoder_for_x_ares_gives_the_frames_of_each_clip(
    checkpoint, monkeypatch):
  monkeypatch.setenv(xares_encoder.VARIABLE, checkpoint)
  encoder = xares_encoder.AudioMAEEncoder()
  audio = np.stack([noise(30000, i) for i in range(2)])
  found = encoder(torch.from_numpy(audio))
  for x, clip in zip(found, audio):
    np.testing.assert_allclose(
        x, embedding.model().embed_frames(clip, HZ).embeddings, atol=1e-5)
  assert encoder.hop_size_in_ms == 80 and encoder.output_dim == 16
  assert encoder(torch.zeros(5)).shape == (1, 1, 16)
  monkeypatch.delenv(xares_encoder.VARIABLE)
  with pytest.raises(ValueError, match='set the environment variable AUDIO_M'):
    xares_encoder.AudioMAEEncoder()
