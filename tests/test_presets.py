"""The light presets: what the documentation says they cost."""

import pathlib
import re

import pytest
import recipes

from audio_mae_jax import config as config_lib
from audio_mae_jax import tasks

PAGE = pathlib.Path(__file__).parents[1] / 'docs' / 'performance.md'
ROWS = re.findall(
    r'^\| `(\w+)` \| .* \| ([\d.]+) \| (\d+) % \| \d+ % \| (?:[\d.]+|-) \|$',
    PAGE.read_text(), re.M)


def preset(*name):
  return config_lib.typed(recipes.load('pretrain_as2m', *name))


def gflop(config):
  return tasks.make(config).flops()['step'] / 1e9


def test_the_table_is_there():
  assert len(ROWS) == 9 and ROWS[0][0] == 'default'


@pytest.mark.parametrize('name, cost, share', ROWS)
def test_a_preset_costs_what_the_table_says(name, cost, share):
  config = preset(name)
  assert config.name == ('' if name == 'default' else f'pretrain_as2m_{name}')
  found = gflop(config)
  assert f'{found:.1f}' == cost
  assert f'{100 * found / gflop(preset()):.0f}' == share


def test_an_unknown_preset_is_refused_with_those_there_are():
  with pytest.raises(ValueError, match='it has default, ' + ', '.join(
      name for name, *_ in ROWS[1:])):
    preset('tiny')
