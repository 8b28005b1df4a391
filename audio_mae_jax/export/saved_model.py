"""A SavedModel of TensorFlow, with free batch and samples.

It holds the StableHLO that JAX lowers to, as `jax.experimental.jax2tf` would
write it. That one's is too young for the TensorFlow that there is
(docs/export.md), hence `portable`.
"""

import os

import jax
from jax.extend.mlir import ir
from jax.extend.mlir import passmanager
from jax.extend.mlir.dialects import stablehlo as dialect
import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla as tfxla

from audio_mae_jax.export import stablehlo

FOLDER, SIGNATURE = 'model', 'serving_default'
PLATFORMS = ('cpu', 'cuda', 'tpu')
# Of StableHLO: what TensorFlow from 2.19 on reads.
_VERSION = '1.8.0'
# Operations that younger versions have for themselves (the error function) are
# written out; called by a function, they would keep shapes that are not known.
_PASSES = ('builtin.module(func.func(stablehlo-legalize-composite-to-call),'
           'inline,symbol-dce)')


def portable(exported: jax.export.Exported) -> bytes:
  """Its StableHLO, for readers as old as `_VERSION`."""
  dialect.register_stablehlo_passes()
  with ir.Context() as context:
    module = dialect.deserialize_portable_artifact(
        context, exported.mlir_module_serialized)
    passmanager.PassManager.parse(_PASSES).run(module.operation)
    return dialect.serialize_portable_artifact(module, _VERSION)


def function(exported: jax.export.Exported):
  """`exported`, a function of waveforms, as a `tf.function`."""
  module = portable(exported)
  free = lambda aval: tuple(
      n if isinstance(n, int) else None for n in aval.shape)

  def call(waveform):
    outputs = tfxla.call_module(
        [waveform], version=exported.calling_convention_version, module=module,
        Tout=[tf.float32] * len(exported.out_avals),
        Sout=[free(aval) for aval in exported.out_avals],
        platforms=[name.upper() for name in exported.platforms])
    return jax.tree.unflatten(exported.out_tree, outputs)

  return tf.function(call, autograph=False, input_signature=[
      tf.TensorSpec(free(exported.in_avals[0]), tf.float32, 'waveform')])


def save(functions: dict, place):
  """Writes `functions` by the names of their signatures."""
  tf.saved_model.save(tf.Module(), os.fspath(place), signatures={
      name: fn.get_concrete_function() for name, fn in functions.items()})


def write(program, folder, notes, lengths):
  del notes, lengths  # neither has a place in it
  save({SIGNATURE: function(stablehlo.lower(program, PLATFORMS))},
       folder / FOLDER)


def reader(folder, program):
  """A function like the program, of NumPy: what the files compute."""
  del program
  module = tf.saved_model.load(os.fspath(folder / FOLDER))
  call = module.signatures[SIGNATURE]  # dies with its module

  def run(waveform, module=module):
    return {name: x.numpy()
            for name, x in call(waveform=tf.constant(waveform)).items()}

  return run
