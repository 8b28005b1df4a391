"""What the commands share; test_main.py runs one of them."""

import configparser
import errno
import importlib
import pathlib
import re

from absl import flags
import jax
from jax.experimental.compilation_cache import compilation_cache
import pytest

from audio_mae_jax import cli
from audio_mae_jax import config as config_lib
from audio_mae_jax import optim
from audio_mae_jax import statuses
from audio_mae_jax import storage


def test_a_run_is_named_after_its_recipe():
  assert cli.named(config_lib.default(), 'configs/demo.py:x').name == 'demo'
  config = config_lib.default()
  config.name = 'mine'
  assert cli.named(config, 'configs/demo.py').name == 'mine'


def raised(call):
  with pytest.raises(Exception) as caught:
    call()
  return caught.value


def test_only_what_this_package_raised_for_the_user_is_the_users():
  settings = config_lib.Optimizer(warmup_epochs=9)
  assert statuses.is_users(raised(lambda: optim.schedule(settings, 8, 1, 2)))
  # The same kind of error out of a library, or from a mistake of ours.
  assert not statuses.is_users(raised(lambda: int('x')))
  assert not statuses.is_users(raised(lambda: config_lib.default().missing))


@pytest.mark.parametrize('error, status, told', [
    (storage.Unreachable('gs://b is away'), 69, 'gs://b is away'),
    (statuses.OtherEnded('Process 3 ended', 69), 69, 'error: Process 3'),
    (statuses.OtherEnded('Process 3 ended', 70), 70, 'error: Process 3'),
    (OSError(errno.ENOSPC, 'No space left', 'x'), 1,
     'Make room, and the same command goes on'),
    (KeyError('a mistake of ours'), 70, 'Traceback|KeyError')])
def test_statuses_say_whether_to_start_again(error, status, told, capsys):
  with pytest.raises(SystemExit) as ended:
    cli.end(error)
  assert ended.value.code == status
  assert re.search(told, capsys.readouterr().err)


@pytest.fixture
def cache_dir(monkeypatch):
  """Sets JAX's setting, and in the end what was; returns how to read it."""
  names = ('jax_compilation_cache_dir', 'jax_compilation_cache_max_size',
           'jax_persistent_cache_min_compile_time_secs')
  before = {name: getattr(jax.config, name) for name in names}

  def now(place, backend):
    monkeypatch.setattr(jax, 'default_backend', lambda: backend)
    jax.config.update(names[0], place)
    return lambda: getattr(jax.config, names[0])

  yield now
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


def test_programs_for_accelerators_are_kept_for_later_runs(
    cache_dir, tmp_path):
  found = cache_dir(None, 'gpu')
  cli.keep_programs({'XDG_CACHE_HOME': str(tmp_path)})
  assert found() == str(tmp_path / 'audio_mae_jax' / 'programs')
  assert not list((tmp_path / 'audio_mae_jax' / 'programs').iterdir())


def test_the_next_start_finds_what_was_compiled(cache_dir, tmp_path):
  cache_dir(None, 'gpu')
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  compilation_cache.reset_cache()
  cli.keep_programs({'XDG_CACHE_HOME': str(tmp_path)})
  place = tmp_path / 'audio_mae_jax' / 'programs'
  x, used = jax.numpy.arange(3.0), []
  for _ in range(2):
    # Another function to JAX, and the same program.
    jax.jit(lambda x: 41 * x + 1)(x).block_until_ready()
    # When each was last used is kept for the sake of the largest size.
    used.append({path.name: path.read_bytes()
                 for path in place.glob('jit__lambda*-atime')})
  assert len(used[0]) == 1 and used[0].keys() == used[1].keys()
  assert used[0] != used[1]
  assert len(list(place.glob('jit__lambda*-cache'))) == 1


def test_what_a_largest_size_needs_is_installed_with_the_package():
  """Without it JAX keeps nothing, and a test's other packages may bring it."""
  setup = configparser.ConfigParser()
  setup.read(pathlib.Path(__file__).parents[1] / 'setup.cfg')
  assert re.search('^filelock', setup['options']['install_requires'], re.M)


def test_a_home_that_cannot_be_written_to_costs_no_run(
    cache_dir, tmp_path, caplog):
  found = cache_dir(None, 'gpu')
  (tmp_path / 'file').touch()
  with caplog.at_level('INFO'):
    cli.keep_programs({'XDG_CACHE_HOME': str(tmp_path / 'file')})
  assert found() is None
  assert 'JAX_COMPILATION_CACHE_DIR=DIR names another place' in caplog.text


@pytest.mark.parametrize('given, backend', [('/mine', 'gpu'), (None, 'cpu')])
def test_a_place_of_the_users_stays_and_cpus_have_none(
    cache_dir, tmp_path, given, backend):
  found = cache_dir(given, backend)
  cli.keep_programs({'XDG_CACHE_HOME': str(tmp_path)})
  assert found() == given and not list(tmp_path.iterdir())


@pytest.mark.parametrize('command', ['main', 'benchmark'])
def test_help_names_the_flags_of_processes(command):
  name = importlib.import_module(f'audio_mae_jax.{command}').__name__
  named = {flag.name for flag in flags.FLAGS.get_key_flags_for_module(name)}
  assert {'config', 'coordinator', 'num_processes', 'process_id'} <= named
