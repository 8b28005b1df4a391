"""What a train step costs, counted in the text of its program.

Two programs are counted. As it is traced, before any compiler: exact, and the
same on every machine. And as XLA's compiler for CPUs makes it.
"""

import collections
import math
import re

from audio_mae_jax import costs
from audio_mae_jax import hlo

# These make no array, or hold other computations that are counted themselves.
_FREE = ('parameter', 'constant', 'tuple', 'get-tuple-element', 'call', 'while',
         'conditional', 'bitcast', 'custom-call')
_SIZES = re.compile(r'\b(\w+?)\[([\d,]+)\]')
_TILE = 8, 128  # rows and lanes of a TPU's vector registers


def traced(text: str) -> dict[str, float]:
  """Counts of one call of the program, as `lowered.as_text('hlo')` has it.

  products: FLOPs of products of matrices, the front end's (which ask for the
    highest precision) left out.
  float32, bfloat16: bytes of all results of this type.
  tiled: bytes of all results in tiles of 8 x 128, as a TPU keeps them.
  callbacks: calls of the host, and transfers.
  """
  found = collections.Counter(
      products=0, float32=0, bfloat16=0, tiled=0, callbacks=0)
  for run in hlo.executed(text):
    times, x = run.times, run.instruction
    if x.operation == 'dot' and 'precision={highest' not in x.rest:
      found['products'] += costs.flops(run)
    if x.operation in ('infeed', 'outfeed', 'send', 'recv') or re.search(
        r'custom_call_target="[^"]*(callback|host)', x.rest, re.I):
      found['callbacks'] += times
    if x.operation in _FREE:
      continue
    for dtype, sizes in _SIZES.findall(x.shape):
      sizes = [int(n) for n in sizes.split(',')]
      width = {'f32': 4, 'bf16': 2}.get(dtype)
      if width:
        name = {4: 'float32', 2: 'bfloat16'}[width]
        found[name] += times * width * math.prod(sizes)
        found['tiled'] += times * width * _tiled(sizes)
  return dict(found)


def _tiled(sizes):
  sizes = [1] * (2 - len(sizes)) + sizes
  rows, lanes = (n + -n % t for n, t in zip(sizes[-2:], _TILE))
  return math.prod(sizes[:-2]) * rows * lanes


def compiled(compiled) -> dict[str, float]:
  """Counts of one call of the program that XLA has compiled."""
  counts = collections.Counter()
  for run in hlo.executed(compiled.as_text()):
    counts[run.instruction.operation] += 1
  return {
      'bytes': compiled.cost_analysis()['bytes accessed'],
      'temporary': compiled.memory_analysis().temp_size_in_bytes,
      'instructions': counts.total(),
      **{name: counts[name] for name in (
          'fusion', 'dot', 'copy', 'transpose', 'while')}}
