"""What tests leave out of a run to share its step is not in the step."""

import dataclasses

import jax
import pytest
import shared_steps
import tiny

from audio_mae_jax import compile_for
from audio_mae_jax import config as config_lib
from audio_mae_jax import step

# None is the default, of what shapes and values of a step depend on and of
# what they do not.
OTHERS = {
    'data.clip_s': 0.7, 'data.crop': 'start', 'data.cache_gb': 1.0,
    'data.train.name': 'synthetic', 'data.train.num_clips': 4,
    'workdir': 'run', 'log.every_steps': 3, 'checkpoint.keep': 7,
    'mask.ratio': 0.7, 'augment.roll': False, 'train.seed': 5,
    'train.batch_size': 2, 'optimizer.base_lr': 0.01, 'frontend.mean': -3.0,
    'objective.normalize_patches': False}


def lowered(config):
  program = step.build(config, 10, jax.devices()[:1])
  batch = compile_for.batch(config, program.mesh, program.task.labelled)
  return program.train_step.lower(program.shapes, batch).as_text()


def test_a_step_is_traced_from_what_is_left():
  config = tiny.config(tiny.MODEL, OTHERS)
  found = shared_steps.traced_from(config)
  assert found.workdir != config.workdir and found.log != config.log
  assert lowered(found) == lowered(config)


@pytest.mark.parametrize('name', [
    'data.clip_s', 'mask.ratio', 'augment.roll', 'train.seed',
    'train.batch_size', 'optimizer.base_lr', 'frontend.mean',
    'objective.normalize_patches'])
def test_runs_of_other_steps_share_none(name):
  config = tiny.config(tiny.MODEL, OTHERS)
  group, field = name.split('.')
  default = getattr(getattr(config_lib.Config(), group), field)
  changed = dataclasses.replace(config, **{group: dataclasses.replace(
      getattr(config, group), **{field: default})})
  assert changed != config
  assert shared_steps.traced_from(changed) != shared_steps.traced_from(config)
