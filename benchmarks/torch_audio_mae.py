"""The same models in PyTorch, to compare speed with: as fast as we can make it.

Modules and parameters have the names of audio_mae_jax/models/, with `kernel`
and `scale` called `weight`, and compute the same functions: a test compares
losses and gradients. Attention is `scaled_dot_product_attention`, in windows
too unless `products` asks for two products of matrices with a softmax between
them. Under autocast the stream between blocks stays in the products' dtype, as
ours does.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from audio_mae_jax import config as config_lib
from audio_mae_jax import patches as patches_lib
from audio_mae_jax.models import encoder as encoder_lib
from audio_mae_jax.models import window as window_lib

WINDOWS = ('sdpa', 'products')  # how attention in windows is computed


def norm(width):
  return nn.LayerNorm(width, eps=1e-6)


def constant(array):
  return torch.from_numpy(np.array(array, np.float32))


class Mlp(nn.Module):

  def __init__(self, width, hidden):
    super().__init__()
    self.fc1 = nn.Linear(width, hidden)
    self.fc2 = nn.Linear(hidden, width)

  def forward(self, x):
    return self.fc2(functional.gelu(self.fc1(x)))


class Attention(nn.Module):
  """[B, L, D] -> [B, L, D]."""

  def __init__(self, width, heads):
    super().__init__()
    self.heads = heads
    self.qkv = nn.Linear(width, 3 * width)
    self.proj = nn.Linear(width, width)

  def forward(self, x):
    qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [B, H, L, D / H]
    out = functional.scaled_dot_product_attention(q, k, v)
    return self.proj(out.transpose(1, 2).flatten(2))


class Block(nn.Module):
  """Pre-norm; `kept` [2, B] scales the branches of each clip, if given."""

  def __init__(self, width, heads, mlp_ratio):
    super().__init__()
    self.norm1, self.attn = norm(width), Attention(width, heads)
    self.norm2, self.mlp = norm(width), Mlp(width, round(width * mlp_ratio))

  def forward(self, x, kept=None):
    scaled = lambda y, i: y if kept is None else (
        y * kept[i, :, None, None].to(y.dtype))
    x = x + scaled(self.attn(self.norm1(x)), 0)
    return x + scaled(self.mlp(self.norm2(x)), 1)


class Encoder(nn.Module):
  """[B, N, P], [B, K] or None -> [B, 1 + K, D]."""

  def __init__(self, config: config_lib.Config, grid, final_norm=True):
    super().__init__()
    settings = config.model.encoder
    width, depth, heads = encoder_lib.sizes(settings)
    pixels = config.patch.size[0] * config.patch.size[1]
    self.drop_path = settings.drop_path
    self.patch_embed = nn.Linear(pixels, width)
    self.cls_token = nn.Parameter(0.02 * torch.randn(width))
    self.blocks = nn.ModuleList(
        Block(width, heads, settings.mlp_ratio) for _ in range(depth))
    self.norm = norm(width) if final_norm else nn.Identity()
    self.register_buffer('table', constant(
        patches_lib.position_table(grid, width, config.patch)), False)

  def forward(self, patches, keep_ids=None):
    places = self.table[1:]
    if keep_ids is not None:
      patches = torch.take_along_dim(patches, keep_ids[..., None], 1)
      places = places[keep_ids]
    x = self.patch_embed(patches)
    x = x + places.to(x.dtype)
    token = (self.cls_token + self.table[0]).to(x.dtype)
    x = torch.cat([token.expand(len(x), 1, -1), x], 1)
    for block, kept in zip(self.blocks, self.draw_kept(x)):
      x = block(x, kept)
    return self.norm(x)

  def draw_kept(self, x):
    depth = len(self.blocks)
    if not (self.training and self.drop_path):
      return [None] * depth
    keep = 1 - torch.linspace(0, self.drop_path, depth, device=x.device)
    keep = keep[:, None, None]
    draws = torch.rand(depth, 2, len(x), device=x.device)
    return (torch.floor(keep + draws) / keep).unbind(0)


class RelativeBias(nn.Module):
  """-> [H, L, L], from the offsets of all pairs of a window."""

  def __init__(self, heads, window, dropout):
    super().__init__()
    self.fc1 = nn.Linear(2, 384)
    self.fc2 = nn.Linear(384, heads)
    self.dropout = nn.Dropout(dropout)
    self.side = window[0] * window[1]
    self.register_buffer(
        'offsets', constant(window_lib.log_offsets(window)), False)

  def forward(self):
    h = self.dropout(functional.relu(self.fc1(self.offsets)))
    return self.dropout(self.fc2(h)).T.unflatten(1, (self.side, self.side))


class WindowAttention(nn.Module):
  """Cosine attention in each window, [B, W, L, D] -> [B, W, L, D]."""

  def __init__(self, width, heads, window, mask, dropout, products):
    super().__init__()
    self.heads, self.products = heads, products
    self.qkv = nn.Linear(width, 3 * width)
    self.proj = nn.Linear(width, width)
    self.tau = nn.Parameter(torch.ones(heads))
    self.bias = RelativeBias(heads, window, dropout)
    self.register_buffer('mask', None if mask is None else constant(mask),
                         False)

  def forward(self, x):
    b, w, patches, d = x.shape
    qkv = self.qkv(x).view(b, w, patches, 3, self.heads, -1)
    q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).unbind(0)  # [B, W, H, L, D / H]
    q = unit(q, self.tau.clamp_min(0.01)[:, None, None])
    k = unit(k)
    bias = self.bias()[None]
    if self.mask is not None:
      bias = bias + self.mask[:, None]  # [W, H, L, L]
    if self.products:
      logits = (q @ k.transpose(-1, -2)).float() + bias
      out = logits.softmax(-1).to(v.dtype) @ v
    else:
      # Windows beside heads: the bias is that of every clip, and not copied.
      q, k, v = (y.flatten(1, 2) for y in (q, k, v))
      bias = bias.expand(w, -1, -1, -1).flatten(0, 1)[None].to(q.dtype)
      out = functional.scaled_dot_product_attention(
          q, k, v, bias.expand(b, -1, -1, -1), scale=1.0)
      out = out.unflatten(1, (w, self.heads))
    return self.proj(out.transpose(2, 3).reshape(b, w, patches, d))


def unit(x, tau=1.0):
  """`x` at the length 1 / tau."""
  wide = x.float()
  squares = wide.square().sum(-1, keepdim=True).clamp_min(1e-12)
  return (wide * (squares.rsqrt() / tau)).to(x.dtype)


class WindowBlock(nn.Module):
  """Attention in windows, then an MLP, each normalised after; [B, N, W]."""

  def __init__(self, settings: config_lib.Decoder, grid, shifted, products):
    super().__init__()
    width = settings.width
    window, shift = window_lib.fit_window(
        grid, settings.window, settings.shift if shifted else (0, 0))
    self.grid, self.window, self.shift = grid, window, shift
    self.attn = WindowAttention(
        width, settings.heads, window,
        window_lib.shift_mask(grid, window, shift), settings.bias_dropout,
        products)
    self.norm1, self.norm2 = norm(width), norm(width)
    self.mlp = Mlp(width, round(width * settings.mlp_ratio))

  def forward(self, x):
    (gt, gf), (wt, wf) = self.grid, self.window
    y = x.unflatten(1, self.grid)
    if any(self.shift):
      y = y.roll((-self.shift[0], -self.shift[1]), (1, 2))
    y = y.view(len(x), gt // wt, wt, gf // wf, wf, -1).transpose(2, 3)
    y = self.attn(y.reshape(len(x), -1, wt * wf, x.shape[-1]))
    y = y.view(len(x), gt // wt, gf // wf, wt, wf, -1).transpose(2, 3)
    y = y.reshape(len(x), gt, gf, -1)
    if any(self.shift):
      y = y.roll(self.shift, (1, 2))
    x = x + self.norm1(y.flatten(1, 2)).to(x.dtype)
    return x + self.norm2(self.mlp(x)).to(x.dtype)


BLOCKS = Block, WindowBlock


class Tokens(nn.Module):
  """[B, 1 + K, D], [B, N] -> [B, N, W]; the class token goes no further."""

  def __init__(self, width, settings, table):
    super().__init__()
    self.embed = nn.Linear(width, settings.width)
    self.mask_token = nn.Parameter(0.02 * torch.randn(settings.width))
    self.register_buffer('table', constant(table), False)

  def forward(self, x, restore_ids):
    x = self.embed(x[:, 1:])
    missing = restore_ids.shape[1] - x.shape[1]
    token = self.mask_token.to(x.dtype).expand(len(x), missing, -1)
    x = torch.take_along_dim(
        torch.cat([x, token], 1), restore_ids[..., None], 1)
    return x + self.table[1:].to(x.dtype)


class LocalDecoder(nn.Module):

  def __init__(self, config: config_lib.Config, grid, products):
    super().__init__()
    settings = config.model.decoder
    if settings.name != 'local' or grid != window_lib.whole_windows(
        grid, settings.window):
      raise ValueError(
          f'Here is only the local decoder over whole windows, not the '
          f'{settings.name} one with windows of {settings.window} over {grid} '
          'patches: compare with model.decoder.name=local.')
    width, _, _ = encoder_lib.sizes(config.model.encoder)
    self.tokens = Tokens(width, settings, patches_lib.position_table(
        grid, settings.width, config.patch))
    self.blocks = nn.ModuleList(
        WindowBlock(settings, grid, i % 2, products)
        for i in range(settings.depth))
    self.norm = norm(settings.width)

  def forward(self, x, restore_ids):
    x = self.tokens(x, restore_ids)
    for block in self.blocks:
      x = block(x)
    return self.norm(x)


class AudioMAE(nn.Module):
  """Patches [B, N, P], order [B, N] (kept ones first), K -> the loss."""

  def __init__(self, config: config_lib.Config, grid, products=False):
    super().__init__()
    pixels = config.patch.size[0] * config.patch.size[1]
    self.encoder = Encoder(config, grid)
    self.decoder = LocalDecoder(config, grid, products)
    self.pred = nn.Linear(config.model.decoder.width, pixels)

  def forward(self, patches, order, num_keep):
    restore = order.argsort(1)
    latent = self.encoder(patches, order[:, :num_keep])
    prediction = self.pred(self.decoder(latent, restore)).float()
    variance, mean = torch.var_mean(patches, -1, keepdim=True)
    target = (patches - mean) / (variance + 1e-6).sqrt()
    error = (prediction - target).square().mean(-1)
    removed = restore >= num_keep
    return (error * removed).sum() / removed.sum()


class Classifier(nn.Module):
  """Patches, kept ids or None -> logits [B, C]; embeddings without classes."""

  def __init__(self, config: config_lib.Config, grid):
    super().__init__()
    width, _, _ = encoder_lib.sizes(config.model.encoder)
    self.encoder = Encoder(config, grid, final_norm=False)
    self.fc_norm = norm(width)
    classes = config.model.classifier.num_classes
    self.head = nn.Linear(width, classes) if classes else nn.Identity()

  def forward(self, patches, keep_ids=None):
    x = self.encoder(patches, keep_ids)[:, 1:]
    return self.head(self.fc_norm(x.mean(1, dtype=torch.float32))).float()


def our_name(name: str) -> str:
  """The parameter of audio_mae_jax that `name` is."""
  parts = [f'{int(x):02d}' if x.isdigit() else x for x in name.split('.')]
  if parts[-1] == 'weight':
    parts[-1] = 'scale' if 'norm' in parts[-2] else 'kernel'
  return '/'.join(parts)


def ours(module: nn.Module) -> dict[str, nn.Parameter]:
  """Parameters by our names; a `kernel` is a `weight` transposed."""
  return {our_name(name): x for name, x in module.named_parameters()}


@torch.no_grad()
def load(module: nn.Module, arrays: dict):
  """Takes our parameters: every one, and no other."""
  mine = ours(module)
  if set(mine) != set(arrays):
    raise ValueError(f'Not the same parameters: {set(mine) ^ set(arrays)}.')
  for name, parameter in mine.items():
    array = np.array(arrays[name], np.float32)
    parameter.copy_(torch.from_numpy(
        array.T if name.endswith('kernel') else array))
  return module
