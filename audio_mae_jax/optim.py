"""Optimizer: AdamW, its schedule and which parameters decay.

As the released code: `lr = base_lr * batch_size / 256`, linear warm-up and half
a cosine, both per step on the fractional epoch (util/lr_sched.py).
"""

import jax.numpy as jnp
import optax

from audio_mae_jax import config as config_lib
from audio_mae_jax import trees


def schedule(settings: config_lib.Optimizer, batch_size: int,
             steps_per_epoch: int, total_steps: int) -> optax.Schedule:
  """Learning rate as a function of the step (0 at step 0 with a warm-up)."""
  peak = settings.base_lr * batch_size / 256
  warmup = settings.warmup_epochs * steps_per_epoch
  if warmup >= total_steps:
    raise ValueError(
        f'optimizer.warmup_epochs={settings.warmup_epochs} are '
        f'{warmup:.0f} steps, and the whole run has {total_steps}; '
        'shorten the warm-up or raise train.epochs.')

  def learning_rate(step):
    step = jnp.asarray(step, jnp.float32)
    rise = peak * step / max(warmup, 1)
    done = jnp.clip((step - warmup) / (total_steps - warmup), 0, 1)
    fall = settings.min_lr + (peak - settings.min_lr) * 0.5 * (
        1 + jnp.cos(jnp.pi * done))
    return jnp.where(step < warmup, rise, fall)

  return learning_rate


def decayed(settings: config_lib.Optimizer, params):
  """Tree of bools: weight decay applies. Class and mask tokens decay, as
  released; what `decay_excluded` names (biases, scales, tau) does not."""
  rules = [(pattern, False) for pattern in settings.decay_excluded]
  return trees.map_named(
      lambda name, _: trees.first_match(rules, name, True), params)


def make(settings: config_lib.Optimizer,
         learning_rate: optax.Schedule) -> optax.GradientTransformation:
  """AdamW; gradient clipping by the global norm comes first, when set."""
  adamw = optax.adamw(
      learning_rate, settings.b1, settings.b2, settings.eps,
      weight_decay=settings.weight_decay,
      mask=lambda params: decayed(settings, params))
  if settings.clip_norm:
    return optax.chain(optax.clip_by_global_norm(settings.clip_norm), adamw)
  return adamw
