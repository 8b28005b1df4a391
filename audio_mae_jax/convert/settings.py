"""What the model is, from its tensors.

Exports of this project carry their settings. Of other files, names tell the
parts of the model, shapes its sizes, positions its grid; the number of heads is
that of the known width, or of the file's own settings, or must be given.
"""

import ast
import dataclasses
import re

from audio_mae_jax import config as config_lib
from audio_mae_jax import patches as patches_lib
from audio_mae_jax import registry
from audio_mae_jax import weights as weights_lib
from audio_mae_jax.convert import files
from audio_mae_jax.convert import positions
from audio_mae_jax.models import encoder as encoder_lib

_DECODER_HEADS = {512: 16}  # by width, of every released model


def parse(given: dict) -> dict:
  """Settings by dotted name, checked; values from a command line are text.

  Raises:
    ValueError: a name is no setting, or a value of another type.
  """
  def value_of(value):
    try:
      return ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError):
      return value
  values = {name: value_of(value) for name, value in given.items()}
  config = _with(config_lib.Config(), values)
  registry.lookup(
      patches_lib.POSITIONS, config.patch.positions, 'patch.positions')
  config = dataclasses.asdict(config)

  def lookup(name):
    node = config
    for part in name.split('.'):
      node = node[part]
    return node
  return {name: lookup(name) for name in values}


def _with(config: config_lib.Config, flat: dict) -> config_lib.Config:
  """`config` with settings by dotted name."""
  values = dataclasses.asdict(config)
  for name, value in flat.items():
    *path, last = name.split('.')
    node = values
    for part in path:
      node = node.setdefault(part, {})
      if not isinstance(node, dict):
        raise ValueError(f'{name} is not a setting: {part} is no group.')
    node[last] = value
  return config_lib.typed(values)


def noted(hints: dict) -> config_lib.Config | None:
  """The settings that an export of this project carries, or None."""
  if files.NOTES not in hints:
    return None
  try:
    return weights_lib.typed(hints[files.NOTES])
  except ValueError as error:
    raise ValueError(
        f'The note {files.NOTES!r} in the file is of another version: {error}'
    ) from error


def infer(shapes: dict, size, patch: config_lib.Patch, hints: dict,
          given: dict) -> config_lib.Config:
  """The settings of the model with these tensors.

  Args:
    shapes: of parameters, by our names.
    size: of a patch, in (frames, bins).
    patch: whose positions the model has.
    hints: from `files.read`.
    given: by dotted name; they come first.

  Raises:
    ValueError: a setting is unknown, heads cannot be known, or the model does
      what ours cannot.
  """
  if hints.get('hidden_act', 'gelu') != 'gelu':
    raise ValueError(
        f"The model's activation is {hints['hidden_act']!r}, and models here "
        "have 'gelu' only.")
  if known := noted(hints):
    return _with(dataclasses.replace(known, patch=patch), given)
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
  return _with(config_lib.Config(), found)


def _patches(size, patch):
  """Patches, positions, and the spectrogram that they cover."""
  overlap = patch.positions_stride != size
  lengths = [patches_lib.covered(*axis) for axis in
             zip(patch.positions_grid, size, patch.positions_stride)]
  if overlap:  # a rest of less than a stride may not be covered
    lengths = [length + rest if (rest := -length % positions.BINS) < step
               else length
               for length, step in zip(lengths, patch.positions_stride)]
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
  by_width = {sizes[0]: sizes[2] for sizes in encoder_lib.VARIANTS.values()}
  heads = hints.get('num_attention_heads', by_width.get(width, 0))
  for variant, sizes in encoder_lib.VARIANTS.items():
    if sizes == (width, depth, heads):
      return {'model.encoder.variant': variant,
              'model.encoder.mlp_ratio': ratio}
  return {
      'model.encoder.width': width, 'model.encoder.depth': depth,
      'model.encoder.heads': heads,
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
  """Blocks up to the last that has a tensor, if most of them have one."""
  found = (re.match(rf'{part}/blocks/(\d+)/', name) for name in shapes)
  numbers = {int(match[1]) for match in found if match}
  last = max(numbers, default=-1) + 1
  return last if last <= 2 * len(numbers) else len(numbers)


def _mlp_ratio(shapes, part, width):
  hidden = shapes.get(f'{part}/blocks/00/mlp/fc1/bias', (4 * width,))
  return hidden[0] / width
