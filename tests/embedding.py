"""Small models to embed with, and audio for them."""

import functools

import numpy as np
import tiny

from audio_mae_jax import config as config_lib
from audio_mae_jax import features
from audio_mae_jax import trees
from audio_mae_jax import weights
from audio_mae_jax.embed import model as model_lib

HZ = 16000
# A window is 8 columns of 8 frames: 10,480 samples, the length of a clip.
CLIP_SAMPLES = 10480
SETTINGS = tiny.MODEL | {
    'data.clip_s': CLIP_SAMPLES / HZ}


def config(overrides=None) -> config_lib.Config:
  return tiny.config(SETTINGS, overrides)


@functools.cache
def encoder() -> weights.Weights:
  """Of a pre-trained model: the encoder, with random parameters."""
  return weights.Weights(features.random_params(config()), config(), {})


@functools.cache
def classifier(multilabel: bool = True) -> weights.Weights:
  """Of three classes, with random parameters."""
  settings = tiny.config(SETTINGS, {
      'task': 'classify', 'mask.name': '', 'labels.multilabel': multilabel,
      'model.classifier.num_classes': 3})
  rng = np.random.default_rng(0)
  arrays = {name: rng.normal(0, 0.3, leaf.shape).astype(np.float32)
            for name, leaf in weights.shapes(settings).items()}
  return weights.Weights(
      trees.flatten(arrays), settings, {}, classes=('cat', 'dog', 'rain'))


@functools.cache
def model() -> model_lib.Model:
  """Shared by tests: what it has compiled stays."""
  return model_lib.Model(encoder(), batch_size=4)


def noise(samples: int, seed: int = 0) -> np.ndarray:
  """Float32 [samples] whose loudness goes up and down."""
  rng = np.random.default_rng(seed)
  beat = 1 + np.sin(np.arange(samples) / 3000)
  return (0.1 * beat * rng.normal(size=samples)).astype(np.float32)
