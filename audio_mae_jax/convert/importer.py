"""Other projects' weights -> ours.

The tensors say what the model is (`settings.py`). It is built, and then every
tensor must be one that it has, of the right shape, and none may be missing.
"""

import contextlib
import dataclasses
import pathlib
import re

import numpy as np

from audio_mae_jax import compare
from audio_mae_jax import config as config_lib
from audio_mae_jax import registry
from audio_mae_jax import weights as weights_lib
from audio_mae_jax.convert import files
from audio_mae_jax.convert import names
from audio_mae_jax.convert import positions
from audio_mae_jax.convert import settings

FORMATS = {
    'official': names.RELEASED,  # facebookresearch/AudioMAE, all variants
    'timm': names.ENCODER,  # VisionTransformer: the encoder, maybe a head
    'image_mae': names.RELEASED,  # facebookresearch/mae: three colours
    'huggingface': names.HUGGINGFACE,  # ViTMAE (image or not) and ViT
}


def import_weights(
    path, format: str | None = None, given: dict | None = None,
    part: str = 'all') -> weights_lib.Weights:
  """Reads weights of another project.

  Args:
    path: a .safetensors file, one that `torch.save` wrote, or a Hugging Face
      folder.
    format: a key of `FORMATS`; recognised when not given.
    given: settings by dotted name ({'model.encoder.heads': 3}), instead of what
      follows from the tensors.
    part: 'encoder' leaves out what comes after it, whole or not.

  Raises:
    ValueError: the file is damaged, unsafe or unknown, or a tensor is missing,
      unexpected or of another shape.
  """
  registry.lookup(dict.fromkeys(weights_lib.PARTS), part, 'part')
  given = settings.parse(given or {})
  tensors, hints = files.read(path)
  try:
    return _import(path, tensors, hints, format, given, part)
  except ValueError as error:
    if str(path) in str(error):
      raise
    raise ValueError(f'{path}: {error}') from error


def _import(path, tensors, hints, format, given, part):
  """`import_weights` of what was read."""
  format = format or recognize(tensors)
  layout = registry.lookup(FORMATS, format, 'format')
  tensors = {layout.canonical(name): x for name, x in tensors.items()}
  tensors = {name: x for name, x in tensors.items()
             if not any(re.fullmatch(p, name) for p in layout.ignored)}
  tables = {part: _table(name, tensors.pop(name))
            for name, part in layout.positions.items() if name in tensors}
  kernel = _kernel(layout, tensors)
  if kernel is None or 'encoder' not in tables or not any(
      layout.name_here(name) == 'encoder/cls_token' for name in tensors):
    raise ValueError(_unknown(path, format, tensors))
  size, colours = kernel.shape[2:], kernel.shape[1] > 1
  # A classifier that pools patches has no last norm of the encoder.
  pooled = any(layout.name_here(name) == 'fc_norm/scale' for name in tensors)
  if colours or part == 'encoder':
    # What comes after the encoder of a model of images is about colours, or
    # about classes of images.
    tensors = {name: x for name, x in tensors.items() if (
        layout.name_here(name) or 'encoder/').startswith('encoder/')}
    tables = {'encoder': tables['encoder']}
  if colours:
    tensors |= _grey(layout, kernel)
    patch, tables = _image_positions(tables['encoder'], size, given)
  elif format == 'image_mae':
    raise ValueError(
        f'{path} is no model of images: its patches have one channel. Leave '
        '--from out, or give official or timm.')
  else:
    patch = positions.find(tables, size, settings.noted(hints), given)
  params = _convert(layout, tensors)
  if patch.positions == 'table':
    params |= {names.TABLES[part]: x for part, x in tables.items()}
  config = settings.infer(
      {name: x.shape for name, x in params.items()}, size, patch, hints, given)
  _check(path, format, layout, tensors, tables, params, config, pooled)
  return weights_lib.Weights(
      {name: np.asarray(x, np.float32) for name, x in params.items()}, config,
      _source(path, format),
      {} if patch.positions == 'table' else tables)


def _unknown(path, format, tensors):
  names_ = list(tensors)
  first = names_[0].split('.')[0]
  common = (f" All begin with '{first}.'." if len(names_) > 1 and all(
      name.startswith(f'{first}.') for name in names_) else '')
  return (f'{path} has {len(tensors)} tensors ({", ".join(names_[:6])}, ...), '
          'and among them no patch embedding, class token and positions of a '
          f'vision transformer in the layout {format!r}. Known: '
          f'{", ".join(FORMATS)}.{common}')


def _source(path, format):
  path = pathlib.Path(path)
  return {'format': format, 'file': path.name,
          'sha256': weights_lib.sha256(path) if path.is_file() else None}


def recognize(tensors: dict) -> str:
  """The format (a key of `FORMATS`) whose names these are."""
  if any(names.HUGGINGFACE.canonical(name) == 'vit.embeddings.cls_token'
         for name in tensors):
    return 'huggingface'
  kernel = _kernel(names.RELEASED, tensors)
  if kernel is not None and kernel.shape[1] == 3:
    return 'image_mae'
  # A fine-tuned released checkpoint has the names of timm's ViT.
  decodes = any(name.startswith('decoder_') for name in tensors)
  return 'official' if decodes else 'timm'


def _kernel(layout, tensors):
  """The convolution [D, channels, frames, bins] that embeds patches, or None.
  """
  (name,), _ = layout.find('encoder/patch_embed/kernel')
  kernel = tensors.get(name)
  return None if kernel is None or kernel.ndim != 4 else kernel


def _grey(layout, kernel):
  """The kernel for one channel, by its name.

  A grey image has the same value in each colour, so the sum over colours sees
  it as the whole kernel did (released helper, util/pos_embed.py:162).
  """
  (name,), _ = layout.find('encoder/patch_embed/kernel')
  return {name: kernel.astype(np.float32).sum(1, keepdims=True)}


def _image_positions(table, size, given):
  """A square table, resized to the grid of `given` or of 10 s.

  patch.positions='released' does it as released: to the transposed grid.
  """
  default = config_lib.Frontend()
  shape = [given.get(f'frontend.{field}', getattr(default, field))
           for field in ('num_frames', 'num_mel_bins')]
  grid = tuple(length // pixels for length, pixels in zip(shape, size))
  if not all(grid):
    raise ValueError(
        f'A spectrogram of {shape[0]} frames x {shape[1]} mel bins has no room '
        f'for patches of {size[0]} x {size[1]}; set frontend.num_frames and '
        'frontend.num_mel_bins.')
  turned = given.pop('patch.positions', None) == 'released'
  patch = config_lib.Patch(
      positions='table', positions_grid=grid, positions_stride=size)
  return patch, {'encoder': positions.resize(
      table, grid[::-1] if turned else grid)}


def _table(name, array):
  if array.ndim != 3 or len(array) != 1:
    raise ValueError(
        f'{name} is {list(array.shape)}, and a table of positions is '
        '[1, 1 + patches, width].')
  return array[0]


def _convert(layout, tensors):
  """Every parameter of ours whose tensors are all there, by our names."""
  params = {}
  for name in tensors:
    ours = layout.name_here(name)
    if ours is not None and ours not in params and all(
        part in tensors for part in layout.find(ours)[0]):
      # Shapes that do not go together are told of by `_check`.
      with contextlib.suppress(ValueError):
        params[ours] = names.to_ours(layout, ours, tensors)
  return params


def _check(path, format, layout, tensors, tables, params, config, pooled):
  """Raises ValueError unless the tensors are those of the model of `config`."""
  groups = {name.split('/')[0] for name in params}
  # What is left of the encoder alone may be of any task.
  task = 'pretrain' if groups == {'encoder'} else config.task
  wanted = {
      name: leaf.shape for name, leaf in weights_lib.shapes(
          dataclasses.replace(config, task=task)).items()
      if groups != {'encoder'} or name.startswith('encoder/') and not (
          pooled and name.startswith('encoder/norm/'))}
  theirs, rest = names.expected(layout, wanted, config.patch)
  found = {name: x.shape for name, x in tensors.items()}
  gt, gf = config.patch.positions_grid
  for name, part in layout.positions.items():
    if names.TOKENS[part] in wanted:
      count = len(tables[part]) if part in tables else 1 + gt * gf
      theirs[name] = (1, count, *wanted[names.TOKENS[part]])
    if part in tables:
      found[name] = (1, *tables[part].shape)
  theirs |= {name: wanted[name] for name in rest}
  found |= {name: params[name].shape for name in rest if name in params}
  wrong = compare.differences(theirs, found)
  if wrong:
    cause = compare.likely_cause(
        wanted, {name: x.shape for name, x in params.items()})
    if format == 'timm' and recognize(tensors) == 'official':
      cause = '  Likely cause: it has a decoder, as --from official reads.'
    raise ValueError(
        f'{path} does not hold the {config.task} model that it seems to '
        f'(format {format!r}):\n{wrong}{cause}')
