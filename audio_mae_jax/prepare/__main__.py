"""Command line: python -m audio_mae_jax.prepare NAME --root DIR ...

  python -m audio_mae_jax.prepare esc50 --root DIR
  python -m audio_mae_jax.prepare csv --root DIR --manifest FILE
  python -m audio_mae_jax.prepare folder --root DIR --path FOLDER
  python -m audio_mae_jax.prepare records --help
  python -m audio_mae_jax.prepare beam --help
"""

import argparse
import dataclasses
import json
import os
import sys

from audio_mae_jax import cli
from audio_mae_jax.data import manifests
from audio_mae_jax.prepare import beam
from audio_mae_jax.prepare import check
from audio_mae_jax.prepare import datasets
from audio_mae_jax.prepare import levels
from audio_mae_jax.prepare import records
from audio_mae_jax.prepare import report as report_lib

_OTHERS = {'records': records.main, 'beam': beam.main}  # commands
_INTERRUPTED = {  # what to do then
    'records': 'Whole shards stay: the same command goes on behind them.',
    'beam': 'The same command starts anew, unless its runner resumes it.'}


def main(argv=None):
  argv = sys.argv[1:] if argv is None else argv
  cli.log_to_terminal()
  name = argv[0] if argv else ''
  with cli.telling(_INTERRUPTED.get(name, '')):
    if name in _OTHERS:
      _OTHERS[name](argv[1:])
    else:
      prepare(parser().parse_args(argv))


def parser() -> argparse.ArgumentParser:
  command = argparse.ArgumentParser(
      prog='python -m audio_mae_jax.prepare', allow_abbrev=False,
      description='Checks a data set and writes its manifest, class list and '
      'report. docs/data.md shows how each must lie on disk.')
  command.add_argument(
      'name', metavar='NAME',
      help=f'{", ".join(datasets.DATASETS)}; records, which writes any source '
      'as shards, and beam, which does it on many machines, have options of '
      'their own')
  command.add_argument(
      '--root', required=True, metavar='DIR',
      help='the folder with a folder per data set; config.data.root')
  command.add_argument(
      '--clips', type=int, default=2000, metavar='N',
      help='training clips to measure mean and std on; 0: all (default: 2000)')
  command.add_argument(
      '--decode', action='store_true',
      help='decode every clip, not only its header and first samples')
  command.add_argument(
      '--subset', default='', help='esc50: esc10, its ten classes')
  command.add_argument(
      '--manifest', default='', metavar='FILE',
      help='csv: your list of clips (.csv, .jsonl, .json)')
  command.add_argument(
      '--path', default='', metavar='FOLDER',
      help='folder: where a folder per class lies (default: DIR/own)')
  command.add_argument(
      '--valid', type=float, default=0.1, metavar='SHARE',
      help='csv, folder: of each class, where the data name no splits '
      '(default: 0.1)')
  return command


def prepare(options: argparse.Namespace):
  """Reads, checks and measures the data set; writes and tells the result."""
  if options.clips < 0:
    raise ValueError(f'--clips={options.clips}; it takes 0 (all) or more.')
  root = os.path.abspath(os.path.expanduser(options.root))
  found = datasets.read(root, datasets.Options(
      options.name, options.subset, options.manifest, options.path,
      options.valid))
  dataset = datasets.DATASETS[options.name]
  good, bad = check.clips(found.rows, options.decode)
  level, undecodable = _measure(found, good, dataset.clip_s, options.clips)
  bad |= undecodable
  good = {row: clip for row, clip in good.items() if row not in bad}
  if not good:
    row, reason = next(iter(bad.items()))
    raise ValueError(
        f'None of the {len(found.rows):,} clips of {options.name} can be used; '
        f'the first, {row.path}: {reason}. docs/data.md shows how the data set '
        'must lie on disk.')
  rows = [row for row in found.rows if row in good]
  if found.finish:
    rows = found.finish(rows)
  place = os.path.join(root, options.subset or dataset.folder)
  shown = lambda row: dataclasses.replace(
      row, path=_shown(row.path, root, place))
  missing = {row for row in bad if not os.path.isfile(row.path)}
  report = report_lib.make(
      found, good, rows, {shown(row) for row in missing},
      {shown(row): bad[row] for row in bad if row not in missing}, level)
  _write(place, found, [shown(row) for row in rows], report)
  flags = dataset.flags(rows, report, dataset.clip_s) if dataset.flags else []
  _tell(options, dataset, place, found, report, flags)


def _measure(found, good, clip_s, count):
  """The level of the good training clips, and what could not be decoded."""
  train = [row for row in good if not found.train or row.split in found.train]
  if not train:
    return None, {}
  longest_s = max(good[row].duration_s for row in train)
  return levels.measure(train, min(clip_s, longest_s), count)


def _shown(path, root, place):
  """`path` as the manifest has it: relative to its folder if below the root."""
  inside = path.startswith(root + os.sep)
  return os.path.relpath(path, place) if inside else path


def _write(place, found, rows, report):
  os.makedirs(place, exist_ok=True)
  manifests.write(os.path.join(place, 'manifest.csv'), rows)
  if found.class_ids:
    manifests.write_classes(
        os.path.join(place, 'classes.csv'), found.class_ids, found.class_names)
  with open(os.path.join(place, 'report.json'), 'w', encoding='utf-8') as file:
    json.dump(report, file, indent=1, ensure_ascii=False)


def _tell(options, dataset, place, found, report, flags):
  print(f'{options.subset or options.name}:')
  print('\n'.join(report_lib.lines(report)))
  print(f'Written to {place}: manifest.csv, '
        f'{"classes.csv, " if found.class_ids else ""}report.json')
  print('Fine-tune with:')
  for recipe in dataset.recipes:
    subset = f':{options.subset}' if options.subset else ''
    print(' \\\n      '.join([
        f'  python -m audio_mae_jax.main --config=configs/{recipe}.py{subset}',
        f'--config.data.root={options.root} --config.init_from=WEIGHTS',
        *flags]))


if __name__ == '__main__':
  main(sys.argv[1:])
