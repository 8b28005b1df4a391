"""Transformer parts shared by encoder and decoders, and the stack of blocks.

Parameters are float32. `dtype` is that of activations and products; softmax and
normalisation statistics are float32 whatever it is.
"""

from collections.abc import Callable

from flax import linen as nn
import jax
import jax.numpy as jnp

from audio_mae_jax import config as config_lib
from audio_mae_jax import patches as patches_lib

XAVIER = nn.initializers.xavier_uniform()  # released code, models_mae.py:165
TOKEN = nn.initializers.normal(0.02)  # class and mask tokens, idem :158


class Dense(nn.Module):
  """[..., D] -> [..., features], the product in `dtype`."""
  features: int
  dtype: jnp.dtype
  bias_init: Callable = nn.initializers.zeros

  @nn.compact
  def __call__(self, x):
    kernel = self.param('kernel', XAVIER, (x.shape[-1], self.features))
    bias = self.param('bias', self.bias_init, (self.features,))
    y = x.astype(self.dtype) @ kernel.astype(self.dtype)
    # In float32 for the way back: the bias' gradient is a sum over all tokens,
    # and XLA may add bfloat16 to bfloat16, one by one (40 % off in windows).
    return (y.astype(jnp.float32) + bias).astype(self.dtype)


def dense(features: int, dtype, name: str, **settings) -> Dense:
  return Dense(features, dtype, name=name, **settings)


def layer_norm(dtype, name: str) -> nn.LayerNorm:
  """Over channels, epsilon 1e-6; variance as mean squared deviation (exact)."""
  return nn.LayerNorm(
      epsilon=1e-6, dtype=dtype, use_fast_variance=False, name=name)


def positions(module: nn.Module, grid, width: int, patch: config_lib.Patch):
  """Codes of the class token and of every patch of `grid`, float32 [1 + N, D].

  They are constants, unless `patch.positions` is 'table': then they are the
  parameter 'positions' of `module`, which is trained only when asked.
  """
  if patch.positions != 'table':
    return jnp.asarray(patches_lib.position_table(grid, width, patch))
  trained = patches_lib.trained_grid(grid, patch)
  table = module.param(
      'positions', lambda rng: jnp.asarray(patches_lib.position_table(
          trained, width, config_lib.Patch())))
  if not patch.train_positions:
    table = jax.lax.stop_gradient(table)
  return patches_lib.look_up(table, grid, patch)


class Mlp(nn.Module):
  """[..., D] -> [..., D] through `hidden` channels and an exact (erf) GELU."""
  hidden: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    h = dense(self.hidden, self.dtype, 'fc1')(x)
    h = nn.gelu(h, approximate=False)
    return dense(x.shape[-1], self.dtype, 'fc2')(h)


def split_heads(qkv, heads: int):
  """[..., L, 3 D] -> three arrays [..., L, H, D / H]: queries, keys, values."""
  *lead, width = qkv.shape
  qkv = qkv.reshape(*lead, 3, heads, width // 3 // heads)
  return qkv[..., 0, :, :], qkv[..., 1, :, :], qkv[..., 2, :, :]


class Attention(nn.Module):
  """Multi-head self-attention over all tokens, [B, L, D] -> [B, L, D]."""
  heads: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    q, k, v = split_heads(
        dense(3 * x.shape[-1], self.dtype, 'qkv')(x), self.heads)
    logits = jnp.einsum(
        'bqhd,bkhd->bhqk', q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits * q.shape[-1] ** -0.5)
    out = jnp.einsum('bhqk,bkhd->bqhd', weights.astype(self.dtype), v)
    return dense(x.shape[-1], self.dtype, 'proj')(out.reshape(x.shape))


class Block(nn.Module):
  """Pre-norm transformer block, [B, L, D] -> [B, L, D]."""
  heads: int
  mlp_ratio: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, train: bool):
    del train  # nothing in it is random
    x = x + Attention(self.heads, self.dtype, name='attn')(
        layer_norm(self.dtype, 'norm1')(x))
    return x + Mlp(round(x.shape[-1] * self.mlp_ratio), self.dtype, name='mlp')(
        layer_norm(self.dtype, 'norm2')(x))


REMAT = {
    'none': lambda fn: fn,
    'dots': lambda fn: jax.checkpoint(
        fn, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable),
    'full': jax.checkpoint,
}


class Stack(nn.Module):
  """`depth` blocks in a row, with parameters `00`, `01`, ...

  `blocks(i)` makes block i as a module of its own (`parent=None`); blocks i and
  i + `period` must be alike. With `scan`, one period is compiled and looped
  over, on parameters stacked in the step: the layout of parameters, and so of
  checkpoints, is the same with and without it.
  """
  blocks: Callable[[int], nn.Module]
  depth: int
  period: int = 1
  scan: bool = False
  remat: str = 'none'

  @nn.compact
  def __call__(self, x, train: bool = False):
    members = [self.blocks(i) for i in range(min(self.period, self.depth))]
    # The parameters of a whole block are one entry: blocks are applied as
    # functions, so that a scan can loop over them.
    layers = [
        self.param(
            f'{i:02d}',
            lambda rng, i=i: members[i % self.period].init(
                rng, x, train=False)['params'])
        for i in range(self.depth)]
    keys = (list(jax.random.split(self.make_rng('dropout'), self.depth))
            if train else [None] * self.depth)

    def one_period(x, layers_and_keys):
      for member, (params, key) in zip(members, layers_and_keys):
        rngs = None if key is None else {'dropout': key}
        x = member.apply({'params': params}, x, train=train, rngs=rngs)
      return x

    one_period = REMAT[self.remat](one_period)
    pairs = list(zip(layers, keys))
    whole = self.depth - self.depth % self.period
    groups = [pairs[i:i + self.period] for i in range(0, whole, self.period)]
    if self.scan and len(groups) > 1:
      stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *groups)
      x, _ = jax.lax.scan(
          lambda x, group: (one_period(x, group), None), x, stacked)
    else:
      for group in groups:
        x = one_period(x, group)
    return one_period(x, pairs[whole:]) if pairs[whole:] else x
