"""Embeddings of audio that is not there yet."""

import numpy as np

from audio_mae_jax.data import blocks
from audio_mae_jax.data import recordings
from audio_mae_jax.embed import engine


class Stream:
  """Chunks of one recording in, frames out, as soon as they are settled.

    stream = model.stream(48000)
    for chunk in microphone:
      embeddings, times_s = stream.push(chunk)
    embeddings, times_s = stream.finish()
    stream.embedding  # [D], as of the whole

  All frames together are those of `model.embed_frames` of the whole recording,
  however it is cut. A frame is settled once its window is full: it is late by
  at most a window. What is held is a window of samples.
  """

  def __init__(self, model, sample_rate: int):
    self._model, self._rate = model, sample_rate
    self._resampler = blocks.Resampler(
        sample_rate, model.sample_rate_hz, model.config.data.resample)
    self._recording = engine.Recording(model.grid, 'the stream')
    self._ended = False

  def push(self, chunk: np.ndarray) -> engine.Frames:
    """The frames that `chunk`, [S] or [S, channels], settles; maybe none.

    Raises:
      ValueError: the samples cannot be used, or the stream has ended.
    """
    self._check()
    item = {'audio': np.asarray(chunk), 'sample_rate_hz': self._rate}
    try:
      # At its own rate: the stream has one resampler for all chunks.
      samples = np.concatenate(list(blocks.read(
          item, sample_rate_hz=self._rate,
          channels=self._model.config.data.channels)))
    except recordings.BadAudio as error:
      raise ValueError(f'The chunk cannot be used: {error}.') from error
    return self._encoded(self._recording.push(self._resampler.push(samples)))

  def finish(self) -> engine.Frames:
    """The remaining frames, now that there are no more chunks.

    Raises:
      ValueError: all chunks together are too short, or the stream has ended.
    """
    self._check()
    self._ended = True
    windows = self._recording.push(self._resampler.finish())
    try:
      windows += self._recording.finish()
    except recordings.BadAudio as error:
      raise ValueError(f'The stream cannot be used: {error}.') from error
    return self._joined(
        [self._encoded(windows), self._normed(self._recording.rest())])

  @property
  def embedding(self) -> np.ndarray | None:
    """Float32 [D], the mean of the frames so far; None before the first."""
    mean = self._recording.mean
    return None if mean is None else self._model.normed(mean)

  def _check(self):
    if self._ended:
      raise ValueError(
          'The stream has ended: begin another one with model.stream(RATE).')

  def _encoded(self, windows):
    pairs = [(self._recording, window) for window in windows]
    return self._joined(
        [self._normed(x) for x in engine.encode(self._model.programs, pairs)])

  def _normed(self, frames):
    return frames._replace(
        embeddings=self._model.normed(frames.embeddings))

  def _joined(self, parts):
    empty = engine.Frames(
        np.zeros((0, self._model.width), np.float32), np.zeros(0))
    return engine.Frames(*map(np.concatenate, zip(empty, *parts)))
