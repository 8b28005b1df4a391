"""Audio-MAE in PyTorch from published parts, for parity tests; needs [torch].

The encoder is timm's VisionTransformer, global decoder blocks are timm's Block
and local ones its SwinTransformerV2CrBlock, which descends from the released
block. What is written here lies between them: the mask, mask tokens, prediction
and losses. Parameters have the released names and layout, and every function
takes and gives NumPy arrays.
"""

import contextlib
import functools
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

from audio_mae_jax import config as config_lib
from audio_mae_jax import patches as patches_lib
from audio_mae_jax.models import encoder as encoder_lib

# timm imports torchvision, whose import fails where its compiled part does not
# load: it is linked against CUDA, and torch is often the build for CPUs. It
# asks for these two operators by name; nothing here calls them.
with contextlib.suppress(ImportError):
  try:
    import torchvision  # noqa: F401  (only to see whether it can be)
  except RuntimeError:
    STAND_INS = torch.library.Library('torchvision', 'DEF')
    for operator in ('nms', 'qnms'):
      STAND_INS.define(
          f'{operator}(Tensor dets, Tensor scores, float threshold) -> Tensor')

from timm.models import swin_transformer_v2_cr  # noqa: E402  (after the above)
from timm.models import vision_transformer  # noqa: E402

NORM = functools.partial(nn.LayerNorm, eps=1e-6)
FROZEN = ('pos_embed', 'decoder_pos_embed')


class Result(NamedTuple):
  """What a batch came to; names are the released ones."""
  blocks: dict[str, np.ndarray]  # output [B, tokens, D] of every block
  latent: np.ndarray  # [B, 1 + K, D]
  prediction: np.ndarray  # [B, N, P]
  losses: np.ndarray  # [2]: against normalised patches and against raw ones
  gradients: dict[str, np.ndarray]  # of the weighted losses


class Inverse(nn.Module):
  """timm's `logit_scale` of the released temperature tau: the log of 1 / tau.

  As a parametrization, so that tau stays what gradients and updates apply to.
  """

  def forward(self, tau):
    return -torch.log(tau)

  def right_inverse(self, logit_scale):
    return torch.exp(-logit_scale)


def local_block(width, heads, mlp_ratio, grid, settings, shifted):
  """One block of the local decoder; [B, time, frequency, W] -> same."""
  block = swin_transformer_v2_cr.SwinTransformerV2CrBlock(
      width, heads, grid, settings.window, mlp_ratio=mlp_ratio, norm_layer=NORM)
  parametrize.register_parametrization(block.attn, 'logit_scale', Inverse())
  # timm shifts by half a window along both axes, whatever it is given.
  block.shift_size = settings.shift if shifted else (0, 0)
  block.init_non_persistent_buffers()  # the mask, which depends on the shift
  return block


class AudioMAE(vision_transformer.VisionTransformer):
  """The whole model on spectrograms of `shape` = (T, F); sizes as `settings`.

  In evaluation mode: dropout in the local blocks is off.
  """

  def __init__(self, settings: config_lib.Config, shape):
    width, depth, heads = encoder_lib.sizes(settings.model.encoder)
    super().__init__(
        shape, settings.patch.size, in_chans=1, num_classes=0, global_pool='',
        embed_dim=width, depth=depth, num_heads=heads, norm_layer=NORM,
        mlp_ratio=settings.model.encoder.mlp_ratio)
    decoder = settings.model.decoder
    self.settings, self.grid = settings, self.patch_embed.grid_size
    self.decoder_embed = nn.Linear(width, decoder.width)
    self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder.width))
    self.decoder_pos_embed = nn.Parameter(
        torch.zeros(1, 1 + self.grid[0] * self.grid[1], decoder.width))
    self.local = decoder.name == 'local'
    sizes = decoder.width, decoder.heads, decoder.mlp_ratio
    self.decoder_blocks = nn.ModuleList(
        local_block(*sizes, self.grid, decoder, i % 2) if self.local else
        vision_transformer.Block(*sizes, qkv_bias=True, norm_layer=NORM)
        for i in range(decoder.depth))
    self.decoder_norm = NORM(decoder.width)
    self.decoder_pred = nn.Linear(
        decoder.width, settings.patch.size[0] * settings.patch.size[1])
    for name, parameter in self.released().items():
      parameter.requires_grad_(name not in FROZEN)
    self.eval()

  def released(self) -> dict[str, nn.Parameter]:
    """Parameters by released name."""
    return {
        name.replace('parametrizations.logit_scale.original', 'tau'): parameter
        for name, parameter in self.named_parameters()}

  def shapes(self) -> dict[str, tuple]:
    return {name: tuple(parameter.shape)
            for name, parameter in self.released().items()}

  @torch.no_grad()
  def load(self, arrays: dict[str, np.ndarray]):
    """Takes parameters by released name: every one, and no other.

    Position tables are made here where `arrays` has none.
    """
    parameters = self.released()
    assert arrays.keys() | set(FROZEN) == parameters.keys()
    for name, parameter in parameters.items():
      array = (arrays[name] if name in arrays else
               positions(self.settings, self.grid, parameter.shape[-1])[None])
      parameter.copy_(torch.from_numpy(array.copy()))
    return self

  def encode(self, spectrograms, keep_ids):
    """[B, T, F], int64 [B, K] -> [B, 1 + K, D]."""
    x = self.patch_embed(spectrograms[:, None]) + self.pos_embed[:, 1:]
    token = self.cls_token + self.pos_embed[:, :1]
    x = torch.cat([token.expand(len(x), -1, -1), take(x, keep_ids)], 1)
    return self.norm(self.blocks(x))

  def decode(self, latent, restore_ids):
    """[B, 1 + K, D], int64 [B, N] -> [B, N, P]."""
    x = self.decoder_embed(latent)
    token, kept = x[:, :1], x[:, 1:]
    missing = restore_ids.shape[1] - kept.shape[1]
    removed = self.mask_token.expand(len(x), missing, -1)
    x = take(torch.cat([kept, removed.to(x.dtype)], 1), restore_ids)
    x = torch.cat([token, x], 1) + self.decoder_pos_embed
    if self.local:  # blocks of the grid, without the class token
      x = x[:, 1:].unflatten(1, self.grid)
    for block in self.decoder_blocks:
      x = block(x)
    x = self.decoder_pred(self.decoder_norm(x))
    return x.flatten(1, 2) if self.local else x[:, 1:]

  def forward(self, spectrograms, noise):
    """[B, T, F], [B, N] -> latent, prediction, losses [2]."""
    order = torch.argsort(noise, dim=1)
    restore_ids = torch.argsort(order, dim=1)
    keep = int(noise.shape[1] * (1 - self.settings.mask.ratio))
    latent = self.encode(spectrograms, order[:, :keep])
    prediction = self.decode(latent, restore_ids)
    size = self.settings.patch.size
    pixels = functional.unfold(spectrograms[:, None], size, stride=size).mT
    deviation = (pixels.var(-1, keepdim=True) + 1e-6).sqrt()
    normalized = (pixels - pixels.mean(-1, keepdim=True)) / deviation
    removed = (restore_ids >= keep).to(pixels.dtype)
    losses = [((prediction - target).square().mean(-1) * removed).sum()
              / removed.sum() for target in (normalized, pixels)]
    return latent, prediction, torch.stack(losses)


def positions(settings: config_lib.Config, grid, width: int) -> np.ndarray:
  """float32 [1 + N, D]."""
  return patches_lib.position_table(grid, width, settings.patch)


def take(x, ids):
  """[B, L, D], int64 [B, M] -> [B, M, D]: the tokens `ids` of each clip."""
  return torch.gather(x, 1, ids[..., None].expand(-1, -1, x.shape[-1]))


def numpy(tensor) -> np.ndarray:
  tensor = tensor.detach()
  # NumPy has no bfloat16.
  return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def run(model: AudioMAE, spectrograms, noise, weights=None,
        autocast=False) -> Result:
  """One pass in the model's own type; gradients where `weights` are given.

  Gradients stay in the model too, for an optimizer to apply.
  """
  dtype = model.pos_embed.dtype
  spectrograms, noise = map(torch.from_numpy, (spectrograms, noise))
  blocks = {}
  def keep(name, output):
    blocks[name] = numpy(output.flatten(1, -2))
  hooks = [
      block.register_forward_hook(
          lambda _, inputs, output, name=f'{stack}.{i}': keep(name, output))
      for stack in ('blocks', 'decoder_blocks')
      for i, block in enumerate(getattr(model, stack))]
  model.zero_grad()
  with (torch.set_grad_enabled(weights is not None),
        torch.autocast('cpu', torch.bfloat16, enabled=autocast)):
    latent, prediction, losses = model(spectrograms.to(dtype), noise)
  for hook in hooks:
    hook.remove()
  gradients = {}
  if weights is not None:
    (losses * torch.tensor(weights, dtype=losses.dtype)).sum().backward()
    gradients = {name: numpy(parameter.grad)
                 for name, parameter in model.released().items()
                 if parameter.requires_grad}
  return Result(
      blocks, *map(numpy, (latent, prediction, losses)), gradients)


def adamw(model: AudioMAE, settings: config_lib.Optimizer, learning_rate):
  """torch's AdamW on the released groups: vectors and biases do not decay."""
  groups = {0.0: [], settings.weight_decay: []}
  for name, parameter in model.released().items():
    if parameter.requires_grad:
      plain = parameter.ndim == 1 or name.endswith('.bias')
      groups[0.0 if plain else settings.weight_decay].append(parameter)
  return torch.optim.AdamW(
      [{'params': group, 'weight_decay': decay}
       for decay, group in groups.items()],
      lr=learning_rate, betas=(settings.b1, settings.b2), eps=settings.eps,
      foreach=False)  # one at a time: a full-size model in float64 is 1 GB
