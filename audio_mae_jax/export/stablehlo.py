"""A file of `jax.export`: StableHLO with its parameters, for any JAX program.

It needs JAX to run and nothing of this package. Batch and samples are symbols
of the program, so one file serves all of them, on any of `PLATFORMS`.
"""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from audio_mae_jax.export import program as program_lib

FILE = 'model.stablehlo'
PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')


def lower(program: program_lib.Program, platforms, samples: int = 0
          ) -> jax.export.Exported:
  """The program with free batch and samples, or with one clip of `samples`."""
  shape = (1, samples) if samples else jax.export.symbolic_shape(
      'batch, samples', constraints=(
          'batch >= 1', f'samples >= {program.min_samples}',
          f'samples <= {program.max_samples}'))
  return jax.export.export(jax.jit(program), platforms=platforms)(
      jax.ShapeDtypeStruct(shape, jnp.float32))


def write(program, folder, notes, lengths):
  del notes, lengths  # neither has a place in it
  (folder / FILE).write_bytes(lower(program, PLATFORMS).serialize())


def reader(folder, program):
  """A function like the program, of NumPy: what the files compute."""
  del program
  exported = jax.export.deserialize(
      bytearray((folder / FILE).read_bytes()))
  call = jax.jit(exported.call)
  return lambda waveform: jax.tree.map(np.asarray, call(waveform))
