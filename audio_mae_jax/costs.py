"""What the instructions of a program cost: FLOPs, and bytes read and written.

XLA's `cost_analysis` has one number for a whole program.
"""

import math
import re

from audio_mae_jax import hlo

# Read and write nothing, or only what they call does.
_FREE = ('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast',
         'after-all', 'partition-id', 'replica-id', 'opt-barrier', 'domain',
         'add-dependency', *hlo.BRINGS)
_PRODUCTS = ('dot', 'convolution')
_SLICES = ('slice', 'dynamic-slice', 'gather')
_VIEWS = ('bitcast', 'convert')  # inside of a fusion
_PUT = 'dynamic-update-slice'  # is done in place


def flops(run: hlo.Run) -> float:
  """Of all runs of a product of matrices or a convolution: a multiply and an
  add as two, padding included; 0 of anything else."""
  x = run.instruction
  if x.operation not in _PRODUCTS:
    return 0.0
  left, right = (_sizes(run.shapes[name]) for name in x.operands[:2])
  if x.operation == 'dot':
    summed = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', x.rest)[1]
    each = math.prod(left[int(i)] for i in summed.split(',') if i)
  else:  # all of the kernel but the axis of what it gives
    kernel = re.search(r'dim_labels=\w+_(\w+)->', x.rest)[1]
    each = math.prod(right) // right[kernel.index('o')]
  return run.times * 2 * math.prod(_sizes(x.shape)) * each


def _sizes(shape):
  return [int(n) for n in re.search(r'\[([\d,]*)\]', shape)[1].split(',') if n]


def moved(run: hlo.Run,
          computations: dict[str, list[hlo.Instruction]]) -> float:
  """Bytes that all runs of it read and write, as if nothing stayed in a cache.

  Args:
    run: of `hlo.executed(text, whole=True)`.
    computations: of `hlo.parse(text)`.
  """
  x = run.instruction
  kind = x.operation.removesuffix('-start')
  if x.operation in _FREE or kind.endswith(('-done', '-update')):
    return 0.0
  if kind == 'fusion':
    body = computations[x.calls[0]]
    inside = {int(y.rest.split(')')[0]): y.name for y in body
              if y.operation == 'parameter'}
    pairs = [(inside.get(i), name) for i, name in enumerate(x.operands)]
  else:
    body, pairs = [x], [(name, name) for name in dict.fromkeys(x.operands)]
  size = lambda name: hlo.num_bytes(run.shapes.get(name, ''))
  read = sum(_read(body, name, size(operand)) for name, operand in pairs)
  if kind != x.operation:  # what starts lists what it was given, too
    written = max(0, hlo.num_bytes(x.shape) - sum(map(size, x.operands)))
  else:
    shapes = run.shapes | {y.name: y.shape for y in body}
    written = _written({y.name: y for y in body}, body[-1].name, shapes)
  return run.times * (read + written)


def _read(body, name, size):
  """Of `size` bytes, those that `body` reads under `name`."""
  total = 0
  for y in body:
    if name not in y.operands:
      continue
    first = y.operands[0] == name
    if y.operation in _VIEWS and y is not body[-1]:
      total += _read(body, y.name, size)
    elif first and y.operation.removesuffix('-start') in _SLICES:
      total += _sliced(y)
    elif not first or y.operation != _PUT:
      return size
  return min(size, total)


def _sliced(y):
  return hlo.num_bytes(y.shape.split('), ')[-1])


def _written(body, name, shapes):
  """Bytes of what `body`, instructions by name, gives as `name`."""
  y = body.get(name)
  if y and y.operation == 'tuple':
    return sum(_written(body, x, shapes) for x in y.operands)
  if y and y.operation in _VIEWS and len(body) > 1:
    return _written(body, y.operands[0], shapes)
  if y and y.operation == _PUT:
    return hlo.num_bytes(shapes.get(y.operands[1], ''))
  shape = shapes.get(name, '')
  if y and y.operation == 'custom-call' and shape.startswith('('):
    shape = re.sub(r'\b[su]8\[\d+\]', '', shape)  # room to work in
  return hlo.num_bytes(shape)


def is_product(x: hlo.Instruction, computations) -> bool:
  """Whether it is, or has in it, a product of matrices or a convolution."""
  if x.operation in hlo.BRINGS:  # whose instructions run on their own
    return False
  return (x.operation in _PRODUCTS
          or bool(re.search(
              r'custom_call_target="[^"]*(gemm|matmul|cudnn\$conv)', x.rest,
              re.I))
          or any(is_product(y, computations) for callee in x.calls
                 for y in computations.get(callee, [])))
