"""The classifier: the encoder, pooled, and a linear head.

As released for fine-tuning (models_vit.py): the mean over the patches, without
the class token, is normalised by `fc_norm`; the encoder's own last norm is left
out. The class token can be pooled instead: then that norm stays.
"""

from flax import linen as nn
import jax.numpy as jnp

from audio_mae_jax import config as config_lib
from audio_mae_jax.models import encoder as encoder_lib
from audio_mae_jax.models import layers

POOLS = ('mean', 'class_token')
# main_finetune_as.py:406; its truncation is at 2, which cuts nothing.
HEAD = nn.initializers.normal(2e-5)


class Classifier(nn.Module):
  """`apply(variables, patches [B, N, P], grid, keep_ids) -> float32 [B, C]`.

  `keep_ids` int32 [B, K] are the patches to see, None for all. With
  `num_classes=0` there is no head: the result is the embedding, [B, D].
  """
  encoder: nn.Module
  num_classes: int
  pool: str

  @nn.compact
  def __call__(self, patches, grid, keep_ids=None, *, train=False):
    x = self.encoder(patches, grid, keep_ids, train=train)
    if self.pool == 'mean':
      # Hundreds of tokens are summed: in float32, whatever the products are in.
      x = x[:, 1:].mean(1, dtype=jnp.float32)
      x = layers.layer_norm(jnp.float32, 'fc_norm')(x)
    else:
      x = x[:, 0].astype(jnp.float32)
    if not self.num_classes:
      return x
    return nn.Dense(self.num_classes, kernel_init=HEAD, name='head')(x)


def make(config: config_lib.Config) -> Classifier:
  """The classifier that `config` describes."""
  settings = config.model.classifier
  if settings.pool not in POOLS:
    raise ValueError(
        f'model.classifier.pool={settings.pool!r} is not known: '
        f'{", ".join(POOLS)}.')
  if settings.num_classes < 0:
    raise ValueError(
        f'model.classifier.num_classes={settings.num_classes}: -1 means as '
        'many as the data has, which is known where data is opened. Here, give '
        'the number of classes, or 0 for embeddings.')
  return Classifier(
      encoder=encoder_lib.make(config, settings.pool == 'class_token'),
      num_classes=settings.num_classes, pool=settings.pool)
