"""Where the time of a compiled step goes: time, FLOPs and bytes by its parts.

Times are the profiler's, of each instruction that XLA made; the instruction's
name says which part of the code it is of. FLOPs are counted in the program
before compiling, bytes in the compiled one.
"""

import collections
from collections.abc import Callable, Iterable
import contextlib
import pathlib
import re
import tempfile

import jax

from audio_mae_jax import costs
from audio_mae_jax import hlo

OTHERS = 'the rest'
# What of a name makes a part; the first that fits.
_OF_BLOCKS = {
    'mlp': 'MLPs', 'qkv': 'qkv and proj', 'proj': 'qkv and proj',
    'attn': 'attention', 'norm1': 'norms', 'norm2': 'norms'}
_AROUND = {
    'prepare': 'front end, augmentation, masks', 'loss': 'head and loss',
    'update': 'optimizer'}
_OF_STATE = {'opt_state', 'ema'}


def part_of(scope: str) -> str:
  """The part of a step that a name of the compiler's is of."""
  words = set(re.findall(r'\w+', scope))
  if words & _OF_STATE:  # the moments of a parameter have its name
    return _AROUND['update']
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
    compiled: the same, compiled where programs are `named`.
    devices: how many share it.
    run: one step, from idle to idle, and its seconds; it has run before.
    steps: how often it is run.

  Returns:
    'step_s', the mean of a step while the profiler looks, and 'unseen_s' of as
    many before; 'busy_s' of a step with an instruction at work; 'parts' by
    name, the longest first: 'time_s' (instructions at work at the same time
    have equal shares), 'products_s' of it in products of matrices, 'flops'
    (none of what a kernel computes) and 'bytes', read and written as if nothing
    stayed in a cache.

  Raises:
    RuntimeError: the profiler saw no instruction of the step, or the program
      comes from before its parts had names.
  """
  text = compiled.as_text()
  computations, _ = hlo.parse(text)
  names = hlo.scopes(computations, lambda scope: part_of(scope) != OTHERS)
  part = {name: part_of(scope) for name, scope in names.items()}
  if _AROUND['update'] not in part.values():
    raise RuntimeError(
        'No instruction of this program says that it updates parameters, so '
        'that its parts cannot be told. Is the task one of this package?')
  rows = collections.defaultdict(lambda: dict.fromkeys(
      ('time_s', 'products_s', 'flops', 'bytes'), 0.0))
  products = set()
  for one in hlo.executed(text, whole=True):
    x = one.instruction
    rows[part[x.name]]['bytes'] += costs.moved(one, computations)
    if costs.is_product(x, computations):
      products.add(x.name)
  written = lowered.as_text('hlo', debug_info=True)
  for one in hlo.executed(written, devices=devices):
    if flops := costs.flops(one):
      rows[part_of(one.scope)]['flops'] += flops / devices
  unseen_s = sum(run() for _ in range(steps))
  with tempfile.TemporaryDirectory() as folder:
    step_s = _record(folder, run, steps)
    lines = _read(folder, re.match(r'HloModule ([\w.\-]+)', text)[1])
  for name, time_s in shares(lines).items():
    row = rows[part.get(name, OTHERS)]
    row['time_s'] += time_s / steps
    if name in products:
      row['products_s'] += time_s / steps
  return {
      'step_s': step_s / steps, 'unseen_s': unseen_s / steps,
      'busy_s': sum(row['time_s'] for row in rows.values()),
      'parts': dict(sorted(
          rows.items(), key=lambda item: -item[1]['time_s']))}


@contextlib.contextmanager
def named(wanted: bool):
  """While it lasts, programs have the names of the code that there is, if that
  is wanted: the cache would give one that was compiled under others."""
  option = 'jax_compilation_cache_include_metadata_in_key'
  before = getattr(jax.config, option)
  jax.config.update(option, wanted or before)
  try:
    yield
  finally:
    jax.config.update(option, before)


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
  # Others are of links and of what stands beside the cores.
  devices = {int(found[1]): plane for plane in planes if (
      found := re.fullmatch(r'/device:(?:GPU|TPU):(\d+)', plane.name))}
  lines = []
  for plane in [devices[min(devices)]] if devices else planes:
    of_plane = list(plane.lines)
    # A TPU's other lines have what goes on beside, and the whole once more.
    for line in [x for x in of_plane if x.name == 'XLA Ops'] or of_plane:
      found = []
      for event in line.events:
        told = dict(event.stats)
        # A TPU has the instruction as the name.
        written = re.match(r'%([\w.\-]+) = ', event.name)
        # A GPU may name the loop around a kernel, too: loop::kernel.
        name = told.get('hlo_op', '').split('::')[-1] or (
            written and written[1])
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
