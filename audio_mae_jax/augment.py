"""Augmentation in training, on the device: of waveforms and of spectrograms.

`waveform` removes the mean, rolls, changes the gain and mixes clips up;
`spectrogram` hides a stretch of time and a band of frequencies (SpecAugment)
and adds noise. Draws are per clip and made for the global batch from one key,
so they do not depend on how the batch is split over devices. The `apply_`
functions take the draws themselves, for tests against recorded draws.

The paper's code meant to roll but drew its shift from the number of channels,
so that a mono clip never moved; this roll does what the paper says.
"""

import jax
import jax.numpy as jnp

from audio_mae_jax import config


def waveform(
    rng: jax.Array, audio: jax.Array, num_samples: jax.Array,
    settings: config.Augment, labels: jax.Array | None = None
) -> tuple[jax.Array, jax.Array | None]:
  """[B, S], [B] -> [B, S]: mean removal, then what `settings` switches on.

  `labels` [B, C] are mixed up with the clips, and returned beside them.

  Raises:
    ValueError: a setting is out of its range, or has no effect.
  """
  _check_mixup(settings)
  # The first two are what `split(rng)` gives: older runs have their draws.
  gain_rng, roll_rng, mixup_rng = jax.random.split(rng, 3)
  audio = remove_mean(audio, num_samples)
  if settings.roll:
    audio = roll(roll_rng, audio, num_samples)
  if settings.gain_concentration:
    audio = gain(gain_rng, audio, settings.gain_concentration)
  if settings.mixup:
    audio, labels = mixup(mixup_rng, audio, num_samples, settings, labels)
  return audio, labels


def spectrogram(
    rng: jax.Array, features: jax.Array, frontend: config.Frontend,
    settings: config.Augment
) -> jax.Array:
  """[B, T, F] -> [B, T, F]: what `settings` switches on, of normalised log-mel.

  As released (dataset.py:291-303), SpecAugment comes first, then noise.

  Raises:
    ValueError: a setting is out of its range, or has no effect.
  """
  batch, frames, bins = features.shape
  _check_spectrogram(settings, frames, bins)
  mask_rng, noise_rng = jax.random.split(rng)
  if settings.time_mask or settings.freq_mask:
    draws = jax.random.uniform(mask_rng, (4, batch), jnp.float32)
    features = apply_spec_augment(features, draws, frontend, settings)
  if settings.noise:
    features = noise(
        noise_rng, features, settings.noise, settings.noise_shift)
  return features


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
  factor = 1 + _centred_beta(
      rng, audio.shape[0], concentration, 'gain_concentration',
      '0 is for no gain')
  return audio * factor[:, None]


def mixup(
    rng: jax.Array, audio: jax.Array, num_samples: jax.Array,
    settings: config.Augment, labels: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
  """`apply_mixup` of each clip with probability `settings.mixup`."""
  choice_rng, share_rng = jax.random.split(rng)
  batch = audio.shape[0]
  share = 0.5 + _centred_beta(
      share_rng, batch, settings.mixup_concentration, 'mixup_concentration',
      'augment.mixup=0 is for no mixup')
  mixed = jax.random.uniform(choice_rng, (batch,)) < settings.mixup
  return apply_mixup(audio, num_samples, jnp.where(mixed, share, 1.0), labels)


def apply_mixup(
    audio: jax.Array, num_samples: jax.Array, share: jax.Array,
    labels: jax.Array | None = None
) -> tuple[jax.Array, jax.Array | None]:
  """Sum of each clip, times its `share`, and its partner, times the rest.

  The partner is the next clip of the batch, as it was before mixing.
  Batches are shuffled, so it is any other clip; nothing more is decoded, and
  only one row per device travels, to its neighbour. The released code draws it
  from the whole data set, and decodes twice as much. What it draws is uniform;
  where sampling is balanced, partners here are as balanced as the clips.

  As released (dataset.py:182-208), the partner is cut or filled up with zeros
  to the clip's length, and the mean of the sum is removed.

  Args:
    audio: [B, S], zero behind the valid samples.
    num_samples: [B].
    share: float32 [B]; where it is 1, clip and labels stay as they are.
    labels: [B, C], mixed likewise: a label that both have stays 1. Or None.

  Returns:
    (audio, labels); labels are float32, or None.
  """
  blend = lambda x, share: share * x + (1 - share) * jnp.roll(x, -1, axis=0)
  mixed = remove_mean(blend(audio, share[:, None]), num_samples)
  audio = jnp.where(share[:, None] == 1, audio, mixed)
  if labels is not None:
    labels = blend(labels.astype(jnp.float32), share[:, None])
  return audio, labels


def apply_spec_augment(
    features: jax.Array, draws: jax.Array, frontend: config.Frontend,
    settings: config.Augment
) -> jax.Array:
  """[B, T, F] -> [B, T, F]: hides one band and one stretch of each clip.

  A hidden cell gets what a zero before normalisation becomes, as padding does:
  the released code hides first, then normalises.

  Args:
    features: normalised with the mean and deviation of `frontend`.
    draws: float32 [4, B] in [0, 1): width and start of the band, of the
      stretch. Widths are below `settings.freq_mask` bins and
      `settings.time_mask` frames (torchaudio's `mask_along_axis`).
    frontend: gives mean and deviation.
    settings: gives the largest widths; 0 hides nothing.
  """
  band = _stretch(draws[0], draws[1], features.shape[2], settings.freq_mask)
  stretch = _stretch(draws[2], draws[3], features.shape[1], settings.time_mask)
  hidden = band[:, None, :] | stretch[:, :, None]
  return jnp.where(hidden, -frontend.mean / (2 * frontend.std), features)


def _stretch(width, start, size, limit):
  """[B], [B] uniform draws -> bool [B, size]: a stretch shorter than `limit`.

  Both are rounded down, but the start is drawn over what the width before
  rounding leaves: the last place is practically never hidden, as released.
  """
  width = width * limit
  first = jnp.floor(start * (size - width))
  end = first + jnp.floor(width)
  i = jnp.arange(size, dtype=jnp.float32)
  return (first[:, None] <= i) & (i < end[:, None])


def noise(
    rng: jax.Array, features: jax.Array, amplitude: float, max_shift: int
) -> jax.Array:
  """[B, T, F] -> [B, T, F]: plus noise, and shifted, as `apply_noise`.

  Noise is uniform between 0 and a clip's own amplitude, which is uniform below
  `amplitude`; the shift is uniform in -max_shift .. max_shift - 1, as released.
  """
  cell_rng, clip_rng, shift_rng = jax.random.split(rng, 3)
  batch = features.shape[0]
  cells = jax.random.uniform(cell_rng, features.shape, jnp.float32)
  scale = amplitude * jax.random.uniform(clip_rng, (batch, 1, 1), jnp.float32)
  shift = jax.random.randint(
      shift_rng, (batch,), -max_shift, max(max_shift, 1), jnp.int32)
  return apply_noise(features, cells * scale, shift, max_shift)


def apply_noise(
    features: jax.Array, added: jax.Array, shift: jax.Array, max_shift: int
) -> jax.Array:
  """[B, T, F], [B, T, F], [B] -> [B, T, F]: sum, rolled along time.

  Frame t moves to (t + shift) mod T; `shift` is at most `max_shift` either way.
  """
  x = features + added
  if not max_shift:
    return x
  frames = x.shape[1]
  # One contiguous slice per clip, as in `apply_roll`.
  x = jnp.concatenate([x[:, frames - max_shift:], x, x[:, :max_shift]], axis=1)
  cut = jax.vmap(
      lambda row, start: jax.lax.dynamic_slice_in_dim(row, start, frames))
  return cut(x, max_shift - shift)


def _centred_beta(rng, batch, concentration, field, instead):
  """[batch] float32 draws of Beta(c, c) - 0.5."""
  if concentration <= 0.5:
    raise ValueError(
        f'augment.{field}={concentration:g} must be above 0.5. At 10, the '
        f'paper\'s, draws spread by 0.11; {instead}.')
  # Ulrich's formula, exact for equal parameters. jax.random.beta rejects in
  # loops, whose compilation costs more than the whole front end's.
  angle, height = jax.random.uniform(rng, (2, batch), jnp.float32)
  radius = jnp.sqrt(1 - height ** (2 / (2 * concentration - 1)))
  return 0.5 * jnp.cos(2 * jnp.pi * angle) * radius


def _check_mixup(settings):
  if not 0 <= settings.mixup <= 1:
    raise ValueError(
        f'augment.mixup={settings.mixup:g} is the probability that a clip is '
        'mixed with another: give 0 to 1. The shares of the two are '
        'augment.mixup_concentration.')
  usual = config.Augment().mixup_concentration
  if not settings.mixup and settings.mixup_concentration != usual:
    raise ValueError(
        f'augment.mixup_concentration={settings.mixup_concentration:g} has no '
        f'effect with augment.mixup=0. Leave it at {usual:g}, or raise '
        'augment.mixup.')


def _check_spectrogram(settings, frames, bins):
  for field, size, unit in (
      ('time_mask', frames, 'frames'), ('freq_mask', bins, 'mel bins'),
      ('noise_shift', frames, 'frames')):
    value = getattr(settings, field)
    if not 0 <= value <= size:
      raise ValueError(
          f'augment.{field}={value} does not fit spectrograms of {size} '
          f'{unit}: give 0 (off) to {size}.')
  if settings.noise < 0:
    raise ValueError(
        f'augment.noise={settings.noise:g} is an amplitude: give 0 (off) or '
        'more; the released code has 0.1.')
  if settings.noise_shift and not settings.noise:
    raise ValueError(
        f'augment.noise_shift={settings.noise_shift} has no effect with '
        'augment.noise=0. Leave it at 0, or raise augment.noise.')
