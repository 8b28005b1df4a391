"""What training minimises. Pure functions, float32, one value per clip."""

import jax
import jax.numpy as jnp
import optax


def patch_statistics(patches):
  """[B, N, P] -> mean and standard deviation of each patch, [B, N, 1].

  The variance is unbiased, as `torch.var`; over 256 pixels that is 0.4 % more.
  """
  patches = patches.astype(jnp.float32)
  mean = patches.mean(-1, keepdims=True)
  variance = jnp.square(patches - mean).sum(-1, keepdims=True) / max(
      patches.shape[-1] - 1, 1)
  return mean, jnp.sqrt(variance + 1e-6)


def normalize_patches(patches):
  """[B, N, P] -> the same with zero mean and unit variance in each patch."""
  mean, std = patch_statistics(patches)
  return (patches.astype(jnp.float32) - mean) / std


def denormalize_patches(normalized, patches):
  """Undoes `normalize_patches` with the statistics of the true `patches`."""
  mean, std = patch_statistics(patches)
  return normalized.astype(jnp.float32) * std + mean


def masked_mse(prediction, target, removed):
  """[B, N, P], [B, N, P], bool [B, N] -> [B]: mean over removed pixels.

  All clips of a batch have equally many removed patches, so the mean over
  clips is the released code's sum over the batch divided by its mask's sum
  (models_mae.py:401-417).
  """
  error = jnp.square(prediction.astype(jnp.float32) - target).mean(-1)
  weight = removed.astype(jnp.float32)
  return (error * weight).sum(1) / weight.sum(1)


def info_nce(context, target, temperature: float = 1.0):
  """[B, M, P], [B, M, P] -> [B]: each place must know its own patch.

  Of the M masked patches of a clip, place i's own is the positive and the
  others are the negatives (paper, appendix C.3, which has no temperature).
  """
  logits = jnp.einsum(
      'bip,bjp->bij', context.astype(jnp.float32), target.astype(jnp.float32),
      precision=jax.lax.Precision.HIGHEST) / temperature
  own = jnp.diagonal(logits, axis1=1, axis2=2)
  return (jax.nn.logsumexp(logits, axis=2) - own).mean(1)


def bce(logits, targets):
  """[B, C], [B, C] in 0 .. 1 -> [B]: each class yes or no, mean over classes.

  The mean over clips is torch's `BCEWithLogitsLoss`, the released loss for
  AudioSet (main_finetune_as.py:443).
  """
  return optax.sigmoid_binary_cross_entropy(
      logits.astype(jnp.float32), targets.astype(jnp.float32)).mean(-1)


def ce(logits, targets):
  """[B, C], [B, C] of sum 1 -> [B]: cross entropy of the softmax.

  Targets may be soft: smoothed, or of clips that were mixed up.
  """
  return optax.softmax_cross_entropy(
      logits.astype(jnp.float32), targets.astype(jnp.float32))


CLASSIFICATION = {'bce': bce, 'ce': ce}


def smooth(targets, smoothing: float):
  """[..., C] -> the same, of which all C classes divide the share `smoothing`.

  Raises:
    ValueError: `smoothing` is not in 0 .. 1, without 1.
  """
  if not 0 <= smoothing < 1:
    raise ValueError(
        f'labels.smoothing={smoothing:g} is the share of a label that all '
        'classes divide: give 0 (off) or more, below 1.')
  return targets * (1 - smoothing) + smoothing / targets.shape[-1]
