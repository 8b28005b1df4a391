"""Fine-tuning: a classifier on the pre-trained encoder, on one page.

waveform -> augment, mix -> log-mel -> hide stripes -> patches -> encode ->
pool -> logits -> cross entropy (paper, sections 3 and 4.2). In evaluation
nothing is augmented and all patches are seen.
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
from audio_mae_jax import registry
from audio_mae_jax.models import classifier


class Classify:
  """See `tasks.Task`."""

  labelled = True

  def __init__(self, config: config_lib.Config):
    self.config = config
    self.shape = (config.frontend.num_frames, config.frontend.num_mel_bins)
    self.grid = patches_lib.grid_of(self.shape, config.patch)
    self.model = classifier.make(config)
    if not config.model.classifier.num_classes:
      raise ValueError(
          'model.classifier.num_classes=0 is a model without a head, and task '
          'classify trains one: give the number of classes, or -1 to take as '
          'many as the data has.')
    labels = config.labels
    self.loss = registry.lookup(
        losses.CLASSIFICATION, labels.loss, 'labels.loss')
    if labels.multilabel and labels.loss == 'ce':
      raise ValueError(
          "labels.loss='ce' is for clips with one label each, and "
          "labels.multilabel=True: set labels.loss='bce', or "
          'labels.multilabel=False.')
    if labels.multilabel and labels.smoothing:
      raise ValueError(
          f'labels.smoothing={labels.smoothing} divides the one label of a '
          'clip among all classes, and labels.multilabel=True: set it to 0.')
    losses.smooth(jnp.zeros((1, 1)), labels.smoothing)
    self.metric = metrics.main_metric(labels.multilabel, labels.metric)
    # Here, so that a wrong setting stops before any data is read.
    frontend.tables(config.frontend)
    jax.eval_shape(lambda: self.draw_kept(jax.random.key(0), 1))

  def draw_kept(self, rng, batch: int):
    """int32 [B, K], the patches that training sees; None for all."""
    if not self.config.mask.name:
      return None
    return masking.make(rng, batch, self.grid, self.config.mask).keep_ids

  def init(self, rng):
    n, p = self.grid[0] * self.grid[1], self.config.patch.size
    return self.model.init(
        rng, jnp.zeros((1, n, p[0] * p[1])), self.grid)['params']

  def prepare(self, batch, rng, *, train):
    """-> {'patches' [B, N, P], 'labels' [B, C]}, in training also 'keep_ids'.

    See `tasks.Task`.
    """
    settings, audio = self.config.augment, batch['audio']
    labels, num_samples = batch['labels'], batch['num_samples']
    rng_waveform, rng_mask, rng_spectrogram = jax.random.split(rng, 3)
    if train:
      audio, labels = augment.waveform(
          rng_waveform, audio, num_samples, settings, labels)
    spectrogram = frontend.features(audio, num_samples, self.config.frontend)
    if train:
      spectrogram = augment.spectrogram(
          rng_spectrogram, spectrogram, self.config.frontend, settings)
    inputs = {
        'patches': patches_lib.patchify(spectrogram, self.config.patch),
        'labels': labels}
    if train and self.config.mask.name:
      inputs['keep_ids'] = self.draw_kept(rng_mask, audio.shape[0])
    return inputs

  def apply(self, params, inputs, rng=None):
    """-> logits, float32 [B, C]."""
    return self.model.apply(
        {'params': params}, inputs['patches'], self.grid,
        inputs.get('keep_ids'), train=rng is not None,
        rngs=None if rng is None else {'dropout': rng})

  def losses(self, params, inputs, rng=None):
    targets = losses.smooth(inputs['labels'], self.config.labels.smoothing)
    return {'loss': self.loss(self.apply(params, inputs, rng), targets)}

  def evaluate(self, params, inputs):
    logits = self.apply(params, inputs)
    return ({'loss': self.loss(logits, inputs['labels'])},
            {'logits': logits, 'targets': inputs['labels']})

  def metrics(self, outputs):
    return metrics.compute(
        outputs['logits'], outputs['targets'], self.config.labels.multilabel)

  picture = None

  def flops(self):
    return flops.classify(self.config, self.grid)
