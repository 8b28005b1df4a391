"""Where the time of a compiled step goes: time, FLOPs and bytes by its parts.

Times are the profiler's, of each instruction that XLA made; the instruction's
name says which part of the code it is of. FLOPs are counted in the program
before compiling, bytes in the compiled one.
"""

from collections.abc import Callable, Iterable
import pathlib
import re
import tempfile

import jax

from audio_mae_jax import hlo

OTHERS = 'the rest'
# What of a name makes a part; the first that fits.
_OF_BLOCKS = {
    'mlp': 'MLPs', 'qkv': 'qkv and proj', 'proj': 'qkv and proj',
    'attn': 'attention', 'norm1': 'norms', 'norm2': 'norms'}
_AROUND = {
    'prepare': 'front end, augmentation, masks', 'loss': 'head and loss',
    'update': 'optimizer', 'opt_state': 'optimizer'}


def part_of(scope: str) -> str:
  """The part of a step that a name of the compiler's is of."""
  words = set(re.findall(r'\w+', scope))
  for stage in ('decoder', 'encoder'):
    if stage in words:
      inside = next((what for word, what in _OF_BLOCKS.items()
                     if word in words), 'order and sums')
      return f'{stage}: {inside if "blocks" in words else "tokens"}'
  return next((what for word, what in _AROUND.items() if word in words), OTHERS)


def measure(lowered, compiled, devices: int, run: Callable[[], float],
            steps: int) -> dict:
  """Of a step on the first device, by the profiler, over `steps` calls.

  Args:
    lowered: the step before compiling (`jax.stages.Lowered`).
    compiled: the same, compiled.
    devices: how many share it.
    run: one step, from idle to idle, and its seconds; it has run before.
    steps: how often it is run.

  Returns:
    'step_s', the mean; 'busy_s' of it with an instruction at work; 'parts' by
    name, the longest first: 'time_s' (instructions at work at the same time
    have equal shares), 'products_s' of it in products of matrices, 'flops'
    (none of what a kernel computes) and 'bytes', read and written as if nothing
    stayed in a cache.

  Raises:
    RuntimeError: the profiler saw no instruction of the step.
  """
  text = compiled.as_text()
  parts, products = {}, set()
  computations, _ = hlo.parse(text)
  names = hlo.scopes(computations)
  rows = {}
  row = lambda part: rows.setdefault(
      part, {'time_s': 0.0, 'products_s': 0.0, 'flops': 0.0, 'bytes': 0.0})
  for one in hlo.executed(text, whole=True):
    x = one.instruction
    parts[x.name] = part_of(names[x.name])
    row(parts[x.name])['bytes'] += hlo.moved(one, computations)
    if hlo.is_product(x, computations):
      products.add(x.name)
  for one in hlo.executed(lowered.as_text('hlo', debug_info=True)):
    if flops := hlo.flops(one):
      row(part_of(one.scope))['flops'] += flops / devices
  with tempfile.TemporaryDirectory() as folder:
    seconds = _record(folder, run, steps)
    lines = _read(folder, re.match(r'HloModule ([\w.\-]+)', text)[1])
  for name, time_s in shares(lines).items():
    found = row(parts.get(name, OTHERS))
    found['time_s'] += time_s / steps
    if name in products:
      found['products_s'] += time_s / steps
  return {
      'step_s': seconds / steps,
      'busy_s': sum(x['time_s'] for x in rows.values()),
      'parts': dict(sorted(
          rows.items(), key=lambda item: -item[1]['time_s']))}


def _record(folder, run, steps):
  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0
  with jax.profiler.trace(folder, profiler_options=options):
    return sum(run() for _ in range(steps))


def _read(folder, module):
  """Instructions of `module` on the first device, as lines of (start, end,
  name) in seconds."""
  path, = pathlib.Path(folder).rglob('*.xplane.pb')
  planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
  devices = [x for x in planes if x.name.startswith('/device:')]
  lines = []
  for plane in devices[:1] or planes:
    for line in plane.lines:
      found = []
      for event in line.events:
        told = dict(event.stats)
        # A TPU has the instruction as the name.
        written = re.match(r'%([\w.\-]+) = ', event.name)
        name = told.get('hlo_op') or written and written[1]
        if name and told.get('hlo_module', module) == module and not told.get(
            'device_ordinal', 0):
          found.append((event.start_ns * 1e-9, event.end_ns * 1e-9, name))
      lines.append(found)
  if not any(lines):
    raise RuntimeError(
        f'The profiler saw no instruction of {module} on this device: it has '
        'no times by part. Give --part=step for the time of the whole.')
  return lines


def shares(lines: Iterable[list[tuple[float, float, str]]]) -> dict[str, float]:
  """Seconds by name, of (start, end, name) in lines that run side by side.

  Within a line the innermost is at work; of several lines each has an equal
  share. All add up to the time in which anything was at work.
  """
  changes = []
  for number, events in enumerate(lines):
    for begin, end, name in _innermost(events):
      changes += [(begin, number, name), (end, number, None)]
  # What ends goes before what begins at the same time.
  changes.sort(key=lambda x: (x[0], x[2] is not None))
  found, working, before = {}, {}, 0.0
  for now, number, name in changes:
    for other in working.values():
      found[other] = found.get(other, 0.0) + (now - before) / len(working)
    before = now
    working.pop(number, None)
    if name is not None:
      working[number] = name
  return found


def _innermost(events):
  """(start, end, name) without overlap: each where nothing inside it runs."""
  found, around, now = [], [], 0.0

  def until(time):
    nonlocal now
    if around and time > now:
      found.append((now, time, around[-1][1]))
    now = max(now, time)

  for begin, end, name in sorted(events, key=lambda x: (x[0], -x[1])):
    while around and around[-1][0] <= begin:
      until(around[-1][0])
      around.pop()
    until(begin)
    around.append((end, name))
  while around:
    until(around[-1][0])
    around.pop()
  return found
