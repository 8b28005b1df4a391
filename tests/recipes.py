"""The recipes in configs/, by name."""

import importlib.util
import pathlib

CONFIGS = pathlib.Path(__file__).parents[1] / 'configs'


def load(name, *arguments):
  """What `get_config(*arguments)` of configs/NAME.py returns."""
  spec = importlib.util.spec_from_file_location(name, CONFIGS / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(*arguments)
