"""Imports point downwards, and the package pulls in nothing heavy."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / 'audio_mae_jax'

# Rooms by floor; a room may import from its own floor (never in a circle) and
# from those below. Entries name a module or a folder.
FLOORS = [
    ['config', 'registry', 'trees', 'fingerprint', 'record', 'meta',
     'compare', 'metrics', 'devices', 'distributed', 'storage', 'lease',
     'statuses', 'memory', 'hlo'],
    ['costs'],
    ['frontend', 'augment', 'patches', 'masking', 'losses'],
    ['models'],
    ['flops', 'optim', 'sharding', 'data', 'pictures', 'writer',
     'progress', 'workdirs', 'copies', 'damage'],
    ['tasks'],
    ['step', 'checkpoint'],
    ['weights', 'init_from'],
    ['evaluate'],
    ['features', 'probes', 'probe'],
    ['bookkeeping'],
    ['train'],
    ['score'],
    ['modes'],
    ['breakdown'],
    ['cli', 'measure', 'compile_for', 'convert', 'export', 'prepare',
     'reconstruct'],
    ['embed'],
    ['main', 'benchmark', 'benchmark_table', 'hear', 'xares_encoder'],
]


def room(path):
  return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def floor(name):
  return next((i for i, rooms in enumerate(FLOORS) if name in rooms), None)


def imports(path):
  """Rooms of this package that the module imports, wherever it does."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module:
      parts = node.module.split('.')
      if parts[0] == 'audio_mae_jax':
        yield from parts[1:2] or [alias.name for alias in node.names]
    elif isinstance(node, ast.Import):
      for alias in node.names:
        if alias.name.startswith('audio_mae_jax.'):
          yield alias.name.split('.')[1]


MODULES = sorted(path for path in PACKAGE.rglob('*.py')
                 if path.name != '__init__.py' or path.parent != PACKAGE)
MODULES = [path for path in MODULES if 'demo' not in path.parts]


@pytest.mark.parametrize(
    'path', MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
  here = floor(room(path))
  assert here is not None, f'{path.name} has no floor in FLOORS: give it one'
  for name in imports(path):
    assert floor(name) is not None and floor(name) <= here, (
        f'{path.name} (floor {here}) imports {name} (floor {floor(name)})')


def test_models_and_signal_know_nothing_of_data():
  for path in MODULES:
    if room(path) in ('models', 'tasks', 'frontend', 'masking', 'patches'):
      assert 'data' not in imports(path)


@pytest.mark.parametrize('module', ['audio_mae_jax', 'audio_mae_jax.train',
                                    'audio_mae_jax.main'])
def test_importing_takes_no_tensorflow_and_no_torch(module):
  code = (f'import sys, {module}\n'
          'bad = {"tensorflow", "torch", "tensorflow_datasets", "librosa", '
          '"matplotlib", "wandb"} & set(sys.modules)\n'
          'assert not bad, bad')
  subprocess.run([sys.executable, '-c', code], check=True, timeout=120)


def test_importing_the_commands_waits_for_nothing_that_only_some_need():
  """Half of the time to import is JAX; these would be a third of the rest."""
  code = ('import sys, audio_mae_jax.main, audio_mae_jax.benchmark\n'
          'bad = {"orbax.checkpoint", "grain", "sklearn", "scipy"} '
          '& set(sys.modules)\n'
          'assert not bad, bad')
  subprocess.run([sys.executable, '-c', code], check=True, timeout=120)


def test_files_stay_small_enough_to_read():
  long = {path.name: n for path in MODULES
          if (n := len(path.read_text().splitlines())) > 330}
  assert not long, long
