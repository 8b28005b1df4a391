"""Checksums of the arrays of a tree: what was read is what was written."""

import jax
import jax.numpy as jnp

from audio_mae_jax import trees


def of(tree) -> dict[str, int]:
  """A checksum of each leaf's bits, by name; the same on every mesh."""
  return {name: int(jax.device_get(_checksum(leaf)))
          for name, leaf in trees.flatten(tree).items()}


# Compiled once for a shape, of which stacks of blocks have few; one program for
# all leaves would take longer to compile the more there are.
@jax.jit
def _checksum(leaf):
  words = (leaf.astype(jnp.uint32) if leaf.dtype.itemsize != 4 else
           jax.lax.bitcast_convert_type(leaf, jnp.uint32))
  # Each place has an odd weight of its own, so that neither a changed bit nor
  # two exchanged numbers go unseen. Sums wrap, so their order is free.
  place = jnp.zeros(leaf.shape, jnp.uint32)
  for axis, size in enumerate(leaf.shape):
    place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(
        jnp.uint32, leaf.shape, axis)
  return jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)


def check(tree, expected: dict[str, int]):
  """Raises ValueError if a leaf of `tree` is not what was saved."""
  changed = [name for name, value in of(tree).items()
             if expected.get(name) != value]
  if changed:
    raise ValueError(
        f'{len(changed)} arrays are not what was saved, e.g. {changed[0]}')
