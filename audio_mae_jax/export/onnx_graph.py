"""The program of `program.py` as a graph of ONNX, from the same parameters.

It is written node by node, and not converted: of what JAX would hand over, a
convolution per front end and a product per head, ONNX has larger nodes, which
its runtimes know how to compute fast; and no converter installs beside the
libraries that this package needs (docs/export.md). What it computes is compared
with the program before a file is left.

Batch and samples are free. Opset 17, of 2022, is the first with LayerNorm.
"""

import numpy as np
import onnx
from onnx import helper

from audio_mae_jax import frontend
from audio_mae_jax import patches as patches_lib
from audio_mae_jax.export import program as program_lib
from audio_mae_jax.models import encoder as encoder_lib
from audio_mae_jax.models import pointwise

OPSET, IR = 17, 8
_FLOAT = onnx.TensorProto.FLOAT


class Graph:
  """Nodes and constants as they come; names are given here."""

  def __init__(self):
    self.nodes, self.constants, self._known = [], [], {}

  def __call__(self, op: str, *inputs, outputs: int = 1, **attributes):
    """Adds a node; `inputs` are names, or arrays. Its output's name, or names.

    Python's integers and floats become constants of one element, int64 and
    float32.
    """
    names = [f'{op}_{len(self.nodes)}' + (f'_{i}' if i else '')
             for i in range(outputs)]
    inputs = [x if isinstance(x, str) else self.constant(x) for x in inputs]
    self.nodes.append(helper.make_node(
        op, inputs, names, name=names[0], **attributes))
    return names[0] if outputs == 1 else names

  def constant(self, value) -> str:
    array = np.asarray(value)
    kind = np.int64 if array.dtype.kind == 'i' else np.float32
    array = np.array(array, kind, order='C')
    key = (array.shape, array.dtype, array.tobytes() if array.size < 64
           else id(value))
    if key not in self._known:
      name = f'constant_{len(self.constants)}'
      # `value` stays alive with its key, or its id might come again.
      self._known[key] = name, value
      self.constants.append(onnx.numpy_helper.from_array(array, name))
    return self._known[key][0]


def build(
    program: program_lib.Program, notes: dict[str, str]) -> onnx.ModelProto:
  """The model, with `notes` as its metadata."""
  graph = Graph()
  x, steps = _tokens(graph, program, 'waveform')
  found = _pooled(graph, program, x, steps)
  for name in program.outputs:
    graph.nodes.append(helper.make_node('Identity', [found[name]], [name]))
  width = encoder_lib.sizes(program.config.model.encoder)[0]
  shapes = {'embedding': ('batch', width), 'frames': ('batch', 'steps', width),
            'scores': ('batch', program.config.model.classifier.num_classes)}
  info = helper.make_tensor_value_info
  model = helper.make_model(
      helper.make_graph(
          graph.nodes, 'audio_mae',
          [info('waveform', _FLOAT, ('batch', 'samples'))],
          [info(name, _FLOAT, shapes[name]) for name in program.outputs],
          graph.constants),
      opset_imports=[helper.make_opsetid('', OPSET)], ir_version=IR,
      producer_name='audio_mae_jax')
  helper.set_model_props(model, notes)
  return model


def _tokens(graph, program, waveform):
  """[B, S] -> [B, 1 + N, D], and the number of time steps, int64 [1]."""
  params, config = program.params, program.config
  x = _log_mel(graph, config.frontend, waveform)
  x, steps = _patches(graph, program, x)
  # As the encoder's `places`; a clip that is too long asks for one that is not
  # there, which is an error.
  table = program.positions()
  count = graph('Squeeze', _size(graph, x, 1))
  places = graph('Range', np.int64(0), count, np.int64(1))
  x = graph('Add', x, graph('Gather', table[1:], places))
  token = params['encoder/cls_token'] + table[0]
  batch = graph('Concat', _size(graph, waveform, 0), [1, 1], axis=0)
  x = graph('Concat', graph('Expand', token[None, None], batch), x, axis=1)
  width, depth, heads = encoder_lib.sizes(config.model.encoder)
  for i in range(depth):
    own = _Under(params, f'encoder/blocks/{i:02d}')
    y = _attention(graph, own, _norm(graph, own, 'norm1', x), heads, width)
    x = graph('Add', x, y)
    y = _mlp(graph, own, _norm(graph, own, 'norm2', x))
    x = graph('Add', x, y)
  if program.norm == 'before':
    x = _norm(graph, _Under(params, 'encoder'), 'norm', x)
  return x, steps


def _pooled(graph, program, x, steps):
  """Names of the outputs, as of `Program.__call__`."""
  own = _Under(program.params)
  patches = graph('Slice', x, [1], [np.iinfo(np.int64).max], [1])
  grid = graph('Concat', [0], steps, [program.grid[1], -1], axis=0)
  frames = graph('ReduceMean', graph('Reshape', patches, grid), axes=[2],
                 keepdims=0)
  found = {'embedding': graph('ReduceMean', frames, axes=[1], keepdims=0),
           'frames': frames}
  if program.norm == 'after':
    found = {name: _norm(graph, own, 'fc_norm', y) for name, y in found.items()}
  if 'scores' in program.outputs:
    pooled = (found['embedding'] if program.norm == 'after'
              else graph('Gather', x, np.int64(0), axis=1))
    logits = _dense(graph, own, 'head', pooled)
    found['scores'] = (
        graph('Sigmoid', logits) if program.config.labels.multilabel
        else graph('Softmax', logits, axis=-1))
  return found


def _log_mel(graph, spec, waveform):
  """[B, S] -> [B, frames, F]; frontend.py, transform 'matmul', says why so."""
  const, p = frontend.tables(spec), spec.preemphasis
  hop, length = const.dft.shape[1], frontend.min_samples(spec)
  mean = graph('ReduceMean', waveform, axes=[1], keepdims=1)
  x = graph('Sub', waveform, mean)
  previous = graph('Pad', x, [0, 1, 0, -1], 0.0)
  frames = lambda y, kernel: graph(
      'Conv', graph('Unsqueeze', y, [1]), kernel, strides=[hop])
  dft = const.dft.reshape(-1, const.dft.shape[-1])[:length].T
  sharp = graph('Sub', x, graph('Mul', previous, p))
  spectrum = frames(sharp, dft[:, None])
  if spec.remove_dc_offset:
    total = frames(x, np.full((1, 1, length), 1 / length))
    ones = (1 - p) * const.dft_of_ones[:, None]
    spectrum = graph('Sub', spectrum, graph('Mul', total, ones))
  real, imag = graph('Split', spectrum, axis=1, outputs=2)
  if const.window[0]:
    first = np.zeros((1, 1, length))
    first[..., 0] = p * const.window[0]
    real = graph('Add', real, frames(graph('Sub', previous, x), first))
  power = graph('Add', graph('Mul', real, real), graph('Mul', imag, imag))
  power = graph('Transpose', power, perm=[0, 2, 1])
  mel = graph('MatMul', power, const.mel)
  return graph('Log', graph('Max', mel, spec.floor))


def _patches(graph, program, x):
  """Log-mel [B, frames, F] -> embedded patches [B, N, D], time steps [1]."""
  spec, patch = program.config.frontend, program.config.patch
  size, stride = patch.size[0], patches_lib.resolve_stride(patch)
  frames = _size(graph, x, 1)
  # As program.num_steps; division of integers rounds to zero.
  steps = graph('Div', graph('Add', frames, [stride[0] - (size + 1) // 2]),
                [stride[0]])
  steps = graph('Max', steps, [1])
  filled = graph('Add', graph('Mul', steps, [stride[0]]), [size - stride[0]])
  pads = graph('Concat', [0, 0, 0, 0], graph('Sub', filled, frames), [0],
               axis=0)
  x = graph('Pad', x, pads, 0.0)
  x = graph('Div', graph('Sub', x, spec.mean), 2 * spec.std)
  own = _Under(program.params, 'encoder/patch_embed')
  kernel = own['kernel'].T.reshape(-1, 1, *patch.size)
  x = graph('Conv', graph('Unsqueeze', x, [1]), kernel, own['bias'],
            strides=list(stride))
  x = graph('Reshape', x, [0, kernel.shape[0], -1])
  return graph('Transpose', x, perm=[0, 2, 1]), steps


def _attention(graph, own, x, heads, width):
  """[B, L, D] -> [B, L, D]; models/attention.py, `full`."""
  def split(y, perm):
    y = graph('Reshape', y, [0, 0, heads, width // heads])
    return graph('Transpose', y, perm=perm)

  qkv = _dense(graph, own, 'attn/qkv', x)
  q, k, v = graph('Split', qkv, axis=-1, outputs=3)
  logits = graph('MatMul', split(q, [0, 2, 1, 3]), split(k, [0, 2, 3, 1]))
  logits = graph('Mul', logits, (width // heads) ** -0.5)
  y = graph('MatMul', graph('Softmax', logits, axis=-1),
            split(v, [0, 2, 1, 3]))
  y = graph('Transpose', y, perm=[0, 2, 1, 3])
  return _dense(graph, own, 'attn/proj', graph('Reshape', y, [0, 0, width]))


def _mlp(graph, own, x):
  x = _dense(graph, own, 'mlp/fc1', x)
  erf = graph('Erf', graph('Mul', x, 0.5**0.5))
  x = graph('Mul', graph('Mul', x, graph('Add', erf, 1.0)), 0.5)
  return _dense(graph, own, 'mlp/fc2', x)


def _dense(graph, own, name, x):
  return graph('Add', graph('MatMul', x, own[f'{name}/kernel']),
               own[f'{name}/bias'])


def _norm(graph, own, name, x):
  return graph('LayerNormalization', x, own[f'{name}/scale'],
               own[f'{name}/bias'], axis=-1, epsilon=pointwise.EPSILON)


def _size(graph, x, axis):
  """int64 [1]: so many there are along `axis`."""
  return graph('Gather', graph('Shape', x), [axis])


class _Under:
  """Parameters whose names begin with `prefix`."""

  def __init__(self, params, prefix=''):
    self._params, self._prefix = params, prefix and f'{prefix}/'

  def __getitem__(self, name):
    return self._params[self._prefix + name]
