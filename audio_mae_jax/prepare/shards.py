"""Clips -> a shard of records, whole or not at all.

Threads decode, resample and encode: soundfile and soxr release the interpreter
lock. Records are written in the order of the clips, so that a shard depends on
them and the settings alone.
"""

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
import contextlib
import dataclasses
import hashlib
import io
import json
import os
import sys

from array_record.python import array_record_module
import numpy as np
import soundfile

from audio_mae_jax import config as config_lib
from audio_mae_jax import frontend
from audio_mae_jax import registry
from audio_mae_jax import storage
from audio_mae_jax.data import audio_io
from audio_mae_jax.data import files
from audio_mae_jax.data import recordings

# One record a chunk, for random access. Not compressed: zstd takes four times
# as long to read for 7 % of the bytes.
_OPTIONS = 'group_size:1,uncompressed'
_AHEAD = 4  # clips under way, for each thread
_FULL_SCALE = 2**15
DONE = '.array_record.json'  # beside a whole shard


@dataclasses.dataclass(frozen=True)
class Settings:
  """What the bytes of a record depend on, besides its clip."""
  sample_rate_hz: int = config_lib.Frontend().sample_rate_hz
  encoding: str = 'pcm16'  # or flac
  channels: str = config_lib.Data().channels
  resample: str = config_lib.Data().resample
  clips_per_shard: int = 4096

  def check(self):
    """Raises ValueError for a setting that could not work."""
    for table, name in ((ENCODERS, 'encoding'), (audio_io.CHANNELS, 'channels'),
                        (audio_io.RESAMPLERS, 'resample')):
      registry.lookup(table, getattr(self, name), f'--{name}')
    for name in ('sample_rate_hz', 'clips_per_shard'):
      if getattr(self, name) < 1:
        raise ValueError(f'--{name}={getattr(self, name)}; it takes 1 or more.')


@dataclasses.dataclass(frozen=True)
class Encoded:
  """A clip as it is written."""
  content: bytes
  num_samples: int
  is_clipped: bool  # it had samples beyond full scale


def encode(source: files.Source, i: int, settings: Settings) -> Encoded | str:
  """Clip i of `source`, or why there is none."""
  spec = dataclasses.replace(
      config_lib.Frontend(), sample_rate_hz=settings.sample_rate_hz)
  try:
    samples = audio_io.load(
        source[i], sample_rate_hz=settings.sample_rate_hz,
        num_samples=sys.maxsize, crop='start', rng=None,
        resample=settings.resample, channels=settings.channels,
        min_samples=frontend.min_samples(spec))
  except recordings.BadAudio as error:
    return str(error)
  scaled = np.rint(samples * np.float32(_FULL_SCALE))
  whole = np.clip(scaled, -_FULL_SCALE, _FULL_SCALE - 1).astype('<i2')
  return Encoded(ENCODERS[settings.encoding](whole, settings.sample_rate_hz),
                 len(whole), bool((whole != scaled).any()))


def _flac(samples, rate_hz):
  file = io.BytesIO()
  soundfile.write(file, samples, rate_hz, format='FLAC', subtype='PCM_16')
  return file.getvalue()


ENCODERS = {
    'pcm16': lambda samples, rate_hz: samples.tobytes(),
    'flac': _flac,
}
HELP = {  # of each setting
    'sample_rate_hz': 'that clips are resampled to',
    'encoding': ', '.join(ENCODERS),
    'channels': f'{", ".join(audio_io.CHANNELS)}: how they become one',
    'resample': f'{", ".join(audio_io.RESAMPLERS)}',
    'clips_per_shard': 'in a file'}


def write(path: str, source: files.Source, clips: list[int],
          settings: Settings, num_threads: int, bar) -> dict:
  """Writes the records of `clips` to `path`; returns what is in it.

  That is 'records' and 'bytes', the 'sha256' of the file, the lists
  'num_samples' of the records and 'clipped' (places of clips in `clips`), and
  'bad': reasons by place. It is also in `path`.json, which tells a next start
  that this shard is done. `bar` is updated clip by clip.

  Raises OSError where it cannot be written.
  """
  num_samples, clipped, bad = [], [], {}
  partial = f'{path}.partial'
  with _writing(partial) as writer:
    encoded = in_order(
        lambda i: encode(source, i, settings), clips, num_threads)
    for place, clip in enumerate(encoded):
      if isinstance(clip, str):
        bad[str(place)] = clip
      else:
        writer.write(clip.content)
        num_samples.append(clip.num_samples)
        clipped += [place] if clip.is_clipped else []
      bar.update()
  with open(partial, 'rb') as file:
    digest = hashlib.file_digest(file, 'sha256').hexdigest()
    os.fsync(file.fileno())
  done = {'records': len(num_samples), 'bytes': os.path.getsize(partial),
          'sha256': digest, 'num_samples': num_samples, 'clipped': clipped,
          'bad': bad}
  os.replace(partial, path)
  storage.write_text(f'{path}.json', json.dumps(done))
  return done


def done(path: str) -> dict | None:
  """What `write` returned for `path`, if it has finished."""
  try:
    with open(f'{path}.json', encoding='utf-8') as file:
      found = json.load(file)
    return found if os.path.getsize(path) == found['bytes'] else None
  except (OSError, ValueError):
    return None


@contextlib.contextmanager
def _writing(path):
  """A writer of array_record whose errors are OSErrors."""
  writer = array_record_module.ArrayRecordWriter(path, _OPTIONS)
  try:
    try:
      yield writer
    finally:
      writer.close()
  except RuntimeError as error:
    raise OSError(
        f'{path} cannot be written: {error}. Make room, or choose another '
        'folder; the same command goes on from the last whole shard.'
        ) from error


def in_order(function: Callable, items: Iterable, num_threads: int) -> Iterator:
  """function(item) of all `items`, in their order, from threads.

  A few are under way at a time, however many there are.
  """
  with futures.ThreadPoolExecutor(num_threads) as pool:
    queue = collections.deque()
    try:
      for item in items:
        queue.append(pool.submit(function, item))
        if len(queue) > _AHEAD * num_threads:
          yield queue.popleft().result()
      while queue:
        yield queue.popleft().result()
    finally:
      for waiting in queue:
        waiting.cancel()
