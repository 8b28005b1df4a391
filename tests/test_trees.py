"""Parameters by name."""

import jax
import jax.numpy as jnp

from audio_mae_jax import trees

TREE = {'b': {'kernel': jnp.ones((2, 3)), 'bias': jnp.zeros(3)},
        'a': [jnp.ones(4), None]}


def test_leaves_are_named_by_their_path_in_the_order_of_the_tree():
  flat = trees.flatten(TREE)
  assert list(flat) == ['a/0', 'b/bias', 'b/kernel']
  for ours, leaf in zip(flat.values(), jax.tree.leaves(TREE)):
    assert ours is leaf


def test_map_named_keeps_the_structure():
  names = trees.map_named(lambda name, leaf: (name, leaf.shape), TREE)
  assert names == {
      'b': {'kernel': ('b/kernel', (2, 3)), 'bias': ('b/bias', (3,))},
      'a': [('a/0', (4,)), None]}


def test_the_first_rule_that_matches_the_whole_name_applies():
  rules = [('.*/bias', 1), ('b/.*', 2), ('b', 3)]
  found = [trees.first_match(rules, name, 0)
           for name in ('b/bias', 'b/kernel', 'b', 'a/0', 'b/bias/x')]
  assert found == [1, 2, 3, 0, 2]


def test_scalars_are_counted_on_arrays_and_on_shapes():
  assert trees.count(TREE) == 6 + 3 + 4
  assert trees.count(jax.eval_shape(lambda: TREE)) == 13
