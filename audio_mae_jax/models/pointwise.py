"""Normalisation and activation that keep their input alone for the way back.

Differentiated as they are written, JAX would keep several float32 arrays of
each: of ViT-B with the local decoder, half of all that a step keeps. Here the
way back computes them again, which costs little beside writing and reading
them. Both compute in float32 whatever comes in, and return what came in.
"""

import jax
import jax.numpy as jnp


def _probability(x):
  """Phi(x) of the standard normal distribution."""
  return 0.5 * (1 + jax.lax.erf(x * 0.5**0.5))


@jax.custom_vjp
def gelu(x):
  """[...] -> the same: x Phi(x), exact, by the error function as in torch."""
  wide = x.astype(jnp.float32)
  return (wide * _probability(wide)).astype(x.dtype)


def _gelu_forth(x):
  return gelu(x), x


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


@jax.custom_vjp
def layer_norm(x, scale, bias):
  """[..., D], float32 [D], float32 [D] -> [..., D]."""
  return (_whiten(x)[0] * scale + bias).astype(x.dtype)


def _norm_forth(x, scale, bias):
  return layer_norm(x, scale, bias), (x, scale)


def _norm_back(kept, gradient):
  x, scale = kept
  gradient = gradient.astype(jnp.float32)
  white, inverse = _whiten(x)
  over = tuple(range(x.ndim - 1))
  inner = gradient * scale
  mean = lambda y: y.mean(-1, keepdims=True)
  inner -= mean(inner) + white * mean(inner * white)
  return ((inner * inverse).astype(x.dtype), (gradient * white).sum(over),
          gradient.sum(over))


layer_norm.defvjp(_norm_forth, _norm_back)
