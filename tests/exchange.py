"""Weights to import and export, for tests."""

import goldens
import numpy as np
import safetensors.numpy
import tiny

from audio_mae_jax import weights as weights_lib
from audio_mae_jax.convert import importer
from audio_mae_jax.convert import torch_file

TINY = goldens.FOLDER / 'ckpt_pretrain_tiny.pth'
GLOBAL = tiny.GLOBAL | {'frontend.num_frames': 256}
RUN = {  # a short one, of tiny.MODEL
    'data.train.name': 'synthetic', 'data.train.num_clips': 16,
    'data.clip_s': 0.65, 'train.batch_size': 8, 'train.steps': 2,
    'optimizer.warmup_epochs': 0.0, 'log.progress': False,
    'log.tensorboard': False, 'log.picture_every_steps': -1}
HEADS = {'model.encoder.heads': 3}  # the one thing that tensors do not show


def released() -> dict[str, np.ndarray]:
  """The tensors of a small released checkpoint, as it holds them."""
  return dict(torch_file.read(TINY)['model'])


def finetuned(folder) -> weights_lib.Weights:
  """A small released classifier, imported."""
  path = write(folder / 'finetuned.safetensors',
               goldens.under(goldens.read('finetune'), 'param/'))
  return importer.import_weights(path, given=HEADS)


def write(path, tensors):
  safetensors.numpy.save_file(
      {name: np.ascontiguousarray(x) for name, x in tensors.items()}, path)
  return path


def assert_same_bits(got: dict, want: dict):
  assert got.keys() == want.keys()
  for name, array in want.items():
    assert got[name].dtype == array.dtype, name
    np.testing.assert_array_equal(got[name], array, err_msg=name)


def random_weights(overrides=None, base=GLOBAL) -> weights_lib.Weights:
  config = tiny.config(base, overrides)
  rng = np.random.default_rng(0)
  return weights_lib.Weights(
      {name: rng.normal(size=leaf.shape).astype(np.float32)
       for name, leaf in weights_lib.shapes(config).items()},
      weights_lib.with_positions(config), {'format': 'test'})
