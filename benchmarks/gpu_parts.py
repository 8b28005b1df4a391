"""Parts of the measurement of an accelerator, each in a process of its own.

`python -m benchmarks.gpu_parts PART` prints a line of JSON for each result as
soon as it is there; `gpu.py` runs the parts and gathers the lines.
"""

import argparse
from collections.abc import Iterator
import copy
import importlib.util
import json
import os
import pathlib
import sys
import tempfile
import traceback

import jax
import numpy as np
import soundfile

from audio_mae_jax import compile_for
from audio_mae_jax import config as config_lib
from audio_mae_jax import measure
from audio_mae_jax.data import sources
from audio_mae_jax.models import attention as attention_lib
from benchmarks import work

# To compare ways of attention, a few blocks are enough: they compile faster.
# Of two blocks of the decoder, the second is shifted.
FEW_BLOCKS = {'model.encoder.depth': 1, 'model.decoder.depth': 2}
# Settings of a step of `--batch_size` clips; with a scan it compiles faster.
MEMORY = {
    f'ViT-L, remat {remat}': {
        'model.encoder.variant': 'L', 'model.remat': remat,
        'model.scan_layers': True}
    for remat in ('full', 'dots')}


def main(argv):
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('part', choices=PARTS)
  parser.add_argument('--task', default='pretrain')
  parser.add_argument('--steps', type=int, default=8)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--compile', nargs='+', default=['blocks', 'default'],
                      help='ways to compile PyTorch, one after another')
  parser.add_argument(
      '--again', action='store_true', help='compile the step twice')
  work.add_flags(parser)
  args = parser.parse_args(argv)
  jax.config.update(
      'jax_platforms', 'cpu' if args.device == 'cpu' else 'cuda')
  # Libraries write to standard output too: results have one of their own.
  results = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  for name, result in PARTS[args.part](args):
    print(json.dumps({name: result}), file=results, flush=True)


def changed(args, **settings):
  """`args` with more settings of the recipe."""
  args = copy.copy(args)
  args.set = args.set + list(settings.items())
  return args


def _step(args, steps=0):
  return measure.measure(work.config(args), measure.Options(
      steps=steps or args.steps, input='resident', part='step'))


def step(args) -> Iterator[tuple[str, dict]]:
  """The whole step on a resident batch; see docs/performance.md."""
  yield 'step', _step(args)
  if args.again:
    jax.clear_caches()  # what is left is on the disk, as for a new process
    yield attempt('again', lambda: _step(args, steps=1)['start'])


def breakdown(args):
  """Where the time of the step goes, by its parts."""
  yield 'breakdown', measure.measure(work.config(args), measure.Options(
      steps=args.steps, input='resident', part='breakdown'))['breakdown']


def attempt(name, fn, *args):
  """(name, result), or what went wrong: the next one may work."""
  try:
    return name, fn(*args)
  except Exception as error:
    traceback.print_exc()
    return name, {'error': f'{type(error).__name__}: {error}'.splitlines()[0]}


def attention(args):
  """A step of few blocks, with each way to attend in windows."""
  for name in attention_lib.CHOICES:
    # 'auto' is one of the others.
    if name != 'auto' and name not in attention_lib.OF_CPUS:
      yield attempt(name, _step, changed(
          args, **FEW_BLOCKS, **{'model.attention': name}))


def memory(args):
  """What the compiler says of the memory of larger and recomputing models."""
  for name, settings in MEMORY.items():
    yield attempt(name, lambda args: compile_for.compile_for(
        work.config(args), compile_for.HOST), changed(args, **settings))


def real_input(args):
  """The step fed from WAV files of 16 bits, and from the records of them."""
  with tempfile.TemporaryDirectory() as folder:
    wav, records = (pathlib.Path(folder, name) for name in ('wav', 'records'))
    # As many as make one step an epoch: a schedule of other steps is another
    # program, and would be compiled anew.
    write_clips(wav, args.batch_size, work.config(args))
    yield attempt('WAV', fed, args, 'folder', wav)
    yield attempt('records', fed_records, args, wav, records)


def fed_records(args, wav, folder):
  # Here, so that without array_record the rest is measured.
  from audio_mae_jax.prepare import records as records_lib
  from audio_mae_jax.prepare import shards
  source = sources.make(
      config_lib.Source(name='folder', path=str(wav)), config_lib.Data())
  folder.mkdir()
  records_lib.write(
      source, str(folder), shards.Settings(), count=1,
      num_threads=args.threads)
  return fed(args, 'records', folder)


def fed(args, source, path):
  args = changed(args, **{
      'data.train.name': source, 'data.train.path': str(path),
      'data.train.labels_csv': ''})
  return measure.measure(work.config(args), measure.Options(
      steps=args.steps, input='real'))


def write_clips(folder, count, config):
  folder.mkdir()
  rate = config.frontend.sample_rate_hz
  rng = np.random.default_rng(0)
  noise = rng.integers(
      -3000, 3000, round(config.data.clip_s * rate), np.int16)
  for i in range(count):
    soundfile.write(folder / f'{i:05d}.wav', np.roll(noise, i), rate)


def against_torch(args):
  """Ours against PyTorch, with either way of its to attend in windows."""
  if not importlib.util.find_spec('torch'):
    yield 'ratios', {'error': 'torch is not installed'}
    return
  from benchmarks import torch_audio_mae
  from benchmarks import train_step
  for way in args.compile:
    # A compiled step has no fast code for complex numbers.
    transform = 'fft' if way == 'blocks' else 'matmul'
    yield attempt(f'compiled: {way}', train_step.main, [
        f'--task={args.task}', *work.flags(args), f'--rounds={args.rounds}',
        f'--steps={args.steps}', '--windows', *torch_audio_mae.WINDOWS,
        f'--compile={way}', f'--torch_transform={transform}'])


PARTS = {'step': step, 'breakdown': breakdown, 'attention': attention,
         'memory': memory, 'input': real_input, 'torch': against_torch}

if __name__ == '__main__':
  main(sys.argv[1:])
