"""What the model is, from its tensors.

Their names tell its parts, their shapes its sizes, their positions its grid.
Only the number of heads leaves no trace: it is that of the known width, or of
the file's own settings, or must be given.
"""

import ast
import dataclasses
import re

from audio_mae_jax import config as config_lib
from audio_mae_jax import patches as patches_lib
from audio_mae_jax.convert import positions
from audio_mae_jax.models import encoder as encoder_lib

_DECODER_HEADS = {512: 16}  # by width, of every released model


def parse(given: dict) -> dict:
  """Settings by dotted name; values from a command line are text."""
  def value_of(value):
    try:
      return ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError):
      return value
  return {name: value_of(value) for name, value in given.items()}


def infer(shapes: dict, size, patch: config_lib.Patch, hints: dict,
          given: dict) -> config_lib.Config:
  """The settings of the model with these tensors.

  Args:
    shapes: of parameters, by our names.
    size: of a patch, in (frames, bins).
    patch: whose positions the model has.
    hints: a Hugging Face config.json, or {}.
    given: by dotted name; they come first.

  Raises:
    ValueError: a setting is unknown, or heads cannot be known.
  """
  found = {**_patches(size, patch), **_encoder(shapes, hints)}
  if 'decoder/tokens/mask_token' in shapes:
    found |= _decoder(shapes, hints, patch.positions_stride != size)
  elif any(name.split('/')[0] in ('fc_norm', 'head') for name in shapes):
    found |= {
        'task': 'classify',
        'model.classifier.num_classes': shapes.get('head/bias', (0,))[0],
        'model.classifier.pool':
            'mean' if 'fc_norm/scale' in shapes else 'class_token'}
  if 'norm_pix_loss' in hints:
    found['objective.normalize_patches'] = hints['norm_pix_loss']
  found |= given
  for part in ('encoder', 'decoder'):
    if found.get(f'model.{part}.heads', 1) == 0 and (
        f'model.{part}.width' in found):
      raise ValueError(
          f'Tensors do not show the number of heads, and a width of '
          f'{found[f"model.{part}.width"]} is none of a known {part}: give it, '
          f'with --set model.{part}.heads=H.')
  values = dataclasses.asdict(config_lib.Config())
  for name, value in found.items():
    *path, last = name.split('.')
    node = values
    for part in path:
      node = node.setdefault(part, {})
    node[last] = value
  return config_lib.typed(values)


def _patches(size, patch):
  """Patches, positions, and the spectrogram that they cover."""
  overlap = patch.positions_stride != size
  lengths = [patches_lib.covered(*axis) for axis in
             zip(patch.positions_grid, size, patch.positions_stride)]
  if overlap:  # a rest of less than a stride was not covered
    lengths = [length + -length % positions.BINS for length in lengths]
  return {
      'patch.size': size,
      'patch.stride': patch.positions_stride if overlap else (0, 0),
      'patch.positions': patch.positions,
      'patch.positions_grid': patch.positions_grid,
      'patch.positions_stride': patch.positions_stride,
      'frontend.num_frames': lengths[0], 'frontend.num_mel_bins': lengths[1]}


def _encoder(shapes, hints):
  width = shapes['encoder/cls_token'][0]
  depth = _blocks(shapes, 'encoder')
  ratio = _mlp_ratio(shapes, 'encoder', width)
  for variant, sizes in encoder_lib.VARIANTS.items():
    if sizes[:2] == (width, depth):
      return {'model.encoder.variant': variant,
              'model.encoder.mlp_ratio': ratio}
  heads = {sizes[0]: sizes[2] for sizes in encoder_lib.VARIANTS.values()}
  return {
      'model.encoder.width': width, 'model.encoder.depth': depth,
      'model.encoder.heads': hints.get(
          'num_attention_heads', heads.get(width, 0)),
      'model.encoder.mlp_ratio': ratio}


def _decoder(shapes, hints, overlap):
  width = shapes['decoder/tokens/mask_token'][0]
  depth = _blocks(shapes, 'decoder')
  if not depth:
    raise ValueError(
        'The file has a decoder without blocks. Take the encoder alone, with '
        '--part encoder, or fetch the file again.')
  found = {
      'model.decoder.width': width, 'model.decoder.depth': depth,
      'model.decoder.mlp_ratio': _mlp_ratio(shapes, 'decoder', width)}
  temperatures = shapes.get('decoder/blocks/00/attn/tau')
  if temperatures:
    found |= {'model.decoder.name': 'local',
              'model.decoder.heads': temperatures[0]}
    if overlap:  # as released for 101 x 12 patches
      found['model.decoder.window'] = (6, 6)
    return found
  return found | {
      'model.decoder.name': 'global',
      'model.decoder.heads': hints.get(
          'decoder_num_attention_heads', _DECODER_HEADS.get(width, 0))}


def _blocks(shapes, part):
  """Blocks up to the last that has a tensor."""
  numbers = (re.match(rf'{part}/blocks/(\d+)/', name) for name in shapes)
  return 1 + max((int(match[1]) for match in numbers if match), default=-1)


def _mlp_ratio(shapes, part, width):
  hidden = shapes.get(f'{part}/blocks/00/mlp/fc1/bias', (4 * width,))
  return hidden[0] / width
