"""16-bit WAV files, read with as few calls as the system needs.

libsndfile is called some twenty times a clip, and a file object of Python calls
the system a dozen times. Each call gives the interpreter lock away and waits
for it again: with many threads, that is what they do. Here it is five or six
times, and the samples go where they will lie.
"""

import io
import os
import struct
import wave

import numpy as np

from audio_mae_jax import storage

# What may stand before the samples; mostly it is 44 bytes.
_HEADER_BYTES = 4096
_SAMPLE_BYTES = 2


class Recording:
  """The samples of a file; as `recordings.open_recording` gives them."""
  dtype = np.dtype('<i2')
  full_scale = 2**15

  def __init__(self, descriptor: int, header: wave.Wave_read, begin: int):
    self.rate_hz = header.getframerate()
    self.num_frames = header.getnframes()
    self.num_channels = header.getnchannels()
    self._descriptor, self._begin = descriptor, begin

  def __enter__(self):
    return self

  def __exit__(self, *_):
    os.close(self._descriptor)

  def read(self, start: int, stop: int, out: np.ndarray | None) -> np.ndarray:
    if out is None:
      out = np.empty((stop - start, self.num_channels), self.dtype)
    frame_bytes = _SAMPLE_BYTES * self.num_channels
    place = self._begin + start * frame_bytes
    memory, held = memoryview(out.reshape(-1).view(np.uint8)), 0
    while held < len(memory) and (read := os.preadv(
        self._descriptor, [memory[held:]], place + held)):
      held += read
    return out[:held // frame_bytes]


def open_plain(path: str) -> Recording | None:
  """The recording at the path of a file that is there as its header says.

  None for any other: libsndfile is to say what it is, or what is wrong with it.
  """
  path = os.fspath(path)
  if not path.lower().endswith('.wav') or storage.is_remote(path) or (
      not hasattr(os, 'preadv')):
    return None
  try:
    descriptor = os.open(path, os.O_RDONLY)
  except OSError:
    return None
  recording = None
  try:
    content = io.BytesIO(os.pread(descriptor, _HEADER_BYTES, 0))
    header = wave.open(content)
    begin = content.tell()
    promised = header.getnframes() * header.getnchannels() * _SAMPLE_BYTES
    if (header.getsampwidth() == _SAMPLE_BYTES and header.getframerate() and
        0 < promised <= os.fstat(descriptor).st_size - begin):
      recording = Recording(descriptor, header, begin)
  except (EOFError, OSError, struct.error, wave.Error):
    pass
  finally:
    if recording is None:
      os.close(descriptor)
  return recording
