"""Norm, activation and product that keep their inputs alone for the way back.

Differentiated as they are written, JAX would keep several float32 arrays of
each: of ViT-B with the local decoder, half of all that a step keeps. Here the
way back computes them again, which costs little beside writing and reading
them. Norm and activation compute in float32 whatever comes in, and return what
came in.
"""

import jax
import jax.numpy as jnp

from audio_mae_jax import devices


def _probability(x):
  """Phi(x) of the standard normal distribution."""
  return 0.5 * (1 + jax.lax.erf(x * 0.5**0.5))


@jax.custom_vjp
def gelu(x):
  """[...] -> the same: x Phi(x), exact, by the error function as in torch."""
  wide = x.astype(jnp.float32)
  return (wide * _probability(wide)).astype(x.dtype)


def _plain(fn):
  """`fn` without its rule: rematerialisation may keep products, and a call of
  the rule's inside of another would hide them from it."""
  return fn.__wrapped__


def _gelu_forth(x):
  return _plain(gelu)(x), x


def _gelu_back(x, gradient):
  wide = x.astype(jnp.float32)
  density = jnp.exp(-0.5 * jnp.square(wide)) * (2 * jnp.pi) ** -0.5
  slope = _probability(wide) + wide * density
  return ((gradient.astype(jnp.float32) * slope).astype(x.dtype),)


gelu.defvjp(_gelu_forth, _gelu_back)

EPSILON = 1e-6  # of all norms in the released code


def _whiten(x):
  """float32: x without its mean over the last axis, over its deviation; and
  one over that."""
  wide = x.astype(jnp.float32)
  centred = wide - wide.mean(-1, keepdims=True)
  # The mean squared deviation, not the difference of two large means.
  variance = jnp.square(centred).mean(-1, keepdims=True)
  inverse = jax.lax.rsqrt(variance + EPSILON)
  return centred * inverse, inverse


def _kernels(x):
  """The module with kernels for `x`, or None where XLA does it."""
  if not devices.run_kernels():
    return None
  # Here, as importing Pallas takes longer than most programs have use for it.
  from audio_mae_jax.models import row_kernels
  return row_kernels if row_kernels.takes(x.shape) else None


@jax.custom_vjp
def layer_norm(x, scale, bias, add=None):
  """[..., D], float32 [D], float32 [D] -> [..., D]; with `add` [..., D] added.

  The sum is rounded once.
  """
  if kernels := _kernels(x):
    return kernels.norm(x, scale, bias, add, EPSILON)
  y = _whiten(x)[0] * scale + bias
  if add is not None:
    y += add.astype(jnp.float32)
  return y.astype(x.dtype)


def _norm_forth(x, scale, bias, add):
  return _plain(layer_norm)(x, scale, bias, add), (x, scale, add is None)


def _norm_back(kept, gradient):
  x, scale, alone = kept
  of_add = None if alone else gradient
  if kernels := _kernels(x):
    return *kernels.norm_back(x, scale, gradient, EPSILON), of_add
  gradient = gradient.astype(jnp.float32)
  white, inverse = _whiten(x)
  over = tuple(range(x.ndim - 1))
  inner = gradient * scale
  mean = lambda y: y.mean(-1, keepdims=True)
  inner -= mean(inner) + white * mean(inner * white)
  return ((inner * inverse).astype(x.dtype), (gradient * white).sum(over),
          gradient.sum(over), of_add)


layer_norm.defvjp(_norm_forth, _norm_back)


@jax.custom_vjp
def affine(x, kernel, bias):
  """[..., D], [D, F], float32 [F] -> [..., F]: the product plus the bias.

  In the dtype of `x` and `kernel`, so that a GPU's products add the bias before
  they round; the gradient of the bias is a sum in float32. XLA may add
  bfloat16 to bfloat16, one by one: of a sum over all tokens, 40 % were lost.
  """
  return x @ kernel + bias.astype(x.dtype)


def _affine_forth(x, kernel, bias):
  return _plain(affine)(x, kernel, bias), (x, kernel)


def _affine_back(kept, gradient):
  return *_product_back(*kept, gradient), _total(gradient)


def _product_back(x, kernel, gradient):
  if devices.platform() != 'cpu':
    return jax.vjp(jnp.matmul, x, kernel)[1](gradient)
  # XLA for CPUs is slow to sum over clips and tokens as axes of their own, and
  # over the rows of a narrow `x` unless it is transposed first; to transpose a
  # wide one takes longer than that saves (docs/performance.md).
  rows, of_y = (a.reshape(-1, a.shape[-1]) for a in (x, gradient))
  columns = rows.T
  if x.shape[-1] < gradient.shape[-1]:
    columns = jax.lax.optimization_barrier(columns)
  return gradient @ kernel.T, columns @ of_y


def _total(x):
  return x.astype(jnp.float32).sum(tuple(range(x.ndim - 1)))


affine.defvjp(_affine_forth, _affine_back)


@jax.custom_vjp
def mlp(x, fc1, fc2):
  """[..., D] -> [..., D]: `affine` with `fc1`, GELU, `affine` with `fc2`.

  `fc1` and `fc2` are each a kernel and a bias. Of the hidden channels only what
  GELU reads is kept, and not what it gives.
  """
  return affine(gelu(affine(x, *fc1)), *fc2)


def _mlp_forth(x, fc1, fc2):
  hidden = _plain(affine)(x, *fc1)
  y = _plain(affine)(_plain(gelu)(hidden), *fc2)
  return y, (x, hidden, fc1[0], fc2[0])


def _mlp_back(kept, gradient):
  x, hidden, kernel1, kernel2 = kept
  # XLA would find that GELU was computed before, and keep it.
  hidden, gradient = jax.lax.optimization_barrier((hidden, gradient))
  of_activated = gradient @ kernel2.T
  kernels = hidden.dtype == jnp.bfloat16 and _kernels(hidden)
  if kernels:
    activated, of_hidden, of_bias = kernels.gelu_back(hidden, of_activated)
  else:
    activated, back = jax.vjp(gelu, hidden)
    of_hidden, = back(of_activated)
    of_bias = _total(of_hidden)
  _, of_kernel2 = _product_back(activated, kernel2, gradient)
  of_x, of_kernel1 = _product_back(x, kernel1, of_hidden)
  return of_x, (of_kernel1, of_bias), (of_kernel2, _total(gradient))


mlp.defvjp(_mlp_forth, _mlp_back)
