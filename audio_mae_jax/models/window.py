"""Local attention for the decoder: shifted windows over the grid of patches.

As released (an early form of Swin v2: timm_patch/swin_transformer.py): cosine
attention with a temperature per head, a bias from a small network over
log-spaced relative positions, and normalisation after each branch.
"""

import functools

from flax import linen as nn
import jax.numpy as jnp
import numpy as np

from audio_mae_jax.models import attention
from audio_mae_jax.models import layers


def fit_window(grid, window, shift):
  """Window and shift for `grid`: a window that fills it is not shifted."""
  return (tuple(min(w, g) for w, g in zip(window, grid)),
          tuple(s if w < g else 0 for s, w, g in zip(shift, window, grid)))


def whole_windows(grid, window):
  """The smallest grid around `grid` that whole windows tile."""
  window, _ = fit_window(grid, window, (0, 0))
  return tuple(g + -g % w for g, w in zip(grid, window))


def extend(x, grid, larger):
  """[B, N, D] -> [B, N', D]: the last row and column go on to a larger grid.

  So does the released code for its 101 overlapping patches in windows of 6;
  the patches that are added live through all blocks.
  """
  b, _, d = x.shape
  rest = [(0, n - g) for n, g in zip(larger, grid)]
  x = jnp.pad(x.reshape(b, *grid, d), ((0, 0), *rest, (0, 0)), mode='edge')
  return x.reshape(b, -1, d)


def cut(x, grid, larger):
  """[B, N', D] -> [B, N, D]; undoes `extend`."""
  b, _, d = x.shape
  return x.reshape(b, *larger, d)[:, :grid[0], :grid[1]].reshape(b, -1, d)


def partition(x, window):
  """[B, gt, gf, D] -> [B, windows, patches, D], both in raster order."""
  b, gt, gf, d = x.shape
  wt, wf = window
  x = x.reshape(b, gt // wt, wt, gf // wf, wf, d).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, (gt // wt) * (gf // wf), wt * wf, d)


def merge(x, grid, window):
  """[B, windows, patches, D] -> [B, gt, gf, D]; the inverse of `partition`."""
  b, d = x.shape[0], x.shape[-1]
  (gt, gf), (wt, wf) = grid, window
  x = x.reshape(b, gt // wt, gf // wf, wt, wf, d).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, gt, gf, d)


def move(x, grid, window, shift):
  """[B, W, L, D] -> the same: the windows of the grid rolled by -`shift`, from
  those of the grid; without a transposition, as `partition` would take."""
  b, w, patches, d = x.shape
  x = x.reshape(b, *(g // w for g, w in zip(grid, window)), *window, d)
  for axis, by in enumerate(shift):
    outer, inner = 1 + axis, 3 + axis
    windows, rest = divmod(by, window[axis])
    if windows:
      x = jnp.roll(x, -windows, outer)
    if rest:
      here, there = jnp.split(x, [rest], inner)
      x = jnp.concatenate([there, jnp.roll(here, -1, outer)], inner)
  return x.reshape(b, w, patches, d)


@functools.lru_cache(maxsize=32)
def log_offsets(window) -> np.ndarray:
  """float32 [L * L, 2]: sign(d) ln(1 + |d|) of each pair's offsets."""
  at = np.stack(np.meshgrid(*map(np.arange, window), indexing='ij'), -1)
  at = at.reshape(-1, 2)
  offset = (at[:, None] - at[None]).reshape(-1, 2).astype(np.float64)
  return (np.sign(offset) * np.log1p(np.abs(offset))).astype(np.float32)


@functools.lru_cache(maxsize=32)
def shift_mask(grid, window, shift) -> np.ndarray | None:
  """float32 [windows, L, L]: -100 between patches that only the shift joins.

  The shift is cyclic, so that windows at the far edge hold patches from both
  ends of the grid; those must not see each other. None without a shift.
  """
  if not any(shift):
    return None
  region = np.zeros((1, *grid, 1), np.int64)
  for axis, (g, w, s) in enumerate(zip(grid, window, shift)):
    place = np.arange(g)
    part = (place >= g - w) + (place >= g - s).astype(np.int64)
    part = part if s else 0 * place
    region = region * 3 + part.reshape([-1 if a == axis + 1 else 1
                                        for a in range(4)])
  label = np.asarray(partition(region, window))[0, :, :, 0]
  return np.where(label[:, :, None] == label[:, None, :], 0.0, -100.0).astype(
      np.float32)


class RelativeBias(nn.Module):
  """[L * L, 2] -> [H, L, L]: what to add to the attention of each pair."""
  heads: int
  dropout: float  # 0.1 in the released code, and active in its pre-training

  @nn.compact
  def __call__(self, offsets, train: bool):
    drop = nn.Dropout(self.dropout, deterministic=not train)
    h = drop(nn.relu(layers.dense(384, jnp.float32, 'fc1')(offsets)))
    h = drop(layers.dense(self.heads, jnp.float32, 'fc2')(h))
    side = int(offsets.shape[0] ** 0.5)
    return h.T.reshape(self.heads, side, side)


class WindowAttention(nn.Module):
  """Cosine attention inside each window, [B, W, L, D] -> [B, W, L, D]."""
  heads: int
  window: tuple[int, int]
  bias_dropout: float
  dtype: jnp.dtype
  implementation: str = 'auto'

  @nn.compact
  def __call__(self, x, mask, train: bool):
    qkv = layers.dense(3 * x.shape[-1], self.dtype, 'qkv')(x)
    tau = self.param('tau', nn.initializers.ones, (self.heads,))
    bias = RelativeBias(self.heads, self.bias_dropout, name='bias')(
        log_offsets(self.window), train)
    out = attention.windows(
        qkv, self.heads, bias, tau, mask, self.implementation)
    return layers.dense(x.shape[-1], self.dtype, 'proj')(out)


class WindowBlock(nn.Module):
  """Attention in shifted windows, then an MLP, [B, W, L, D] -> [B, W, L, D].

  Patches come and go in the windows of the grid as it is (`partition`), which
  divide `grid`, or fill it; see `whole_windows`. All of a shifted block lives
  in its own windows: norms and MLP do not mind, and so patches change places
  twice in every second block, not four times in each.
  """
  grid: tuple[int, int]
  window: tuple[int, int]
  shift: tuple[int, int]
  heads: int
  mlp_ratio: float
  bias_dropout: float
  dtype: jnp.dtype
  attention: str = 'auto'

  @nn.compact
  def __call__(self, x, train: bool):
    window, shift = fit_window(self.grid, self.window, self.shift)
    x = move(x, self.grid, window, shift)
    attend = WindowAttention(
        self.heads, window, self.bias_dropout, self.dtype, self.attention,
        name='attn')
    mask = shift_mask(self.grid, window, shift)
    x = layers.layer_norm(self.dtype, 'norm1')(attend(x, mask, train), x)
    mlp = layers.Mlp(
        round(x.shape[-1] * self.mlp_ratio), self.dtype, name='mlp')
    x = layers.layer_norm(self.dtype, 'norm2')(mlp(x), x)
    return move(x, self.grid, window, tuple(-s for s in shift))
