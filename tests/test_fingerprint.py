"""Checksums: what changes them, and what must not."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from audio_mae_jax import fingerprint


def tree():
  draw = np.random.default_rng(0)
  return {
      'kernel': jnp.asarray(draw.normal(size=(16, 8)), jnp.float32),
      'blocks': [jnp.asarray(draw.normal(size=(16, 8)), jnp.float32),
                 jnp.asarray(draw.normal(size=8), jnp.bfloat16)],
      'step': jnp.asarray(7, jnp.int32)}


def test_each_leaf_has_one_by_its_name():
  found = fingerprint.of(tree())
  assert found.keys() == {'kernel', 'blocks/0', 'blocks/1', 'step'}
  assert len(set(found.values())) == 4
  assert found == fingerprint.of(tree())
  fingerprint.check(tree(), found)


@pytest.mark.parametrize('spec', [('x',), (None, 'x'), ()])
def test_it_does_not_depend_on_where_the_numbers_lie(spec):
  mesh = jax.make_mesh((8,), ('x',))
  whole = tree()['kernel']
  parts = jax.device_put(whole, NamedSharding(mesh, PartitionSpec(*spec)))
  assert fingerprint.of([parts]) == fingerprint.of([whole])


def exchanged(x):
  return x.at[3, 1].set(x[4, 2]).at[4, 2].set(x[3, 1])


@pytest.mark.parametrize('change', [
    lambda x: x.at[3, 1].set(np.nextafter(x[3, 1], np.float32(9))),
    lambda x: x.at[3, 1].multiply(-1), exchanged,
    lambda x: x.T.reshape(x.shape)],
    ids=['a bit', 'a sign', 'two numbers', 'order'])
def test_a_change_is_named(change):
  before = tree()
  after = before | {'kernel': change(before['kernel'])}
  with pytest.raises(ValueError, match='^1 arrays .* e.g. kernel$'):
    fingerprint.check(after, fingerprint.of(before))


def test_no_number_is_no_number():
  """Zero and minus zero differ, as do NaNs of other bits."""
  found = [fingerprint.of([jnp.asarray([x], jnp.float32)])['0']
           for x in (0.0, -0.0, np.nan, -np.nan)]
  assert len(set(found)) == 4
