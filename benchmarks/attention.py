"""Compares all implementations of attention on the device that is there.

  python -m benchmarks.attention            # the released sizes, bfloat16
  python -m benchmarks.attention --variants # and how the kernels are cut
  python -m benchmarks.attention --clips=4 --dtype=float32  # on a CPU

Each implementation (audio_mae_jax/models/attention.py) gets the projection of
queries, keys and values, and is compiled forward alone and forward with
backward. All run in turn, round after round; what is printed is each one's time
over the reference's in the same round: median and quartiles. Before, results
and gradients are compared with the reference's in float32, so that this is a
test on hardware, too: it ends with status 1 if one is off, or if one fails for
which there is a GPU and which the package does not refuse.
"""

import argparse
import functools
import json
import pathlib
import sys
import time
import traceback

import jax
import jax.numpy as jnp
import numpy as np

from audio_mae_jax.models import attention
from audio_mae_jax.models import window

# Relative to the largest number, against the reference in float32.
TOLERANCE = {'bfloat16': 0.03, 'float32': 0.01}  # products in TF32 on GPUs
PARTS = ('forward', 'forward and backward')


def variants():
  """Other cuts of the two fused kinds of windows."""
  from audio_mae_jax.models import window_kernel
  return {
      'cudnn, windows apart': functools.partial(
          attention.dot_product_windows, implementation='cudnn', together=1),
      **{f'pallas, {n} clips a program': functools.partial(
          window_kernel.attend, clips=n) for n in (1, 2, 4, 16)}}


def cases(options):
  """{name: (implementations, arrays)}; the first array is the projection."""
  draw = lambda seed, *shape: jnp.asarray(
      np.random.default_rng(seed).normal(size=shape), jnp.float32)
  b, tokens = options.clips, options.tokens
  heads, width = options.window_heads, options.window_width
  found = {}
  if options.kind != 'windows':
    found[f'{tokens} tokens'] = {
        key: lambda qkv, run=run: run(qkv, options.heads)
        for key, run in attention.FULL.items()
        if key not in attention.OF_CPUS or jax.default_backend() == 'cpu'}, (
            draw(2, b, tokens, 3 * options.width),)
  if options.kind == 'full':
    return found
  shared = (draw(0, b, 32, 16, 3 * width), draw(1, heads, 16, 16),
            jnp.linspace(0.1, 1, heads))
  tables = attention.WINDOWS | (variants() if options.variants else {})
  grid, size, shift = (64, 8), (4, 4), (2, 0)
  for name, mask in (('windows', None),
                     ('shifted windows', window.shift_mask(grid, size, shift))):
    found[name] = {
        key: lambda qkv, bias, tau, run=run, mask=mask: run(
            qkv, heads, bias, tau, mask) for key, run in tables.items()}, shared
  return found


def with_gradients(run):
  """Function of weights and arrays: the result, and gradients of its sum with
  the weights."""

  def both(weight, *arrays):
    y, back = jax.vjp(run, *arrays)
    return y, *back(weight.astype(y.dtype))

  return both


def compile_all(case, dtype):
  """{name: programs with arrays, and their error; or why it was 'refused' or
  'failed'}."""
  implementations, arrays = case
  rounded = (arrays[0].astype(dtype), *arrays[1:])
  reference = next(iter(implementations.values()))
  exact = (rounded[0].astype(jnp.float32), *arrays[1:])
  # An argument of the programs: XLA would compute with a constant, for minutes.
  shape = (*arrays[0].shape[:-1], arrays[0].shape[-1] // 3)
  weight = jnp.asarray(np.random.default_rng(3).normal(size=shape), dtype)
  want = jax.jit(with_gradients(reference))(weight, *exact)
  found = {}
  for name, run in implementations.items():
    try:
      compiled = {
          part: (jax.jit(program).lower(*given).compile(), given)
          for part, program, given in zip(
              PARTS, (run, with_gradients(run)),
              (rounded, (weight, *rounded)))}
      program, given = compiled[PARTS[1]]
      got = program(*given)
      # Not `max` of Python, which may pass a NaN over.
      found[name] = compiled | {
          'error': float(np.max([*map(distance, got, want)]))}
    except Exception as error:  # the compilers have many kinds
      why = f'{type(error).__name__}: {error}'.splitlines()[0]
      if refused(name, error):
        found[name] = {'refused': why}
      else:
        traceback.print_exc()
        found[name] = {'failed': why}
  return found


def refused(name: str, error: Exception) -> bool:
  """Whether `error` of an implementation says that it is not for this device,
  and not that it is broken."""
  own = isinstance(error, ValueError) and (
      str(error).startswith('model.attention='))
  of_gpus = name.split(',')[0] in attention.OF_GPUS
  return own or of_gpus and jax.default_backend() != 'gpu'


def distance(a, b):
  return float(jnp.abs(a.astype(jnp.float32) - b).max() / jnp.abs(b).max())


def rounds(compiled, count):
  """Seconds of each, [rounds]: all in turn. On a CPU, of all its threads."""
  clock = (time.process_time if jax.default_backend() == 'cpu' else
           time.perf_counter)
  times = {name: [] for name in compiled}
  for number in range(count + 1):
    for name, (program, arrays) in compiled.items():
      begin = clock()
      jax.block_until_ready(program(*arrays))
      if number:  # the first warms up
        times[name].append(clock() - begin)
  return {name: np.array(x) for name, x in times.items()}


def report(case, found, options):
  """Prints a table of the case, and gives its figures."""
  runs = {k: v for k, v in found.items() if 'error' in v}
  result = {k: v for k, v in found.items() if k not in runs}
  print(f'\n{case}')
  for name, x in result.items():
    print(f'  {name}: failed: {x["failed"]}' if 'failed' in x else
          f'  {name}: does not run here: {x["refused"]}')
  reference = next(iter(runs), None)
  for part in PARTS if runs else ():
    print(f'  {part:34}    ms  over {reference} (quartiles)   MB    GFLOP  '
          'temporary MB  error')
    times = rounds(
        {name: x[part] for name, x in runs.items()}, options.rounds)
    for name, x in runs.items():
      program, _ = x[part]
      cost, memory = program.cost_analysis() or {}, program.memory_analysis()
      row = {
          'ms': 1e3 * float(np.median(times[name])),
          'ratio': np.quantile(
              times[name] / times[reference], (0.25, 0.5, 0.75)).tolist(),
          'mb': cost.get('bytes accessed', 0) / 1e6,
          'gflop': cost.get('flops', 0) / 1e9,
          'temporary_mb': memory.temp_size_in_bytes / 1e6, 'error': x['error']}
      result.setdefault(name, {})[part] = row
      low, middle, high = row['ratio']
      print(f'    {name:28} {row["ms"]:9.3f}  {middle:6.3f} ({low:.3f} to '
            f'{high:.3f})  {row["mb"]:10.1f} {row["gflop"]:8.2f} '
            f'{row["temporary_mb"]:12.1f}  {row["error"]:.1e}')
  return result


def main(argv=None):
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  for name, default in (
      ('clips', 512), ('rounds', 20), ('window-width', 512),
      ('window-heads', 16), ('tokens', 103), ('width', 768), ('heads', 12)):
    parser.add_argument(f'--{name}', type=int, default=default)
  parser.add_argument('--dtype', default='bfloat16', choices=TOLERANCE)
  parser.add_argument(
      '--kind', default='all', choices=('all', 'windows', 'full'))
  parser.add_argument('--variants', action='store_true')
  parser.add_argument('--output', help='figures as JSON, to this file')
  options = parser.parse_args(argv)
  device = jax.devices()[0]
  print(f'{device.device_kind}, jax {jax.__version__}, {options.clips} clips, '
        f'{options.dtype}; bytes and FLOPs are the compiler\'s, which knows '
        'nothing of what is inside of kernels')
  results = {}
  for name, case in cases(options).items():
    results[name] = report(name, compile_all(case, options.dtype), options)
  if options.output:
    pathlib.Path(options.output).write_text(json.dumps(
        {'device': device.device_kind, 'jax': jax.__version__,
         **vars(options), 'results': results}, indent=2))
  off = [f'{case}: {name}' for case, rows in results.items()
         for name, row in rows.items()
         if 'failed' in row or 'refused' not in row and not (
             row['forward']['error'] < TOLERANCE[options.dtype])]
  if off:
    sys.exit('Failed, or not what the reference gives: ' + ', '.join(off))


if __name__ == '__main__':
  main()
