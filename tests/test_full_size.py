"""The paper's recipe at its full size, once; minutes and gigabytes."""

import dataclasses
import importlib.util
import pathlib

import jax
import numpy as np
import pytest

from audio_mae_jax import config as config_lib
from audio_mae_jax import step
from audio_mae_jax.data import pipeline

RECIPE = pathlib.Path(__file__).parents[1] / 'configs' / 'pretrain_as2m.py'


@pytest.mark.slow
def test_a_step_of_the_papers_recipe_runs():
  spec = importlib.util.spec_from_file_location('recipe', RECIPE)
  recipe = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(recipe)
  config = config_lib.typed(recipe.get_config())
  config = dataclasses.replace(
      config, train=dataclasses.replace(config.train, batch_size=2),
      # The loop over layers, and nothing kept for the way back: 5 GB.
      model=dataclasses.replace(
          config.model, scan_layers=True, remat='full'))
  program = step.build(config, 1000, jax.devices()[:1])
  num_samples = pipeline.clip_samples(config)
  rng = np.random.default_rng(0)
  batch = jax.device_put({
      'audio': rng.normal(0, 0.1, (2, num_samples)).astype(np.float32),
      'num_samples': np.full(2, num_samples, np.int32),
      'index': np.arange(2, dtype=np.int32),
      'valid': np.ones(2, np.float32)}, program.batch_sharding)
  state, metrics = program.train_step(program.init(), batch)
  assert int(state.step) == 1
  # The released model starts at about 2.2 on white noise.
  assert 1.5 < float(metrics['scalars']['loss']) < 3
