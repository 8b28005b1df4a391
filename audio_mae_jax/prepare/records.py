"""Any source -> a folder of records: python -m audio_mae_jax.prepare records.

  python -m audio_mae_jax.prepare records --root DIR --source manifest \\
      --path esc50/manifest.csv --labels_csv esc50/classes.csv \\
      --output DIR/esc50/records

Shards are written one after another. Until the index is, `plan.json` says what
the folder is to be; whole shards stay when the command is stopped, in any way.
"""

import argparse
import dataclasses
import hashlib
import json
import logging
import os
import re

from audio_mae_jax import config as config_lib
from audio_mae_jax import progress
from audio_mae_jax import storage
from audio_mae_jax.data import files
from audio_mae_jax.data import records as records_lib
from audio_mae_jax.data import sources
from audio_mae_jax.prepare import index as index_lib
from audio_mae_jax.prepare import levels
from audio_mae_jax.prepare import report as report_lib
from audio_mae_jax.prepare import shards

_log = logging.getLogger(__name__)
_PLAN = 'plan.json'
_STAT_THREADS = 16  # looking at files waits for the disk, not for the core
# Their level is not measured, where there are others.
_HELD_OUT = ('valid', 'validation', 'val', 'dev', 'test', 'testing', 'eval')


def parser() -> argparse.ArgumentParser:
  command = argparse.ArgumentParser(
      prog='python -m audio_mae_jax.prepare records', allow_abbrev=False,
      description='Writes any source as sharded array_record files that train '
      'faster. docs/data.md is the manual.')
  command.add_argument(
      '--root', default='', metavar='DIR', help='config.data.root')
  command.add_argument(
      '--output', required=True, metavar='FOLDER',
      help='what to write; from the current folder, not from --root')
  command.add_argument(
      '--source', default='manifest', metavar='NAME',
      help=f'{", ".join(sources.SOURCES)} (default: manifest), with the '
      'settings that it takes:')
  for field in dataclasses.fields(config_lib.Source):
    if field.name != 'name':
      several = field.name == 'classes'
      command.add_argument(
          f'--{field.name}', default=field.default, metavar='VALUE',
          type=str if several else type(field.default),
          nargs='*' if several else None,
          help=f'config.data.train.{field.name}')
  for field in dataclasses.fields(shards.Settings):
    command.add_argument(
        f'--{field.name}', default=field.default, type=type(field.default),
        metavar='VALUE',
        help=f'{shards.HELP[field.name]} (default: {field.default})')
  command.add_argument(
      '--clips', type=int, default=2000, metavar='N',
      help='clips to measure mean and std on; 0: all (default: 2000)')
  command.add_argument(
      '--threads', type=int, default=0, metavar='N',
      help='that decode and encode; 0: one per core')
  return command


def main(argv: list[str]):
  """Runs the command with the arguments `argv`."""
  options = parser().parse_args(argv)
  settings = shards.Settings(**_fields(shards.Settings, options))
  settings.check()
  for name in ('clips', 'threads'):
    value = getattr(options, name)
    if value < 0:
      raise ValueError(f'--{name}={value}; it takes 0 or more.')
  source = _source(options)
  output = _folder(options.output)
  with storage.alone(output):
    index = write(source, output, settings, options.clips,
                  options.threads or os.cpu_count() or 1)
  print(f'{output}: {index["source"]}, as {index["encoding"]}')
  print('\n'.join(report_lib.lines(index['report'])))
  print('Train on it with:\n  ' + ' '.join(_flags(output, index)))


def _source(options):
  """What is to be written; errors name the flags of this command."""
  data = config_lib.Data(root=options.root)
  options.classes = tuple(options.classes)
  chosen = _fields(config_lib.Source, options) | {'name': options.source}
  try:
    if options.source == 'manifest' and os.path.isdir(
        files.resolve(data, options.path, '--path', 'the manifest')):
      raise ValueError(
          f'--path={options.path} is a folder, and --source manifest (the '
          'default) reads a file. For the audio files in it give --source '
          'folder.')
    return sources.make(config_lib.Source(**chosen), data, 'records')
  except (ValueError, FileNotFoundError) as error:
    text = re.sub(r'\brecords\.name\b', '--source', str(error))
    text = re.sub(r'\brecords\.(\w+)', r'--\1', text)
    # Not of its own kind: some want more than a text.
    kind = ValueError if isinstance(error, ValueError) else FileNotFoundError
    raise kind(text) from error


def _flags(output, index):
  """Of a recipe, to train on the folder `output`."""
  flags = ['--config.data.train.name=records',
           f'--config.data.train.path={output}',
           '--config.data.train.labels_csv=']
  splits = set(index['clips']['split'])
  if 'train' not in splits:  # which recipes ask for
    flags.append('--config.data.train.split='
                 + ('' if splits == {''} else 'SPLIT'))
  return flags


def _fields(kind, options):
  return {field.name: getattr(options, field.name)
          for field in dataclasses.fields(kind) if field.name != 'name'}


def _folder(path):
  """`path`, made; a place that holds anything else is refused."""
  if storage.is_remote(path):
    raise ValueError(
        f'--output={path}: array_record writes files of this machine alone. '
        'Write to its disk, and copy the folder (gcloud storage rsync -r, aws '
        's3 sync).')
  path = os.path.abspath(os.path.expanduser(path))
  os.makedirs(path, exist_ok=True)
  # The first of all that is written may be half there.
  known = {records_lib.INDEX, _PLAN, f'{_PLAN}.partial'}
  found = os.listdir(path)
  if found and known.isdisjoint(found):
    raise ValueError(f'--output={path} holds other files. Name a new folder.')
  return path


def write(source: files.Source, output: str, settings: shards.Settings,
          count: int, num_threads: int) -> dict:
  """Writes the clips of `source` to the folder `output`; returns its index.

  What an earlier start has written stays. `count` clips are measured (0: all).

  Raises ValueError if the folder is of other clips or settings, or no clip can
  be used; OSError if it cannot be written.
  """
  clips, _ = index_lib.distinct(source)
  plan = _plan(source, settings, count)
  index = _agreed(output, plan)
  if 'shards' in index:
    _log.info('All of %s was there: nothing is written.', output)
  else:
    written = _shards(source, clips, output, settings, num_threads)
    index = index_lib.make(source, settings, written, plan)
    index['report']['frontend'] = _level(output, index, count)
    storage.write_text(
        os.path.join(output, records_lib.INDEX), index_lib.text(index))
  for name in os.listdir(output):  # what only a next start would have needed
    if name == _PLAN or name.endswith(shards.DONE):
      os.remove(os.path.join(output, name))
  return index


def _shards(source, clips, output, settings, num_threads):
  """What shards.write says of each, by name; makes those that there are not."""
  size = settings.clips_per_shard
  parts = [clips[i:i + size] for i in range(0, len(clips), size)]
  names = [f'clips-{k:05d}-of-{len(parts):05d}.array_record'
           for k in range(len(parts))]
  written = {name: shards.done(os.path.join(output, name)) for name in names}
  if there := sum(map(bool, written.values())):
    _log.info('%d of %d shards were there.', there, len(parts))
  with progress.clips(len(clips)) as bar:
    for name, part in zip(names, parts):
      if written[name]:
        bar.update(len(part))
      else:
        written[name] = shards.write(
            os.path.join(output, name), source, part, settings, num_threads,
            bar)
  return written


def _plan(source, settings, count):
  """What decides over the content of the folder."""
  digest = hashlib.sha256(repr(source.class_names).encode())
  contents = shards.in_order(
      lambda i: _content(source, i), range(len(source)), _STAT_THREADS)
  for i, content in enumerate(contents):
    digest.update(repr((source.name_of(i), source.labels_of(i),
                        source.split_of(i), content)).encode())
  return dataclasses.asdict(settings) | {
      'clips': count, 'source': f'{len(source):,} clips, {digest.hexdigest()}'}


def _content(source, i):
  """Tells clip i from others of its name, wherever the data lie.

  Of a file at an address its place is all that costs no request.
  """
  path, *part = source.place_of(i) or ('',)
  if storage.is_remote(path):
    return path, *part
  # Clips that are no files of this machine are told apart by their set.
  return storage.version(path) or source.title, *part


def _agreed(output, plan):
  """The index of `output`, or its plan, which is now `plan`."""
  index = os.path.join(output, records_lib.INDEX)
  path = os.path.join(output, _PLAN)
  if os.path.exists(index):
    found, _ = records_lib.read_index(output, '--output')
    there = found['plan']
  elif os.path.exists(path):
    with open(path, encoding='utf-8') as file:
      found = there = json.load(file)
  else:
    storage.write_text(path, json.dumps(plan, indent=1))
    return plan
  other = [f'--{name}={there.get(name)!r} there, {value!r} now'
           for name, value in plan.items() if there.get(name) != value]
  if other:
    raise ValueError(
        f'{output} is of another conversion: {"; ".join(other)}. Repeat that '
        'one, name a new folder, or remove this one. (Clips are others where '
        'name, labels, split, place, file size or time of change are.)')
  return found


def _level(output, index, count):
  """Mean and deviation of log-mel of the clips that are not held out."""
  source = records_lib.Records(
      output, index, records_lib.clips_of(index), index['class_names'], '')
  rows = [i for i in range(len(source))
          if source.split_of(i)[0] not in _HELD_OUT] or range(len(source))
  clip_s = min(config_lib.Data().clip_s, index['report']['duration_s']['max'])
  level, _ = levels.measure(
      rows, clip_s, count, item_of=source.__getitem__,
      sample_rate_hz=index['sample_rate_hz'])
  return level and dataclasses.asdict(level)
