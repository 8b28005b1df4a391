"""What is exported: one function, from waveforms to embeddings.

All clips of a batch are of one length, and that length is free: the grid of
patches follows from it. So a short clip costs little, and no clip's embedding
depends on padding or on its neighbours in the batch. Only the last time step
may be filled up, with the zeros that fill up short clips in training; a rest
that is less than half of one is left out. It computes in float32, whatever the
model was trained in.
"""

import dataclasses
import functools

from flax import traverse_util
import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from audio_mae_jax import config as config_lib
from audio_mae_jax import frontend
from audio_mae_jax import patches as patches_lib
from audio_mae_jax import weights as weights_lib
from audio_mae_jax.data import audio_io
from audio_mae_jax.models import encoder as encoder_lib
from audio_mae_jax.models import pointwise

# Protocol buffers and flatbuffers end at 2 GiB; there is more in a file.
ONE_FILE_BYTES = 2**31 - 2**27
_PARTS = ('encoder', 'fc_norm', 'head')  # of the parameters; not the decoder


# Compared as an object: it is a function, and jit keeps what it compiles by it.
@dataclasses.dataclass(frozen=True, eq=False)
class Program:
  """A model as a function of waveforms; calling it computes in JAX."""
  params: dict[str, np.ndarray]  # by name, float32
  config: config_lib.Config  # num_frames: the most that a clip may have
  classes: tuple[str, ...] = ()  # names of the scores, as far as known

  def __call__(self, waveform: jax.Array) -> dict[str, jax.Array]:
    """float32 [B, S] of full scale 1 -> arrays by the names of `outputs`.

    'frames' [B, T', D] are of the clip's time steps, each the mean over its
    patches; 'embedding' [B, D] is of all of it; 'scores' [B, C], of
    classifiers, are probabilities.
    """
    # Else a GPU takes TF32 for float32, and a TPU bfloat16.
    with jax.default_matmul_precision('highest'):
      return self._compute(waveform)

  def _compute(self, waveform):
    x, steps = self._tokens(waveform)
    frames = x[:, 1:].reshape(x.shape[0], steps, self.grid[1], -1).mean(2)
    found = {'embedding': frames.mean(1), 'frames': frames}
    if self.norm == 'after':
      norm = [self.params[f'fc_norm/{name}'] for name in ('scale', 'bias')]
      found = {name: pointwise.layer_norm(y, *norm)
               for name, y in found.items()}
    if 'scores' in self.outputs:
      pooled = found['embedding'] if self.norm == 'after' else x[:, 0]
      logits = pooled @ self.params['head/kernel'] + self.params['head/bias']
      found['scores'] = (jax.nn.sigmoid if self.config.labels.multilabel
                         else jax.nn.softmax)(logits)
    return {name: found[name] for name in self.outputs}

  def _tokens(self, waveform):
    """[B, S] -> [B, 1 + N, D], and the number of time steps."""
    spec, patch = self.config.frontend, self.config.patch
    x = _log_mel(waveform, spec)
    frames, (step, _) = x.shape[1], patches_lib.resolve_stride(patch)
    steps = num_steps(frames, patch)
    filled = (steps - 1) * step + patch.size[0]
    x = jax.lax.pad(x, 0.0, ((0, 0, 0), (0, filled - frames, 0), (0, 0, 0)))
    x = patches_lib.patchify((x - spec.mean) / (2 * spec.std), patch)
    # Tokens are in the order of time: those of a shorter clip are the first of
    # the longest one's, whose positions are constants.
    ids = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
    encoder = encoder_lib.make(
        self.config, final_norm=self.norm == 'before')
    params = traverse_util.unflatten_dict(
        self.params, sep='/')['encoder']
    return encoder.apply({'params': params}, x, self.grid, ids), steps

  @functools.cached_property
  def grid(self) -> tuple[int, int]:
    """Patches along (time, frequency) of the longest clip."""
    return weights_lib.grid_of(self.config)

  def positions(self) -> np.ndarray:
    """float32 [1 + N, D], of the class token and of the longest clip's grid."""
    patch = self.config.patch
    if patch.positions == 'table':
      return np.asarray(patches_lib.look_up(
          jnp.asarray(self.params['encoder/positions']), self.grid, patch))
    width = encoder_lib.sizes(self.config.model.encoder)[0]
    return patches_lib.position_table(self.grid, width, patch)

  @functools.cached_property
  def norm(self) -> str:
    """Where patches are normalised: 'before' they are averaged, by the
    encoder, or 'after', by a classifier of their mean."""
    return 'after' if 'fc_norm/scale' in self.params else 'before'

  @functools.cached_property
  def outputs(self) -> tuple[str, ...]:
    return ('embedding', 'frames') + (
        ('scores',) if 'head/kernel' in self.params else ())

  @property
  def min_samples(self) -> int:
    """Of the shortest clip: one window."""
    return frontend.min_samples(self.config.frontend)

  @property
  def max_samples(self) -> int:
    """Of the longest clip: one more would begin another time step."""
    spec, patch = self.config.frontend, self.config.patch
    frames = (self.grid[0] * patches_lib.resolve_stride(patch)[0]
              + (patch.size[0] + 1) // 2)
    return frontend.covered(frames, spec) - 1

  @property
  def num_bytes(self) -> int:
    """Of the parameters."""
    return sum(x.nbytes for x in self.params.values())

  def facts(self) -> dict:
    """What a consumer has to know, in plain types; sizes are in samples."""
    spec, patch, data = (
        self.config.frontend, self.config.patch, self.config.data)
    step = patches_lib.resolve_stride(patch)[0]
    return {
        'sample_rate_hz': spec.sample_rate_hz,
        # As in training: how files are made mono, and the quality of soxr for
        # those of another rate, which without one are refused.
        'channels': data.channels,
        'resample': audio_io.RESAMPLERS[data.resample],
        'min_samples': self.min_samples, 'max_samples': self.max_samples,
        # Time step i is of `span_samples` from i * `step_samples` on.
        'max_steps': self.grid[0],
        'step_samples': (frontend.covered(step + 1, spec)
                         - frontend.covered(1, spec)),
        'span_samples': frontend.covered(patch.size[0], spec),
        'embedding_size': encoder_lib.sizes(self.config.model.encoder)[0],
        'outputs': list(self.outputs), 'classes': list(self.classes),
        'multilabel': self.config.labels.multilabel}


def make(weights: weights_lib.Weights, max_s: float = 0.0) -> Program:
  """The program of `weights` for clips of up to `max_s` seconds.

  Args:
    weights: of a pre-trained model, an encoder or a classifier.
    max_s: 0 for as long as the model was trained on.

  Raises:
    ValueError: `max_s` is not a length, is shorter than a window, or the
      positions of the weights do not reach as far.
  """
  config = weights_lib.with_positions(weights.config)
  front, model = config.frontend, config.model
  patch, steps = config.patch, weights_lib.grid_of(config)[0]
  if max_s:
    if not 0 < max_s < float('inf'):
      raise ValueError(
          f'max_s={max_s} is not a length: seconds, or 0 for that of training.')
    steps = num_steps(frontend.num_frames(
        int(max_s * front.sample_rate_hz), front), patch)
  # In whole patches: a rest that training left out would be one more.
  front = dataclasses.replace(front, num_frames=patches_lib.covered(
      steps, patch.size[0], patches_lib.resolve_stride(patch)[0]))
  model = dataclasses.replace(
      model, dtype='float32', remat='none', scan_layers=False)
  config = dataclasses.replace(
      config, frontend=front, model=model,
      patch=dataclasses.replace(patch, train_positions=False))
  params = {name: np.asarray(value, np.float32)
            for name, value in weights.params.items()
            if name.split('/')[0] in _PARTS}
  program = Program(params, config, weights.classes)
  _check(program)
  return program


def _check(program):
  """Raises ValueError for weights of which no embedding can be made."""
  if 'encoder/cls_token' not in program.params:
    raise ValueError(
        'These weights hold no encoder: there is nothing to export.')
  if program.norm == 'before' and 'encoder/norm/scale' not in program.params:
    raise ValueError(
        'These weights are the encoder of a classifier without the norm that '
        "follows it: export the whole classifier (of `convert`, '--part all').")
  jax.eval_shape(program, jax.ShapeDtypeStruct(
      (1, program.max_samples), jnp.float32))


def num_steps(frames, patch: config_lib.Patch):
  """Time steps of so many `frames`, which may be a symbol: those that are at
  least half of frames that are there, and at least one."""
  size, step = patch.size[0], patches_lib.resolve_stride(patch)[0]
  return jax.core.max_dim((frames - (size + 1) // 2) // step + 1, 1)


def _log_mel(waveform, spec):
  """[B, S] -> [B, frames, F]: of all frames that lie wholly inside."""
  # As augment.remove_mean, of clips that are valid to their end.
  waveform = waveform - waveform.sum(1, keepdims=True) / waveform.shape[1]
  used = frontend.covered(
      frontend.num_frames(waveform.shape[1], spec), spec)
  # Behind the last frame nothing is used, and symbols are easier to divide.
  return frontend.log_mel(
      jax.lax.slice_in_dim(waveform, 0, used, axis=1), spec)
