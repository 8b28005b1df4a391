"""Optimizer: AdamW, its schedule, which parameters decay and how fast they go.

As the released code: `lr = base_lr * batch_size / 256`, linear warm-up and half
a cosine, both per step on the fractional epoch (util/lr_sched.py).
"""

import re

import jax
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


def layer_scales(decay: float, params):
  """Tree of floats: the share of the learning rate that each parameter gets.

  The encoder's blocks count down from its last, each at `decay` times the rate
  of the next; class token, positions and patch embedding come before the first.
  What lies on the encoder gets 1 (util/lr_decay.py of the released code).
  """
  block = r'encoder/blocks/(\d+)/.*'
  numbers = [int(match[1]) for name in trees.flatten(params)
             if (match := re.fullmatch(block, name))]
  depth = max(numbers, default=-1) + 1
  rules = [(rf'encoder/blocks/{i:02d}/.*', decay ** (depth - i))
           for i in range(depth)]
  rules.append((r'encoder/(cls_token|positions|patch_embed/.*)',
                decay ** (depth + 1)))
  return trees.map_named(
      lambda name, _: trees.first_match(rules, name, 1.0), params)


def make(settings: config_lib.Optimizer,
         learning_rate: optax.Schedule) -> optax.GradientTransformation:
  """AdamW; gradient clipping by the global norm comes first, when set.

  `layer_decay` scales the whole update, weight decay included, as a learning
  rate of its own would.

  Raises:
    ValueError: `layer_decay` is out of its range.
  """
  if not 0 < settings.layer_decay <= 1:
    raise ValueError(
        f'optimizer.layer_decay={settings.layer_decay:g} is the learning rate '
        'of a block over that of the next: give above 0, up to 1 (all alike); '
        'released fine-tuning has 0.75.')
  if not 0 <= settings.ema_decay < 1:
    raise ValueError(
        f'optimizer.ema_decay={settings.ema_decay:g} is the share of the old '
        'average that a step keeps: give 0 (no average) or more, below 1.')
  parts = [optax.adamw(
      learning_rate, settings.b1, settings.b2, settings.eps,
      weight_decay=settings.weight_decay,
      mask=lambda params: decayed(settings, params))]
  if settings.clip_norm:
    parts.insert(0, optax.clip_by_global_norm(settings.clip_norm))
  if settings.layer_decay != 1:
    parts.append(optax.stateless(lambda updates, params: jax.tree.map(
        jnp.multiply, updates, layer_scales(settings.layer_decay, updates))))
  # A chain has a state of its own: older checkpoints have none around one part.
  return optax.chain(*parts) if len(parts) > 1 else parts[0]
