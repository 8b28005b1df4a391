"""Recordings as they are stored: files, their bytes, or arrays in memory."""

import contextlib
import io
import os
import re

import numpy as np
import soundfile

from audio_mae_jax import storage
from audio_mae_jax.data import wav

# Of a file at an address, for one request: ten seconds are a hundredth of it
# to a tenth; of longer ones parts are read.
_WHOLE_BYTES = 2**24
# libsndfile shortens a cut WAV or AIFF silently, but notes it in its log.
_PROMISED = re.compile(r'^\s*(?:data|SSND)\s*: (\d+) \(should be (\d+)\)', re.M)
# Sizes from here up are what a writer leaves that cannot know the length.
_STREAMED_BYTES = 0x7FFFF000
# Some writers count the header in; that is no truncation.
_HEADER_BYTES = 128
# Of a stored integer; TFDS holds 16-bit samples as int64.
_FULL_SCALE = {'int8': 2**7, 'int16': 2**15, 'int32': 2**31, 'int64': 2**15}


class BadAudio(Exception):
  """The clip cannot be used; the message is the reason, in a few words."""


def open_recording(item):
  """The recording of an item of `audio_io.load`, to be entered with `with`.

  It has `rate_hz`, `num_frames`, `num_channels`, the `dtype` of its samples and
  their `full_scale`, and `read(start, stop, out)`: frames [n, channels], in
  `out` if there is one, of that dtype; fewer if there are no more.
  """
  audio = item['audio']
  if isinstance(audio, (str, os.PathLike)):
    return wav.open_plain(audio) or _File(audio)
  if isinstance(audio, bytes):
    return _File(audio)
  return _Array(np.asarray(audio), item['sample_rate_hz'])


def _fetch(path):
  """The file at an address: its bytes or, of a long one, a way to its parts."""
  try:
    content = storage.read_up_to(path, _WHOLE_BYTES)
    if content is None:
      return storage.open_blocks(path)
  except FileNotFoundError:
    raise BadAudio('no such file') from None
  if not content:
    raise BadAudio('empty')
  return content


class _File:
  """An audio file, opened.

  Frames are float32 [n, channels], or int16 where the file has 16 bits: to make
  floats of them takes libsndfile several times as long as NumPy.
  """

  def __init__(self, audio):
    self._parts = None  # of a file that comes from afar as it is read
    if isinstance(audio, (str, os.PathLike)):
      if storage.is_remote(audio):
        audio = _fetch(audio)
      elif not os.path.isfile(audio):
        raise BadAudio('no such file')
      elif not os.path.getsize(audio):
        raise BadAudio('empty')
    if isinstance(audio, storage.Blocks):
      self._parts = audio
    elif isinstance(audio, bytes):
      audio = io.BytesIO(audio)
    try:
      with self._unless_unreachable():
        self._file = soundfile.SoundFile(audio)
    except storage.Unreachable:
      raise
    except (OSError, RuntimeError, TypeError, ValueError) as error:
      raise BadAudio(f'unreadable: {reason(error)}') from error
    self.rate_hz = self._file.samplerate
    self.num_frames = self._file.frames
    is_16_bit = self._file.subtype == 'PCM_16'
    self.num_channels = self._file.channels
    self.dtype = np.dtype('int16' if is_16_bit else 'float32')
    self.full_scale = _FULL_SCALE['int16'] if is_16_bit else 1

  def __enter__(self):
    try:
      self._check()
    except BadAudio:
      self._file.close()
      raise
    return self

  def __exit__(self, *_):
    self._file.close()
    if self._parts is not None:
      self._parts.close()

  @contextlib.contextmanager
  def _unless_unreachable(self):
    """libsndfile takes what its reader raises for the end of the file."""
    try:
      yield
    finally:
      if self._parts is not None:
        self._parts.check()

  def _check(self):
    if self.num_frames > 2**62:
      raise BadAudio('its header does not say how long it is; encode it again')
    for match in _PROMISED.finditer(self._file.extra_info):
      promised, held = map(int, match.groups())
      if held + _HEADER_BYTES < promised < _STREAMED_BYTES:
        raise BadAudio(f'truncated: {held} of {promised} bytes')

  def read(self, start, stop, out):
    with self._unless_unreachable():
      if start != self._file.tell():
        self._file.seek(start)
      return self._file.read(
          stop - start, dtype=self.dtype.name, always_2d=True, out=out)


class _Array:
  """Samples in memory, with the interface of `_File`."""

  def __init__(self, samples, rate_hz):
    if samples.dtype.kind == 'i':
      self.full_scale = _FULL_SCALE[samples.dtype.name]
    elif samples.dtype.kind == 'f':
      self.full_scale = 1
    else:
      raise BadAudio(f'samples of type {samples.dtype}')
    self._samples = samples if samples.ndim == 2 else samples.reshape(-1, 1)
    self.dtype = samples.dtype
    self.rate_hz = int(rate_hz)
    self.num_frames, self.num_channels = self._samples.shape

  def __enter__(self):
    return self

  def __exit__(self, *_):
    pass

  def read(self, start, stop, out):
    frames = self._samples[start:stop]
    if out is None:
      return frames
    out[:len(frames)] = frames
    return out[:len(frames)]


def reason(error: Exception) -> str:
  """What a library says of a file, in a few words."""
  # soundfile's own message repeats the path, which the report names already.
  text = getattr(error, 'error_string', '') or str(error)
  return ' '.join(text.removeprefix('Error : ').split()).rstrip('.')
