"""A trained model to use: audio in, NumPy arrays out.

  model = audio_mae_jax.load('runs/NAME')
  model.embed('a.wav')  # [D]
  model.embed(samples, 48000)  # idem; [B, D] of several clips
  model.embed_frames('a.wav')  # embeddings [T', D] and times_s [T']
  model.predict('a.wav').top(5)  # of a classifier

Audio is the path of a file, or an array with its sample rate: [S], or [S,
channels] as soundfile reads it, of floats in -1 to 1 or of integers. Several
clips are a list of those, of any lengths, or an array [B, S].
"""

from collections.abc import Iterator
import hashlib
import os
from typing import NamedTuple

import numpy as np

from audio_mae_jax import weights as weights_lib
from audio_mae_jax.data import blocks
from audio_mae_jax.embed import engine
from audio_mae_jax.embed import labels
from audio_mae_jax.embed import programs as programs_lib
from audio_mae_jax.embed import stream as stream_lib
from audio_mae_jax.embed import windows as windows_lib
from audio_mae_jax.models import pointwise

_VERSION = 1  # of what is computed
_MOST_CHANNELS = 32  # of a clip; no clip that can be embedded is as short


class Prediction(NamedTuple):
  """What a classifier says."""
  scores: np.ndarray  # float32 [C], or [B, C] of several clips; 0 to 1
  classes: tuple[str, ...]  # their names

  def top(self, count: int = 5) -> list:
    """[(name, score), ...], the highest first; of several clips a list each."""
    if self.scores.ndim == 2:
      return [Prediction(row, self.classes).top(count) for row in self.scores]
    order = np.argsort(-self.scores, kind='stable')[:count]
    return [(self.classes[i], float(self.scores[i])) for i in order]


class Model:
  """Weights, ready to use; `load` makes it.

  Programs are compiled as they are needed, one for each length of a short list;
  `programs.compiled` names them.
  """

  def __init__(self, weights: weights_lib.Weights, *, overlap: float = 0.25,
               batch_size: int = 8, classes=(), devices=None):
    self.config = weights.config
    self.grid = windows_lib.layout(weights.config, overlap)
    self.programs = programs_lib.Programs(
        weights, self.grid, batch_size, devices)
    self.width = weights.params['encoder/cls_token'].shape[-1]  # D
    self.classes = _classes(weights, classes)
    # Tells what embeddings are of: the encoder, its input and its windows.
    self.fingerprint = _fingerprint(weights, self.grid)
    # Of the weights nothing else is held: they are on the devices.
    self._norm = [weights.params.get(f'fc_norm/{name}')
                  for name in ('scale', 'bias')]

  @property
  def sample_rate_hz(self) -> int:
    """That audio is resampled to."""
    return self.config.frontend.sample_rate_hz

  def embed(self, audio, sample_rate: int | None = None) -> np.ndarray:
    """Float32 [D] of a clip, the mean of its frames; [B, D] of several.

    Raises:
      ValueError: a clip cannot be used; the message says why.
    """
    found, single = self._results(audio, sample_rate, False)
    found = np.stack([self.normed(result.mean) for result in found])
    return found[0] if single else found

  def embed_frames(
      self, audio, sample_rate: int | None = None, *, shifts: int = 1
  ) -> engine.Frames | list[engine.Frames]:
    """Embeddings over time: of a clip `Frames`, of several a list of them.

    A frame covers `grid.frame_s` seconds. With `shifts`, there are so many
    times as many: the audio is encoded as often, each time from a later start.

    Raises:
      ValueError: a clip cannot be used; the message says why.
    """
    step = self.grid.step
    if shifts < 1 or step % shifts:
      raise ValueError(
          f'shifts={shifts} does not divide the {step} spectrogram frames of '
          'a step in time.')
    later = step // shifts * self.grid.hop_samples
    found, single = self._results(audio, sample_rate, True)
    found = [[x.frames] for x in found]
    for i in range(1, shifts):
      more, _ = self._results(audio, sample_rate, True, i * later)
      for parts, x in zip(found, more):
        if x.frames:
          times_s = x.frames.times_s + i * later / self.sample_rate_hz
          parts.append(x.frames._replace(times_s=times_s))
    found = [self._in_order(parts) for parts in found]
    return found[0] if single else found

  def predict(self, audio, sample_rate: int | None = None) -> Prediction:
    """Scores of the classes: probabilities, each for itself if a clip may have
    several labels.

    A clip as long as those of training has the scores that evaluation gives
    it; of a longer one they are the mean over stretches of that length.

    Raises:
      ValueError: a clip cannot be used, or the model is no classifier.
    """
    self.check_classifier()
    sources, single = self._sources(audio, sample_rate)
    scores = []
    for clip in labels.score_all(self.programs, self.config, sources):
      if clip.error:
        raise ValueError(f'{clip.name}: {clip.error}.')
      scores.append(clip.scores)
    return Prediction(
        scores[0] if single else np.stack(scores), self.classes)

  def stream(self, sample_rate: int) -> stream_lib.Stream:
    """Takes one recording in chunks, and gives frames as it goes."""
    return stream_lib.Stream(self, sample_rate)

  def check_classifier(self):
    """Raises ValueError if there is nothing to predict with."""
    if not self.classes:
      raise ValueError(
          'These weights are no classifier: they have an encoder, and no head. '
          'Load a run of a fine-tuning recipe (configs/finetune_*.py).')

  def read(self, item: dict) -> Iterator[np.ndarray]:
    """Blocks of an item of a source, for `labels.score_all` and
    `engine.embed_all`."""
    data = self.config.data
    return blocks.read(
        item, sample_rate_hz=self.sample_rate_hz, resample=data.resample,
        channels=data.channels)

  def normed(self, x: np.ndarray) -> np.ndarray:
    """[..., D] as a classifier reads it: with the norm that comes before its
    head, if that has one."""
    scale, bias = self._norm
    if scale is None:
      return x
    x = np.asarray(x, np.float64)
    x = x - x.mean(-1, keepdims=True)
    x /= np.sqrt(np.square(x).mean(-1, keepdims=True) + pointwise.EPSILON)
    return (x * scale + bias).astype(np.float32)

  def _in_order(self, parts):
    embeddings, times_s = map(np.concatenate, zip(*parts))
    order = np.argsort(times_s, kind='stable')
    return engine.Frames(self.normed(embeddings[order]), times_s[order])

  def _results(self, audio, sample_rate, frames, skip=0):
    """([Result], whether it is of one clip and no list), from sample `skip`.

    What is too short when samples were skipped has no frames.
    """
    sources, single = self._sources(audio, sample_rate)
    sources = [(name, _after(samples, skip)) for name, samples in sources]
    found = []
    for result in engine.embed_all(self.programs, self.grid, sources, frames):
      if result.error and not skip:
        raise ValueError(f'{result.name}: {result.error}.')
      found.append(result)
    return found, single

  def _sources(self, audio, sample_rate):
    """([(name, blocks of samples)], whether it is one clip and no list)."""
    clips, single = split(audio)
    items = [_item(clip, sample_rate, '' if single else f' {i}')
             for i, clip in enumerate(clips)]
    return [(item['id'], self.read(item)) for item in items], single


def load(path, *, overlap: float = 0.25, batch_size: int = 8,
         classes=(), devices=None) -> Model:
  """The model in `path`: a run, one of its checkpoints, or imported weights.

  Args:
    path: of this machine, or gs:// or s3://.
    overlap: share of a window of long audio that the next one has as well.
    batch_size: windows that are encoded at once, at most.
    classes: names of a classifier's classes, where its weights do not say.
    devices: the first one by default; several share the windows of a batch.

  Raises:
    ValueError: there are no weights, or they do not fit together.
  """
  return Model(weights_lib.load(path), overlap=overlap, batch_size=batch_size,
               classes=classes, devices=devices)


def split(audio) -> tuple[list, bool]:
  """(clips, whether `audio` is one clip): see the top of this file."""
  if isinstance(audio, (str, os.PathLike)):
    return [audio], True
  if isinstance(audio, (list, tuple)):
    if not audio:
      raise ValueError('audio is an empty list: give at least one clip.')
    if np.ndim(audio[0]) == 0 and not isinstance(
        audio[0], (str, os.PathLike)):
      return [np.asarray(audio)], True  # samples
    return list(audio), False
  audio = np.asarray(audio)
  if audio.ndim == 1 or audio.ndim == 2 and audio.shape[1] <= _MOST_CHANNELS:
    return [audio], True
  if audio.ndim == 2:
    return list(audio), False
  raise ValueError(
      f'audio has the shape {audio.shape}; it takes [S], [S, channels], [B, S] '
      'or a list of clips [S] or [S, channels].')


def _item(clip, sample_rate, number):
  """An element of a source, for `audio_io`."""
  if isinstance(clip, (str, os.PathLike)):
    return {'audio': clip, 'id': os.fspath(clip)}
  clip = np.asarray(clip)
  if clip.ndim not in (1, 2) or clip.ndim == 2 and (
      clip.shape[1] > _MOST_CHANNELS):
    raise ValueError(
        f'Clip{number} has the shape {clip.shape}; a clip is [S], or [S, '
        f'channels] of at most {_MOST_CHANNELS}. Transpose [channels, S].')
  if not sample_rate or sample_rate < 1:
    raise ValueError(
        f'sample_rate={sample_rate}: give the rate of the samples in Hz, as '
        'model.embed(samples, 48000).')
  return {'audio': clip, 'sample_rate_hz': sample_rate, 'id': f'Clip{number}'}


def _after(samples, skip):
  """Blocks without their first `skip` samples."""
  for block in samples:
    yield block[skip:]
    skip = max(skip - len(block), 0)


def _fingerprint(weights, grid):
  digest, config = hashlib.sha256(), weights.config
  digest.update(repr((
      _VERSION, grid, config.patch, config.model.encoder, config.model.dtype,
      config.data.resample, config.data.channels)).encode())
  for name in sorted(weights.params):
    if name.split('/')[0] in ('encoder', 'fc_norm'):
      digest.update(name.encode())
      digest.update(np.ascontiguousarray(weights.params[name], np.float32))
  return digest.hexdigest()[:32]


def _classes(weights, given):
  """Names of the head's classes; numbers, where they have none."""
  if 'head/bias' not in weights.params:
    return ()
  count = len(weights.params['head/bias'])
  names = tuple(given) or weights.classes or tuple(map(str, range(count)))
  if len(names) != count:
    raise ValueError(
        f'{len(names)} names of classes are given, and the classifier has '
        f'{count} classes.')
  return names
