"""The one table between other projects' tensors and our parameters.

A rule is (their names, our name, transform): '{i}' is the number of a block,
with two digits in ours. It is read in both directions: what a file should hold
follows from the parameters of the model, name by name and shape by shape.
"""

import re
from typing import NamedTuple

import numpy as np

from audio_mae_jax import config as config_lib
from audio_mae_jax import weights


class Transform(NamedTuple):
  """`ours(arrays) -> array` and `theirs(array, patch) -> arrays`, inverse."""
  ours: object
  theirs: object


SAME = Transform(lambda arrays: arrays[0], lambda array, patch: [array])
# torch keeps the matrix of a linear layer as [out, in].
LINEAR = Transform(lambda arrays: arrays[0].T, lambda array, patch: [array.T])
TOKEN = Transform(
    lambda arrays: arrays[0].reshape(-1),
    lambda array, patch: [array.reshape(1, 1, -1)])
# A convolution of [D, 1, frames, bins] is a product with the patch's pixels in
# this order.
PATCHES = Transform(
    lambda arrays: arrays[0].reshape(arrays[0].shape[0], -1).T,
    lambda array, patch: [array.T.reshape(-1, 1, *patch.size)])
# Queries, keys and values in three matrices, [out, in] each.
QKV_KERNEL = Transform(
    lambda arrays: np.concatenate(arrays, axis=0).T,
    lambda array, patch: list(np.split(array.T, 3, axis=0)))
QKV_BIAS = Transform(
    np.concatenate, lambda array, patch: list(np.split(array, 3)))


class Rule(NamedTuple):
  theirs: tuple[str, ...]
  ours: str
  transform: Transform = SAME


def _linear(theirs, ours):
  return (Rule((f'{theirs}.weight',), f'{ours}/kernel', LINEAR),
          Rule((f'{theirs}.bias',), f'{ours}/bias'))


def _norm(theirs, ours):
  return (Rule((f'{theirs}.weight',), f'{ours}/scale'),
          Rule((f'{theirs}.bias',), f'{ours}/bias'))


def _patches(theirs):
  return (Rule((f'{theirs}.weight',), 'encoder/patch_embed/kernel', PATCHES),
          Rule((f'{theirs}.bias',), 'encoder/patch_embed/bias'))


def _block(theirs, ours):
  """A transformer block by timm's names, which the released code shares."""
  return (
      *_norm(f'{theirs}.norm1', f'{ours}/norm1'),
      *_linear(f'{theirs}.attn.qkv', f'{ours}/attn/qkv'),
      *_linear(f'{theirs}.attn.proj', f'{ours}/attn/proj'),
      *_norm(f'{theirs}.norm2', f'{ours}/norm2'),
      *_linear(f'{theirs}.mlp.fc1', f'{ours}/mlp/fc1'),
      *_linear(f'{theirs}.mlp.fc2', f'{ours}/mlp/fc2'))


def _hf_block(theirs, ours):
  """A transformer block by Hugging Face's names (ViT, ViTMAE)."""
  inner = f'{theirs}.attention.attention'
  return (
      *_norm(f'{theirs}.layernorm_before', f'{ours}/norm1'),
      Rule(tuple(f'{inner}.{x}.weight' for x in ('query', 'key', 'value')),
           f'{ours}/attn/qkv/kernel', QKV_KERNEL),
      Rule(tuple(f'{inner}.{x}.bias' for x in ('query', 'key', 'value')),
           f'{ours}/attn/qkv/bias', QKV_BIAS),
      *_linear(f'{theirs}.attention.output.dense', f'{ours}/attn/proj'),
      *_norm(f'{theirs}.layernorm_after', f'{ours}/norm2'),
      *_linear(f'{theirs}.intermediate.dense', f'{ours}/mlp/fc1'),
      *_linear(f'{theirs}.output.dense', f'{ours}/mlp/fc2'))


class Layout(NamedTuple):
  """How one family of projects names its tensors."""
  rules: tuple[Rule, ...]
  positions: dict[str, str]  # their name of a table -> 'encoder' or 'decoder'
  aliases: tuple[tuple[str, str], ...] = ()  # (pattern, the name used above)
  ignored: tuple[str, ...] = ()  # patterns of tensors that mean nothing here

  def canonical(self, name: str) -> str:
    """`name` as the rules spell it."""
    for pattern, usual in self.aliases:
      name = re.sub(pattern, usual, name)
    return name

  def find(self, ours: str) -> tuple[tuple[str, ...], Transform] | None:
    """Their names of our parameter, and the transform; None if they have none.
    """
    for rule in self.rules:
      match = re.fullmatch(rule.ours.replace('{i}', r'(\d\d+)'), ours)
      if match:
        number = str(int(match[1])) if match.groups() else ''
        return (tuple(name.replace('{i}', number) for name in rule.theirs),
                rule.transform)
    return None

  def name_here(self, theirs: str) -> str | None:
    """Our parameter that their tensor is (a part of); None if it is none."""
    for rule in self.rules:
      for name in rule.theirs:
        pattern = re.escape(name).replace(r'\{i\}', r'(\d{1,4})')
        match = re.fullmatch(pattern, theirs)
        if match:
          number = f'{int(match[1]):02d}' if match.groups() else ''
          return rule.ours.replace('{i}', number)
    return None


# timm's VisionTransformer, and what facebookresearch/AudioMAE fine-tunes.
ENCODER = Layout(
    rules=(
        Rule(('cls_token',), 'encoder/cls_token', TOKEN),
        *_patches('patch_embed.proj'),
        *_block('blocks.{i}', 'encoder/blocks/{i}'),
        *_norm('norm', 'encoder/norm'),
        *_norm('fc_norm', 'fc_norm'),
        *_linear('head', 'head')),
    positions={'pos_embed': 'encoder'})

# facebookresearch/AudioMAE, and facebookresearch/mae for images.
RELEASED = Layout(
    rules=(
        *ENCODER.rules,
        *_linear('decoder_embed', 'decoder/tokens/embed'),
        Rule(('mask_token',), 'decoder/tokens/mask_token', TOKEN),
        *_block('decoder_blocks.{i}', 'decoder/blocks/{i}'),
        Rule(('decoder_blocks.{i}.attn.tau',), 'decoder/blocks/{i}/attn/tau'),
        *_linear('decoder_blocks.{i}.attn.meta_mlp.fc1',
                 'decoder/blocks/{i}/attn/bias/fc1'),
        *_linear('decoder_blocks.{i}.attn.meta_mlp.fc2',
                 'decoder/blocks/{i}/attn/bias/fc2'),
        *_norm('decoder_norm', 'decoder/norm'),
        *_linear('decoder_pred', 'pred')),
    positions={'pos_embed': 'encoder', 'decoder_pos_embed': 'decoder'})

# Hugging Face's ViTMAEForPreTraining, ViTMAEModel, ViTModel and
# ViTForImageClassification.
HUGGINGFACE = Layout(
    rules=(
        Rule(('vit.embeddings.cls_token',), 'encoder/cls_token', TOKEN),
        *_patches('vit.embeddings.patch_embeddings.projection'),
        *_hf_block('vit.encoder.layer.{i}', 'encoder/blocks/{i}'),
        *_norm('vit.layernorm', 'encoder/norm'),
        *_linear('decoder.decoder_embed', 'decoder/tokens/embed'),
        Rule(('decoder.mask_token',), 'decoder/tokens/mask_token', TOKEN),
        *_hf_block('decoder.decoder_layers.{i}', 'decoder/blocks/{i}'),
        *_norm('decoder.decoder_norm', 'decoder/norm'),
        *_linear('decoder.decoder_pred', 'pred'),
        *_linear('classifier', 'head')),
    positions={'vit.embeddings.position_embeddings': 'encoder',
               'decoder.decoder_pos_embed': 'decoder'},
    aliases=(
        # A bare ViTModel has no prefix; transformers 5 has other names in
        # memory, and writes a third one for the decoder's blocks.
        (r'^(?=(embeddings|encoder|layernorm|layers)\.)', 'vit.'),
        (r'^vit\.layers\.', 'vit.encoder.layer.'),
        (r'^decoder\.decoder_encoder\.layer\.', 'decoder.decoder_layers.'),
        (r'\.attention\.q_proj\.', '.attention.attention.query.'),
        (r'\.attention\.k_proj\.', '.attention.attention.key.'),
        (r'\.attention\.v_proj\.', '.attention.attention.value.'),
        (r'\.attention\.o_proj\.', '.attention.output.dense.'),
        (r'\.mlp\.fc1\.', '.intermediate.dense.'),
        (r'\.mlp\.fc2\.', '.output.dense.')),
    ignored=(r'vit\.pooler\..*',))


# Of each part that has positions: the token of its width, and the parameter
# that its positions are where no formula gives them.
TOKENS = {token.split('/')[0]: token for token in weights.TABLES}
TABLES = {table.split('/')[0]: table for table in weights.TABLES.values()}


def to_ours(layout: Layout, ours: str, tensors: dict) -> np.ndarray:
  """Our parameter from their tensors."""
  names, transform = layout.find(ours)
  return transform.ours([tensors[name] for name in names])


def to_theirs(
    layout: Layout, params: dict, patch: config_lib.Patch
) -> tuple[dict[str, np.ndarray], list[str]]:
  """Their tensors, and our names that have no place in the layout."""
  tensors, homeless = {}, []
  for ours, array in params.items():
    found = layout.find(ours)
    if found is None:
      homeless.append(ours)
      continue
    names, transform = found
    tensors |= dict(zip(names, transform.theirs(array, patch)))
  return tensors, homeless


def expected(
    layout: Layout, shapes: dict, patch: config_lib.Patch
) -> tuple[dict[str, tuple], list[str]]:
  """As `to_theirs`, with shapes for arrays."""
  empty = {name: np.broadcast_to(np.zeros((), np.int8), shape)
           for name, shape in shapes.items()}
  tensors, homeless = to_theirs(layout, empty, patch)
  return {name: array.shape for name, array in tensors.items()}, homeless
