"""What a program does, read from its text: `compiled.as_text()`, or before the
compiler has seen it `lowered.as_text('hlo')`.

XLA's own `cost_analysis` counts the body of a loop once. Here each instruction
comes with how often it runs.
"""

from collections.abc import Callable, Iterator
import dataclasses
import functools
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
# What these call runs as instructions of their own; others call what is a part
# of them, as a fusion and a sum do.
BRINGS = ('call', 'while', 'conditional', 'async-start')


@dataclasses.dataclass(frozen=True)
class Instruction:
  name: str
  shape: str  # of its result, as written
  operation: str
  rest: str  # operands and attributes

  @functools.cached_property
  def operands(self) -> list[str]:
    """Names of what it is given."""
    listed = re.sub(r'/\*.*?\*/', '', re.split(r'\)(?:,|$)', self.rest)[0])
    return re.findall(r'%?([\w.\-]+)', listed)

  @functools.cached_property
  def calls(self) -> list[str]:
    """Names of the computations that it calls."""
    return [name for one, several in _CALLED.findall(self.rest)
            for name in ([one] if one else re.findall(r'[\w.\-]+', several))]

  @property
  def scope(self) -> str:
    """The name that the code gave to it, or nothing."""
    found = re.search(r'op_name="([^"]*)"', self.rest)
    return found[1] if found else ''


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


@dataclasses.dataclass(frozen=True)
class Run:
  """An instruction, in one place that a call of a program comes to."""
  instruction: Instruction
  times: float  # how often: of all loops around it, the product of their trips
  scope: str  # names that the code gave to it and to what calls it
  shapes: dict[str, str]  # of its neighbours, by name


def executed(
    text: str, whole: bool = False, devices: int = 1) -> Iterator[Run]:
  """All that a call of the program runs, of conditionals every branch.

  A loop whose trip count cannot be read counts once: `unknown_loops`.

  Args:
    text: of the program.
    whole: only what a device starts: fusions, not what is in them.
    devices: of a program that is not compiled, how many it will run on; what
      `jax.shard_map` calls is of one of them, and counts so many times.
  """
  computations, entry = parse(text)

  def walk(name, times, scope):
    body = computations.get(name, [])
    shapes = {x.name: x.shape for x in body}
    for x in body:
      own = f'{scope}/{x.scope}'
      yield Run(x, times, own, shapes)
      if whole and x.operation not in BRINGS:
        continue
      inner = times
      if x.operation == 'while':
        inner *= _trip_count(x, computations) or 1
      for callee in x.calls:
        on = devices if 'manual_computation' in callee else 1
        yield from walk(callee, inner * on, own)

  yield from walk(entry, 1.0, '')


def scopes(computations: dict[str, list[Instruction]],
           tells: Callable[[str], bool] = bool) -> dict[str, str]:
  """The name in the code of each instruction.

  One that has none, as a copy, or none that `tells` anything, has that of what
  is in it, of what it reads, or of what reads it.
  """
  found = {x.name: x.scope for body in computations.values() for x in body}
  told = {name for name, scope in found.items() if tells(scope)}

  def inherit(name, others):
    heir = next((x for x in others if x in told), None)
    if name in found and name not in told and heir:
      found[name] = found[heir]
      told.add(name)

  for body in computations.values():  # what is called stands before
    for x in body:
      inherit(x.name, [y.name for callee in x.calls
                       for y in reversed(computations.get(callee, []))])
      inherit(x.name, x.operands)
    for x in reversed(body):
      for operand in x.operands:
        inherit(operand, [x.name])
  return found


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
  for run in executed(text):
    x = run.instruction
    kind = x.operation.removesuffix('-done')
    if kind not in COLLECTIVES:  # a '-start' is its '-done'
      continue
    size = num_bytes(x.shape)
    if kind == 'reduce-scatter':
      size = max(
          size, sum(num_bytes(run.shapes.get(n, '')) for n in x.operands))
    channel = re.search(r'\bchannel_id=(\d+)', x.rest)
    key = kind, channel[1] if channel else len(runs)
    runs[key] = max(runs.get(key, (0.0, 0)), (run.times, size))
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
  for run in executed(text):
    estimate = re.search(
        r'"estimated_cycles":"(\d+)"', run.instruction.rest)
    if estimate:
      found = True
      total += run.times * int(estimate[1])
  return total if found else None
