"""Batches of clips: shuffled, decoded in threads, the same for every layout.

Training runs through positions 0, 1, 2, ... Which clip lies at position q is
said by sampling.py; its crop is drawn from (seed, q). Row r of the batch of
step s is position s * B + r, and process p of P decodes rows p * B / P up to
(p + 1) * B / P. So a batch is a function of (source, seed, step) alone: it does
not depend on the process count, and a run resumes at a step without reading
what came before. The step is the whole data position. Grain's own iterator
state would not do: it can only be restored with the number of processes and
workers that wrote it.

Epochs go over batch boundaries: shuffled, each clip comes exactly once per
len(source) positions, and no clip is dropped.

A clip that cannot be used gives its place to others, tried in an order that
(seed, q) determines. What an earlier step found bad is tried again, so that a
resumed run, which does not remember it, makes the same batches.

Decoding takes threads, not processes: libsndfile and soxr release the
interpreter lock, and worker processes would import JAX again, need pickled
sources, and lose the report of bad files.
"""

import functools
import math
import os
import sys

from etils import epy
import numpy as np

from audio_mae_jax import config
from audio_mae_jax import frontend
from audio_mae_jax import registry
from audio_mae_jax.data import audio_io
from audio_mae_jax.data import crops
from audio_mae_jax.data import files
from audio_mae_jax.data import memory as memory_lib
from audio_mae_jax.data import recordings
from audio_mae_jax.data import report as report_lib
from audio_mae_jax.data import sampling

with epy.lazy_imports():  # slow to import
  import grain

_MAX_THREADS = 16
_MAX_TOGETHER = 16  # rows that a thread makes; it stops only between such
_MAX_TRIES = 1000  # clips in a row that may fail before the run gives up
_NO_CLIP = -1  # index of a row that only pads the last batch


def steps_per_epoch(source: files.Source, cfg: config.Config) -> int:
  """Whole batches in an epoch; at least 1."""
  clips = sampling.make(source, cfg).clips_per_epoch
  return max(1, clips // cfg.train.batch_size)


def check(cfg: config.Config):
  """Raises ValueError for a setting that the pipeline could not work with."""
  if cfg.train.batch_size < 1:
    raise ValueError(
        f'config.train.batch_size={cfg.train.batch_size} must be 1 or more.')
  if not 0 <= cfg.train.seed < 2**32:
    raise ValueError(
        f'config.train.seed={cfg.train.seed}; it takes 0 to 2**32 - 1.')
  if cfg.data.num_threads < 0:
    raise ValueError(f'config.data.num_threads={cfg.data.num_threads}; it '
                     'takes 0 (one per core) or more.')
  registry.lookup(crops.CROPS, cfg.data.crop, 'config.data.crop')
  registry.lookup(
      audio_io.RESAMPLERS, cfg.data.resample, 'config.data.resample')
  clip_samples(cfg)


def clip_samples(cfg: config.Config) -> int:
  """S, the samples per clip at the model's rate."""
  num_samples = round(cfg.data.clip_s * cfg.frontend.sample_rate_hz)
  if num_samples < frontend.min_samples(cfg.frontend):
    raise ValueError(
        f'config.data.clip_s={cfg.data.clip_s} at config.frontend.'
        f'sample_rate_hz={cfg.frontend.sample_rate_hz} makes {num_samples} '
        'samples per clip, less than one analysis window '
        f'({frontend.min_samples(cfg.frontend)}).')
  return num_samples


def train_batches(source: files.Source, cfg: config.Config, *,
                  start_step: int = 0, process_index: int = 0,
                  process_count: int = 1, report: report_lib.BadFiles,
                  labelled: bool = False):
  """This process' rows of the batches of steps `start_step` and on, for ever.

  Yields dicts of 'audio' float32 [B / P, S], 'num_samples' int32 [B / P],
  'index' int32 [B / P] and 'valid' float32 [B / P], all ones; `labelled`, also
  'labels' float32 [B / P, C], 1 for each label. Where all clips are stored in
  16 bits, one channel and the model's rate, 'audio' is int16 up to the device:
  half of the bytes. Close the generator to stop its threads.
  """
  clips = _Clips(source, cfg, cfg.data.crop, report, labelled)
  rows = _local_rows(cfg, process_index, process_count)
  seed = cfg.train.seed
  order = sampling.make(source, cfg)

  def row(i, memory):
    step, r = divmod(i, len(rows))
    position = step * cfg.train.batch_size + rows[r]
    return clips.replaced(
        order, position, np.random.default_rng((seed, position)), memory)

  first = start_step * len(rows)
  memory = memory_lib.Batches(len(rows), clip_samples(cfg))
  return _decoded(row, first, sys.maxsize, cfg, memory)


def eval_batches(source: files.Source, cfg: config.Config, *,
                 process_index: int = 0, process_count: int = 1,
                 report: report_lib.BadFiles, labelled: bool = False):
  """This process' rows of one pass over the source, in its order.

  As `train_batches`, but every clip comes once and from its start. 'valid' is
  0.0 for clips that cannot be used and for the rows, of index -1, that fill the
  last batch.
  """
  clips = _Clips(source, cfg, 'start', report, labelled)
  rows = _local_rows(cfg, process_index, process_count)
  num_batches = math.ceil(len(source) / cfg.train.batch_size)

  def row(i, memory):
    batch, r = divmod(i, len(rows))
    index = batch * cfg.train.batch_size + rows[r]
    return clips.or_silence(
        index if index < len(source) else _NO_CLIP, memory)

  memory = memory_lib.Batches(len(rows), clip_samples(cfg))
  return _decoded(row, 0, num_batches * len(rows), cfg, memory)


class _Clips:
  """Rows of a batch from the clips of a source; safe in threads."""

  def __init__(self, source, cfg, crop, report, labelled):
    check(cfg)
    self._source = source
    self._report = report
    self._num_classes = cfg.model.classifier.num_classes if labelled else None
    self._num_samples = clip_samples(cfg)
    rate_hz = cfg.frontend.sample_rate_hz
    load = functools.partial(
        audio_io.load, sample_rate_hz=rate_hz, resample=cfg.data.resample,
        channels=cfg.data.channels, as_stored=True,
        min_samples=frontend.min_samples(cfg.frontend))
    self._load = functools.partial(
        load, num_samples=self._num_samples, crop=crop)
    self._memory = None
    if cfg.data.cache_gb:
      self._memory = memory_lib.Clips(
          int(cfg.data.cache_gb * 1e9), load, rate_hz)

  def replaced(self, order, position, rng, memory):
    """The row of the clip at `position` or, where that is bad, of another one
    of its epoch; its samples in `memory`, a memory.Row."""
    row = self._row(order[position], rng, memory)
    if row is not None:
      return row
    # A walk with a step that has no common divisor with the number of clips
    # meets each once.
    total = order.clips_per_epoch
    first = position - position % total
    stride = int(rng.integers(1, total + 1))
    while math.gcd(stride, total) != 1:
      stride = int(rng.integers(1, total + 1))
    for k in range(1, min(total, _MAX_TRIES)):
      other = order[first + (position + k * stride) % total]
      row = self._row(other, rng, memory)
      if row is not None:
        return row
    self._report.stop()

  def or_silence(self, index, memory):
    """The row of clip `index`, or one that is not valid."""
    # Evaluation crops at the start: nothing is drawn.
    row = None if index == _NO_CLIP else self._row(index, None, memory)
    if row is not None:
      return row
    memory.take(np.int16)[:] = 0
    return self._as_row(
        memory.samples, self._num_samples, index, (), valid=0.0)

  def _row(self, index, rng, memory):
    source = self._source
    try:
      item = (self._memory.item(source, index) if self._memory
              else source[index])
      samples = self._load(item, rng=rng, out=memory.take)
    except recordings.BadAudio as error:
      self._report.add(source.file_of(index), str(error))
      return None
    self._report.saw_good()
    memory.samples[len(samples):] = 0
    labels = () if self._num_classes is None else source.labels_of(index)
    return self._as_row(
        memory.samples, len(samples), index, labels, valid=1.0)

  def _as_row(self, audio, num_samples, index, labels, valid):
    row = {'audio': audio, 'num_samples': np.int32(num_samples),
           'index': np.int32(index), 'valid': np.float32(valid)}
    if self._num_classes is not None:
      row['labels'] = np.zeros(self._num_classes, np.float32)
      row['labels'][list(labels)] = 1
    return row


def _local_rows(cfg, process_index, process_count):
  """The rows of the global batch that this process makes."""
  size = cfg.train.batch_size
  if size < 1 or size % process_count:
    raise ValueError(
        f'config.train.batch_size={size} must be a positive multiple of the '
        f'number of processes, {process_count}.')
  local = size // process_count
  return range(process_index * local, (process_index + 1) * local)


def _decoded(row, start, stop, cfg, memory):
  """Batches of the rows `row(i, memory)`, i from `start` to `stop`, computed in
  threads; a generator that can be closed."""
  size = memory.batch_size
  num_threads = cfg.data.num_threads or min(os.cpu_count() or 1, _MAX_THREADS)
  together = _rows_together(size, num_threads)
  options = grain.ReadOptions(
      num_threads=num_threads,
      prefetch_buffer_size=max(2 * num_threads, size // together))
  dataset = grain.MapDataset.range(start // together, stop // together).map(
      lambda k: [row(i, memory.row(i))
                 for i in range(k * together, (k + 1) * together)])
  dataset = dataset.to_iter_dataset(options).batch(
      size // together, batch_fn=memory.stacked)

  def generate():
    iterator = iter(dataset)
    try:
      yield from iterator
    finally:
      iterator.close()

  return generate()


def _rows_together(size, num_threads):
  """How many rows a thread makes before it takes others; divides `size`.

  For each element that Grain hands out, it asks all that are ready whether they
  are, under the interpreter lock: with as many elements as clips in a batch of
  512, that is 0.6 ms a clip, and no number of threads exceeds 1,600 clips/s.
  """
  most = max(1, min(_MAX_TOGETHER, size // (2 * num_threads)))
  return max(n for n in range(1, most + 1) if size % n == 0)
