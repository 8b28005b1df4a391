"""Transformer parts shared by encoder and decoders, and the stack of blocks.

Parameters are float32. `dtype` is that of activations and products; softmax and
normalisation statistics are float32 whatever it is.
"""

from collections.abc import Callable

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from audio_mae_jax import config as config_lib
from audio_mae_jax import patches as patches_lib
from audio_mae_jax.models import attention
from audio_mae_jax.models import pointwise

XAVIER = nn.initializers.xavier_uniform()  # released code, models_mae.py:165
TOKEN = nn.initializers.normal(0.02)  # class and mask tokens, idem :158


def whole(x):
  """A parameter that may be split over devices, gathered where it is used.

  The partitioner would rather move activations once a device has few clips
  (docs/scaling.md). The devices are those that the caller makes known
  (`sharding.known`); without them nothing is said.
  """
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, jax.sharding.PartitionSpec())


class Dense(nn.Module):
  """[..., D] -> [..., features], the product in `dtype`."""
  features: int
  dtype: jnp.dtype
  bias_init: Callable = nn.initializers.zeros

  def __call__(self, x):
    return pointwise.affine(x.astype(self.dtype), *self.weights(x.shape[-1]))

  @nn.compact
  def weights(self, channels: int):
    """[channels, features] in `dtype` and float32 [features]."""
    kernel = self.param('kernel', XAVIER, (channels, self.features))
    bias = self.param('bias', self.bias_init, (self.features,))
    return whole(kernel.astype(self.dtype)), bias


def dense(features: int, dtype, name: str, **settings) -> Dense:
  return Dense(features, dtype, name=name, **settings)


class LayerNorm(nn.Module):
  """[..., D] -> [..., D] in `dtype`: over channels, statistics in float32."""
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, add=None):
    """With `add` [..., D], its sum with the norm of `x`."""
    scale = self.param('scale', nn.initializers.ones, (x.shape[-1],))
    bias = self.param('bias', nn.initializers.zeros, (x.shape[-1],))
    return pointwise.layer_norm(x, scale, bias, add).astype(self.dtype)


def layer_norm(dtype, name: str) -> LayerNorm:
  return LayerNorm(dtype, name=name)


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
    fc1 = dense(self.hidden, self.dtype, 'fc1').weights(x.shape[-1])
    fc2 = dense(x.shape[-1], self.dtype, 'fc2').weights(self.hidden)
    return pointwise.mlp(x.astype(self.dtype), fc1, fc2)


class Attention(nn.Module):
  """Multi-head self-attention over all tokens, [B, L, D] -> [B, L, D]."""
  heads: int
  dtype: jnp.dtype
  implementation: str = 'auto'

  @nn.compact
  def __call__(self, x, lengths=None):
    qkv = dense(3 * x.shape[-1], self.dtype, 'qkv')(x)
    out = attention.full(qkv, self.heads, self.implementation, lengths)
    return dense(x.shape[-1], self.dtype, 'proj')(out)


def drop_path(uniform, rate: float):
  """What the branches of a stack are multiplied by: 0, or 1 / (1 - rate).

  `uniform` float32 [depth, branches, B] are draws in [0, 1), `rate` is that of
  the last block; the first one's is 0, between them it rises evenly (timm).
  """
  keep = 1 - np.linspace(0, rate, uniform.shape[0], dtype=np.float32)
  keep = keep[:, None, None]
  return jnp.where(keep + uniform >= 1, 1 / keep, 0)


class Block(nn.Module):
  """Pre-norm transformer block, [B, L, D] -> [B, L, D]."""
  heads: int
  mlp_ratio: float
  dtype: jnp.dtype
  attention: str = 'auto'

  @nn.compact
  def __call__(self, x, train: bool, kept=None, lengths=None):
    """`kept` float32 [2, B] scales attention and MLP of each clip, if given;
    `lengths` int32 [B] are the tokens of each that are attended to."""
    del train  # what is random is an argument
    attention_of = Attention(
        self.heads, self.dtype, self.attention, name='attn')
    attend = lambda x: attention_of(x, lengths)
    mlp = Mlp(round(x.shape[-1] * self.mlp_ratio), self.dtype, name='mlp')
    for i, branch in enumerate((attend, mlp)):
      y = branch(layer_norm(self.dtype, f'norm{i + 1}')(x))
      if kept is not None:  # a factor in bfloat16 would be off for all clips
        y = (y * kept[i][:, None, None]).astype(self.dtype)
      x = x + y
    return x


REMAT = {
    'none': lambda fn: fn,
    'dots': lambda fn: jax.checkpoint(
        fn, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable),
    'full': jax.checkpoint,
}


# Blocks that are alike are traced and lowered once; XLA inlines the calls.
once = jax.jit


class Stack(nn.Module):
  """`depth` blocks in a row, with parameters `00`, `01`, ...

  `blocks(i)` makes block i as a module of its own (`parent=None`); blocks i and
  i + `period` must be alike. With `scan`, one period is compiled and looped
  over, on parameters stacked in the step: the layout of parameters, and so of
  checkpoints, is the same with and without it. In training, clips pass by the
  branches of `Block`s at the rates that `drop_path` gives.
  """
  blocks: Callable[[int], nn.Module]
  depth: int
  period: int = 1
  scan: bool = False
  remat: str = 'none'
  drop_path: float = 0.0

  @nn.compact
  def __call__(self, x, train: bool = False, every: bool = False, **settings):
    """[B, L, D] -> [B, L, D]; with `every`, a list of what each block gives.

    `settings` go to every block.
    """
    members = [self.blocks(i) for i in range(min(self.period, self.depth))]
    layers = self._parameters(members, x)
    draws = self._draws(x.shape[0]) if train else [{}] * self.depth

    def one_period(x, group):
      outputs = []
      for member, (params, drawn) in zip(members, group):
        kept = {'kept': drawn['kept']} if 'kept' in drawn else {}
        rngs = {'dropout': drawn['key']} if 'key' in drawn else None
        x = member.apply({'params': params}, x, train=train, rngs=rngs, **kept,
                         **settings)
        outputs.append(x)
      return x, outputs if every else []

    one_period = once(REMAT[self.remat](one_period))
    pairs = list(zip(layers, draws))
    groups = [pairs[i:i + self.period]
              for i in range(0, self.depth, self.period)]
    whole = self.depth // self.period
    seen = []
    if self.scan and whole > 1:
      stacked = jax.tree.map(
          lambda *leaves: jnp.stack(leaves), *groups[:whole])
      x, outputs = jax.lax.scan(one_period, x, stacked)
      seen = [output[i] for i in range(whole) for output in outputs]
      groups = groups[whole:]
    for group in groups:
      x, outputs = one_period(x, group)
      seen += outputs
    return seen if every else x

  def _parameters(self, members, x):
    """Of each block, as one entry: blocks are applied as functions, so that a
    scan can loop over them."""
    names = [f'{i:02d}' for i in range(self.depth)]
    # `param` would trace the making of those that are there, to compare shapes.
    if all(self.has_variable('params', name) for name in names):
      return [self.get_variable('params', name) for name in names]
    keys = [self.make_rng('params') for _ in names]
    fresh = {}
    for i, block in enumerate(members):
      alike = slice(i, None, self.period)
      fresh |= zip(names[alike], self._fresh(block, x, keys[alike]))
    return [self.param(name, lambda _, name=name: fresh[name])
            for name in names]

  def _fresh(self, block, x, keys):
    """Of blocks that are alike, all at once: that compiles in half the time."""
    init = once(lambda key: block.init(key, x, train=False)['params'])
    if len(keys) == 1:
      return [init(keys[0])]
    stacked = jax.vmap(init)(jnp.stack(keys))
    return [jax.tree.map(lambda leaf, i=i: leaf[i], stacked)
            for i in range(len(keys))]

  def _draws(self, batch):
    """For each block, what is random in it."""
    keys = jax.random.split(self.make_rng('dropout'), self.depth)
    if not self.drop_path:
      return [{'key': key} for key in keys]
    kept = drop_path(
        jax.random.uniform(
            self.make_rng('dropout'), (self.depth, 2, batch), jnp.float32),
        self.drop_path)
    return [{'key': key, 'kept': k} for key, k in zip(keys, kept)]
