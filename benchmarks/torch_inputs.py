"""What comes before the model, in PyTorch on the device: augmentation, log-mel,
masks. The same steps as augment.py, frontend.py and masking.py of the package,
whose constants it takes.
"""

import math

import torch
from torch import nn
from torch.nn import functional

from audio_mae_jax import config as config_lib
from audio_mae_jax import frontend
from audio_mae_jax import masking
from audio_mae_jax import patches as patches_lib


class Features(nn.Module):
  """[B, S], [B] -> normalised log-mel [B, T, F]; see `frontend.features`.

  `transform` is 'fft' or 'matmul', the Fourier transform as a product.
  """

  def __init__(self, spec: config_lib.Frontend, transform='fft'):
    super().__init__()
    self.spec, self.transform = spec, transform
    tables = frontend.tables(spec)
    self.length, self.hop = frontend.min_samples(spec), tables.dft.shape[1]
    self.bins = tables.mel.shape[0]
    dft = tables.dft.reshape(-1, 2 * self.bins)[:self.length]
    for name, array in (
        ('window', tables.window), ('dft', dft), ('mel', tables.mel)):
      self.register_buffer(name, torch.from_numpy(array.copy()), False)

  def forward(self, waveform, num_samples):
    spec = self.spec
    x = remove_mean(waveform, num_samples)
    x = x[:, :self.length + (spec.num_frames - 1) * self.hop]
    x = torch.log(self.power(x).matmul(self.mel).clamp_min(spec.floor))
    x = functional.pad(x, (0, 0, 0, spec.num_frames - x.shape[1]))
    frames = (num_samples - self.length) // self.hop + 1
    valid = torch.arange(spec.num_frames, device=x.device) < frames[:, None]
    x = torch.where(valid[..., None], x, 0.0)
    return (x - spec.mean) / (2 * spec.std)

  def power(self, waveform):
    """[B, S] -> [B, frames, bins]."""
    x = waveform.unfold(1, self.length, self.hop)
    if self.spec.remove_dc_offset:
      x = x - x.mean(-1, keepdim=True)
    previous = torch.cat([x[..., :1], x[..., :-1]], -1)
    x = x - self.spec.preemphasis * previous
    if self.transform == 'matmul':
      real, imag = (x @ self.dft).chunk(2, -1)
    else:
      x = torch.fft.rfft(x * self.window, 2 * self.bins)
      real, imag = torch.view_as_real(x)[..., :-1, :].unbind(-1)
    return real.square() + imag.square()


def remove_mean(waveform, num_samples):
  samples = torch.arange(waveform.shape[1], device=waveform.device)
  valid = samples < num_samples[:, None]
  waveform = torch.where(valid, waveform, 0.0)
  mean = waveform.sum(1) / num_samples
  return torch.where(valid, waveform - mean[:, None], 0.0)


def centred_beta(batch, concentration, device):
  """[B] of Beta(c, c) - 0.5, by the formula that augment.py has."""
  angle, height = torch.rand(2, batch, device=device)
  radius = (1 - height ** (2 / (2 * concentration - 1))).sqrt()
  return 0.5 * torch.cos(2 * math.pi * angle) * radius


def augment(waveform, num_samples, labels, settings: config_lib.Augment):
  """Mean removal, roll, gain, mixup; `labels` [B, C] or None."""
  batch, device = len(waveform), waveform.device
  x = remove_mean(waveform, num_samples)
  if settings.roll:
    shift = (torch.rand(batch, device=device) * num_samples).long()
    places = torch.arange(x.shape[1], device=device) - shift[:, None]
    x = x.gather(1, places % num_samples[:, None])
  if settings.gain_concentration:
    draws = centred_beta(batch, settings.gain_concentration, device)
    x = x * (1 + draws)[:, None]
  if settings.mixup:
    share = 0.5 + centred_beta(batch, settings.mixup_concentration, device)
    mixed = torch.rand(batch, device=device) < settings.mixup
    share = torch.where(mixed, share, 1.0)[:, None]
    blend = lambda y: share * y + (1 - share) * y.roll(-1, 0)
    x = torch.where(share == 1, x, remove_mean(blend(x), num_samples))
    labels = labels if labels is None else blend(labels)
  return x, labels


def stretch(batch, size, limit, device):
  """bool [B, size]: true in a stretch shorter than `limit`."""
  width = torch.rand(batch, 1, device=device) * limit
  first = torch.floor(torch.rand(batch, 1, device=device) * (size - width))
  i = torch.arange(size, device=device)
  return (first <= i) & (i < first + torch.floor(width))


def spec_augment(features, spec: config_lib.Frontend,
                 settings: config_lib.Augment):
  if not (settings.time_mask or settings.freq_mask):
    return features
  (b, t, f), device = features.shape, features.device
  hidden = stretch(b, f, settings.freq_mask, device)[:, None, :] | stretch(
      b, t, settings.time_mask, device)[:, :, None]
  return torch.where(hidden, -spec.mean / (2 * spec.std), features)


def patchify(spectrogram, patch: config_lib.Patch):
  """[B, T, F] -> [B, N, P]; patches that do not overlap."""
  pt, pf = patch.size
  gt, gf = patches_lib.grid_of(spectrogram.shape[1:], patch)
  x = spectrogram.view(-1, gt, pt, gf, pf).transpose(2, 3)
  return x.reshape(-1, gt * gf, pt * pf)


def draw_order(batch, grid, mask: config_lib.Mask, device):
  """-> int64 [B, N], the kept patches first, and K."""
  gt, gf = grid
  draw = lambda n: torch.rand(batch, n, device=device)
  if mask.name == 'unstructured':
    keep = masking.num_kept(gt * gf, mask.ratio, 'mask.ratio')
    return draw(gt * gf).argsort(1), keep
  if mask.name != 'time_freq':
    raise ValueError(
        f'mask.name={mask.name!r} is not compared; unstructured and time_freq '
        'are.')
  keep_t = masking.num_kept(gt, mask.time_ratio, 'mask.time_ratio')
  keep_f = masking.num_kept(gf, mask.freq_ratio, 'mask.freq_ratio')
  rows = draw(gt).argsort(1).argsort(1) >= keep_t
  columns = draw(gf).argsort(1).argsort(1) >= keep_f
  removed = (rows[:, :, None] | columns[:, None, :]).flatten(1)
  return removed.int().argsort(dim=1, stable=True), keep_t * keep_f
