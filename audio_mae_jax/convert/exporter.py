"""Our weights -> other projects' layouts."""

import dataclasses
import json
import logging

import jax.numpy as jnp
import numpy as np

from audio_mae_jax import config as config_lib
from audio_mae_jax import patches as patches_lib
from audio_mae_jax import registry
from audio_mae_jax import weights as weights_lib
from audio_mae_jax.convert import files
from audio_mae_jax.convert import names
from audio_mae_jax.models import encoder as encoder_lib

_log = logging.getLogger(__name__)

# Windows and shifts of models_mae.py:86-99.
_WRITTEN_IN = (((4, 4), (2, 0)), ((6, 6), (2, 0)))

FORMATS = ('official', 'timm', 'huggingface', 'weights')


def export_weights(
    weights: weights_lib.Weights, format: str, output, *, part: str = 'all',
    dtype: str = 'float32') -> dict[str, np.ndarray]:
  """Writes `weights` for others, or compactly for ourselves ('weights').

  Args:
    weights: from `weights.load`.
    format: one of `FORMATS`.
    output: a folder for 'huggingface' and 'weights', else a .safetensors or,
      with torch, a .pth file; it must not exist.
    part: 'all' or 'encoder'.
    dtype: 'float32' or 'bfloat16'.

  Returns:
    What was written, by its names there.

  Raises:
    ValueError: the layout has no place for these weights, or `output` exists.
  """
  registry.lookup(dict.fromkeys(FORMATS), format, 'format')
  weights_lib.check_absent(output)
  weights = weights.part(part)
  if format == 'weights':
    weights_lib.save(output, weights, dtype)
    return weights.params
  number = registry.lookup(weights_lib.DTYPES, dtype, 'dtype')
  if format == 'huggingface':
    settings = hugging_face_config(weights)
    tensors = tensors_of(weights, names.HUGGINGFACE)
    if settings['architectures'] == ['ViTModel']:  # by itself, without prefix
      tensors = {name.removeprefix('vit.'): x for name, x in tensors.items()}
    with weights_lib.writing(output) as place:
      place.mkdir()
      tensors = _cast(tensors, number)
      files.write(place / 'model.safetensors', tensors, notes(weights))
      settings = {**settings, 'dtype': dtype}
      (place / 'config.json').write_text(json.dumps(settings, indent=2) + '\n')
      extractor = feature_extractor_config(weights.config)
      if extractor:
        (place / 'preprocessor_config.json').write_text(
            json.dumps(extractor, indent=2) + '\n')
    return tensors
  layout = names.RELEASED if format == 'official' else names.ENCODER
  tensors = _cast(tensors_of(weights, layout), number)
  files.write(output, tensors, notes(weights))
  return tensors


def notes(weights: weights_lib.Weights) -> dict:
  """What tensors do not show, for whoever imports them here again."""
  config = dataclasses.asdict(weights.config)
  return {group: config[group] for group in
          ('task', 'frontend', 'patch', 'mask', 'model', 'objective')}


def _cast(tensors, number):
  return {name: np.asarray(x, number) for name, x in tensors.items()}


def tensors_of(
    weights: weights_lib.Weights, layout: names.Layout
) -> dict[str, np.ndarray]:
  """Tensors by the names of `layout`, with tables of positions.

  Raises:
    ValueError: the layout has no place for the encoder's or decoder's blocks.
  """
  config = weights.config
  tensors, homeless = names.to_theirs(layout, weights.params, config.patch)
  homeless = [name for name in homeless if not name.endswith('/positions')]
  groups = sorted({name.split('/')[0] for name in homeless})
  if 'decoder' in groups and any(
      layout.find(name) for name in weights.params
      if name.startswith('decoder/')):
    raise ValueError(
        f'This layout has no {config.model.decoder.name} decoder, e.g. no '
        f'place for {homeless[0]}. Export the encoder alone (--part encoder).')
  decoder = config.model.decoder
  if 'decoder/tokens/mask_token' in weights.params and (
      decoder.name == 'local') and layout is names.RELEASED and (
          decoder.window, decoder.shift) not in _WRITTEN_IN:
    _log.warning(
        'The released code has windows (4, 4), or (6, 6) for overlapping '
        'patches, and a shift of (2, 0) written in; with these weights, of '
        'window %s and shift %s, it computes something else.', decoder.window,
        decoder.shift)
  if 'encoder/norm/scale' not in weights.params and (
      'fc_norm/scale' not in weights.params):
    raise ValueError(
        'This encoder has no last norm, which the layout asks for: it is of a '
        "classifier, which normalises what it has pooled. Export '--part all', "
        "or '--to weights'.")
  if groups:
    _log.info('Left out, the layout has no place for it: %s.',
              ', '.join(groups))
  grid = weights_lib.grid_of(config)
  for name, part in layout.positions.items():
    token = weights.params.get(names.TOKENS[part])
    if token is not None:
      tensors[name] = _table(weights, part, grid, token.shape[-1])[None]
  return tensors


def _table(weights, part, grid, width):
  """Positions [1 + N, D] of the grid that the model has now."""
  patch = weights.config.patch
  learnt = weights.params.get(names.TABLES[part])
  if learnt is not None:
    return np.asarray(patches_lib.look_up(jnp.asarray(learnt), grid, patch))
  unmoved = (patch.positions_grid == grid
             and patch.positions_stride == patches_lib.resolve_stride(patch))
  if unmoved and part in weights.tables:
    return weights.tables[part]
  return patches_lib.position_table(grid, width, patch)


def hugging_face_config(weights: weights_lib.Weights) -> dict:
  """config.json of the class that has these weights.

  Raises:
    ValueError: Hugging Face has no such model.
  """
  config, params = weights.config, weights.params
  groups = {name.split('/')[0] for name in params}
  _check_hugging_face(config, groups)
  width, depth, heads = encoder_lib.sizes(config.model.encoder)
  gt, gf = weights_lib.grid_of(config)
  pt, pf = config.patch.size
  square = lambda pair: pair[0] if pair[0] == pair[1] else list(pair)
  settings = {
      'architectures': ['ViTModel'], 'model_type': 'vit',
      'hidden_size': width, 'num_hidden_layers': depth,
      'num_attention_heads': heads,
      'intermediate_size': round(width * config.model.encoder.mlp_ratio),
      'hidden_act': 'gelu', 'layer_norm_eps': 1e-6, 'qkv_bias': True,
      'hidden_dropout_prob': 0.0, 'attention_probs_dropout_prob': 0.0,
      'image_size': square((gt * pt, gf * pf)), 'patch_size': square((pt, pf)),
      'num_channels': 1}
  if 'decoder' in groups:
    if gt * pt != gf * pf:
      _log.warning(
          "transformers' ViTMAEForPreTraining computes on square images only, "
          'and this model is of %d x %d; its encoder alone (--part encoder) '
          'works on any.', gt * pt, gf * pf)
    decoder = config.model.decoder
    settings |= {
        'architectures': ['ViTMAEForPreTraining'], 'model_type': 'vit_mae',
        'decoder_hidden_size': decoder.width,
        'decoder_num_hidden_layers': decoder.depth,
        'decoder_num_attention_heads': decoder.heads,
        'decoder_intermediate_size': round(decoder.width * decoder.mlp_ratio),
        'mask_ratio': config.mask.ratio,
        'norm_pix_loss': config.objective.normalize_patches}
  elif 'head' in groups:
    classes = config.model.classifier.num_classes
    settings |= {
        'architectures': ['ViTForImageClassification'],
        'id2label': {str(i): f'LABEL_{i}' for i in range(classes)},
        'label2id': {f'LABEL_{i}': i for i in range(classes)}}
  return settings


def feature_extractor_config(config: config_lib.Config) -> dict:
  """preprocessor_config.json of the class that has this front end, AST's.

  Empty, with a warning, if it has another one: it knows no other windows,
  lengths of frames, or filters.
  """
  front = config.frontend
  free = ('num_mel_bins', 'num_frames', 'mean', 'std', 'transform')
  fixed = dataclasses.replace(
      config_lib.Frontend(), **{name: getattr(front, name) for name in free})
  differs = config_lib.differences(
      dataclasses.asdict(fixed), dataclasses.asdict(front))
  if differs:
    _log.warning(
        'The folder has no preprocessor_config.json: no feature extractor of '
        'transformers has %s. Compute spectrograms with this package '
        '(frontend.features).', ', '.join(
            f'frontend.{name}={new!r}' for name, _, new in differs))
    return {}
  return {
      'feature_extractor_type': 'ASTFeatureExtractor', 'feature_size': 1,
      'sampling_rate': front.sample_rate_hz, 'num_mel_bins': front.num_mel_bins,
      'max_length': front.num_frames, 'do_normalize': True, 'mean': front.mean,
      'std': front.std, 'padding_value': 0.0, 'return_attention_mask': False}


def _check_hugging_face(config, groups):
  """Raises ValueError for a model that Hugging Face has not."""
  if patches_lib.resolve_stride(config.patch) != config.patch.size:
    raise ValueError(
        "Hugging Face's models have no overlapping patches (patch.stride="
        f'{config.patch.stride}); export to timm or official.')
  if 'fc_norm' in groups:
    raise ValueError(
        "Hugging Face's ViT has no classifier that averages patches and then "
        'normalises; export to timm, which has.')
  if 'decoder' in groups and config.model.decoder.name != 'global':
    raise ValueError(
        f'Hugging Face has no {config.model.decoder.name} decoder, only the '
        'global one. Export the encoder alone (--part encoder).')
