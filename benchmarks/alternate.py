"""Runs measured commands in alternation, and prints ratios with their spread.

Other load on a machine comes and goes: A B A B ... lets both sides meet the
same, and each round gives one ratio. Processor seconds, which other load
disturbs least, are compared beside wall seconds. Each side is a process of its
own (`worker.py` is its half of the protocol).
"""

import dataclasses
import functools
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]
_VERSIONS = ('jax', 'jaxlib', 'flax', 'torch', 'onnxruntime', 'numpy')


@dataclasses.dataclass(frozen=True)
class Side:
  """A worker: its name in tables and its command line after `python`."""
  name: str
  command: tuple[str, ...]


class Failed(RuntimeError):
  """A worker ended before it had answered."""


class Worker:
  """A process that measures; see `worker.serve`."""

  def __init__(self, side: Side, cache: str, together: bool):
    self.side = side
    own = {'JAX_COMPILATION_CACHE_DIR': cache}
    if together:  # JAX would take three quarters of a GPU's memory at once
      own['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'
    self._process = subprocess.Popen(
        [sys.executable, *side.command], cwd=ROOT, text=True,
        env=own | os.environ,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

  @functools.cached_property
  def setup(self) -> dict:
    """What it is; waits until it is ready to measure."""
    return self._answer()

  def _answer(self):
    line = self._process.stdout.readline()
    if not line:
      raise Failed(
          f'{self.side.name} ended with status {self._process.wait()}; what it '
          f'says is above: python {" ".join(self.side.command)}')
    return json.loads(line)

  def measure(self, steps: int) -> dict:
    """Seconds of a step, and what was measured."""
    setup = self.setup
    self._process.stdin.write(f'{steps}\n')
    self._process.stdin.flush()
    return setup | self._answer()

  def close(self):
    self._process.stdin.close()
    self._process.wait()


def run(sides: list[Side], rounds: int, steps: int,
        together: bool = True) -> dict:
  """Measures each side once in each round, in turn.

  Args:
    sides: what to compare; ratios are those of the first to each other one.
    rounds: of measurements; each gives one ratio for each pair.
    steps: timed in a measurement, after one that is not.
    together: all processes live from the first round to the last, and wait
      while another is measured. Otherwise each is started anew, and there is
      never more than one: for what fills a device's memory.
  """
  alive, found = {}, {side.name: [] for side in sides}
  # A process that starts anew finds what the one before it has compiled.
  cache = tempfile.TemporaryDirectory()
  try:
    if together:
      start(sides, cache.name, alive)
    for _ in range(rounds):
      for side in sides:
        if side.name not in alive:
          alive[side.name] = Worker(side, cache.name, together)
        found[side.name].append(alive[side.name].measure(steps))
        if not together:
          alive.pop(side.name).close()
  finally:
    for worker in alive.values():
      worker.close()
    cache.cleanup()
  return {'machine': machine(), 'rounds': found,
          'ratios': ratios(found)}


def need(*packages: str):
  """Exits if one of `packages`, to compare with, is not installed."""
  missing = [name for name in packages if not importlib.util.find_spec(name)]
  if missing:
    sys.exit(f'Not installed, and compared with: {", ".join(missing)}. '
             "pip install -e '.[test,torch,onnx]' has all of them.")


def start(sides: list[Side], cache: str, alive: dict[str, Worker]):
  """Adds a worker for each of `sides` to those `alive`, all ready.

  The first has the machine for itself, as XLA chooses kernels for a GPU by
  their time; the others get ready at once.
  """
  alive[sides[0].name] = Worker(sides[0], cache, together=True)
  _ = alive[sides[0].name].setup
  for side in sides[1:]:
    alive[side.name] = Worker(side, cache, together=True)
  for side in sides[1:]:
    _ = alive[side.name].setup


def ratios(found: dict[str, list[dict]]) -> dict[str, dict]:
  """Seconds of each other side over those of the first: above 1, it is faster.

  For each pair and each kind of seconds the ratio of every round, their median,
  least and most.
  """
  (first, own), *others = found.items()
  result = {}
  for name, measured in others:
    result[f'{name} / {first}'] = {
        kind: _spread([b[kind] / a[kind] for a, b in zip(own, measured)])
        for kind in ('wall_s', 'cpu_s')}
  return result


def _spread(values):
  return {'median': statistics.median(values), 'min': min(values),
          'max': max(values), 'all': values}


def machine() -> dict:
  """What was measured on."""
  versions = {}
  for name in _VERSIONS:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      pass
  return {'processor': _processor(), 'cores': len(os.sched_getaffinity(0)),
          'load': os.getloadavg()[0],
          'python': platform.python_version(), **versions}


def _processor():
  info = pathlib.Path('/proc/cpuinfo')
  names = {} if not info.exists() else dict(
      map(str.strip, line.split(':', 1))
      for line in info.read_text().splitlines() if ':' in line)
  return names.get('model name', platform.processor() or platform.machine())


def table(result: dict) -> str:
  """Markdown: seconds of each side, then the ratios."""
  at = result['machine']
  lines = [', '.join(f'{name} {value}' for name, value in at.items()), '',
           '| | wall s a step | processor s | peak of process | of device |',
           '|---|---|---|---|---|']
  for name, measured in result['rounds'].items():
    values = {kind: [x[kind] for x in measured] for kind in measured[0]}
    cells = [name, *(_told(_spread(values[kind]), '.3g')
                     for kind in ('wall_s', 'cpu_s')),
             *(_size(values[kind]) for kind in (
                 'process_bytes', 'device_bytes'))]
    lines.append(f'| {" | ".join(cells)} |')
  lines += ['', '| ratio | wall | processor |', '|---|---|---|']
  for name, kinds in result['ratios'].items():
    lines.append(f'| {name} | {_told(kinds["wall_s"], ".2f")} '
                 f'| {_told(kinds["cpu_s"], ".2f")} |')
  return '\n'.join(lines)


def _told(spread, form):
  low, mid, high = (format(spread[x], form) for x in ('min', 'median', 'max'))
  return f'{mid} ({low} to {high})'


def _size(peaks):
  return f'{max(peaks) / 1e9:.2f} GB' if all(peaks) else '-'


def add_flags(parser, rounds=5, steps=3):
  """Flags of `run`."""
  parser.add_argument('--rounds', type=int, default=rounds)
  parser.add_argument(
      '--steps', type=int, default=steps, help='timed, in each round')
  parser.add_argument(
      '--one_at_a_time', action='store_true',
      help='start each process anew in each round: needs less memory')
  parser.add_argument('--output', help='a JSON file for all that was measured')


def compare(sides: list[Side], args) -> dict:
  """`run` as the flags say; prints the table and writes the file."""
  result = run(sides, args.rounds, args.steps, not args.one_at_a_time)
  print(table(result))
  if args.output:
    pathlib.Path(args.output).write_text(json.dumps(result, indent=2) + '\n')
  return result
