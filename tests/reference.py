"""Names and layouts of the released code's tensors, for parity tests."""

import re

import numpy as np

# (released name, our name); '{}' is a number, of two digits in ours.
NAMES = (
    (r'cls_token', 'encoder/cls_token'),
    (r'patch_embed\.proj\.(weight|bias)', r'encoder/patch_embed/\1'),
    (r'blocks\.(\d+)\.(.*)', r'encoder/blocks/\1/\2'),
    (r'norm\.(weight|bias)', r'encoder/norm/\1'),
    (r'decoder_embed\.(.*)', r'decoder/tokens/embed/\1'),
    (r'mask_token', 'decoder/tokens/mask_token'),
    (r'decoder_blocks\.(\d+)\.(.*)', r'decoder/blocks/\1/\2'),
    (r'decoder_norm\.(weight|bias)', r'decoder/norm/\1'),
    (r'decoder_pred\.(weight|bias)', r'pred/\1'),
)


def rename(name: str) -> str | None:
  """Our name of the released tensor `name`; None for position tables."""
  if name in ('pos_embed', 'decoder_pos_embed'):
    return None
  for pattern, ours in NAMES:
    match = re.fullmatch(pattern, name)
    if match:
      ours = match.expand(ours).replace('.', '/').replace('meta_mlp', 'bias')
      ours = re.sub(r'blocks/(\d)/', r'blocks/0\1/', ours)
      if ours.endswith('/weight'):
        kind = 'scale' if re.search(r'norm\d?/weight$', ours) else 'kernel'
        ours = ours[:-len('weight')] + kind
      return ours
  raise KeyError(name)


def convert(array: np.ndarray, ours: str) -> np.ndarray:
  """A released array in our layout: kernels are [in, out]."""
  if ours.endswith('token'):
    return array.reshape(-1)
  if ours.endswith('kernel'):
    return array.reshape(array.shape[0], -1).T
  return array


def load(arrays, prefix: str) -> dict[str, np.ndarray]:
  """All arrays of an npz under `prefix`, by our names and in our layout."""
  found = {}
  for key in arrays.files:
    if key.startswith(prefix):
      ours = rename(key[len(prefix):])
      if ours is not None:
        found[ours] = convert(arrays[key], ours)
  return found


def nest(flat: dict) -> dict:
  """{'a/b': x} -> {'a': {'b': x}}."""
  tree = {}
  for name, leaf in flat.items():
    *path, last = name.split('/')
    node = tree
    for part in path:
      node = node.setdefault(part, {})
    node[last] = leaf
  return tree
