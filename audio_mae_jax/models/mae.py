"""The masked autoencoder: encoder and decoder around a given mask.

The mask is an argument: with it, `apply` is a deterministic function, and the
same one serves training, evaluation, pictures and parity tests.
"""

from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from audio_mae_jax import config as config_lib
from audio_mae_jax import masking
from audio_mae_jax.models import decoder as decoder_lib
from audio_mae_jax.models import encoder as encoder_lib
from audio_mae_jax.models import layers


class Output(NamedTuple):
  prediction: jax.Array  # float32 [B, N, P], every patch's pixels
  context: jax.Array | None  # float32 [B, N - K, P], for the contrastive loss


class AudioMAE(nn.Module):
  """`apply(variables, patches [B, N, P], grid, mask) -> Output`.

  `train=True` switches dropout on and needs an rng named 'dropout'.
  """
  encoder: nn.Module
  decoder: nn.Module
  dtype: jnp.dtype
  contrastive: bool = False  # a second head (paper, appendix C.3)

  @nn.compact
  def __call__(self, patches, grid, mask: masking.Mask, *, train=False):
    latent = self.encoder(patches, grid, mask.keep_ids, train=train)
    x = self.decoder(latent, grid, mask.restore_ids, train=train)
    pixels = patches.shape[-1]
    prediction = layers.dense(pixels, self.dtype, 'pred')(x)
    context = None
    if self.contrastive:
      x = jnp.take_along_axis(x, mask.removed_ids[..., None], axis=1)
      context = layers.dense(pixels, self.dtype, 'context')(x).astype(
          jnp.float32)
    return Output(prediction.astype(jnp.float32), context)

  def encode(self, patches, grid, keep_ids=None):
    """[B, N, P] -> [B, 1 + K, D]; all patches when `keep_ids` is None."""
    return self.encoder(patches, grid, keep_ids)


def make(config: config_lib.Config) -> AudioMAE:
  """The model that `config` describes."""
  return AudioMAE(
      encoder=encoder_lib.make(config),
      decoder=decoder_lib.make(config),
      dtype=jnp.dtype(config.model.dtype),
      contrastive=config.objective.contrastive > 0)
