"""What an export is worth: how far it is from JAX, and how long it takes."""

import pathlib
import statistics
import time

import jax
import numpy as np

from audio_mae_jax import config as config_lib
from audio_mae_jax.data import audio_io
from audio_mae_jax.data import recordings
from audio_mae_jax.data import sources
from audio_mae_jax.export import program as program_lib

TOLERANCE = 1e-4
_CLIPS = 3  # of each length
_RUNS, _LIMIT_S = 21, 20.0  # of each side, for the latency


def clips(program: program_lib.Program, samples: int, files=()) -> np.ndarray:
  """float32 [3, S]: so much of three recordings, which are repeated to fill it.

  Of `files`, or else of those that come with the package.

  Raises:
    ValueError: fewer than one of them can be read.
  """
  items = [{'audio': str(path), 'id': str(path), 'start_s': 0.0,
            'duration_s': None} for path in files]
  source = items or sources.demo(
      config_lib.Data(), 'export', split='', classes=(), segment_s=0.0)
  found, reasons = [], []
  for i in range(0, len(source), max(1, len(source) // _CLIPS)):
    try:
      found.append(audio_io.load(
          source[i], sample_rate_hz=program.config.frontend.sample_rate_hz,
          num_samples=samples, crop='start', rng=np.random.default_rng(0)))
    except recordings.BadAudio as error:
      reasons.append(f'{source[i]["id"]}: {error}')
  if not found:
    raise ValueError(
        f'There is no audio to compare with: {"; ".join(reasons)}.')
  return np.stack([np.resize(x, samples) for x in found[:_CLIPS]])


def compare(program, run, lengths, files=()) -> list[dict]:
  """For each length, the largest difference of each output from JAX's.

  Raises:
    ValueError: one is larger than TOLERANCE, or not a number.
  """
  reference, found = jax.jit(program), []
  for samples in lengths:
    audio = clips(program, samples, files)
    want, got = reference(audio), run(audio)
    gaps = {name: float(np.abs(np.asarray(want[name]) - got[name]).max())
            for name in program.outputs}
    found.append({'samples': samples, 'clips': len(audio), 'gaps': gaps})
    for name, gap in gaps.items():
      if not gap <= TOLERANCE:
        raise ValueError(
            f'The export disagrees with the model: {name} of {samples} samples '
            f'by {gap:.2g}, and {TOLERANCE:g} is allowed. Nothing was written.')
  return found


def latency(program, run, samples, files=()) -> dict:
  """Milliseconds for one clip, quartiles of runs in turn, on this machine."""
  audio = clips(program, samples, files)[:1]
  compiled = jax.jit(program)
  sides = {'export': run, 'jax': lambda x: jax.block_until_ready(compiled(x))}
  times = {name: [] for name in sides}
  for call in sides.values():
    call(audio)
  end = time.monotonic() + _LIMIT_S
  while len(times['jax']) < _RUNS and (
      len(times['jax']) < 3 or time.monotonic() < end):
    for name, call in sides.items():
      start = time.perf_counter()
      call(audio)
      times[name].append(1000 * (time.perf_counter() - start))
  return {'samples': samples, 'runs': len(times['jax']),
          'device': jax.devices()[0].device_kind} | {
              f'{name}_ms': statistics.quantiles(x, n=4)
              for name, x in times.items()}


def table(found: dict) -> str:
  """The report for people; `found` is what `export.write` gives."""
  rate = found['facts']['sample_rate_hz']
  lines = []
  for row in found['parity']:
    gaps = ', '.join(f'{name} {gap:.1e}' for name, gap in row['gaps'].items())
    lines.append(f'{row["samples"] / rate:8.3f} s  largest difference from '
                 f'JAX: {gaps}')
  times = found['latency']
  one = lambda name: '{1:.1f} ms ({0:.1f} to {2:.1f})'.format(*times[name])
  lines.append(
      f'{times["samples"] / rate:8.3f} s  one clip: {one("export_ms")}, JAX '
      f'{one("jax_ms")} on {times["device"]}; median and quartiles of '
      f'{times["runs"]} runs in turn')
  lines.append(f'{found["bytes"] / 1e6:8.1f} MB')
  return '\n'.join(lines)


def size(folder) -> int:
  return sum(x.stat().st_size for x in pathlib.Path(folder).rglob('*')
             if x.is_file())
