"""Decoders: from the visible tokens to features of every patch.

Contract: `(x [B, 1 + K, D], grid, restore_ids [B, N], train=) -> [B, N, W]`,
with W the decoder's width; the heads that predict pixels from these features
are in `mae.py`. Fields of each class that are fields of `config.Decoder` are
its settings; the paper compares the three in table 1c.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from audio_mae_jax import config as config_lib
from audio_mae_jax import registry
from audio_mae_jax.models import encoder as encoder_lib
from audio_mae_jax.models import layers
from audio_mae_jax.models import window as window_lib


@jax.custom_vjp
def reorder(x, ids):
  """[B, N, D] -> the same: row `ids[b, n]` of each clip, a permutation.

  The way back is another one, and not a sum over rows that may meet.
  """
  return jnp.take_along_axis(x, ids[..., None], axis=1)


reorder.defvjp(
    lambda x, ids: (reorder(x, ids), ids),
    lambda ids, gradient: (reorder(gradient, jnp.argsort(ids, axis=1)), None))


class Tokens(nn.Module):
  """[B, 1 + K, D] -> [B, 1 + N, W]: with mask tokens and positions."""
  width: int
  patch: config_lib.Patch
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, grid, restore_ids):
    x = layers.dense(self.width, self.dtype, 'embed')(x)
    token = self.param('mask_token', layers.TOKEN, (self.width,))
    b, n = restore_ids.shape
    # Repeated, then rounded: its gradient is a sum, in float32 (see Dense).
    missing = jnp.broadcast_to(
        token, (b, n + 1 - x.shape[1], self.width)).astype(self.dtype)
    patches = jnp.concatenate([x[:, 1:], missing], axis=1)
    patches = reorder(patches, restore_ids)
    x = jnp.concatenate([x[:, :1], patches], axis=1)
    table = layers.positions(self, grid, self.width, self.patch)
    return x + jnp.broadcast_to(table, x.shape).astype(self.dtype)


class _Decoder(nn.Module):
  """What all decoders share; `blocks` is what tells them apart."""
  width: int
  depth: int
  heads: int
  mlp_ratio: float
  patch: config_lib.Patch
  dtype: jnp.dtype
  scan: bool = False
  remat: str = 'none'
  attention: str = 'auto'

  @nn.compact
  def __call__(self, x, grid, restore_ids, *, train=False):
    x = Tokens(self.width, self.patch, self.dtype, name='tokens')(
        x, grid, restore_ids)
    x = self.blocks(x, grid, train)
    return layers.layer_norm(self.dtype, 'norm')(x)

  def stack(self, name, depth, blocks, period=1):
    return layers.Stack(
        blocks, depth, period, scan=self.scan, remat=self.remat, name=name)

  def global_stack(self, name, depth):
    return self.stack(name, depth, lambda i: layers.Block(
        self.heads, self.mlp_ratio, self.dtype, self.attention,
        parent=None))


class Global(_Decoder):
  """Plain transformer blocks; the class token takes part until the end."""

  def blocks(self, x, grid, train):
    return self.global_stack('blocks', self.depth)(x, train)[:, 1:]


class Local(_Decoder):
  """Attention in windows, every second block's shifted; no class token."""
  window: tuple[int, int] = (4, 4)
  shift: tuple[int, int] = (2, 0)
  bias_dropout: float = 0.1

  def blocks(self, x, grid, train):
    return self.local(x[:, 1:], grid, train, 'blocks')

  def local(self, x, grid, train, name):
    """[B, N, W] -> [B, N, W] through the stack `name` of local blocks."""
    whole = window_lib.whole_windows(grid, self.window)
    stack = self.stack(name, self.depth, lambda i: window_lib.WindowBlock(
        whole, self.window, self.shift if i % 2 else (0, 0), self.heads,
        self.mlp_ratio, self.bias_dropout, self.dtype, self.attention,
        parent=None), period=2)
    window, _ = window_lib.fit_window(whole, self.window, self.shift)
    if whole != grid:
      x = window_lib.extend(x, grid, whole)
    b, _, d = x.shape
    x = window_lib.partition(x.reshape(b, *whole, d), window)
    x = window_lib.merge(stack(x, train), whole, window).reshape(b, -1, d)
    return x if whole == grid else window_lib.cut(x, grid, whole)


class Hybrid(Local):
  """Local blocks with `global_depth` global ones on top (the paper's Hwin)."""
  global_depth: int = 4

  def blocks(self, x, grid, train):
    x = self.local(x[:, 1:], grid, train, 'local')
    return self.global_stack('global', self.global_depth)(x, train)


DECODERS = {'global': Global, 'local': Local, 'hybrid': Hybrid}


def make(config: config_lib.Config) -> nn.Module:
  """The decoder that `config` describes."""
  model = config.model
  decoder, settings = registry.select(
      DECODERS, model.decoder, 'model.decoder')
  encoder_lib.check_heads(
      settings['width'], settings['heads'], 'model.decoder')
  return decoder(
      **settings, patch=config.patch, dtype=jnp.dtype(model.dtype),
      scan=model.scan_layers, remat=model.remat,
      attention=model.attention)
