"""The part of a file that is looked at: as sound and as the model sees it."""

import dataclasses
import os
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from audio_mae_jax import config as config_lib
from audio_mae_jax import frontend
from audio_mae_jax import patches as patches_lib
from audio_mae_jax.data import audio_io
from audio_mae_jax.data import recordings


class Clip(NamedTuple):
  waveform: np.ndarray  # float64 [S], at the model's rate, its mean removed
  spectrogram: np.ndarray  # float32 [T, F], normalised as the model takes it
  spec: config_lib.Frontend  # with the clip's own number of frames

  @property
  def seconds(self) -> float:
    return len(self.waveform) / self.spec.sample_rate_hz


def read(path: str | os.PathLike, config: config_lib.Config,
         start_s: float = 0.0) -> Clip:
  """As many whole patches as `path` has from `start_s`, up to those of
  training. The rest of a patch is left out, so that nothing is padding.

  Raises:
    ValueError: the file cannot be used, is shorter than one patch, or silent.
  """
  spec = config.frontend
  window, hop = (frontend.min_samples(spec),
                 frontend.tables(spec).dft.shape[1])
  size, step = config.patch.size[0], patches_lib.resolve_stride(config.patch)[0]
  samples = lambda frames: window + (frames - 1) * hop
  try:
    waveform = audio_io.load(
        {'audio': os.fspath(path), 'id': os.fspath(path), 'start_s': start_s},
        sample_rate_hz=spec.sample_rate_hz,
        num_samples=samples(spec.num_frames), crop='start',
        rng=np.random.default_rng(0), channels=config.data.channels,
        min_samples=samples(size))
  except recordings.BadAudio as error:
    raise ValueError(
        f'{path} cannot be used from {start_s:g} s: {error}. Give a sound '
        f'file with at least {samples(size) / spec.sample_rate_hz:.2f} s there '
        '(--start).') from error
  frames = frontend.num_frames(len(waveform), spec)
  frames = patches_lib.covered((frames - size) // step + 1, size, step)
  spec = dataclasses.replace(spec, num_frames=frames)
  waveform = waveform[:samples(frames)].astype(np.float64)
  waveform -= waveform.mean()
  if not np.abs(waveform).max() > 0:
    raise ValueError(
        f'{path} is silent from {start_s:g} s to '
        f'{start_s + len(waveform) / spec.sample_rate_hz:.2f} s: there is '
        'nothing to reconstruct. Choose another part with --start SECONDS.')
  spectrogram = frontend.features(
      jnp.asarray(waveform, jnp.float32)[None], jnp.array([len(waveform)]),
      spec)[0]
  return Clip(waveform, np.asarray(spectrogram), spec)


def log_mel(spectrogram, spec: config_lib.Frontend):
  """Features to the natural logarithm of mel energies, the floor included."""
  x = np.asarray(spectrogram, np.float64) * (2 * spec.std) + spec.mean
  return np.maximum(x, np.log(spec.floor))
