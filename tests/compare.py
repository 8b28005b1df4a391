"""Our side of a comparison with another implementation, and its errors."""

from unittest import mock

from flax import linen
import jax
import jax.numpy as jnp
import numpy as np
import reference

from audio_mae_jax import config as config_lib
from audio_mae_jax import losses as losses_lib
from audio_mae_jax import masking
from audio_mae_jax import patches as patches_lib
from audio_mae_jax import trees
from audio_mae_jax.models import layers
from audio_mae_jax.models import mae
from audio_mae_jax.models import window

NORMALIZED, RAW = (1.0, 0.0), (0.0, 1.0)  # weights of the two losses


def to_ours(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Released names and layout to ours; position tables are left out."""
  names = {name: reference.rename(name) for name in arrays}
  return {ours: reference.convert(arrays[name], ours)
          for name, ours in names.items() if ours is not None}


def to_released(params, shapes: dict[str, tuple]) -> dict[str, np.ndarray]:
  """Our tree as arrays of `shapes` by released name, without positions."""
  flat = trees.flatten(params)
  arrays = {}
  for name, shape in shapes.items():
    ours = reference.rename(name)
    if ours is not None:
      array = np.asarray(flat[ours])
      array = array.T if ours.endswith('kernel') else array
      arrays[name] = array.reshape(shape)
  return arrays


class Model:
  """Ours, as functions of parameters: spectrograms and mask are given."""

  def __init__(self, settings: config_lib.Config, spectrograms, noise):
    self.model = mae.make(settings)
    spectrograms = jnp.asarray(spectrograms)
    self.grid = patches_lib.grid_of(spectrograms.shape[1:], settings.patch)
    self.patches = patches_lib.patchify(spectrograms, settings.patch)
    self.mask = masking.from_scores(jnp.asarray(noise), masking.num_kept(
        noise.shape[1], settings.mask.ratio, 'mask.ratio'))

  def forward(self, params):
    """-> latent [B, 1 + K, D], prediction [B, N, P], losses [2]."""
    variables = {'params': params}
    latent = self.model.apply(
        variables, self.patches, self.grid, self.mask.keep_ids, method='encode')
    prediction = self.model.apply(
        variables, self.patches, self.grid, self.mask).prediction
    losses = [
        losses_lib.masked_mse(prediction, target, self.mask.removed).mean()
        for target in (losses_lib.normalize_patches(self.patches),
                       self.patches)]
    return latent, prediction, jnp.stack(losses)

  def with_gradient(self, params, weights=NORMALIZED):
    """-> (latent, prediction, losses), gradient of the weighted losses."""
    def loss(params):
      outputs = self.forward(params)
      return outputs[2] @ jnp.asarray(weights), outputs
    grads, outputs = jax.grad(loss, has_aux=True)(params)
    return outputs, grads

  def blocks(self, params) -> list:
    """The outputs [B, tokens, D] of all blocks in their order."""
    found = []

    def raster(block, output):
      if not isinstance(block, window.WindowBlock):
        return output
      size, _ = window.fit_window(block.grid, block.window, block.shift)
      return window.merge(output, block.grid, size).reshape(
          output.shape[0], -1, output.shape[-1])

    def keep(call, args, kwargs, context):
      output = call(*args, **kwargs)
      # A stack also initialises its blocks, to see what shapes they expect.
      if (isinstance(context.module, (layers.Block, window.WindowBlock))
          and context.method_name == '__call__'
          and not context.module.is_initializing()):
        found.append(raster(context.module, output))
      return output
    with (linen.intercept_methods(keep),
          mock.patch.object(layers, 'once', lambda fn: fn)):
      self.model.apply({'params': params}, self.patches, self.grid, self.mask)
    return found


def split(name: str, array, local: bool) -> tuple[np.ndarray, np.ndarray]:
  """-> elements that the model depends on, and those that change nothing.

  Softmax depends neither on the bias of the keys, where attention is not by
  cosine, nor on a constant in the bias of all positions. The gradients of these
  parameters are 0 but for rounding, and AdamW makes whole steps of it.
  """
  array = np.asarray(array)
  if name.endswith('attn/bias/fc2/bias'):
    return array[:0], array
  if name.endswith('qkv/bias') and not (local and name.startswith('decoder')):
    queries, keys, values = np.split(array, 3)
    return np.concatenate([queries, values]), keys
  return array, array[:0]


def gradient_errors(
    got: dict, want: dict, local: bool
) -> tuple[dict[str, float], float]:
  """-> error of each over the maximum of its own; of zeros, over that of all.

  Names are ours. `local` says that the decoder is.
  """
  assert want and want.keys() <= got.keys()
  largest = max(np.abs(value).max() for value in want.values())
  errors, zeros = {}, [0.0]
  for name, value in want.items():
    error = np.abs(np.asarray(got[name]) - value)
    part, zero = split(name, error, local)
    if part.size:
      errors[name] = float(
          part.max() / np.abs(split(name, value, local)[0]).max())
    if zero.size:
      zeros.append(float(zero.max() / largest))
  return errors, max(zeros)


def relative(got, want) -> float:
  """Root mean square of the error over that of `want`."""
  want = np.asarray(want, np.float64)
  error = np.asarray(got, np.float64) - want
  return float(np.sqrt(np.square(error).mean() / np.square(want).mean()))
