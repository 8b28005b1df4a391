"""16-bit WAV files, read with as few calls as the system needs.

libsndfile is called some twenty times a clip, and each call gives the
interpreter lock away and waits for it: with many threads, that is what they do.
Here it is six times, and the samples go where they will lie.
"""

import os
import struct
import wave

import numpy as np

from audio_mae_jax import storage

# Read at first: what stands before the samples, mostly 44 bytes.
_HEADER_BYTES = 512
_SAMPLE_BYTES = 2


class Recording:
  """The samples of a file; as `audio_io.open_recording` gives them."""
  dtype = np.dtype('<i2')
  full_scale = 2**15

  def __init__(self, file, header: wave.Wave_read):
    self.rate_hz = header.getframerate()
    self.num_frames = header.getnframes()
    self.num_channels = header.getnchannels()
    self._file, self._begin = file, file.tell()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._file.close()

  def read(self, start: int, stop: int, out: np.ndarray | None) -> np.ndarray:
    if out is None:
      out = np.empty((stop - start, self.num_channels), self.dtype)
    frame_bytes = _SAMPLE_BYTES * self.num_channels
    self._file.seek(self._begin + start * frame_bytes)
    held = self._file.readinto(out.reshape(-1).view(np.uint8))
    return out[:held // frame_bytes]


def open_plain(path: str) -> Recording | None:
  """The recording at the path of a file that is there as its header says.

  None for any other: libsndfile is to say what it is, or what is wrong with it.
  """
  path = os.fspath(path)
  if not path.lower().endswith('.wav') or storage.is_remote(path):
    return None
  try:
    file = open(path, 'rb', buffering=_HEADER_BYTES)
  except OSError:
    return None
  try:
    header = wave.open(file)
    held = os.fstat(file.fileno()).st_size - file.tell()
  except (EOFError, OSError, struct.error, wave.Error):
    file.close()
    return None
  promised = header.getnframes() * header.getnchannels() * _SAMPLE_BYTES
  if (header.getsampwidth() == _SAMPLE_BYTES and header.getframerate()
      and 0 < promised <= held):
    return Recording(file, header)
  file.close()
  return None
