"""What a run starts from, when `config.init_from` names weights.

Parts that only one of them has are fresh, or not used. What both have must fit;
what shapes do not show (heads, positions, the front end) is compared as well.
"""

import dataclasses
import logging
import zlib

import numpy as np

from audio_mae_jax import checkpoint
from audio_mae_jax import compare
from audio_mae_jax import config as config_lib
from audio_mae_jax import distributed
from audio_mae_jax import patches as patches_lib
from audio_mae_jax import weights as weights_lib
from audio_mae_jax.models import encoder as encoder_lib

_log = logging.getLogger(__name__)


def prepare(
    config: config_lib.Config, workdir, classes=()
) -> tuple[config_lib.Config, dict[str, np.ndarray]]:
  """What `config.init_from` means for a run in `workdir`.

  `classes` are the names of a classifier's classes: a head that was trained for
  others is not taken.

  Returns:
    `config` with the positions of its weights, and the parameters to start
    from: none if there is nothing to start from, or the run has checkpoints
    (it then needs the weights no more).

  Raises:
    ValueError: there are no weights, or they do not fit the model.
  """
  if not config.init_from:
    return config, {}
  started = bool(checkpoint.steps_in(workdir))
  config = adopt_positions(
      config, weights_lib.load_config(workdir if started else config.init_from))
  if started:
    return config, {}
  return config, initial(config, weights_lib.load(config.init_from), classes)


def check_same(config: config_lib.Config, params: dict[str, np.ndarray]):
  """Raises ValueError unless all processes of the run have read one `params`.

  A run that is still training has another newest checkpoint a moment later, and
  a path of this machine may be another folder on the next.
  """
  if distributed.is_several():
    distributed.check_same(
        'weights', {name: zlib.crc32(np.ascontiguousarray(x))
                    for name, x in params.items()},
        f'They were read from config.init_from={config.init_from!r}: name one '
        'checkpoint, .../checkpoints/STEP, in a folder that all processes see.')


def adopt_positions(
    config: config_lib.Config, weights: config_lib.Config) -> config_lib.Config:
  """`config` with the positions that its weights were trained with.

  The layout is a fact of the weights; a 'table' can be made of any. A grid and
  stride that `config` sets itself stay: '--config.patch.positions_grid' of the
  shorter clip gives the released code's crop.

  Raises:
    ValueError: `config` asks for another layout.
  """
  own, known = config.patch, weights.patch
  if own.positions not in ('time_freq', 'table', known.positions):
    raise ValueError(
        f'patch.positions={own.positions!r}, and the weights were trained with '
        f"{known.positions!r}. Leave it out; or give 'table', to make a "
        'parameter of theirs.')
  layout = 'table' if own.positions == 'table' else known.positions
  return dataclasses.replace(config, patch=dataclasses.replace(
      own, positions=layout,
      positions_grid=(own.positions_grid if any(own.positions_grid)
                      else known.positions_grid),
      positions_stride=(own.positions_stride if any(own.positions_stride)
                        else known.positions_stride)))


def initial(
    config: config_lib.Config, weights: weights_lib.Weights, classes=()
) -> dict[str, np.ndarray]:
  """Parameters of `weights` for a model of `config`: float32, by name.

  Groups that only one of them has (a decoder, a head) are left out, and said;
  so are a head for other classes, and the encoder's last norm if a classifier
  that pools patches has none (as released).

  Raises:
    ValueError: there are no weights, or the encoder is another one.
  """
  _check_meaning(config, weights)
  if config.patch.positions == 'table':
    weights = _with_table(weights)
  wanted = {name: leaf.shape
            for name, leaf in weights_lib.shapes(config).items()}
  found = {name: x.shape for name, x in weights.params.items()}
  groups = lambda names: {_group(name) for name in names}
  fresh = groups(wanted) - groups(found)
  unused = groups(found) - groups(wanted)
  others = weights.classes and classes and weights.classes != tuple(classes)
  if 'head' not in fresh | unused and (others or any(
      wanted.get(name, found[name]) != found[name]
      for name in found if _group(name) == 'head')):
    fresh.add('head')
    unused.add('head')
  keep = lambda shapes, leave: {name: shape for name, shape in shapes.items()
                                if _group(name) not in leave}
  wrong = compare.differences(keep(wanted, fresh), keep(found, unused))
  if wrong:
    raise ValueError(
        f'The weights in {config.init_from} do not fit the model:\n{wrong}'
        + compare.likely_cause(wanted, found))
  taken = {name: np.asarray(weights.params[name], np.float32)
           for name in keep(wanted, fresh)}
  _log.info(
      'Weights: %d arrays from %s, %s.%s%s', len(taken), config.init_from,
      weights_lib.describe_positions(weights.config.patch),
      f' Fresh: {", ".join(sorted(fresh))}.' if fresh else '',
      f' Not used: {", ".join(sorted(unused))}.' if unused else '')
  return taken


def _check_meaning(config, weights):
  """Compares what shapes do not show; raises ValueError, or warns."""
  known, parts = weights.config, {name.split('/')[0] for name in weights.params}
  heads = {'encoder': lambda c: encoder_lib.sizes(c.model.encoder)[2]}
  if 'decoder' in parts and config.task == 'pretrain':
    heads['decoder'] = lambda c: c.model.decoder.heads
  for part, of in heads.items():
    if of(known) != of(config):
      raise ValueError(
          f'The weights in {config.init_from} have {of(known)} heads in the '
          f'{part}, and the model {of(config)}: set model.{part}.heads='
          f'{of(known)}.')
  if known.patch.size != config.patch.size:
    raise ValueError(
        f'The weights in {config.init_from} have patches of '
        f'{known.patch.size} (frames, mel bins), and the model of '
        f'{config.patch.size}: set patch.size to theirs.')
  groups = [('frontend', known.frontend, config.frontend)]
  if 'decoder' in heads:
    groups.append(('model.decoder', known.model.decoder, config.model.decoder))
  for where, theirs, ours in groups:
    for field in dataclasses.fields(theirs):
      old, new = getattr(theirs, field.name), getattr(ours, field.name)
      if old != new and field.name not in ('num_frames', 'transform'):
        _log.warning('Warning: the weights were trained with %s.%s=%r, and the '
                     'model has %r.', where, field.name, old, new)


def _with_table(weights):
  """`weights` with the parameters that their positions become."""
  patch = weights.config.patch
  tables = {
      table: patches_lib.position_table(
          patch.positions_grid, weights.params[token].shape[-1],
          dataclasses.replace(patch, positions_stride=(0, 0)))
      for token, table in weights_lib.TABLES.items()
      if token in weights.params and table not in weights.params}
  return dataclasses.replace(weights, params=weights.params | tables)


def _group(name):
  return 'encoder/norm' if name.startswith('encoder/norm/') else (
      name.split('/')[0])
