"""Vision transformer over the patches that are kept."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from audio_mae_jax import config as config_lib
from audio_mae_jax import registry
from audio_mae_jax.models import attention
from audio_mae_jax.models import layers

VARIANTS = {  # width D, blocks, heads H
    'Ti': (192, 12, 3),
    'S': (384, 12, 6),
    'B': (768, 12, 12),
    'L': (1024, 24, 16),
    'H': (1280, 32, 16),
}


def sizes(encoder: config_lib.Encoder) -> tuple[int, int, int]:
  """(width, depth, heads): the variant's, or what `encoder` says instead."""
  table = registry.lookup(VARIANTS, encoder.variant, 'model.encoder.variant')
  width, depth, heads = (
      own or value for own, value in
      zip((encoder.width, encoder.depth, encoder.heads), table))
  check_heads(width, heads, 'model.encoder')
  return width, depth, heads


def check_heads(width: int, heads: int, where: str):
  if heads < 1 or width < 4 or width % heads or width % 4:
    raise ValueError(
        f'{where}.width={width} is not a multiple of heads={heads} and of 4; '
        'attention splits it into heads, positions into 4 parts.')


class Encoder(nn.Module):
  """[B, N, P] -> [B, 1 + K, D]: the class token, then the kept patches.

  Pixels are gathered before they are embedded: the result is the same and, at
  the paper's ratio, four fifths of the embedding are never computed.
  """
  width: int
  depth: int
  heads: int
  mlp_ratio: float
  patch: config_lib.Patch
  dtype: jnp.dtype
  scan: bool = False
  remat: str = 'none'
  final_norm: bool = True
  drop_path: float = 0.0
  attention: str = 'auto'

  @nn.compact
  def __call__(self, patches, grid, keep_ids=None, *, train=False, every=False,
               lengths=None):
    """`keep_ids` int32 [B, K], or None to encode all N patches.

    With `every`, also a list of what each block gives, not normalised. With
    `lengths` int32 [B], only the first so many patches of a clip are seen; what
    the others become means nothing.
    """
    table = layers.positions(self, grid, self.width, self.patch)
    places = table[1:]
    if keep_ids is not None:
      patches = jnp.take_along_axis(patches, keep_ids[..., None], axis=1)
      places = places[keep_ids]
    # The released code leaves this bias at torch's default for a convolution.
    bound = patches.shape[-1] ** -0.5
    embed = layers.dense(
        self.width, self.dtype, 'patch_embed',
        bias_init=lambda rng, shape, dtype=jnp.float32: jax.random.uniform(
            rng, shape, dtype, -bound, bound))
    x = embed(patches)
    # Repeated, then rounded: gradients are sums, in float32 (see layers.Dense).
    x += jnp.broadcast_to(places, x.shape).astype(self.dtype)
    token = self.param('cls_token', layers.TOKEN, (self.width,))
    token = jnp.broadcast_to(
        token + table[0], (x.shape[0], 1, self.width)).astype(self.dtype)
    x = jnp.concatenate([token, x], axis=1)
    x = layers.Stack(
        lambda i: layers.Block(
            self.heads, self.mlp_ratio, self.dtype, self.attention,
            parent=None),
        self.depth, scan=self.scan, remat=self.remat, drop_path=self.drop_path,
        name='blocks')(
            x, train, every,
            **({} if lengths is None else {'lengths': lengths + 1}))
    blocks, x = (x, x[-1]) if every else ([], x)
    if self.final_norm:
      x = layers.layer_norm(self.dtype, 'norm')(x)
    return (x, blocks) if every else x


def make(config: config_lib.Config, final_norm: bool = True) -> Encoder:
  """The encoder that `config` describes."""
  model = config.model
  if model.dtype not in ('float32', 'bfloat16'):
    raise ValueError(
        f'model.dtype={model.dtype!r} is not known: float32, bfloat16.')
  registry.lookup(layers.REMAT, model.remat, 'model.remat')
  registry.lookup(attention.CHOICES, model.attention, 'model.attention')
  width, depth, heads = sizes(model.encoder)
  rate = model.encoder.drop_path
  if not 0 <= rate < 1:
    raise ValueError(
        f'model.encoder.drop_path={rate} is not the share of clips that pass '
        'by the branches of the last block: at least 0 (none) and below 1.')
  return Encoder(
      width, depth, heads, model.encoder.mlp_ratio, config.patch,
      jnp.dtype(model.dtype), model.scan_layers, model.remat, final_norm, rate,
      model.attention)
