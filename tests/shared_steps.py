"""Runs that differ in nothing that a step is traced from share its program."""

import contextlib
import dataclasses
import functools
from unittest import mock

from audio_mae_jax import config as config_lib
from audio_mae_jax import step

# What the loop around a step reads, and the step does not.
_AROUND = ('name', 'mode', 'folds', 'workdir', 'init_from', 'probe',
           'checkpoint', 'log')


def traced_from(config: config_lib.Config) -> config_lib.Config:
  """`config` with the defaults in all that a step is not traced from."""
  default = config_lib.Config()
  return dataclasses.replace(
      config, data=config_lib.Data(clip_s=config.data.clip_s),
      **{name: getattr(default, name) for name in _AROUND})


@contextlib.contextmanager
def built_once():
  """While it lasts, `step.build` gives equal runs the same program."""
  build = functools.cache(step.build)

  def shared(config, steps_per_epoch, devices=None, task=None):
    return build(traced_from(config), steps_per_epoch,
                 devices and tuple(devices), task)

  with mock.patch.object(step, 'build', shared):
    yield
