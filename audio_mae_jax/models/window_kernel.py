"""Cosine attention inside windows as one kernel for GPUs (Pallas, Triton).

Unfused, the scores of a window travel to memory and back several times; here
they live in registers. What is read is the projection itself, what is written
is the result, and on the way back the gradient of the projection: scores are
computed again from it, so that nothing else is kept.

A program works on one head of one window, in several clips: bias, mask and
temperature are read once, and the gradient of the bias is summed before it is
written. Products are tiles of [L, C] and [L, L], at least 16 wide, as tensor
cores want them; smaller windows and heads are padded.
"""

import functools

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
import jax.numpy as jnp
import numpy as np

from audio_mae_jax import devices

CLIPS = 8  # at most, for one program
_FAR = -1e9  # added where there is no key; its exponential is 0


def attend(qkv, heads: int, bias, tau, mask, *, clips: int = CLIPS,
           interpret: bool = False):
  """See `attention.windows`; `tau` is at its floor or above.

  A program works on at most so many `clips`. With `interpret`, the kernels run
  as plain operations on any platform.
  """
  patches, width = qkv.shape[2], qkv.shape[3] // 3
  channels = width // heads
  rows, columns = _tile(patches) - patches, _tile(channels) - channels
  qkv = qkv.reshape(*qkv.shape[:3], 3, heads, channels)
  if rows or columns:
    qkv = jnp.pad(
        qkv, [(0, 0)] * 2 + [(0, rows)] + [(0, 0)] * 2 + [(0, columns)])
    bias = jnp.pad(jnp.pad(
        bias, [(0, 0)] * 2 + [(0, rows)], constant_values=_FAR),
        [(0, 0), (0, rows), (0, 0)])
    if mask is not None:
      mask = np.pad(mask, [(0, 0), (0, rows), (0, rows)])
  qkv = qkv.reshape(*qkv.shape[:4], -1)
  out = _attend(qkv, bias, tau, mask, dict(clips=clips, interpret=interpret))
  if rows or columns:
    out = out.reshape(*out.shape[:3], heads, -1)[:, :, :patches, :, :channels]
  return out.reshape(*out.shape[:2], patches, width)


def _tile(size):
  return max(16, pl.next_power_of_2(size))


def _attend(qkv, bias, tau, mask, options):
  """[B, W, L, 3, D] -> [B, W, L, D], with L and D / H powers of two."""

  @jax.custom_vjp
  def run(qkv, bias, tau):
    return devices.split(
        functools.partial(_forward, **options), (qkv,), (bias, tau, mask))

  def forward(*args):
    return run(*args), args

  def backward(args, gradient):
    qkv, bias, tau = args
    qkv, bias, tau = devices.split(
        functools.partial(_backward, **options), (qkv, gradient),
        (bias, tau, mask))
    # What the programs summed, each for its clips and window.
    return qkv, bias.sum((0, 1)), tau.sum((0, 1, 3))

  run.defvjp(forward, backward)
  return run(qkv, bias, tau)


def _call(kernel, name, out, qkv, bias, tau, mask, gradient, *, clips,
          interpret):
  """`kernel` over all heads, windows and groups of clips.

  `out(grid, block, rows)` gives shapes and blocks of what it writes; `block` is
  what a program has of the projection, `rows` of the result.
  """
  if qkv.size >= 2**31:
    raise ValueError(
        f'model.attention=pallas counts in 32 bits, and the projection '
        f'{qkv.shape} has {qkv.size} numbers. Use fewer clips a device: '
        'optimizer.accumulate, or more devices.')
  b, w, patches, _, width = qkv.shape
  heads = bias.shape[0]
  clips = max(n for n in range(1, clips + 1) if b % n == 0)
  block = pl.BlockSpec((clips, None, patches, 3, width // heads),
                       lambda h, w, g: (g, w, 0, 0, h))
  rows = pl.BlockSpec((clips, None, patches, width // heads),
                      lambda h, w, g: (g, w, 0, h))
  scores = lambda index: pl.BlockSpec((None, patches, patches), index)
  inputs = [(qkv, block), (bias, scores(lambda h, w, g: (h, 0, 0))),
            (tau, pl.BlockSpec((1,), lambda h, w, g: (h,)))]
  if mask is not None:
    inputs.append((mask, scores(lambda h, w, g: (w, 0, 0))))
  if gradient is not None:
    inputs.append((gradient, rows))
  args, in_specs = zip(*inputs)
  # Neighbours share what they read: the heads of a row lie side by side.
  grid = heads, w, b // clips
  out_shape, out_specs = out(grid, block, rows)
  return pl.pallas_call(
      functools.partial(kernel, clips=clips, masked=mask is not None),
      grid=grid, in_specs=in_specs, out_specs=out_specs, out_shape=out_shape,
      interpret=interpret, name=name,
      compiler_params=triton.CompilerParams(
          num_warps=min(max(patches**2 // 512, 1), 8), num_stages=2))(*args)


def _forward(qkv, bias, tau, mask, **options):
  shape = jax.ShapeDtypeStruct((*qkv.shape[:3], qkv.shape[-1]), qkv.dtype)
  return _call(
      _forward_kernel, 'window_attention', lambda grid, block, rows: (
          shape, rows), qkv, bias, tau, mask, None, **options)


def _backward(qkv, gradient, bias, tau, mask, **options):
  """Gradients: of `qkv`; of `bias` and `tau`, [groups, W, ...] parts."""
  patches = bias.shape[-1]

  def out(grid, block, rows):
    del rows
    heads, w, groups = grid
    parts = groups, w, heads, patches
    float32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    return [
        jax.ShapeDtypeStruct(qkv.shape, qkv.dtype),
        float32(*parts, patches), float32(*parts)
    ], [
        block,
        pl.BlockSpec((None, None, None, patches, patches),
                     lambda h, w, g: (g, w, h, 0, 0)),
        pl.BlockSpec((None, None, None, patches),
                     lambda h, w, g: (g, w, h, 0))]

  return _call(_backward_kernel, 'window_attention_backward', out, qkv, bias,
               tau, mask, gradient, **options)


def _scores(q, k, tau, bias):
  """Weights [L, L], and what else the way back needs: cosines, the lengths of
  queries and of keys, [L] each, and their products at their floor or above."""
  length = lambda x: jnp.sqrt(jnp.maximum(
      jnp.sum(jnp.square(x.astype(jnp.float32)), axis=1), 1e-30))
  of_q, of_k = length(q), length(k)
  product = jnp.maximum(of_q[:, None] * of_k[None, :], 1e-6)
  cosine = _dot(q, k, 1, 1) / product
  logits = cosine / tau + bias
  weights = jnp.exp(logits - jnp.max(logits, axis=1)[:, None])
  weights = weights / jnp.sum(weights, axis=1)[:, None]
  return weights, cosine, of_q, of_k, product


def _dot(x, y, of_x, of_y):
  return jax.lax.dot_general(
      x, y, (((of_x,), (of_y,)), ((), ())),
      preferred_element_type=jnp.float32)


def _forward_kernel(qkv_ref, bias_ref, tau_ref, *refs, clips, masked):
  *mask_ref, out_ref = refs
  tau, bias = tau_ref[0], bias_ref[...]
  if masked:
    bias += mask_ref[0][...]

  def clip(i, carry):
    q, k, v = (qkv_ref[i, :, j] for j in range(3))
    weights, *_ = _scores(q, k, tau, bias)
    out_ref[i] = _dot(weights.astype(v.dtype), v, 1, 0).astype(out_ref.dtype)
    return carry

  jax.lax.fori_loop(0, clips, clip, 0)


def _backward_kernel(qkv_ref, bias_ref, tau_ref, *refs, clips, masked):
  *mask_ref, gradient_ref, qkv_grad_ref, bias_grad_ref, tau_grad_ref = refs
  tau, bias = tau_ref[0], bias_ref[...]
  if masked:
    bias += mask_ref[0][...]

  def clip(i, carry):
    bias_grad, tau_grad = carry
    q, k, v = (qkv_ref[i, :, j] for j in range(3))
    out_grad = gradient_ref[i]
    weights, cosine, q_length, k_length, product = _scores(q, k, tau, bias)
    of_weights = _dot(out_grad, v, 1, 1)
    of_logits = weights * (
        of_weights - jnp.sum(weights * of_weights, axis=1)[:, None])
    of_cosine = of_logits / tau
    of_dot = of_cosine / product
    # Of the product of two lengths, where it is above its floor.
    of_product = jnp.where(product > 1e-6, -of_dot * cosine, 0.0)
    along_q = jnp.sum(of_product * k_length[None, :], axis=1) / q_length
    along_k = jnp.sum(of_product * q_length[:, None], axis=0) / k_length
    of_dot = of_dot.astype(q.dtype)
    of_q = _dot(of_dot, k, 1, 0) + along_q[:, None] * q.astype(jnp.float32)
    of_k = _dot(of_dot, q, 0, 0) + along_k[:, None] * k.astype(jnp.float32)
    of_v = _dot(weights.astype(v.dtype), out_grad, 0, 0)
    for j, of in enumerate((of_q, of_k, of_v)):
      qkv_grad_ref[i, :, j] = of.astype(qkv_grad_ref.dtype)
    return (bias_grad + of_logits,
            tau_grad - jnp.sum(of_cosine * cosine, axis=1) / tau)

  zeros = jnp.zeros_like(bias), jnp.zeros(bias.shape[:1], jnp.float32)
  bias_grad, tau_grad = jax.lax.fori_loop(0, clips, clip, zeros)
  bias_grad_ref[...] = bias_grad
  tau_grad_ref[...] = tau_grad
