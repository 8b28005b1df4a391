"""Waveform augmentation on the device: remove the mean, roll, change the gain.

Draws are per clip and made for the global batch from one key, so they do not
depend on how the batch is split over devices. `apply_roll` takes the draw
itself, for tests against recorded draws.

The paper's code meant to roll but drew its shift from the number of channels,
so that a mono clip never moved; this roll does what the paper says.
"""

import jax
import jax.numpy as jnp

from audio_mae_jax import config


def augment(
    rng: jax.Array, audio: jax.Array, num_samples: jax.Array,
    settings: config.Augment
) -> jax.Array:
  """[B, S], [B] -> [B, S]: mean removal, then what `settings` switches on."""
  gain_rng, roll_rng = jax.random.split(rng)
  audio = remove_mean(audio, num_samples)
  if settings.roll:
    audio = roll(roll_rng, audio, num_samples)
  if settings.gain_concentration:
    audio = gain(gain_rng, audio, settings.gain_concentration)
  return audio


def remove_mean(audio: jax.Array, num_samples: jax.Array) -> jax.Array:
  """[B, S], [B] -> [B, S] float32: zero mean over each clip's valid samples.

  What lies behind the valid samples becomes zero.
  """
  valid = jnp.arange(audio.shape[1]) < num_samples[:, None]
  audio = jnp.where(valid, audio.astype(jnp.float32), 0.0)
  count = jnp.maximum(num_samples, 1).astype(jnp.float32)
  mean = audio.sum(axis=1) / count
  return jnp.where(valid, audio - mean[:, None], 0.0)


def roll(
    rng: jax.Array, audio: jax.Array, num_samples: jax.Array) -> jax.Array:
  """[B, S], [B] -> [B, S]: cyclic shift by uniform 0 .. num_samples - 1."""
  shift = jax.random.randint(
      rng, num_samples.shape, 0, jnp.maximum(num_samples, 1), jnp.int32)
  return apply_roll(audio, num_samples, shift)


def apply_roll(
    audio: jax.Array, num_samples: jax.Array, shift: jax.Array) -> jax.Array:
  """[B, S], [B], [B] -> [B, S]: valid sample i moves to (i + shift) mod n.

  `shift` is in 0 .. n - 1; what lies behind the n valid samples becomes zero.
  """
  length = audio.shape[1]
  # Two contiguous slices per clip. One gather by index would do, but a TPU
  # does it sample by sample: as long as the whole training step.
  twice = jnp.concatenate([audio, audio], axis=1)
  cut = jax.vmap(
      lambda row, start: jax.lax.dynamic_slice(row, (start,), (length,)))
  moved = cut(twice, length - shift)  # right from index `shift` on
  wrapped = cut(twice, num_samples - shift)  # right below it
  i = jnp.arange(length)
  rolled = jnp.where(i < shift[:, None], wrapped, moved)
  return jnp.where(i < num_samples[:, None], rolled, 0.0)


def gain(
    rng: jax.Array, audio: jax.Array, concentration: float) -> jax.Array:
  """[B, S] -> [B, S]: each clip times its draw of Beta(c, c) + 0.5."""
  if concentration <= 0.5:
    raise ValueError(
        f'augment.gain_concentration={concentration:g} must be above 0.5. At '
        f'10, the paper\'s, gains spread by 0.11 around 1; 0 is for no gain.')
  # Ulrich's formula, exact for equal parameters. jax.random.beta rejects in
  # loops, whose compilation costs more than the whole front end's.
  angle, height = jax.random.uniform(rng, (2, audio.shape[0]), jnp.float32)
  radius = jnp.sqrt(1 - height ** (2 / (2 * concentration - 1)))
  factor = 1 + 0.5 * jnp.cos(2 * jnp.pi * angle) * radius
  return audio * factor[:, None]
