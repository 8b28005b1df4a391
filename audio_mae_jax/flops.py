"""How much work a clip is, and how much a device can do.

Model FLOPs: matrix products only, a multiply and an add as two, without what
rematerialisation repeats (the usual meaning in "model FLOP utilisation").
"""

import dataclasses

import jax

from audio_mae_jax import config as config_lib
from audio_mae_jax import masking
from audio_mae_jax.models import encoder as encoder_lib
from audio_mae_jax.models import window as window_lib

# Dense bf16 TFLOP/s of one device by the makers' data sheets, without sparsity
# (float16 where a device has no bf16: V100, T4).
# Keys are prefixes of `device_kind`; a TPU v2/v3/v4/v5p/v6e device is a chip or
# core as JAX shows it.
PEAK_TFLOPS = {
    'TPU v2': 22.5, 'TPU v3': 61.5, 'TPU v4': 275.0, 'TPU v5 lite': 197.0,
    'TPU v5e': 197.0, 'TPU v5p': 459.0, 'TPU v5': 459.0, 'TPU v6 lite': 918.0,
    'TPU v6e': 918.0,
    'NVIDIA V100': 125.0, 'Tesla V100': 125.0,
    'NVIDIA T4': 65.0, 'Tesla T4': 65.0,
    'NVIDIA A100': 312.0, 'NVIDIA A10G': 70.0, 'NVIDIA A10': 125.0,
    'NVIDIA L4': 121.0, 'NVIDIA L40': 181.0,
    'NVIDIA L40S': 362.0, 'NVIDIA H100 PCIe': 756.0,
    'NVIDIA H100 NVL': 835.0, 'NVIDIA H100': 989.0, 'NVIDIA H200': 989.0,
    'NVIDIA GH200': 989.0, 'NVIDIA B200': 2250.0, 'NVIDIA GB200': 2500.0,
    'NVIDIA GeForce RTX 3090': 71.0, 'NVIDIA GeForce RTX 4090': 165.0,
}


@dataclasses.dataclass(frozen=True)
class Chip:
  """A TPU as a device of JAX, by its data sheet (cloud.google.com/tpu/docs)."""
  memory_gib: float
  interconnect_gb_s: float  # over all links, each way
  mxu_cells: int  # of its matrix units: each a multiply and an add a cycle
  peak_tflops: float = 0.0

  @property
  def clock_ghz(self):
    return self.peak_tflops * 1e3 / (2 * self.mxu_cells)


# A v2 or v3 device is one of a chip's two cores; the links are the chip's.
CHIPS = {
    'TPU v2': Chip(8, 31.25, 128**2), 'TPU v3': Chip(16, 43.75, 2 * 128**2),
    'TPU v4': Chip(32, 300, 8 * 128**2),
    'TPU v5 lite': Chip(16, 200, 4 * 128**2),
    'TPU v5': Chip(95, 600, 8 * 128**2),
    'TPU v6 lite': Chip(32, 448, 4 * 256**2),
}


def chip(device: jax.Device) -> Chip | None:
  """What is known of a TPU; None for other devices."""
  known = [k for k in CHIPS if device.device_kind.startswith(k)]
  if not known:
    return None
  peak = peak_tflops(device, config_lib.Log())
  return dataclasses.replace(CHIPS[max(known, key=len)], peak_tflops=peak)


def peak_tflops(device: jax.Device, log: config_lib.Log) -> float | None:
  """Peak of one device: `log.peak_tflops`, or the table's; None if unknown."""
  if log.peak_tflops:
    return log.peak_tflops
  known = [k for k in PEAK_TFLOPS if device.device_kind.startswith(k)]
  return PEAK_TFLOPS[max(known, key=len)] if known else None


def _blocks(depth, tokens, width, mlp_ratio):
  """Forward FLOPs of the linear layers of `depth` transformer blocks."""
  return depth * 2 * tokens * (4 + 2 * mlp_ratio) * width * width


def _attention(depth, tokens, keys, width):
  """Forward FLOPs of scores and weighted sums, `keys` per token."""
  return depth * 4 * tokens * keys * width


def kept(config: config_lib.Config, grid) -> int:
  """K, the number of patches the encoder sees."""
  mask = jax.eval_shape(
      lambda: masking.make(jax.random.key(0), 1, grid, config.mask))
  return mask.keep_ids.shape[1]


def encoder(config: config_lib.Config, tokens: int) -> dict[str, float]:
  """Forward FLOPs of the encoder's blocks over `tokens` (with class token)."""
  width, depth, _ = encoder_lib.sizes(config.model.encoder)
  return {
      'encoder linear': _blocks(
          depth, tokens, width, config.model.encoder.mlp_ratio),
      'encoder attention': _attention(depth, tokens, tokens, width),
  }


def decoder(config: config_lib.Config, grid) -> dict[str, float]:
  """Forward FLOPs of the decoder's blocks, its class token where it has one.

  The network of relative positions runs once a batch and is left out.
  """
  d, n = config.model.decoder, grid[0] * grid[1]
  if d.name == 'global':
    return {
        'decoder linear': _blocks(d.depth, n + 1, d.width, d.mlp_ratio),
        'decoder attention': _attention(d.depth, n + 1, n + 1, d.width)}
  (wt, wf), _ = window_lib.fit_window(grid, d.window, d.shift)
  top = d.global_depth if d.name == 'hybrid' else 0
  return {
      'decoder linear': _blocks(d.depth + top, n, d.width, d.mlp_ratio),
      'decoder attention': (_attention(d.depth, n, wt * wf, d.width)
                            + _attention(top, n, n, d.width))}


def classify(config: config_lib.Config, grid) -> dict[str, float]:
  """FLOPs of a clip in fine-tuning by part, 'forward' and 'step' in all."""
  pixels = config.patch.size[0] * config.patch.size[1]
  k = kept(config, grid) if config.mask.name else grid[0] * grid[1]
  width, _, _ = encoder_lib.sizes(config.model.encoder)
  parts = {
      'patch embedding': 2 * k * pixels * width,
      **encoder(config, k + 1),
      'head': 2 * width * config.model.classifier.num_classes,
  }
  forward = sum(parts.values())
  return {**parts, 'forward': forward,
          'step': 3 * forward - parts['patch embedding']}


def encode(config: config_lib.Config, grid) -> dict[str, float]:
  """FLOPs of a clip, all of whose patches are encoded and nothing is learnt."""
  pixels = config.patch.size[0] * config.patch.size[1]
  n, (width, _, _) = grid[0] * grid[1], encoder_lib.sizes(config.model.encoder)
  parts = {'patch embedding': 2 * n * pixels * width, **encoder(config, n + 1)}
  return {**parts, 'forward': sum(parts.values()), 'step': sum(parts.values())}


def pretrain(config: config_lib.Config, grid) -> dict[str, float]:
  """FLOPs of a clip in pre-training by part, 'forward' and 'step' in all.

  The backward pass costs twice the forward one, less the gradient of pixels,
  which nobody needs. Patches that are removed are never embedded.
  """
  pixels = config.patch.size[0] * config.patch.size[1]
  n, k = grid[0] * grid[1], kept(config, grid)
  width, _, _ = encoder_lib.sizes(config.model.encoder)
  d = config.model.decoder
  # The class token passes through `embed` everywhere, and through the head of
  # no decoder here.
  parts = {
      'patch embedding': 2 * k * pixels * width,
      **encoder(config, k + 1),
      'decoder embedding': 2 * (k + 1) * width * d.width,
      **decoder(config, grid),
      'prediction': 2 * n * d.width * pixels,
  }
  if config.objective.contrastive > 0:
    hidden = n - k
    parts['contrast'] = 2 * hidden * pixels * (d.width + hidden)
  forward = sum(parts.values())
  return {**parts, 'forward': forward,
          'step': 3 * forward - parts['patch embedding']}
