"""Trees of parameters by name: the one way to address them.

A leaf's name is its path joined by '/': 'encoder/blocks/00/attn/qkv/kernel'.
Rules are `(regular expression, value)` pairs; the first whose expression
matches the whole name applies.
"""

import re

import jax
import numpy as np


def name_of(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='/')


def map_named(fn, tree):
  """`fn(name, leaf)` for every leaf, in a tree of the same structure."""
  return jax.tree_util.tree_map_with_path(
      lambda path, leaf: fn(name_of(path), leaf), tree)


def flatten(tree) -> dict:
  """Leaves by name, in the tree's order."""
  return {name_of(path): leaf
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def first_match(rules, name: str, default=None):
  """The value of the first rule that matches all of `name`, or `default`."""
  for pattern, value in rules:
    if re.fullmatch(pattern, name):
      return value
  return default


def count(tree) -> int:
  """Number of scalars in all leaves."""
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))
