"""Batches in hand: some of training, all of an evaluation."""

import itertools

import numpy as np

from audio_mae_jax.data import pipeline
from audio_mae_jax.data import report


def take(batches, count):
  taken = list(itertools.islice(batches, count))
  batches.close()
  return taken


def train(source, cfg, count, bad=None, **keywords):
  bad = bad or report.BadFiles(source.num_files, cfg.data)
  return take(
      pipeline.train_batches(source, cfg, report=bad, **keywords), count)


def evaluate(source, cfg, bad=None, **keywords):
  bad = bad or report.BadFiles(source.num_files, cfg.data)
  return list(pipeline.eval_batches(source, cfg, report=bad, **keywords))


def column(batches, name):
  return np.concatenate([batch[name] for batch in batches])


def assert_equal(batches, others):
  for batch, other in zip(batches, others, strict=True):
    assert batch.keys() == other.keys()
    for name, value in batch.items():
      assert value.dtype == other[name].dtype
      np.testing.assert_array_equal(value, other[name])
