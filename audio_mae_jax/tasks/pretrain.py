"""Masked-autoencoder pre-training, on one page.

waveform -> log-mel -> patches -> hide 80 % -> encode the rest -> decode all ->
mean squared error on what was hidden (paper, section 3).
"""

import jax
import jax.numpy as jnp

from audio_mae_jax import augment
from audio_mae_jax import config as config_lib
from audio_mae_jax import flops
from audio_mae_jax import frontend
from audio_mae_jax import losses
from audio_mae_jax import masking
from audio_mae_jax import metrics
from audio_mae_jax import patches as patches_lib
from audio_mae_jax.models import mae


class Pretrain:
  """See `tasks.Task`."""

  labelled = False
  metric = ''

  def __init__(self, config: config_lib.Config):
    self.config = config
    self.shape = (config.frontend.num_frames, config.frontend.num_mel_bins)
    self.grid = patches_lib.grid_of(self.shape, config.patch)
    self.model = mae.make(config)
    if config.objective.reconstruction + config.objective.contrastive <= 0:
      raise ValueError(
          'Nothing to learn: objective.reconstruction='
          f'{config.objective.reconstruction} and objective.contrastive='
          f'{config.objective.contrastive}; at least one must be positive.')
    # Here, so that a wrong setting stops before any data is read.
    frontend.tables(config.frontend)
    jax.eval_shape(lambda: self.draw_mask(jax.random.key(0), 1))

  def draw_mask(self, rng, batch: int) -> masking.Mask:
    return masking.make(rng, batch, self.grid, self.config.mask)

  def init(self, rng):
    n, p = self.grid[0] * self.grid[1], self.config.patch.size
    patches = jnp.zeros((1, n, p[0] * p[1]))
    return self.model.init(
        rng, patches, self.grid, self.draw_mask(rng, 1))['params']

  def prepare(self, batch, rng, *, train):
    """-> {'patches' [B, N, P], 'mask'}; see `tasks.Task`."""
    audio, num_samples = batch['audio'], batch['num_samples']
    # The first two are what `split(rng)` gives: older runs have their draws.
    rng_wave, rng_mask, rng_features = jax.random.split(rng, 3)
    if train:
      audio, _ = augment.waveform(
          rng_wave, audio, num_samples, self.config.augment)
    spectrogram = frontend.features(audio, num_samples, self.config.frontend)
    if train:
      spectrogram = augment.spectrogram(
          rng_features, spectrogram, self.config.frontend, self.config.augment)
    return {
        'patches': patches_lib.patchify(spectrogram, self.config.patch),
        'mask': self.draw_mask(rng_mask, audio.shape[0]),
    }

  def apply(self, params, inputs, rng=None) -> mae.Output:
    return self.model.apply(
        {'params': params}, inputs['patches'], self.grid, inputs['mask'],
        train=rng is not None, rngs=None if rng is None else {'dropout': rng})

  def losses(self, params, inputs, rng=None):
    objective, mask = self.config.objective, inputs['mask']
    output = self.apply(params, inputs, rng)
    target = inputs['patches']
    if objective.normalize_patches:
      target = losses.normalize_patches(target)
    values = {'reconstruction': losses.masked_mse(
        output.prediction, target, mask.removed)}
    total = objective.reconstruction * values['reconstruction']
    if objective.contrastive > 0:
      hidden = jnp.take_along_axis(target, mask.removed_ids[..., None], axis=1)
      values['contrastive'] = losses.info_nce(
          output.context, hidden, objective.temperature)
      total += objective.contrastive * values['contrastive']
    return {'loss': total, **values}

  def evaluate(self, params, inputs):
    return self.losses(params, inputs), {}

  def metrics(self, outputs):
    del outputs  # the losses say it all
    return metrics.Result({}, {})

  def picture(self, params, inputs):
    """Predicted patches get the mean and deviation of the true ones back."""
    patches, mask = inputs['patches'], inputs['mask']
    prediction = self.apply(params, inputs).prediction
    if self.config.objective.normalize_patches:
      prediction = losses.denormalize_patches(prediction, patches)
    removed = jnp.broadcast_to(mask.removed[..., None], patches.shape)
    unpatchify = lambda x: patches_lib.unpatchify(
        x, self.shape, self.config.patch)
    return {
        'original': unpatchify(patches),
        # Where patches overlap, a pixel is hidden when all over it are.
        'removed': unpatchify(removed.astype(jnp.float32)) > 0.999,
        'reconstruction': unpatchify(prediction),
    }

  def flops(self):
    return flops.pretrain(self.config, self.grid)
