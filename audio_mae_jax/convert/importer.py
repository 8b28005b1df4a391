"""Other projects' weights -> ours.

The tensors say what the model is (`settings.py`). It is built, and then every
tensor must be one that it has, of the right shape, and none may be missing.
"""

import pathlib
import re

import numpy as np

from audio_mae_jax import compare
from audio_mae_jax import config as config_lib
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
  config_lib.lookup(dict.fromkeys(weights_lib.PARTS), part, 'part')
  given = settings.parse(given or {})
  tensors, hints = files.read(path)
  format = format or recognize(tensors)
  layout = config_lib.lookup(FORMATS, format, 'format')
  tensors = {layout.canonical(name): x for name, x in tensors.items()}
  tensors = {name: x for name, x in tensors.items()
             if not any(re.fullmatch(p, name) for p in layout.ignored)}
  kernel = _kernel(layout, tensors)
  tables = {part: _table(name, tensors.pop(name))
            for name, part in layout.positions.items() if name in tensors}
  if kernel is None or 'encoder' not in tables or not any(
      layout.name_here(name) == 'encoder/cls_token' for name in tensors):
    some = ', '.join(list(tensors)[:6])
    raise ValueError(
        f'{path} has {len(tensors)} tensors ({some}, ...), and among them no '
        'patch embedding, class token and positions of a vision transformer '
        f'in the layout {format!r}. Known: {", ".join(FORMATS)}.')
  size = kernel.shape[2:]
  colours = kernel.shape[1] > 1
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
    patch = positions.recognize(
        tables, size, given.get('frontend.num_mel_bins'),
        given.get('patch.stride'))
  params = _convert(layout, tensors)
  if patch.positions == 'table':
    params |= {names.TABLES[part]: x for part, x in tables.items()}
  config = settings.infer(
      {name: x.shape for name, x in params.items()}, size, patch, hints, given)
  tensors |= {name: tables[part][None] for name, part in
              layout.positions.items() if part in tables}
  _check(path, format, layout, tensors, params, config)
  source = pathlib.Path(path)
  return weights_lib.Weights(
      {name: np.asarray(x, np.float32) for name, x in params.items()}, config,
      {'format': format, 'file': source.name,
       'sha256': weights_lib.sha256(source) if source.is_file() else None},
      {} if patch.positions == 'table' else tables)


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
  grid = tuple(given.get(f'frontend.{field}', getattr(default, field)) // pixels
               for field, pixels in zip(('num_frames', 'num_mel_bins'), size))
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
      try:
        params[ours] = names.to_ours(layout, ours, tensors)
      except ValueError:  # of shapes that do not go together: `_check` tells
        pass
  return params


def _check(path, format, layout, tensors, params, config):
  """Raises ValueError unless the tensors are those of the model of `config`."""
  decodes = any(name.startswith('decoder/') for name in params)
  wanted = {
      name: leaf.shape for name, leaf in weights_lib.shapes(config).items()
      if decodes or config.task != 'pretrain' or name.startswith('encoder/')}
  theirs, _ = names.expected(layout, wanted, config.patch)
  gt, gf = config.patch.positions_grid
  for name, part in layout.positions.items():
    if names.TOKENS[part] in wanted:
      theirs[name] = (1, 1 + gt * gf, *wanted[names.TOKENS[part]])
  wrong = compare.differences(
      theirs, {name: x.shape for name, x in tensors.items()})
  if wrong:
    cause = compare.likely_cause(
        wanted, {name: x.shape for name, x in params.items()})
    if format == 'timm' and recognize(tensors) == 'official':
      cause = '  Likely cause: it has a decoder, as --from official reads.'
    raise ValueError(
        f'{path} does not hold the {config.task} model that it seems to '
        f'(format {format!r}):\n{wrong}{cause}')
