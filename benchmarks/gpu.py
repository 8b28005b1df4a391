"""Measures everything that docs/performance.md says of one GPU.

  python -m benchmarks.gpu --output=gpu.json

Prints one Markdown table and writes one JSON. It needs what the package
installs and no network; where torch is installed with CUDA, PyTorch is compared
with. Each part is a process of its own with a time limit, so that one which
fails or hangs costs only itself. What the whole limit left out is measured by
the same command again: parts that the file already has are not repeated.
`--device=cpu --tiny` tries all of it in a minute or two, and measures nothing.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from benchmarks import alternate
from benchmarks import gpu_table
from benchmarks import work

TOGETHER = 1 / 4  # of the batch, where several processes share the memory


@dataclasses.dataclass(frozen=True)
class Part:
  limit_s: float
  command: tuple[str, ...]  # a part of gpu_parts.py and its flags
  batch: float = 1.0  # of the whole one


# In the order of what matters: the whole limit cuts off the end.
PARTS = {
    'pretrain': Part(130, ('step',)),
    'torch pretrain': Part(170, ('torch',), TOGETHER),
    'finetune': Part(100, ('step', '--task=finetune')),
    'pretrain again': Part(60, ('step', '--steps=5')),
    'attention': Part(130, ('attention',)),
    'input': Part(90, ('input', '--steps=10')),
    'torch finetune': Part(120, ('torch', '--task=finetune'), TOGETHER),
    'memory': Part(120, ('memory',)),
    'largest': Part(120, ('step', '--steps=5')),
}
LEAST_S = 20  # that a part is worth starting for


def main(argv):
  parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
  parser.add_argument('--output', default='gpu.json')
  parser.add_argument(
      '--seconds', type=float, default=460, help='for all parts together')
  parser.add_argument(
      '--parts', nargs='+', choices=PARTS, default=list(PARTS))
  work.add_flags(parser)
  parser.set_defaults(batch_size=512, dtype='bfloat16', device='gpu')
  args = parser.parse_args(argv)
  path = pathlib.Path(args.output)
  result = json.loads(path.read_text()) if path.exists() else {}
  result['machine'] = alternate.machine() | gpus()
  end = time.monotonic() + args.seconds
  with tempfile.TemporaryDirectory() as cache:
    for name in args.parts:
      if 'error' in result.get(name, {'error': ''}):
        result[name] = measure(name, args, result, cache, end)
        path.write_text(json.dumps(result, indent=2) + '\n')
  print(gpu_table.table(result))
  print(f'\nWritten to {path.resolve()}')
  return result


def gpus() -> dict:
  """The GPUs that the driver shows, and it."""
  try:
    told = subprocess.run(
        ['nvidia-smi', '--query-gpu=name,driver_version,memory.total',
         '--format=csv,noheader'], capture_output=True, text=True, timeout=30)
  except (OSError, subprocess.TimeoutExpired):
    return {}
  return {'gpus': told.stdout.strip().splitlines()}


def measure(name, args, result, cache, end) -> dict:
  """Results of a part by name; with an 'error' if it did not get through."""
  part = PARTS[name]
  left = end - time.monotonic()
  limit = left if args.tiny else min(part.limit_s, left)
  if limit < LEAST_S:
    return {'error': 'left out: no time. The same command goes on with it'}
  batch = max(2, round(args.batch_size * part.batch))
  if name == 'largest':
    batch = gpu_table.largest_batch(result.get('pretrain', {}).get('step'))
    if not batch:
      return {'error': 'not known how much memory there is'}
  flags = work.flags(argparse.Namespace(**vars(args) | {'batch_size': batch}))
  command = [sys.executable, '-m', 'benchmarks.gpu_parts', *part.command,
             *flags] + (['--steps=2'] if args.tiny else [])
  if args.device == 'cpu' and part.command[0] == 'torch':
    command.append('--compile=none')
  print(f'{name}: at most {limit:.0f} s', file=sys.stderr, flush=True)
  begin = time.monotonic()
  found = run(command, limit, environment(name, cache))
  return found | {'took_s': time.monotonic() - begin}


def environment(name, cache) -> dict[str, str]:
  """What the part's process is told, unless the user said otherwise."""
  own = {'JAX_COMPILATION_CACHE_DIR': cache,
         'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
         # Of the device's memory; the default is three quarters.
         'XLA_PYTHON_CLIENT_MEM_FRACTION': '.95'}
  if PARTS[name].batch != 1:
    own['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'
  if name == 'memory':  # nothing runs, and choosing kernels takes long
    own['XLA_FLAGS'] = (
        f'{os.environ.get("XLA_FLAGS", "")} --xla_gpu_autotune_level=0')
    return os.environ | own
  return own | os.environ


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
