"""Command line: python -m audio_mae_jax.convert import|export ...

  python -m audio_mae_jax.convert import --input pretrained.pth --output DIR
  python -m audio_mae_jax.convert export --input runs/NAME --to timm \
      --output encoder.safetensors
"""

import argparse
import signal
import sys

from audio_mae_jax import cli
from audio_mae_jax import weights
from audio_mae_jax.convert import exporter
from audio_mae_jax.convert import importer


def main(argv=None):
  options = parser().parse_args(argv)
  cli.log_to_terminal()
  with cli.telling():
    weights.check_absent(options.output)
    options.action(options)


def parser() -> argparse.ArgumentParser:
  commands = argparse.ArgumentParser(
      prog='python -m audio_mae_jax.convert', allow_abbrev=False,
      description='Weights from other projects, and to them.')
  actions = commands.add_subparsers(required=True, metavar='import|export')
  load = actions.add_parser(
      'import', allow_abbrev=False,
      help="other projects' weights to a folder of ours")
  load.set_defaults(action=_import)
  load.add_argument('--from', dest='format', choices=importer.FORMATS,
                    help='recognised when not given')
  load.add_argument('--input', required=True, metavar='FILE',
                    help='.pth, .safetensors, or a Hugging Face folder')
  load.add_argument('--output', required=True, metavar='DIR')
  load.add_argument(
      '--set', action='append', default=[], metavar='KEY=VALUE', type=_setting,
      help='a setting that the tensors do not show, e.g. '
      'model.encoder.heads=3; may be repeated')
  save = actions.add_parser(
      'export', allow_abbrev=False,
      help="our weights to other projects' layouts, or compactly for ourselves")
  save.set_defaults(action=_export)
  save.add_argument('--to', dest='format', choices=exporter.FORMATS,
                    required=True)
  save.add_argument(
      '--input', required=True, metavar='DIR',
      help='a run (runs/NAME), a checkpoint of it, or a folder of weights')
  save.add_argument(
      '--output', required=True, metavar='PATH',
      help='a folder for huggingface and weights, else FILE.safetensors or, '
      'with torch, FILE.pth')
  for command in (load, save):
    command.add_argument('--part', choices=weights.PARTS, default='all')
    command.add_argument(
        '--dtype', choices=weights.DTYPES, default='float32')
  return commands


def _setting(text):
  name, equals, value = text.partition('=')
  if not equals:
    raise argparse.ArgumentTypeError(f'{text!r} is not KEY=VALUE')
  return name, value


def _import(options):
  found = importer.import_weights(
      options.input, options.format, dict(options.set), options.part)
  weights.save(options.output, found, options.dtype)
  print(f'{options.input}: {found.source["format"]}. {_describe(found)}\n'
        f'Written to {options.output}; train from it with '
        f'--config.init_from={options.output}')


def _export(options):
  found = weights.load(options.input)
  written = exporter.export_weights(
      found, options.format, options.output, part=options.part,
      dtype=options.dtype)
  print(f'{options.input}: {_describe(found)}\n'
        f'Written to {options.output}: {len(written)} tensors of '
        f'{sum(x.size for x in written.values()):,} numbers '
        f'({options.format}, {options.dtype})')


def _describe(found):
  groups = sorted({name.split('/')[0] for name in found.params})
  numbers = sum(x.size for x in found.params.values())
  return (f'{numbers:,} parameters in {len(found.params)} arrays '
          f'({", ".join(groups)}); '
          f'{weights.describe_positions(found.config.patch)}.')


if __name__ == '__main__':
  # So that what is half written is removed.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
  main(sys.argv[1:])
