"""Norm and GELU as kernels for GPUs (Pallas, Triton).

XLA goes several times over what these go over once: on the way back it writes
float32 arrays of the input's shape, to sum them over all rows for the gradients
of scales and biases. Here those sums stay in registers, as far as a program's
rows go. docs/performance.md compares.

The norm's programs are one warp each, and work on 16 rows, one after the other:
no sum leaves the warp. Triton wants powers of two, so that a row is read in
equal pieces: one of 768 channels as three of 256.
"""

import functools

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
import jax.numpy as jnp

from audio_mae_jax import devices

_ROWS = 16  # at most, for one program of the norm
_NARROW = 64  # channels in a piece; narrower ones would keep no warp busy
_TILE = 4, 512  # rows and columns that a program of GELU does at once
_TILES = 16  # at most, for one program


def takes(shape) -> bool:
  """Whether rows of this shape's last axis can be cut into wide pieces."""
  return bool(shape) and _piece(shape[-1]) >= _NARROW


def norm(x, scale, bias, add, epsilon: float, *, interpret: bool = False):
  """[B, ..., D] -> the same: the norm times `scale` plus `bias`, plus `add`."""
  run = functools.partial(_norm, epsilon=epsilon, interpret=interpret)
  return devices.split(run, (x, add), (scale, bias))


def norm_back(x, scale, gradient, epsilon: float, *, interpret: bool = False):
  """Gradients by input [B, ..., D], by scale and by bias, both float32 [D]."""
  run = functools.partial(_norm_back, epsilon=epsilon, interpret=interpret)
  of_x, of_scale, of_bias = devices.split(run, (x, gradient), (scale,))
  return of_x, of_scale.sum(0), of_bias.sum(0)


def gelu_back(x, gradient, *, interpret: bool = False):
  """What GELU makes of the input again, and the gradient by it.

  Args:
    x: bfloat16 [B, ..., D].
    gradient: by GELU's result, [B, ..., D].
    interpret: runs it as plain operations, on any platform.

  Returns:
    `gelu(x)` and the gradient by `x`, as `x`, and the sum of that over all but
    the last axis, float32 [D].
  """
  run = functools.partial(_gelu_back, interpret=interpret)
  y, of_x, total = devices.split(run, (x, gradient), ())
  return y, of_x, total.sum(0)


def _divisor(number, most):
  return max(n for n in range(1, most + 1) if number % n == 0)


def _piece(channels, most=1024):
  """The largest power of two that divides `channels`, `most` at most."""
  return min(channels & -channels, most)


# Phi(-x) = t P(t) exp(-x^2 / 2) for x >= 0 and t = 1 / (1 + _SLOPE x): the form
# of Abramowitz and Stegun's 7.1.26, fitted to relative errors. They are 4.3e-5
# at most, for all x; rounding to bfloat16 takes up to 3.9e-3.
_SLOPE = 0.2510229
_TAIL = (0.2341281, -0.0924754, 0.1740826, 0.0826663, 0.1015899)


def gelu(x):
  """x Phi(x) and its slope, float32, for results that are rounded to bfloat16.

  The gradient needs the exponential anyway; this needs no error function.
  """
  bell = jnp.exp(-0.5 * jnp.square(x))
  t = 1 / (1 + _SLOPE * jnp.abs(x))
  tail = jnp.zeros_like(x)
  for coefficient in _TAIL:
    tail = (tail + coefficient) * t
  tail *= bell
  probability = jnp.where(x < 0, tail, 1 - tail)
  return x * probability, probability + x * bell * (2 * jnp.pi) ** -0.5


def _gelu_back(x, gradient, *, interpret):
  channels = x.shape[-1]
  number, piece = x.size // channels, _piece(channels, _TILE[1])
  rows = _piece(number, _TILE[0])
  tiles = _divisor(number // rows, _TILES)

  def kernel(x_ref, gradient_ref, y_ref, of_x_ref, total_ref):
    def tile(i, total):
      at = pl.ds(i * rows, rows)
      y, slope = gelu(x_ref[at, :].astype(jnp.float32))
      of_x = gradient_ref[at, :].astype(jnp.float32) * slope
      y_ref[at, :] = y.astype(y_ref.dtype)
      of_x_ref[at, :] = of_x.astype(of_x_ref.dtype)
      return total + of_x

    zeros = jnp.zeros((rows, piece), jnp.float32)
    total_ref[...] = jnp.sum(jax.lax.fori_loop(0, tiles, tile, zeros), axis=0)

  programs = number // (rows * tiles)
  cut = pl.BlockSpec((rows * tiles, piece), lambda i, j: (i, j))
  flat = jax.ShapeDtypeStruct((number, channels), x.dtype)
  y, of_x, total = pl.pallas_call(
      kernel, grid=(programs, channels // piece), interpret=interpret,
      name='gelu_back', in_specs=[cut, cut],
      out_specs=[cut, cut, pl.BlockSpec((None, piece), lambda i, j: (i, j))],
      out_shape=[flat, flat,
                 jax.ShapeDtypeStruct((programs, channels), jnp.float32)],
      compiler_params=triton.CompilerParams(num_warps=4, num_stages=1))(
          x.reshape(flat.shape), gradient.reshape(flat.shape))
  return y.reshape(x.shape), of_x.reshape(x.shape), total


def _norm(x, add, scale, bias, *, epsilon, interpret):
  def kernel(x_ref, scale_ref, bias_ref, *refs, rows, pieces):
    *add_ref, out_ref = refs
    scale, bias = ([ref[piece] for piece in pieces]
                   for ref in (scale_ref, bias_ref))

    def row(i, carry):
      white, _ = _whiten(_read(x_ref, i, pieces), epsilon)
      for j, piece in enumerate(pieces):
        y = white[j] * scale[j] + bias[j]
        if add_ref:
          y += add_ref[0][i, piece].astype(jnp.float32)
        out_ref[i, piece] = y.astype(out_ref.dtype)
      return carry

    jax.lax.fori_loop(0, rows, row, 0)

  like = jax.ShapeDtypeStruct(x.shape, x.dtype)
  return _call(kernel, 'layer_norm', [x], [scale, bias],
               [] if add is None else [add], [like], [], interpret)[0]


def _norm_back(x, gradient, scale, *, epsilon, interpret):
  def kernel(x_ref, scale_ref, gradient_ref, of_x_ref, of_scale_ref,
             of_bias_ref, *, rows, pieces):
    scale = [scale_ref[piece] for piece in pieces]

    def row(i, sums):
      white, inverse = _whiten(_read(x_ref, i, pieces), epsilon)
      gradient = _read(gradient_ref, i, pieces)
      inner = [g * s for g, s in zip(gradient, scale)]
      mean = _mean(inner)
      along = _mean([a * w for a, w in zip(inner, white)])
      for piece, a, w in zip(pieces, inner, white):
        of_x_ref[i, piece] = (
            (a - mean - w * along) * inverse).astype(of_x_ref.dtype)
      of_scale, of_bias = sums
      return ([s + g * w for s, g, w in zip(of_scale, gradient, white)],
              [s + g for s, g in zip(of_bias, gradient)])

    zeros = [jnp.zeros_like(s) for s in scale]
    sums = jax.lax.fori_loop(0, rows, row, (zeros, zeros))
    for ref, of in zip((of_scale_ref, of_bias_ref), sums):
      for piece, s in zip(pieces, of):
        ref[piece] = s

  like = jax.ShapeDtypeStruct(x.shape, x.dtype)
  return _call(kernel, 'layer_norm_back', [x], [scale], [gradient], [like],
               [jnp.float32] * 2, interpret)


def _read(ref, row, pieces):
  return [ref[row, piece].astype(jnp.float32) for piece in pieces]


def _mean(pieces):
  """Over the channels of all pieces of a row."""
  return sum(map(jnp.sum, pieces)) / sum(x.size for x in pieces)


def _whiten(pieces, epsilon):
  mean = _mean(pieces)
  centred = [x - mean for x in pieces]
  inverse = jax.lax.rsqrt(_mean([jnp.square(x) for x in centred]) + epsilon)
  return [x * inverse for x in centred], inverse


def _call(kernel, name, first, shared, others, out, sums, interpret):
  """`kernel` over all rows.

  Args:
    kernel: called with references to `first`, `shared`, `others`, and to what
      it writes: `out`, and a row of each of `sums` for each program.
    name: of the kernel, in profiles.
    first, others: arrays [..., D] that are cut into rows.
    shared: arrays [D].
    out: shapes like that of `first`.
    sums: dtypes of results [programs, D].
    interpret: runs it as plain operations, on any platform.
  """
  shape = first[0].shape
  channels, size = shape[-1], first[0].size
  number = size // channels
  rows = _divisor(number, _ROWS)
  programs, piece = number // rows, _piece(channels)
  pieces = [pl.ds(i, piece) for i in range(0, channels, piece)]
  cut = pl.BlockSpec((rows, channels), lambda i: (i, 0))
  whole = pl.BlockSpec((channels,), lambda i: (0,))
  flat = lambda x: jax.ShapeDtypeStruct((number, channels), x.dtype)
  results = pl.pallas_call(
      functools.partial(kernel, rows=rows, pieces=pieces),
      grid=(programs,), interpret=interpret, name=name,
      in_specs=[*[cut] * len(first), *[whole] * len(shared),
                *[cut] * len(others)],
      out_specs=[*[cut] * len(out),
                 *[pl.BlockSpec((None, channels), lambda i: (i, 0))
                   for _ in sums]],
      out_shape=[*map(flat, out),
                 *[jax.ShapeDtypeStruct((programs, channels), dtype)
                   for dtype in sums]],
      compiler_params=triton.CompilerParams(num_warps=1, num_stages=1))(
          *[x.reshape(number, channels) for x in first], *shared,
          *[x.reshape(number, channels) for x in others])
  return [x.reshape(shape) if i < len(out) else x
          for i, x in enumerate(results)]
