"""What a frozen encoder makes of labelled clips, kept on disk.

One pass over a split, without augmentation and without a mask; probes
(`probes.py`) then read the result as often as they like.
"""

from concurrent import futures
import contextlib
import dataclasses
import functools
import hashlib
import logging
import pathlib
import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from audio_mae_jax import compare
from audio_mae_jax import config as config_lib
from audio_mae_jax import distributed
from audio_mae_jax import frontend
from audio_mae_jax import patches as patches_lib
from audio_mae_jax import sharding
from audio_mae_jax import step as step_lib
from audio_mae_jax import storage
from audio_mae_jax import trees
from audio_mae_jax import weights as weights_lib
from audio_mae_jax.data import pipeline
from audio_mae_jax.data import placement
from audio_mae_jax.data import splits
from audio_mae_jax.models import encoder as encoder_lib

_log = logging.getLogger(__name__)

FOLDER = 'features'
_THREADS = 16  # that look at files: they wait, mostly
_VERSION = 1  # of what is computed: older features are not taken for it
_MEANS, _INDEX, _TOKENS = 'means.npy', 'index.npy', 'tokens.npy'


class Features(NamedTuple):
  """Of the usable clips of a split, in its order."""
  # float32 [n, depth, D]: each block's mean over the patches, without the class
  # token; the last one's after the encoder's norm.
  means: np.ndarray
  targets: np.ndarray  # uint8 [n, C], 1 for each label
  index: np.ndarray  # int [n], their places in the split
  # float16 [n, N, D]: the last block's, after the norm, of every patch. It
  # stays on disk. None if it was not asked for.
  tokens: np.ndarray | None = None

  def take(self, rows) -> 'Features':
    """Of the clips in these `rows` alone; their tokens come to memory."""
    return Features(*(None if x is None else x[rows] for x in self))


def adopt(
    config: config_lib.Config, known: config_lib.Config) -> config_lib.Config:
  """`config` with the encoder of `known`, the settings that it was trained by.

  Frames are as many as a clip of `config.data.clip_s` has, in whole patches (as
  many as in training if clips are as long as they were).

  Raises:
    ValueError: a setting of `config` would have no effect.
  """
  known = weights_lib.with_positions(known)
  patch = dataclasses.replace(known.patch, train_positions=False)
  front = dataclasses.replace(known.frontend, num_frames=_frames(config, known))
  encoder = dataclasses.replace(known.model.encoder, drop_path=0.0)
  for where, default, asked, used in (
      ('frontend', config_lib.Frontend(), config.frontend, front),
      ('patch', config_lib.Patch(), config.patch, patch),
      ('model.encoder', config_lib.Encoder(), config.model.encoder, encoder)):
    for field in dataclasses.fields(default):
      value = getattr(asked, field.name)
      if value not in (getattr(default, field.name), getattr(used, field.name)):
        raise ValueError(
            f'config.{where}.{field.name}={value!r} has no effect: the encoder '
            f'is probed as it was trained, with {getattr(used, field.name)!r}. '
            'Leave it out (frames follow from config.data.clip_s).')
  config = dataclasses.replace(
      config, frontend=front, patch=patch,
      model=dataclasses.replace(config.model, encoder=encoder))
  _log.info(
      'Clips of %g s: %d frames of %d mel bins, %s patches (trained on %s).',
      config.data.clip_s, front.num_frames, front.num_mel_bins,
      ' x '.join(map(str, weights_lib.grid_of(config))),
      ' x '.join(map(str, weights_lib.grid_of(known))))
  return config


def _frames(config, known):
  samples = pipeline.clip_samples(
      dataclasses.replace(config, frontend=known.frontend))
  if config.data.clip_s == known.data.clip_s:
    return known.frontend.num_frames
  frames = frontend.num_frames(samples, known.frontend)
  size = known.patch.size[0]
  step = patches_lib.resolve_stride(known.patch)[0]
  return size + max(0, -(-(frames - size) // step)) * step


def random_params(config: config_lib.Config, final_norm: bool = True
                  ) -> dict[str, np.ndarray]:
  """Parameters by name of an untrained encoder of `config`."""
  init = jax.jit(_init(encoder_lib.make(config, final_norm), config))
  tree = jax.device_get(init(jax.random.key(config.train.seed)))
  return {f'encoder/{name}': x for name, x in trees.flatten(tree).items()}


def extract(config: config_lib.Config, params: dict[str, np.ndarray],
            split: splits.Split, folder, *, tokens: bool = False,
            devices=None) -> Features | None:
  """Features of `split` from `folder`, or else computed and left there.

  Args:
    config: of the encoder, the front end and the data.
    params: of the encoder by name ('encoder/cls_token'), float32.
    split: labelled clips.
    folder: of features of any encoders and splits; what belongs to what is told
      by a fingerprint of all that they depend on.
    tokens: whether they are needed.
    devices: of the mesh, all by default.

  Returns:
    The features; None in all processes but the first.

  Raises:
    ValueError: no clip can be read, or features are not finite.
  """
  place = found = None
  with distributed.together():
    if distributed.is_first():  # alone it reads and writes there
      place = pathlib.Path(folder) / fingerprint(config, params, split)
      found = (place / (_TOKENS if tokens else _MEANS)).exists()
  if distributed.gather(found)[0]:
    _log.info('Features of %s: as computed before, from %s.',
              split.source.describe(), place)
  else:
    _log.info('Features of %s: computing ...', split.source.describe())
    _compute(config, params, split, place, tokens, devices)
  return _read(place, split, tokens) if distributed.is_first() else None


def one_pass(embed, params, split: splits.Split, config: config_lib.Config,
             mesh: jax.sharding.Mesh):
  """Yields what `embed` gives, NumPy, of the usable clips of each batch, in
  the order of the split, and on every process of all of them.

  Raises:
    ValueError: no clip can be read, or features are not finite.
  """
  any_usable = False
  with placement.one_pass(split, config, sharding.batch(mesh)) as batches:
    for batch in batches:
      rows = jax.device_get(embed(params, batch))
      used = np.flatnonzero(rows.pop('valid') > 0)
      # Hosts interleave their rows; the split has an order.
      used = used[np.argsort(rows['index'][used])]
      rows = {name: x[used] for name, x in rows.items()}
      for name in rows:
        _check_finite(rows[name], rows['index'], split)
      any_usable |= len(used) > 0
      yield rows
  split.report.share()
  if not any_usable:
    split.report.stop()


@functools.lru_cache(maxsize=4)  # splits and weights share what is compiled
def embedder(encoder, config: config_lib.Config, mesh: jax.sharding.Mesh,
             tokens: bool = False):
  """A compiled `(encoder's parameters, batch) -> arrays by name`.

  They are 'means', with `tokens` also 'tokens' (see `Features`), and 'index'
  and 'valid' of the batch.
  """
  grid = weights_lib.grid_of(config)

  def embed(params, batch):
    spectrogram = frontend.features(
        batch['audio'], batch['num_samples'], config.frontend)
    x, blocks = encoder.apply(
        {'params': params}, patches_lib.patchify(spectrogram, config.patch),
        grid, every=True)
    # Hundreds of tokens are summed: in float32, whatever the products are in.
    means = jnp.stack([y[:, 1:].mean(1, dtype=jnp.float32)
                       for y in (*blocks[:-1], x)], axis=1)
    found = {'means': means, 'index': batch['index'], 'valid': batch['valid']}
    if tokens:
      found['tokens'] = x[:, 1:].astype(jnp.float16)
    return found

  return sharding.jit(
      mesh, embed, out_shardings=sharding.replicated(mesh))


def fingerprint(config: config_lib.Config, params: dict[str, np.ndarray],
                split: splits.Split) -> str:
  """Tells what features are of: the encoder, its input, the clips.

  A file counts as another one when its size or time of change is another. (What
  clips are labelled with is read anew each time.)
  """
  digest, data = hashlib.sha256(), config.data
  digest.update(repr((
      _VERSION, dataclasses.asdict(config.frontend),
      dataclasses.asdict(config.patch), encoder_lib.sizes(config.model.encoder),
      config.model.encoder.mlp_ratio, config.model.dtype, data.clip_s,
      data.resample, data.channels)).encode())
  for name in sorted(params):
    digest.update(f'{name} {params[name].shape}'.encode())
    digest.update(np.ascontiguousarray(params[name], np.float32))
  source = split.source
  digest.update(source.title.encode())
  places = map(source.place_of, range(len(source)))
  with futures.ThreadPoolExecutor(_THREADS) as pool:
    for i, place in enumerate(pool.map(
        lambda place: place and place + storage.version(place[0]), places)):
      digest.update(f'{source.name_of(i)} {place}\n'.encode())
  return digest.hexdigest()[:32]


def targets(split: splits.Split, index) -> np.ndarray:
  """uint8 [n, C]: the labels of these clips, 1 for each."""
  found = np.zeros((len(index), len(split.source.class_names)), np.uint8)
  for row, i in zip(found, index):
    row[list(split.source.labels_of(int(i)))] = 1
  return found


def _init(encoder, config):
  """A function from a key to fresh parameters of `encoder`."""
  grid, size = weights_lib.grid_of(config), config.patch.size
  pixels = jnp.zeros((1, grid[0] * grid[1], size[0] * size[1]))
  return lambda rng: encoder.init(rng, pixels, grid)['params']


def _compute(config, params, split, place, tokens, devices):
  """One pass over the split; process 0 leaves the folder `place`, or none."""
  params = {name.removeprefix('encoder/'): np.asarray(x, np.float32)
            for name, x in params.items()}
  # A fine-tuned encoder has no last norm: its classifier had one of its own.
  encoder = encoder_lib.make(config, final_norm='norm/scale' in params)
  mesh = sharding.make_mesh(config.mesh, config.train.batch_size, devices)
  embed = embedder(encoder, config, mesh, tokens)
  on_device = fit(params, placed(encoder, config, mesh))
  with contextlib.ExitStack() as stack:
    store = None
    if distributed.is_first():
      shutil.rmtree(place, ignore_errors=True)  # without tokens
      store = _Store(
          stack.enter_context(weights_lib.writing(place)), len(split.source))
    for rows in one_pass(embed, on_device, split, config, mesh):
      if store:
        store.add(rows)
    if store:
      store.close()


class _Store:
  """Rows that come in batches, in the files of a new folder."""

  def __init__(self, folder, most):
    self._folder, self._most = folder, most
    self._means, self._index, self._tokens, self._count = [], [], None, 0
    folder.mkdir()

  def add(self, rows):
    self._means.append(rows['means'])
    self._index.append(rows['index'])
    start, self._count = self._count, self._count + len(rows['index'])
    if 'tokens' in rows:
      if self._tokens is None:
        self._tokens = np.lib.format.open_memmap(
            self._folder / _TOKENS, 'w+', np.float16,
            (self._most, *rows['tokens'].shape[1:]))
      self._tokens[start:self._count] = rows['tokens']

  def close(self):
    np.save(self._folder / _MEANS, np.concatenate(self._means))
    np.save(self._folder / _INDEX, np.concatenate(self._index))
    if self._tokens is not None:
      self._tokens.flush()


def _read(place, split, tokens):
  index = np.load(place / _INDEX)
  found = Features(np.load(place / _MEANS), targets(split, index), index)
  if tokens:
    # Unusable clips left room at the end.
    found = found._replace(
        tokens=np.load(place / _TOKENS, mmap_mode='r')[:len(index)])
  return found


def placed(encoder, config: config_lib.Config, mesh: jax.sharding.Mesh):
  """Shapes of the parameters of `encoder`, with their places on the mesh."""
  shapes = jax.eval_shape(_init(encoder, config), jax.random.key(0))
  return jax.tree.map(
      lambda leaf, where: jax.ShapeDtypeStruct(
          leaf.shape, leaf.dtype, sharding=where),
      shapes, sharding.state(mesh, shapes))


def fit(params, shapes):
  """`step.place` of all leaves; ValueError if any is missing or unlike."""
  wrong = compare.differences(
      {name: x.shape for name, x in trees.flatten(shapes).items()},
      {name: x.shape for name, x in params.items()})
  if wrong:
    raise ValueError(
        f'The weights do not fit the encoder that they say they are:\n{wrong}')
  return step_lib.place(params, shapes)


def _check_finite(rows, index, split):
  bad = index[~np.isfinite(rows).all(tuple(range(1, rows.ndim)))]
  if len(bad):
    names = [split.source.name_of(int(i)) for i in bad]
    raise ValueError(
        f'The encoder gives no finite numbers for {len(bad)} of {len(rows)} '
        f'clips ({splits.some(names)}): these weights have diverged.')
