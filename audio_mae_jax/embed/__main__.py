"""Command line: python -m audio_mae_jax.embed INPUTS... --checkpoint DIR ...

  python -m audio_mae_jax.embed DIR --checkpoint runs/NAME --output audio.npz
  python -m audio_mae_jax.embed DIR --checkpoint runs/FINETUNED --top 5
  python -m audio_mae_jax.embed --query a.wav --index audio.npz
  python -m audio_mae_jax.embed --index audio.npz --plot map.png
"""

import argparse
import sys

import jax

from audio_mae_jax import cli
from audio_mae_jax.data import manifests
from audio_mae_jax.embed import inputs
from audio_mae_jax.embed import job
from audio_mae_jax.embed import labels
from audio_mae_jax.embed import model as model_lib
from audio_mae_jax.embed import search


def main(argv=None):
  options = parser().parse_args(argv)
  cli.log_to_terminal()
  with cli.telling():
    cli.keep_programs()
    _action(options)(options)


def parser() -> argparse.ArgumentParser:
  command = argparse.ArgumentParser(
      prog='python -m audio_mae_jax.embed', allow_abbrev=False,
      description='Embeddings, labels and neighbours of audio files. '
      'docs/embed.md shows what can be done with them.')
  command.add_argument(
      'inputs', nargs='*', metavar='INPUT',
      help='audio files, folders of them, manifests (.csv, .jsonl, .json)')
  command.add_argument(
      '--checkpoint', default='', metavar='DIR',
      help='a run (runs/NAME), a checkpoint of it, or imported weights')
  command.add_argument(
      '--output', default='', metavar='PATH',
      help='.npz, .parquet, or a folder (Zarr); what it has is not done again')
  command.add_argument(
      '--frames', action='store_true',
      help='embeddings over time as well, with the time of each')
  command.add_argument(
      '--top', type=int, default=0, metavar='N',
      help='print the N likeliest labels of each input (of a classifier); with '
      '--query, the N most similar clips (default there: 5)')
  command.add_argument(
      '--labels_csv', default='', metavar='FILE',
      help='names of the classes, where the weights do not say them')
  command.add_argument(
      '--index', default='', metavar='PATH', help='an --output of before')
  command.add_argument(
      '--query', default='', metavar='FILE',
      help='an audio file to find the most similar clips of --index to')
  command.add_argument(
      '--plot', default='', metavar='FILE.png',
      help='draw the clips of --index in two dimensions')
  command.add_argument(
      '--method', choices=search.METHODS, default='tsne', help='of --plot')
  command.add_argument(
      '--overlap', type=float, default=0.25, metavar='SHARE',
      help='of neighbouring windows of long audio (default: 0.25)')
  command.add_argument(
      '--batch_size', type=int, default=8, metavar='N',
      help='windows that a device encodes at once (default: 8); more make an '
      'accelerator faster')
  return command


def _action(options):
  """What the arguments ask for; raises ValueError if that is not clear."""
  if options.top < 0:
    raise ValueError(f'--top={options.top}: give 1 or more.')
  if options.query and options.plot:
    raise ValueError(
        '--query and --plot are two commands: give one of them at a time.')
  if options.query or options.plot:
    if not options.index or options.inputs or options.output:
      raise ValueError(
          '--query and --plot read embeddings that are there: name them with '
          '--index, and give no inputs and no --output.')
    return _query if options.query else _plot
  if not options.inputs or not options.checkpoint or (
      bool(options.output) == bool(options.top)) or options.index:
    raise ValueError(
        'Give audio files, folders or manifests, --checkpoint, and either '
        '--output (embeddings) or --top N (labels); or --index with --query or '
        '--plot. --help explains them.')
  return _embed if options.output else _labels


def _load(options, checkpoint=None, overlap=None):
  devices = jax.local_devices()
  classes = manifests.read_classes(options.labels_csv)[1] if (
      options.labels_csv) else ()
  return model_lib.load(
      checkpoint or options.checkpoint, classes=classes, devices=devices,
      overlap=options.overlap if overlap is None else overlap,
      batch_size=options.batch_size * len(devices))


def _embed(options):
  clips, others, repeated = inputs.find(options.inputs)
  model = _load(options)
  done = job.run(
      model, options.checkpoint, clips, options.output, options.frames)
  if done['skipped']:
    print(f'{done["skipped"]:,} clips are there already.')
  if done['embedded']:
    wall_s = done['wall_s']
    print(f'{done["embedded"]:,} clips, {done["seconds"] / 3600:.2f} h, in '
          f'{wall_s:.1f} s: {done["embedded"] / wall_s:.4g} clips/s, '
          f'{done["seconds"] / wall_s:.4g} times real time.')
  _tell_unused(done['bad'], done['listing'], others, repeated)
  if done['bad']:
    print(f'All of them: {options.output}.bad_files.json')
  print(f'{done["rows"]:,} embeddings of width {model.width}: '
        f'{options.output}')


def _labels(options):
  clips, others, repeated = inputs.find(options.inputs)
  model = _load(options)
  model.check_classifier()
  report = job.bad_files(len(clips))
  for clip in labels.score_all(
      model.programs, model.config, job.ahead(model, clips)):
    if clip.error:
      report.add(clip.name, clip.error)
      continue
    report.saw_good()
    top = model_lib.Prediction(clip.scores, model.classes).top(options.top)
    print(f'{clip.name}: '
          + ', '.join(f'{name} {score:.3f}' for name, score in top), flush=True)
  _tell_unused(report.count, report.listing(), others, repeated)


def _tell_unused(count, listing, others, repeated):
  if repeated:
    print(f'{repeated:,} inputs name a clip again: each is taken once.')
  if count:
    print(f'{count:,} could not be used:\n{listing}')
  if others:
    print(f'Passed over, as they are no audio: {len(others):,} files, '
          + ', '.join(list(others)[:5]) + (', ...' if len(others) > 5 else ''))


def _query(options):
  index = search.Index.read(options.index)
  checkpoint = options.checkpoint or index.settings['checkpoint']
  model = _load(options, checkpoint, index.settings['overlap'])
  index.check(model, options.index)
  for score, name, label in index.nearest(
      model.embed(options.query), options.top or 5):
    print(f'{score:.3f}  {name}' + (f'  ({label})' if label else ''))


def _plot(options):
  index = search.Index.read(options.index)
  search.plot(index, options.plot, options.method)
  print(f'{len(index.names):,} clips: {options.plot}')


if __name__ == '__main__':
  main(sys.argv[1:])
