"""Command line: python -m audio_mae_jax.reconstruct FILE --checkpoint DIR ...

  python -m audio_mae_jax.reconstruct clip.wav --checkpoint runs/NAME \
      --output report
"""

import argparse
import json
import pathlib
import shlex
import signal
import sys

from audio_mae_jax import cli
from audio_mae_jax import weights
from audio_mae_jax.reconstruct import clip as clip_lib
from audio_mae_jax.reconstruct import hiding
from audio_mae_jax.reconstruct import model as model_lib
from audio_mae_jax.reconstruct import page
from audio_mae_jax.reconstruct import study as study_lib
from audio_mae_jax.reconstruct import tables

PAGE, NUMBERS = 'index.html', 'numbers.json'


def main(argv=None):
  argv = sys.argv[1:] if argv is None else argv
  options = parser().parse_args(argv)
  cli.log_to_terminal()
  with cli.telling():
    weights.check_absent(options.output)
    model = model_lib.load(options.checkpoint)
    clip = clip_lib.read(options.file, model.config, options.start)
    study = study_lib.run(model, clip, _settings(options), _tell)
    _write(options, argv, model, clip, study)
  print(f'Written to {options.output}: open {PAGE} in a browser.')


def parser() -> argparse.ArgumentParser:
  default = study_lib.Settings()
  command = argparse.ArgumentParser(
      prog='python -m audio_mae_jax.reconstruct', allow_abbrev=False,
      formatter_class=argparse.ArgumentDefaultsHelpFormatter,
      description='One page on which the reconstructions of a masked '
      'autoencoder are seen and heard.')
  command.add_argument('file', metavar='FILE', help='a sound file')
  command.add_argument(
      '--checkpoint', required=True, metavar='DIR',
      help='a pre-training run (runs/NAME), a checkpoint of it, or a folder of '
      'weights')
  command.add_argument(
      '--output', required=True, metavar='DIR', help=f'new folder for {PAGE}')
  command.add_argument(
      '--mask', nargs='+', choices=hiding.NAMES, default=default.masks,
      help='what to hide')
  command.add_argument(
      '--ratio', nargs='+', type=float, default=default.ratios,
      help='share of patches that strategies remove; the first is shown, errors'
      ' are of all')
  command.add_argument(
      '--gaps', nargs='+', type=float, default=default.gaps_ms, metavar='MS',
      help='lengths of gaps')
  command.add_argument(
      '--cutoff', nargs='+', type=float, default=default.cutoffs_hz,
      metavar='HZ', help='above which bands are hidden')
  command.add_argument(
      '--start', type=float, default=0.0, metavar='S',
      help='second of the file to start at')
  command.add_argument(
      '--draws', type=int, default=default.draws,
      help='masks of each kind to measure; the first is shown')
  command.add_argument(
      '--layer', type=int, default=default.layer,
      help='of the encoder, from 1, whose attention is shown; 0: the last')
  command.add_argument('--seed', type=int, default=default.seed)
  command.add_argument(
      '--iterations', type=int, default=default.iterations,
      help='of Griffin-Lim')
  return command


def _settings(options):
  return study_lib.Settings(
      masks=tuple(dict.fromkeys(options.mask)), ratios=tuple(options.ratio),
      gaps_ms=tuple(dict.fromkeys(options.gaps)),
      cutoffs_hz=tuple(dict.fromkeys(options.cutoff)), draws=options.draws,
      layer=options.layer, seed=options.seed, iterations=options.iterations)


def _tell(line):
  print(line, file=sys.stderr)


def _write(options, argv, model, clip, study):
  """The folder with the page, whole or not at all."""
  name = pathlib.PurePath(options.file).name
  grid = ' × '.join(map(str, model.grid(clip.spectrogram.shape)))
  end = options.start + clip.seconds
  facts = [
      f'{options.start:.2f} to {end:.2f} s of the file',
      f'{grid} patches (time × frequency)',
      f'model {options.checkpoint}, {model.num_parameters:,} parameters']
  html = page.write(
      study, clip, patch=model.config.patch,
      normalised=model.config.objective.normalize_patches, title=name,
      facts=facts, command=shlex.join(
          ['python', '-m', 'audio_mae_jax.reconstruct', *argv]))
  with weights.writing(options.output) as folder:
    folder.mkdir()
    (folder / PAGE).write_text(html, encoding='utf-8')
    (folder / NUMBERS).write_text(
        json.dumps(tables.numbers(study), indent=1) + '\n')


if __name__ == '__main__':
  # So that what is half written is removed.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
  main(sys.argv[1:])
