"""Weights: parameters and the settings that make sense of them, without a run.

A folder of two files: `model.safetensors` holds the parameters by their names
('encoder/blocks/00/attn/qkv/kernel'), in float32 or bfloat16; `config.json` the
settings, and where they come from. `config.init_from` takes such a folder, and
so do all commands that use a trained model.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from audio_mae_jax import checkpoint
from audio_mae_jax import config as config_lib
from audio_mae_jax import masking
from audio_mae_jax import patches as patches_lib
from audio_mae_jax import registry
from audio_mae_jax import storage
from audio_mae_jax import trees
from audio_mae_jax.models import classifier
from audio_mae_jax.models import mae

TENSORS, SETTINGS = 'model.safetensors', 'config.json'
KIND, VERSION = 'audio_mae_jax.weights', 1
DTYPES = {'float32': np.dtype(np.float32),
          'bfloat16': np.dtype(ml_dtypes.bfloat16)}
PARTS = ('all', 'encoder')

# The parameter that positions are where no formula gives them, by the token of
# its width.
TABLES = {'encoder/cls_token': 'encoder/positions',
          'decoder/tokens/mask_token': 'decoder/tokens/positions'}
# Position tables are no parameters where a formula gives them; a table that was
# read from elsewhere is kept beside them, so that it leaves bit by bit.
_TABLE = 'positions_as_read/'


@dataclasses.dataclass(frozen=True)
class Weights:
  """Parameters by name, and what they are parameters of."""
  params: dict[str, np.ndarray]  # float32 or bfloat16
  config: config_lib.Config
  source: dict  # where they come from, for people
  # 'encoder', 'decoder' -> [1 + N, D] as another file had them; may be empty.
  tables: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  classes: tuple[str, ...] = ()  # of the head, in order; empty: not known

  def part(self, name: str) -> 'Weights':
    """These weights ('all'), or those of the encoder alone ('encoder')."""
    registry.lookup(dict.fromkeys(PARTS), name, 'part')
    if name == 'all':
      return self
    keep = lambda arrays: {key: value for key, value in arrays.items()
                           if key.split('/')[0] == 'encoder'}
    return dataclasses.replace(
        self, params=keep(self.params), tables=keep(self.tables))


def shapes(config: config_lib.Config) -> dict[str, jax.ShapeDtypeStruct]:
  """Names and shapes of all parameters of the model that `config` describes."""
  # Attention has no parameters of its own: one form is traced, for all.
  return dict(_shapes(dataclasses.replace(
      config, model=dataclasses.replace(config.model, attention='xla'))))


@functools.lru_cache(maxsize=8)
def _shapes(config):
  # Of the model alone: no task trains a classifier without a head.
  grid = grid_of(config)
  n, p = grid[0] * grid[1], int(np.prod(config.patch.size))
  patches = jnp.zeros((1, n, p))
  make = {'pretrain': mae.make, 'classify': classifier.make}
  model = registry.lookup(make, config.task, 'task')(config)
  if config.task == 'pretrain':
    arguments = (patches, grid, masking.from_scores(jnp.zeros((1, n)), n))
  else:
    arguments = (patches, grid)
  return trees.flatten(jax.eval_shape(
      lambda: model.init(jax.random.key(0), *arguments))['params'])


def grid_of(config: config_lib.Config) -> tuple[int, int]:
  return patches_lib.grid_of(
      (config.frontend.num_frames, config.frontend.num_mel_bins), config.patch)


def save(folder, weights: Weights, dtype: str = 'float32'):
  """Writes `folder`, whole or not at all.

  Raises:
    ValueError: `folder` exists, or `dtype` is not float32 or bfloat16.
  """
  number = registry.lookup(DTYPES, dtype, 'dtype')
  arrays = {name: np.asarray(x, number) for name, x in weights.params.items()}
  arrays |= {_TABLE + name: x for name, x in weights.tables.items()}
  with writing(folder) as place:
    place.mkdir()
    write_tensors(place / TENSORS, arrays, {'format': 'np'})
    settings = {
        'kind': KIND, 'version': VERSION, 'dtype': dtype,
        'sha256': sha256(place / TENSORS), 'source': weights.source,
        'classes': list(weights.classes),
        'config': dataclasses.asdict(weights.config)}
    (place / SETTINGS).write_text(json.dumps(settings, indent=1) + '\n')


def load(path) -> Weights:
  """Weights from a folder of weights, a run, or one of its checkpoints.

  Raises:
    ValueError: there are none, or they are not what was written.
  """
  folder = storage.path_of(path)
  if _is_run(folder):
    params, meta = checkpoint.read_params(folder)
    config = _of_run(meta, folder)
    return Weights(params, config, {'run': config.name or folder.name},
                   classes=tuple(meta.get('classes', ())))
  settings = _settings(folder)
  with storage.local_copy(folder) as place:
    if sha256(place / TENSORS) != settings['sha256']:
      raise ValueError(
          f'{folder / TENSORS} is not what was written (its checksum differs): '
          'copy or convert it again.')
    try:
      arrays = safetensors.numpy.load_file(place / TENSORS)
    except safetensors.SafetensorError as error:
      raise ValueError(
          f'{folder / TENSORS} cannot be read: {error}.') from error
  tables = {name[len(_TABLE):]: arrays.pop(name)
            for name in list(arrays) if name.startswith(_TABLE)}
  return Weights(
      arrays, _typed(settings['config'], folder), settings['source'], tables,
      tuple(settings.get('classes', ())))


def load_config(path) -> config_lib.Config:
  """The settings that weights were trained with; arguments as of `load`."""
  folder = storage.path_of(path)
  if _is_run(folder):
    return _of_run(checkpoint.read_meta(folder), folder)
  return _typed(_settings(folder)['config'], folder)


def _is_run(folder):
  return checkpoint.is_checkpoint(folder) or storage.is_dir(
      folder / 'checkpoints')


def _of_run(meta, folder):
  return with_positions(_typed(meta['config'], folder))


def _settings(folder):
  """The content of SETTINGS."""
  if not (folder / TENSORS).exists() or not (folder / SETTINGS).exists():
    raise ValueError(
        f'{folder} holds no weights. It can be the work directory of a run '
        '(runs/NAME), one of its checkpoints, or a folder that `python -m '
        'audio_mae_jax.convert` made. Files of other projects must be imported '
        'first.')
  try:
    settings = json.loads((folder / SETTINGS).read_text())
  except ValueError as error:
    raise ValueError(f'{folder / SETTINGS} is no JSON: {error}.') from error
  if not isinstance(settings, dict) or settings.get('kind') != KIND:
    raise ValueError(
        f'{folder / SETTINGS} is not of this project: import the folder '
        'first, with `python -m audio_mae_jax.convert import`.')
  if settings.get('version') != VERSION:
    raise ValueError(
        f'{folder} has version {settings.get("version")!r}, and this program '
        f'knows version {VERSION}: update it, or convert the weights again.')
  missing = {'sha256', 'source', 'config'} - set(settings)
  if missing:
    raise ValueError(
        f'{folder / SETTINGS} lacks {", ".join(sorted(missing))}: it is not '
        'what was written. Convert the weights again.')
  return settings


def typed(settings) -> config_lib.Config:
  """Settings that lie beside weights, for any device: what computes attention
  and spectra is a choice for the devices of a run, and not of the model's."""
  config = config_lib.typed(settings)
  default = config_lib.Config()
  return dataclasses.replace(
      config, model=dataclasses.replace(
          config.model, attention=default.model.attention),
      frontend=dataclasses.replace(
          config.frontend, transform=default.frontend.transform))


def _typed(settings, folder):
  try:
    return typed(settings)
  except ValueError as error:
    raise ValueError(
        f'The settings in {folder} are of another version: {error}') from error


def with_positions(config):
  """`config` with the places of its positions written out, so that they stay
  what they are when the weights move to another grid."""
  patch = config.patch
  return dataclasses.replace(config, patch=dataclasses.replace(
      patch, positions_grid=patches_lib.trained_grid(grid_of(config), patch),
      positions_stride=tuple(
          trained or stride for trained, stride in
          zip(patch.positions_stride, patches_lib.resolve_stride(patch)))))


def describe_positions(patch: config_lib.Patch) -> str:
  gt, gf = patch.positions_grid
  return (f'positions {patch.positions!r}, made for {gt} x {gf} patches at '
          f'stride {"x".join(map(str, patch.positions_stride))}')


@contextlib.contextmanager
def writing(path):
  """A place to write what becomes `path` if the block ends without an error.

  Raises:
    ValueError: `path` exists already.
  """
  check_absent(path)
  if storage.is_remote(path):
    home, _, name = storage.absolute(path).rpartition('/')
    with tempfile.TemporaryDirectory() as folder:
      yield pathlib.Path(folder) / name
      names = sorted(
          x.relative_to(folder).as_posix()
          for x in pathlib.Path(folder).rglob('*') if x.is_file())
      # Without their settings weights are none: they come last.
      names.sort(key=lambda x: x.endswith(SETTINGS))
      storage.copy_out(folder, home, names[:-1])
      storage.copy_out(folder, home, names[-1:])
    return
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(
      prefix=f'.{path.name}.', dir=path.parent) as folder:
    place = pathlib.Path(folder) / path.name
    yield place
    os.replace(place, path)


def check_absent(path):
  """Raises ValueError if `path` exists."""
  if storage.exists(path):
    raise ValueError(
        f'{path} exists already; choose another place, or remove it first.')


def write_tensors(path, arrays: dict[str, np.ndarray], metadata: dict):
  """Writes .safetensors, as readable for others as any new file."""
  path = pathlib.Path(path)
  path.touch()
  mode = path.stat().st_mode  # safetensors makes a file of its own, for one
  safetensors.numpy.save_file(
      {name: np.ascontiguousarray(x) for name, x in arrays.items()}, path,
      metadata=metadata)
  path.chmod(mode)


def sha256(path) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
