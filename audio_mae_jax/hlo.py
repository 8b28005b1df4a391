"""What a program does, read from its text: `compiled.as_text()`, or before the
compiler has seen it `lowered.as_text('hlo')`.

XLA's own `cost_analysis` counts the body of a loop once. Here each instruction
comes with how often it runs.
"""

from collections.abc import Iterator
import dataclasses
import math
import re

COLLECTIVES = (
    'all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all',
    'collective-permute', 'collective-broadcast', 'ragged-all-to-all')
# A program that is not compiled comes without signatures.
_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$')
# The operation is the first word after a space that a bracket follows: layouts
# have brackets too, but no space before them, as in {1,0:T(8,128)S(1)}.
_INSTRUCTION = re.compile(
    r'^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$')
_ARRAY = re.compile(r'\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]')
_CALLED = re.compile(
    r'\b(?:calls|to_apply|body|condition|true_computation|false_computation)='
    r'%?([\w.\-]+)|\bbranch_computations=\{([^}]*)\}')


@dataclasses.dataclass(frozen=True)
class Instruction:
  name: str
  shape: str  # of its result, as written
  operation: str
  rest: str  # operands and attributes


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
  """Instructions of each computation by its name, and the name of the entry."""
  computations, entry, current = {}, '', []
  for line in text.splitlines():
    start = _COMPUTATION.match(line)
    if start:
      current = computations.setdefault(start[2], [])
      entry = start[2] if start[1] else entry
      continue
    found = _INSTRUCTION.match(line)
    if found:
      current.append(Instruction(*found.groups()))
  return computations, entry


def executed(text: str) -> Iterator[tuple[float, Instruction, dict[str, str]]]:
  """(times, instruction, shapes by name) for all that a call of it runs.

  `times` is how often: of all loops around it, the product of their trip
  counts. A loop whose trip count cannot be read counts once: `unknown_loops`.
  """
  computations, entry = parse(text)

  def walk(name, times):
    body = computations.get(name, [])
    shapes = {x.name: x.shape for x in body}
    for x in body:
      yield times, x, shapes
      inner = times
      if x.operation == 'while':
        inner *= _trip_count(x, computations) or 1
      for one, several in _CALLED.findall(x.rest):
        for callee in [one] if one else re.findall(r'[\w.\-]+', several):
          yield from walk(callee, inner)

  yield from walk(entry, 1.0)


def unknown_loops(text: str) -> int:
  """How many loops there are whose trip count cannot be read."""
  computations, _ = parse(text)
  return sum(
      x.operation == 'while' and _trip_count(x, computations) is None
      for body in computations.values() for x in body)


def _trip_count(loop, computations):
  """What XLA noted; or the bound of a loop that counts up from 0, as JAX's do;
  or None."""
  known = re.search(r'known_trip_count\D*(\d+)', loop.rest)
  if known:
    return int(known[1])
  condition = re.search(r'\bcondition=%?([\w.\-]+)', loop.rest)
  body = computations.get(condition[1], []) if condition else []
  bounds = [re.match(r'(\d+)\)', x.rest) for x in body
            if x.operation == 'constant']
  below = [x for x in body
           if x.operation == 'compare' and 'direction=LT' in x.rest]
  if len(below) == 1 and len(bounds) == 1 and bounds[0]:
    return int(bounds[0][1])
  return None


def num_bytes(shape: str) -> int:
  """Of an array or a tuple of arrays, without the padding of its layout."""
  total = 0
  for dtype, bits, sizes in _ARRAY.findall(shape):
    count = math.prod(int(n) for n in sizes.split(',') if n)
    total += count * (8 if dtype == 'pred' else int(bits)) // 8
  return total


def collectives(text: str) -> dict[str, dict[str, float]]:
  """By kind, its 'count' and 'bytes' of one call, each on one device.

  Bytes are those of the whole array: what an all-gather gives, and what a
  reduce-scatter takes. A TPU spreads one over several fusions, to compute
  meanwhile: those have one channel, and count once.
  """
  runs = {}
  for times, x, shapes in executed(text):
    kind = x.operation.removesuffix('-done')
    if kind not in COLLECTIVES:  # a '-start' is its '-done'
      continue
    size = num_bytes(x.shape)
    if kind == 'reduce-scatter':
      operands = re.findall(r'%?([\w.\-]+)', x.rest.split('),')[0])
      size = max(size, sum(num_bytes(shapes.get(n, '')) for n in operands))
    channel = re.search(r'\bchannel_id=(\d+)', x.rest)
    key = kind, channel[1] if channel else len(runs)
    runs[key] = max(runs.get(key, (0.0, 0)), (times, size))
  found = {}
  for (kind, _), (times, size) in runs.items():
    entry = found.setdefault(kind, {'count': 0.0, 'bytes': 0.0})
    entry['count'] += times
    entry['bytes'] += times * size
  return found


def cycles(text: str) -> float | None:
  """The TPU compiler's estimate for one call on one device, without what its
  collectives take; None where the compiler gives none."""
  total, found = 0.0, False
  for times, x, _ in executed(text):
    estimate = re.search(r'"estimated_cycles":"(\d+)"', x.rest)
    if estimate:
      found = True
      total += times * int(estimate[1])
  return total if found else None
