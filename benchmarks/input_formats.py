"""What a clip costs the host, by the format it is stored in.

  python -m benchmarks.input_formats

The same clips are written as 16-bit WAV and FLAC files, as records of both
encodings, and as a TensorFlow dataset (where that is installed). Then the input
pipeline reads them as in training, a few batches of each format in turn, again
and again: processor seconds of all threads, which other load on the machine
disturbs least, and their ratio to WAV in the same round. The table has medians
and, in brackets, the least and the most of all rounds.

`--device` adds the way to the first device.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import numpy as np
import soundfile

from audio_mae_jax import config as config_lib
from audio_mae_jax.data import manifests
from audio_mae_jax.data import pipeline
from audio_mae_jax.data import placement
from audio_mae_jax.data import report
from audio_mae_jax.data import sources
from audio_mae_jax.data import splits
from audio_mae_jax.prepare import records
from audio_mae_jax.prepare import shards

RATE_HZ = 16000
ROWS = 8192  # of each list: clips repeat, so that shuffling costs what it does


def parser():
  command = argparse.ArgumentParser(
      description=__doc__.splitlines()[0], allow_abbrev=False)
  for name, default, what in (
      ('clips', 128, 'different clips'), ('rounds', 7, 'of all formats'),
      ('batches', 4, 'of each format in a round'), ('batch_size', 64, 'clips'),
      ('threads', 0, 'that decode; 0: one per core'),
      ('seconds', 10, 'length of a clip')):
    command.add_argument(f'--{name}', type=int, default=default,
                         help=f'{what} (default: {default})')
  command.add_argument('--crop', default='cyclic', help='config.data.crop')
  command.add_argument('--formats', nargs='*', default=list(FORMATS),
                       help=f'of {", ".join(FORMATS)}; wav is always there')
  command.add_argument('--device', action='store_true',
                       help='up to arrays on the device')
  return command


def recording(seed, seconds):
  """Noise that falls with frequency, and a tone: 16-bit samples."""
  rng = np.random.default_rng(seed)
  noise = np.cumsum(rng.normal(size=seconds * RATE_HZ))
  noise -= np.linspace(noise[0], noise[-1], len(noise))
  time_s = np.arange(len(noise)) / RATE_HZ
  tone = np.sin(2 * np.pi * rng.uniform(100, 4000) * time_s)
  samples = 0.4 * noise / np.abs(noise).max() + 0.1 * tone
  return np.round(samples * 2**15).astype(np.int16)


def files(place, clips, suffix):
  """A source of audio files, each listed many times."""
  for i, clip in enumerate(clips):
    soundfile.write(os.path.join(place, f'{i}.{suffix}'), clip, RATE_HZ)
  path = os.path.join(place, 'manifest.csv')
  manifests.write(path, [
      manifests.Row(f'{i % len(clips)}.{suffix}') for i in range(ROWS)])
  return sources.make(
      config_lib.Source(name='manifest', path=path), config_lib.Data())


def as_records(place, clips, encoding):
  """The same as records."""
  output = os.path.join(place, 'records')
  os.mkdir(output)
  records.write(files(place, clips, 'wav'), output,
                shards.Settings(encoding=encoding), 1, os.cpu_count() or 1)
  return sources.make(
      config_lib.Source(name='records', path=output), config_lib.Data())


def tfds(place, clips, _):
  """The same as a dataset of TFDS, in its fastest form; None without TFDS."""
  try:
    import tensorflow_datasets
  except ImportError:
    return None
  core, features = tensorflow_datasets.core, tensorflow_datasets.features

  class InputFormats(core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = core.Version('1.0.0')

    def _info(self):
      return core.DatasetInfo(
          builder=self, metadata=core.MetadataDict(sample_rate=RATE_HZ),
          features=features.FeaturesDict({'audio': features.Tensor(
              shape=(None,), dtype=np.int16, encoding='bytes')}))

    def _split_generators(self, _):
      return {'train': self._generate_examples()}

    def _generate_examples(self):
      for i, clip in enumerate(clips):
        yield i, {'audio': clip}

  builder = InputFormats(data_dir=place, file_format='array_record')
  builder.download_and_prepare()
  source = sources.make(
      config_lib.Source(name='tfds', path=str(builder.data_dir)),
      config_lib.Data())
  return splits.Chosen(source, [i % len(source) for i in range(ROWS)])


FORMATS = {
    'wav': (files, 'wav'),
    'flac': (files, 'flac'),
    'records pcm16': (as_records, 'pcm16'),
    'records flac': (as_records, 'flac'),
    'tfds': (tfds, None),
}


def batches(source, options):
  """A generator of batches as in training."""
  config = config_lib.Config(
      data=config_lib.Data(clip_s=options.seconds, crop=options.crop,
                           num_threads=options.threads),
      train=config_lib.Train(batch_size=options.batch_size))
  made = pipeline.train_batches(
      source, config, report=report.BadFiles(source.num_files, config.data))
  if options.device:
    made = placement.to_device(
        made, jax.sharding.SingleDeviceSharding(jax.devices()[0]), 2)
  return made


def measure(opened, options):
  """Processor and wall milliseconds a clip, of each format and round."""
  costs = {name: [] for name in opened}
  clips = options.batches * options.batch_size
  for turn in range(options.rounds + 1):  # the first warms up
    for name, source in opened.items():
      stream = batches(source, options)
      next(stream)
      started = time.process_time(), time.perf_counter()
      for _ in range(options.batches):
        next(stream)
      ended = time.process_time(), time.perf_counter()
      stream.close()
      if turn:
        costs[name].append([(b - a) * 1e3 / clips for a, b in zip(
            started, ended, strict=True)])
  return costs


def show(values, digits=2):
  return (f'{statistics.median(values):.{digits}f} '
          f'({min(values):.{digits}f} to {max(values):.{digits}f})')


def main(argv):
  options = parser().parse_args(argv)
  clips = [recording(i, options.seconds) for i in range(options.clips)]
  with tempfile.TemporaryDirectory() as folder:
    opened = {}
    for name in dict.fromkeys(['wav', *options.formats]):
      place = os.path.join(folder, name.replace(' ', '_'))
      os.mkdir(place)
      make, what = FORMATS[name]
      source = make(place, clips, what)
      if source is None:
        print(f'{name}: not installed, left out')
      else:
        opened[name] = source
    costs = measure(opened, options)
  print(f'| format | processor ms a clip of {options.seconds} s | ratio to wav '
        '| clips/s a core |\n|---|---|---|---|')
  for name, found in costs.items():
    cpu_ms = [cost for cost, _ in found]
    ratios = [cost / wav for cost, (wav, _) in zip(
        cpu_ms, costs['wav'], strict=True)]
    print(f'| {name} | {show(cpu_ms)} | {show(ratios)} | '
          f'{1e3 / statistics.median(cpu_ms):,.0f} |')


if __name__ == '__main__':
  main(sys.argv[1:])
