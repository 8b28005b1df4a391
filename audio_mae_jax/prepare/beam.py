"""A data set -> a TensorFlow dataset, on as many machines as Beam is given.

  python -m audio_mae_jax.prepare beam esc50 --root DIR --output TFDS_DIR \\
      -- --runner=DirectRunner --direct_num_workers=8

What follows `--` are the options of Apache Beam. (`tfds build`, the command of
TensorFlow Datasets, needs TensorFlow; this one does not.)
"""

import argparse
import collections
import json
import os

from audio_mae_jax import registry
from audio_mae_jax import storage

_LISTED = 10


def parser() -> argparse.ArgumentParser:
  command = argparse.ArgumentParser(
      prog='python -m audio_mae_jax.prepare beam', allow_abbrev=False,
      description='Writes a data set as a TensorFlow dataset, with Apache '
      'Beam. What follows -- are options of Beam, such as --runner.')
  command.add_argument(
      'name', metavar='NAME', help='audioset, esc50, speech_commands_v1, '
      'speech_commands_v2, voxceleb1; docs/data.md shows their layouts')
  command.add_argument(
      '--root', required=True, metavar='DIR',
      help='the folder with a folder per data set, seen by all workers')
  command.add_argument(
      '--output', required=True, metavar='DIR',
      help='a folder of TensorFlow datasets, seen by all workers')
  return command


def main(argv: list[str]):
  """Runs the command with the arguments `argv`."""
  place = argv.index('--') if '--' in argv else len(argv)
  options = parser().parse_args(argv[:place])
  for name in ('root', 'output'):
    value = getattr(options, name)
    if storage.is_remote(value):
      raise ValueError(
          f'--{name}={value} is an address. Audio files and array_record need '
          'a folder: one on a file system that all workers mount.')
  try:
    import apache_beam  # heavy, and an extra of the package
    import tensorflow_datasets as tfds

    from audio_mae_jax.prepare import builders
  except ImportError as error:
    raise ImportError(
        f'The command beam needs Apache Beam and TensorFlow Datasets ({error}):'
        " pip install 'audio_mae_jax[beam]'.") from error
  builder = registry.lookup(builders.BUILDERS, options.name, 'NAME')(
      root=os.path.abspath(os.path.expanduser(options.root)),
      data_dir=os.path.abspath(os.path.expanduser(options.output)))
  builder.download_and_prepare(
      download_config=tfds.download.DownloadConfig(
          beam_options=apache_beam.options.pipeline_options.PipelineOptions(
              argv[place + 1:])))
  _tell(builder)


def _tell(builder):
  print(f'{builder.info.full_name}:')
  bad = collections.defaultdict(list)
  with open(builder.bad_path, encoding='utf-8') as file:
    for split, name, reason in map(json.loads, file):
      bad[split].append((name, reason))
  for split, info in builder.info.splits.items():
    print(f'  {split}: {info.num_examples:,} clips')
    if bad[split]:
      print(f'    left out: {len(bad[split]):,}, all in {builder.bad_path}')
      for name, reason in sorted(bad[split])[:_LISTED]:
        print(f'      {name}: {reason}')
  print('Train on it with:\n  --config.data.train.name=tfds '
        f'--config.data.train.path={builder.data_dir} '
        '--config.data.train.split=SPLIT')
