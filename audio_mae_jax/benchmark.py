"""How fast a recipe runs on this machine, for any task.

  python -m audio_mae_jax.benchmark --config=configs/pretrain_as2m.py

Prints a table and writes the same numbers as JSON. Settings of the recipe are
flags, as in training (--config.train.batch_size=64). Nothing is written to the
run's work directory.

  python -m audio_mae_jax.benchmark --config=configs/pretrain_as2m.py \
      --compile_for=v5e:4x4

runs nothing: it compiles the step for sixteen chips that need not be there, and
tells what the compiler says (docs/scaling.md).
"""

import json
import os
import pathlib

from absl import flags

from audio_mae_jax import benchmark_table
from audio_mae_jax import cli
from audio_mae_jax import compile_for
from audio_mae_jax import config as config_lib
from audio_mae_jax import distributed
from audio_mae_jax import measure
from audio_mae_jax.embed import speed

_STEPS = flags.DEFINE_integer(
    'steps', measure.Options.steps, 'Steps timed in each measurement.')
_WARMUP = flags.DEFINE_integer(
    'warmup', measure.Options.warmup, 'Steps before, not timed.')
_INPUT = flags.DEFINE_enum(
    'input', measure.Options.input, list(measure.INPUTS), '; '.join(
        f'{name}: {what}' for name, what in measure.INPUTS.items()))
_PART = flags.DEFINE_enum(
    'part', measure.Options.part, list(measure.PARTS), '; '.join(
        f'{name}: {what}' for name, what in measure.PARTS.items()))
_WINDOWS = flags.DEFINE_integer(
    'windows', 8, 'Of --part=embed: windows that a device encodes at once.')
_COMPILE_FOR = flags.DEFINE_string(
    'compile_for', '', 'Compile, and run nothing: a TPU topology as v5e:4x4, '
    f'v4:4x4x4, v5p:4x4x8 or v6e:16x16; or {compile_for.HOST}.')
_OUTPUT = flags.DEFINE_string(
    'output', '', 'JSON file; by default benchmark_NAME.json in this folder, '
    'or benchmark_NAME_PART.json if --part is given.')
flags.adopt_module_key_flags(cli)  # --help names them


def benchmark(config: config_lib.Config):
  """Measures as the flags say, prints, and writes."""
  options = measure.Options(
      _STEPS.value, _WARMUP.value, _INPUT.value, _PART.value)
  part = '' if options.part == 'all' else f'_{options.part}'
  path = pathlib.Path(_OUTPUT.value or f'benchmark_{config.name}{part}.json')
  check_output(path)
  distributed.end_at_sigterm()
  if _COMPILE_FOR.value:
    if _PART.value != 'all':
      raise ValueError(
          f'--part={_PART.value} runs on devices, and --compile_for runs '
          'nothing. Give one of the two.')
    config, _ = measure.open_clips(config, 'synthetic')
    result = compile_for.compile_for(config, _COMPILE_FOR.value)
  elif options.part == 'embed':
    result = speed.measure(
        config, _WINDOWS.value, options.steps, options.warmup)
  else:
    result = measure.measure(config, options)
  if distributed.is_first():
    print(benchmark_table.table(result))
    path.write_text(json.dumps(result, indent=2, allow_nan=False) + '\n')
    print(f'\nWritten to {path.resolve()}')


def check_output(path: pathlib.Path):
  """Now rather than after minutes of measuring."""
  if not os.access(path.parent, os.W_OK) or path.is_dir():
    raise ValueError(
        f'Cannot write {str(path)!r}: it is a folder, or is not in one that '
        'you may write to. Give another file: --output=FILE.json.')


if __name__ == '__main__':
  cli.run(benchmark)
