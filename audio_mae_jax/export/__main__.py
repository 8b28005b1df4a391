"""Command line: python -m audio_mae_jax.export ...

  python -m audio_mae_jax.export --checkpoint runs/NAME --format onnx \
      --output onnx/
"""

import argparse
import signal
import sys

from audio_mae_jax import cli
from audio_mae_jax import weights
from audio_mae_jax.export import report
from audio_mae_jax.export import writing


def main(argv=None):
  options = parser().parse_args(argv)
  cli.log_to_terminal()
  with cli.telling():
    weights.check_absent(options.output)
    found = writing.write(
        weights.load(options.checkpoint), options.format, options.output,
        max_s=options.max_s, lengths_s=options.lengths_s, audio=options.audio)
    print(f'Written to {options.output}: {options.format}, '
          f'{" and ".join(found["facts"]["outputs"])}\n{report.table(found)}')


def parser() -> argparse.ArgumentParser:
  command = argparse.ArgumentParser(
      prog='python -m audio_mae_jax.export', allow_abbrev=False,
      description='A model as a file that others run: waveform in, embeddings '
      'out. It is compared with the model before it is left.')
  command.add_argument(
      '--checkpoint', required=True, metavar='DIR',
      help='a run (runs/NAME), a checkpoint of it, or a folder of weights')
  command.add_argument('--format', required=True, choices=writing.FORMATS)
  command.add_argument('--output', required=True, metavar='DIR')
  command.add_argument(
      '--max_s', type=float, default=0.0, metavar='SECONDS',
      help='the longest clip; default: as in training')
  command.add_argument(
      '--lengths_s', type=float, nargs='+', default=(), metavar='SECONDS',
      help='to compare at, and the only ones that litert has; default: the '
      'longest, a half and a quarter of it')
  command.add_argument(
      '--audio', nargs='+', default=(), metavar='FILE',
      help='to compare on; default: recordings of the package')
  return command


if __name__ == '__main__':
  # So that what is half written is removed.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
  main(sys.argv[1:])
