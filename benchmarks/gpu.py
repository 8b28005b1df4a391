"""Measures what docs/performance.md says of one GPU, in eight minutes.

  python -m benchmarks.gpu --output=gpu.json

Prints one Markdown table and writes one JSON. It needs what the package
installs and no network; where torch is installed with CUDA, PyTorch is compared
with. Each part is a process of its own with a time limit, so that one which
fails or hangs costs only itself. The same command again measures what is
missing or went wrong: what the file has is not repeated, and stays. A file of
other flags, code, versions or GPUs is refused.
`--device=cpu --tiny` tries all of it in some minutes, and measures nothing.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import audio_mae_jax
from audio_mae_jax import storage
from benchmarks import alternate
from benchmarks import gpu_table
from benchmarks import work

TOGETHER = 1 / 4  # of the batch, where several processes share the memory
SECONDS = 460


@dataclasses.dataclass(frozen=True)
class Part:
  limit_s: float  # of SECONDS; docs/performance.md has what is expected
  command: tuple[str, ...]  # a part of gpu_parts.py and its flags
  batch: float = 1.0  # of the whole one


# The first compiles cold, with an empty cache of programs; those of the same
# step find it there. The one that can be told least comes last: it has what the
# others leave.
PARTS = {
    'pretrain': Part(95, ('step', '--again')),
    'finetune': Part(45, ('step', '--task=finetune')),
    'input': Part(65, ('input', '--steps=6')),
    'torch pretrain': Part(255, ('torch', '--steps=5'), TOGETHER),
}
MORE = {  # where --parts names them
    'breakdown': Part(90, ('breakdown',)),
    'breakdown finetune': Part(90, ('breakdown', '--task=finetune')),
    'attention': Part(60, ('attention', '--steps=5')),
    'torch finetune': Part(
        120, ('torch', '--task=finetune', '--steps=5'), TOGETHER),
    'memory': Part(60, ('memory',)),
}
ALL = PARTS | MORE
LEAST_S = 20  # that a part is worth starting for


def main(argv):
  args = flags(argv)
  path = pathlib.Path(args.output)
  mine = identity(args)
  result = before(path, mine)
  result['machine'] = mine['machine'] | {'load': os.getloadavg()[0]}
  todo = [name for name in ALL
          if name in args.parts and not whole(result.get(name, {}))]
  end = time.monotonic() + args.seconds
  with tempfile.TemporaryDirectory() as cache:
    for i, name in enumerate(todo):
      limit = end - time.monotonic()
      if not args.tiny:  # its share of what is left
        limit *= ALL[name].limit_s / sum(ALL[x].limit_s for x in todo[i:])
      result[name] = merged(
          result.get(name, {}), measure(name, args, cache, limit))
      storage.write_text(path, json.dumps(result, indent=2) + '\n')
  print(gpu_table.table(result))
  if not todo:
    print('\nNothing was measured: the file has it all.')
  if args.tiny:
    print('\nA rehearsal with a tiny model: its figures mean nothing.')
  print(f'\nWritten to {path.resolve()}')
  return result


def flags(argv) -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
  parser.add_argument(
      '--output', help='JSON (default: gpu.json, with --tiny gpu_tiny.json)')
  parser.add_argument(
      '--seconds', type=float, default=SECONDS,
      help='for all parts together; a slow machine may need more')
  parser.add_argument(
      '--parts', nargs='+', choices=ALL, default=list(PARTS), metavar='PART',
      help=f'{", ".join(map(repr, PARTS))} (the default), '
      f'{", ".join(map(repr, MORE))}')
  work.add_flags(parser)
  parser.set_defaults(batch_size=512, dtype='bfloat16', device='gpu')
  args = parser.parse_args(argv)
  args.output = args.output or ('gpu_tiny.json' if args.tiny else 'gpu.json')
  return args


def identity(args) -> dict:
  """What a measurement depends on; of another one nothing may be kept."""
  machine = alternate.machine() | gpus()
  del machine['load']
  return {'flags': work.flags(args), 'code': code(),
          'version': audio_mae_jax.__version__, 'commit': commit(),
          'XLA_FLAGS': os.environ.get('XLA_FLAGS', ''), 'machine': machine}


def code() -> str:
  """A checksum of all that runs, committed or not."""
  found = hashlib.sha256()
  for room in ('audio_mae_jax', 'benchmarks', 'configs'):
    for path in sorted((work.ROOT / room).rglob('*.py')):
      found.update(f'{path.relative_to(work.ROOT)}\n'.encode())
      found.update(path.read_bytes())
  return found.hexdigest()


def commit() -> str | None:
  """The one that is checked out, if this is a checkout."""
  if not (work.ROOT / '.git').exists():
    return None
  try:
    told = subprocess.run(
        ['git', 'rev-parse', 'HEAD'], cwd=work.ROOT, capture_output=True,
        text=True, timeout=30)
  except (OSError, subprocess.TimeoutExpired):
    return None
  return told.stdout.strip() or None


def gpus() -> dict:
  """The GPUs that the driver shows, and it."""
  try:
    told = subprocess.run(
        ['nvidia-smi', '--query-gpu=name,driver_version,memory.total',
         '--format=csv,noheader'], capture_output=True, text=True, timeout=30)
  except (OSError, subprocess.TimeoutExpired):
    return {}
  return {'gpus': told.stdout.strip().splitlines()}


def before(path: pathlib.Path, mine: dict) -> dict:
  """What the file at `path` has of the measurement `mine`.

  Exits, and leaves the file as it is, if it is of another one.
  """
  if not path.exists():
    return {'identity': mine}
  try:
    found = json.loads(path.read_text())
    theirs = found['identity']
    if 'torch' in mine['machine']:  # perhaps installed since, to compare with
      theirs['machine'].setdefault('torch', mine['machine']['torch'])
    differs = [name for name in mine if theirs[name] != mine[name]
               and name != 'commit']  # one of documents changes no number
  except (ValueError, LookupError, TypeError, AttributeError):
    sys.exit(f'{path} is no measurement of this command. It stays as it is: '
             'name another --output.')
  if differs:
    sys.exit(f'{path} is a measurement with other {", ".join(differs)}:\n'
             + '\n'.join(f'  {name}: {theirs[name]}, and now {mine[name]}'
                         for name in differs)
             + '\nThe two do not mix: name another --output.')
  return found


def failed(result) -> bool:
  return isinstance(result, dict) and 'error' in result


def whole(part: dict) -> bool:
  """Whether nothing went wrong in a part, and it has any results."""
  return bool(part) and not failed(part) and not any(
      map(failed, part.values()))


def merged(old: dict, new: dict) -> dict:
  """`new`, and results of `old` where it has none."""
  lost = lambda name: name not in new or failed(new[name])
  return new | {
      name: result for name, result in old.items()
      if name not in ('error', 'took_s') and not failed(result) and lost(name)}


def measure(name, args, cache, limit) -> dict:
  """Results of a part by name; with an 'error' if it did not get through."""
  part = ALL[name]
  if limit < LEAST_S:
    return {'error': 'left out: no time. The same command goes on with it'}
  command = [sys.executable, '-m', 'benchmarks.gpu_parts',
             *arguments(part, args)]
  print(f'{name}: at most {limit:.0f} s', file=sys.stderr, flush=True)
  begin = time.monotonic()
  found = run(command, limit, environment(name, cache))
  return found | {'took_s': time.monotonic() - begin}


def arguments(part, args) -> list[str]:
  args = argparse.Namespace(**vars(args))
  args.batch_size = max(2, round(args.batch_size * part.batch))
  if '--task=finetune' in part.command:
    args.preset = ''  # they are of pre-training
  found = [*part.command, *work.flags(args)] + ['--steps=2'] * args.tiny
  if args.device == 'cpu' and part.command[0] == 'torch':
    found.append('--compile=none')
  return found


def environment(name, cache) -> dict[str, str]:
  """What the part's process is told."""
  told = {'JAX_COMPILATION_CACHE_DIR': cache,
          'JAX_ENABLE_COMPILATION_CACHE': 'true',
          'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
  if name == 'memory':  # nothing runs, and choosing kernels takes long
    told['XLA_FLAGS'] = (
        f'{os.environ.get("XLA_FLAGS", "")} --xla_gpu_autotune_level=0')
  # Of the device's memory, unless the user says otherwise; the default is three
  # quarters.
  return {'XLA_PYTHON_CLIENT_MEM_FRACTION': '.95'} | os.environ | told


def run(command, limit_s: float, env) -> dict:
  """What the lines of JSON say that `command` printed within the limit."""
  with tempfile.TemporaryFile('w+') as out, subprocess.Popen(
      command, cwd=work.ROOT, env=env, stdout=out,
      start_new_session=True) as process:
    try:
      status = process.wait(limit_s)
      error = f'ended with status {status}' if status else ''
    except subprocess.TimeoutExpired:
      error = f'not done after {limit_s:.0f} s'
    finally:  # those that it started, too
      try:
        os.killpg(process.pid, signal.SIGKILL)
      except ProcessLookupError:
        pass
    out.seek(0)
    found = {}
    for line in out:
      if line.endswith('\n'):
        found |= json.loads(line)
  return found | ({'error': error} if error else {})


if __name__ == '__main__':
  main(sys.argv[1:])
