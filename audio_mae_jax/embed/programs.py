"""The compiled functions: windows of audio -> frames, clips -> logits.

One program for each length and number of windows of two short lists: new
lengths of audio compile nothing. What a window lacks to its bucket is not seen
by the encoder, so that a frame does not depend on the bucket.
"""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np

from audio_mae_jax import config as config_lib
from audio_mae_jax import features
from audio_mae_jax import frontend
from audio_mae_jax import patches as patches_lib
from audio_mae_jax import sharding
from audio_mae_jax import weights as weights_lib
from audio_mae_jax.data import pipeline
from audio_mae_jax.embed import windows as windows_lib
from audio_mae_jax.models import classifier
from audio_mae_jax.models import encoder as encoder_lib

_log = logging.getLogger(__name__)


class Programs:
  """What one model computes, on one or all devices of this process.

  `sizes` are the numbers of windows of one call.
  """

  def __init__(self, weights: weights_lib.Weights, grid: windows_lib.Layout,
               batch_size: int, devices=None):
    if batch_size < 1:
      raise ValueError(f'batch_size={batch_size} must be 1 or more.')
    self._config, self._grid = weights.config, grid
    self.sizes = tuple(sorted({1, min(4, batch_size), batch_size}))
    self._programs = {}
    devices = jax.local_devices()[:1] if devices is None else devices
    self._mesh = sharding.make_mesh(
        config_lib.Mesh(), len(devices), devices)
    self._params = self._placed(weights)

  @property
  def compiled(self) -> list[tuple[str, int, int]]:
    """The programs so far: (what, windows of a call, columns of each)."""
    return list(self._programs)

  @property
  def num_traced(self) -> int:
    """Shapes of input for which one of the programs was compiled."""
    return sum(run._cache_size() for run in self._programs.values())

  def _placed(self, weights):
    """The model's parameters on its devices, as a tree."""
    config = weights.config
    arrays = {name: np.asarray(x, np.float32)
              for name, x in weights.params.items()
              if name.split('/')[0] in ('encoder', 'fc_norm', 'head')}
    self._classifies = any(not name.startswith('encoder/') for name in arrays)
    if self._classifies:
      self._model = classifier.make(config)
    elif 'encoder/norm/scale' in arrays:
      self._model = encoder_lib.make(config)
      arrays = {name.removeprefix('encoder/'): x for name, x in arrays.items()}
    else:
      raise ValueError(
          'These weights are the encoder of a classifier without the norm that '
          'follows it: load the whole classifier (of `convert`, `--part all`).')
    trained = weights_lib.grid_of(config)
    pixels = jnp.zeros((1, trained[0] * trained[1], np.prod(config.patch.size)))
    shapes = jax.eval_shape(lambda: self._model.init(
        jax.random.key(0), pixels, trained)['params'])
    return features.fit(arrays, jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=sharding.replicated(self._mesh)),
        shapes))

  def encode(self, windows: list[windows_lib.Window]) -> list[np.ndarray]:
    """Float32 [columns, D] of each: the mean over the mel bands of a column.

    They are what comes before the norm of a classifier that has one of its own.
    """
    found = [None] * len(windows)
    groups = {}
    for i, window in enumerate(windows):
      groups.setdefault(self._grid.bucket(window.columns), []).append(i)
    for bucket, group in groups.items():
      for part in self._parts(group):
        audio, lengths = _rows(
            [windows[i].samples for i in part], self._grid.samples(bucket))
        columns = np.array([windows[i].columns for i in part], np.int32)
        frames = self._call('encode', bucket, audio, lengths, columns)
        for i, x, n in zip(part, frames, columns):
          found[i] = x[:n]
    return found

  def classify(self, clips: list[np.ndarray]) -> np.ndarray:
    """Logits float32 [B, C] of clips [<= S], as evaluation gives them."""
    length = pipeline.clip_samples(self._config)
    return np.concatenate([
        self._call('classify', self._grid.size, *_rows(part, length))
        for part in self._parts(clips)])

  def _parts(self, rows):
    """`rows` in pieces of the sizes, the largest first: none is padded."""
    while rows:
      size = max(x for x in self.sizes if x <= len(rows))
      yield rows[:size]
      rows = rows[size:]

  def _call(self, what, columns, audio, *lengths):
    # A part that the devices do not divide is computed by all of them.
    place = (sharding.replicated if len(audio) % self._mesh.size
             else sharding.batch)(self._mesh)
    key = what, len(audio), columns
    if key not in self._programs:
      _log.debug('Compiling %s for %d windows of %d columns.', *key)
      make = {'encode': self._encode, 'classify': self._classify}[what]
      self._programs[key] = sharding.jit(self._mesh, make(columns))
    return jax.device_get(self._programs[key](
        self._params, *jax.device_put((audio, *lengths), place)))

  def _encode(self, columns):
    """(parameters, audio [B, S], samples [B], columns [B]) -> [B, columns, D].
    """
    config = self._config
    bands = weights_lib.grid_of(config)[1]
    spec = dataclasses.replace(
        config.frontend, num_frames=self._grid.spectrum(columns))

    def run(params, audio, num_samples, num_columns):
      pixels = patches_lib.patchify(
          frontend.features(audio, num_samples, spec), config.patch)
      model = self._model
      if self._classifies:
        params, model = params['encoder'], encoder_lib.make(
            config, 'norm' in params['encoder'])
      x = model.apply({'params': params}, pixels, (columns, bands),
                      lengths=num_columns * bands)
      x = x[:, 1:].reshape(len(audio), columns, bands, -1)
      # In float32, whatever the products are in.
      return x.mean(2, dtype=jnp.float32)

    return run

  def _classify(self, columns):
    """(parameters, audio [B, S], samples [B]) -> logits [B, C]."""
    del columns  # that of training
    config = self._config

    def run(params, audio, num_samples):
      spectrogram = frontend.features(audio, num_samples, config.frontend)
      return self._model.apply(
          {'params': params}, patches_lib.patchify(spectrogram, config.patch),
          weights_lib.grid_of(config))

    return run


def _rows(clips, length):
  """Audio [B, length], and the samples of each clip, int32 [B]."""
  audio = np.zeros((len(clips), length), np.float32)
  for row, clip in zip(audio, clips):
    row[:len(clip)] = clip
  return audio, np.array([len(clip) for clip in clips], np.int32)
