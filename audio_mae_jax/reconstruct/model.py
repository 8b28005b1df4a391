"""A trained masked autoencoder, asked about one clip at a time."""

import dataclasses
import os

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from audio_mae_jax import compare
from audio_mae_jax import config as config_lib
from audio_mae_jax import masking
from audio_mae_jax import patches as patches_lib
from audio_mae_jax import trees
from audio_mae_jax import weights as weights_lib
from audio_mae_jax.models import attention
from audio_mae_jax.models import encoder as encoder_lib
from audio_mae_jax.models import layers
from audio_mae_jax.models import mae

# Half of the compiler's time on CPUs, for programs that take longer. Each runs
# up to some ten times: small models gain by it, and large ones lose
# (docs/performance.md). The limit lies between two that were measured.
_QUICKLY = {'xla_backend_optimization_level': '0'}
_SMALL = 10_000_000  # parameters


class Model:
  """Parameters and the functions of them that a report needs.

  `params` are a tree, or names with '/' (as `weights.Weights` has them).
  """

  def __init__(self, config: config_lib.Config, params: dict):
    # Each number of visible patches is a program of its own, run a few times:
    # a scan compiles one block for all. CPUs are slow in bfloat16.
    self.config = dataclasses.replace(config, model=dataclasses.replace(
        config.model, dtype='float32', remat='none', scan_layers=True))
    flat = trees.flatten(params)
    self.num_parameters = sum(int(np.prod(x.shape)) for x in flat.values())
    self._params = traverse_util.unflatten_dict(
        {name: jnp.asarray(x, jnp.float32) for name, x in flat.items()},
        sep='/')
    self._mae = mae.make(self.config)
    quickly = (jax.default_backend() == 'cpu'
               and self.num_parameters < _SMALL)
    options = _QUICKLY if quickly else None
    self._predict = jax.jit(
        lambda params, patches, mask, grid: self._mae.apply(
            {'params': params}, patches, grid, mask).prediction,
        static_argnums=3, compiler_options=options)
    self._attend = jax.jit(
        self._weights, static_argnums=(3, 4), compiler_options=options)

  @property
  def depth(self) -> int:
    return encoder_lib.sizes(self.config.model.encoder)[1]

  def grid(self, shape) -> tuple[int, int]:
    """Patches along (time, frequency) of a spectrogram [T, F]."""
    return patches_lib.grid_of(shape, self.config.patch)

  def predict(self, spectrogram, removed) -> np.ndarray:
    """[T, F], bool [N] -> [N, P]: what the model says of every patch."""
    patches, mask, grid = self._inputs(spectrogram, removed)
    return np.asarray(self._predict(self._params, patches, mask, grid)[0])

  def attention(self, spectrogram, removed, layer: int) -> np.ndarray:
    """[T, F], bool [N] -> float32 [2, H, gt, gf]: attention to each patch.

    Of the class token, and the mean over visible patches; NaN where a patch
    is removed. What is missing to 1 goes to the class token.

    Args:
      spectrogram: of a clip.
      removed: patches that the encoder does not see.
      layer: of its blocks, from 1.

    Raises:
      ValueError: there is no such block.
    """
    if not 1 <= layer <= self.depth:
      raise ValueError(
          f'The encoder has no layer {layer}; give one of 1 to {self.depth}.')
    patches, mask, grid = self._inputs(spectrogram, removed)
    found = np.asarray(self._attend(
        self._params, patches, mask.keep_ids, grid, layer))
    out = np.full((2, found.shape[0], grid[0] * grid[1]), np.nan, np.float32)
    keep = np.asarray(mask.keep_ids[0])
    out[0][:, keep] = found[:, 0, 1:]
    out[1][:, keep] = found[:, 1:, 1:].mean(1)
    return out.reshape(2, -1, *grid)

  def _inputs(self, spectrogram, removed):
    removed = np.asarray(removed, bool)
    mask = masking.from_scores(
        jnp.asarray(removed, jnp.float32)[None], int((~removed).sum()))
    patches = patches_lib.patchify(
        jnp.asarray(spectrogram)[None], self.config.patch)
    return patches, mask, self.grid(spectrogram.shape)

  def _weights(self, params, patches, keep_ids, grid, layer):
    """float32 [H, 1 + K, 1 + K]: rows attend to columns, in block `layer`.

    The model never holds them: a kernel may not even compute them. So the
    encoder is cut off before the block, and the rest done by the definition.
    """
    encoder = self._mae.encoder.clone(depth=layer - 1, final_norm=False)
    x = encoder.apply({'params': params['encoder']}, patches, grid, keep_ids)
    block = params['encoder']['blocks'][f'{layer - 1:02d}']
    x = layers.LayerNorm(x.dtype).apply({'params': block['norm1']}, x)
    qkv = layers.Dense(3 * x.shape[-1], x.dtype).apply(
        {'params': block['attn']['qkv']}, x)
    heads = encoder_lib.sizes(self.config.model.encoder)[2]
    q, k, _ = attention.split_heads(qkv, heads)
    logits = jnp.einsum('bqhd,bkhd->bhqk', q, k) * q.shape[-1] ** -0.5
    return jax.nn.softmax(logits)[0]


def load(path: str | os.PathLike) -> Model:
  """The model of a run, of one of its checkpoints, or of a folder of weights.

  Raises:
    ValueError: there is none, or it cannot reconstruct.
  """
  found = weights_lib.load(path)
  if found.config.task != 'pretrain' or not any(
      name.startswith('decoder/') for name in found.params):
    raise ValueError(
        f'{path} has no decoder, and cannot reconstruct: it was fine-tuned, or '
        'holds an encoder alone. Give a pre-training run, or all of its '
        'weights (convert with --part all).')
  wrong = compare.differences(
      {name: x.shape for name, x in weights_lib.shapes(found.config).items()},
      {name: x.shape for name, x in found.params.items()})
  if wrong:
    raise ValueError(
        f'The weights in {path} do not fit the model that they say they are:\n'
        f'{wrong}')
  return Model(found.config, found.params)
