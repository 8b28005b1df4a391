"""Batches in hand: some of training, all of an evaluation."""

import contextlib
import itertools

import numpy as np

from audio_mae_jax.data import audio_io
from audio_mae_jax.data import pipeline
from audio_mae_jax.data import report


def take(batches, count):
  """As they are on the device."""
  taken = [as_floats(x) for x in itertools.islice(batches, count)]
  batches.close()
  return taken


def as_floats(batch):
  audio = batch['audio']
  if audio.dtype == np.int16:
    audio = audio_io.to_float(audio)
  return batch | {'audio': audio}


def train(source, cfg, count, bad=None, **keywords):
  bad = bad or report.BadFiles(source.num_files, cfg.data)
  return take(
      pipeline.train_batches(source, cfg, report=bad, **keywords), count)


def evaluate(source, cfg, bad=None, **keywords):
  bad = bad or report.BadFiles(source.num_files, cfg.data)
  return [as_floats(x) for x in pipeline.eval_batches(
      source, cfg, report=bad, **keywords)]


def stored(source, cfg, count):
  """The dtypes of the audio of batches on their way to the device."""
  bad = report.BadFiles(source.num_files, cfg.data)
  with contextlib.closing(
      pipeline.train_batches(source, cfg, report=bad)) as batches:
    return [batch['audio'].dtype for batch in itertools.islice(batches, count)]


def column(batches, name):
  return np.concatenate([batch[name] for batch in batches])


def assert_equal(batches, others):
  for batch, other in zip(batches, others, strict=True):
    assert batch.keys() == other.keys()
    for name, value in batch.items():
      assert value.dtype == other[name].dtype
      np.testing.assert_array_equal(value, other[name])
