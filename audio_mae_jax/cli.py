"""What the commands of this package share: the recipe's flag, and how an error
that the user can mend is told."""

from collections.abc import Mapping
import contextlib
import functools
import glob
import logging
import os
import pathlib
import re
import signal
import sys
import tempfile
import traceback

from absl import app
from absl import flags
from absl import logging as absl_logging
import jax
from ml_collections import config_flags
import tqdm

from audio_mae_jax import config as config_lib
from audio_mae_jax import distributed
from audio_mae_jax import statuses

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Recipe, e.g. configs/pretrain_as2m.py.')
_COORDINATOR = flags.DEFINE_string(
    'coordinator', '', 'HOST:PORT of process 0. With --num_processes and '
    '--process_id where processes do not find each other: on Cloud TPU, GKE, '
    'Slurm and Open MPI they do.')
_NUM_PROCESSES = flags.DEFINE_integer(
    'num_processes', None, 'How many there are in all.')
_PROCESS_ID = flags.DEFINE_integer(
    'process_id', None, 'Which of them this one is, from 0.')
_LOCAL_DEVICE_IDS = flags.DEFINE_list(
    'local_device_ids', None, 'GPUs of this process, of those that it sees.')
flags.register_validator(
    _LOCAL_DEVICE_IDS, lambda ids: all(i.isdecimal() for i in ids or ()),
    'takes numbers of GPUs, e.g. --local_device_ids=0,1')
_HEARTBEAT_S = flags.DEFINE_integer(
    'heartbeat_s', distributed.HEARTBEAT_S,
    'Seconds after which a process that is silent counts as lost.')
_WAIT_S = flags.DEFINE_integer(
    'wait_s', distributed.WAIT_S, 'Seconds to wait for the others to start.')


# Of compiled programs: one is some tens of MB, and the oldest go first.
_PROGRAMS_BYTES, _TRIAL_BYTES = 2 * 2**30, 2**20


def named(config, file: str):
  """`config` with its run named after the recipe's file, if it has no name."""
  if not config.name:
    config.name = pathlib.Path(file.split(':')[0]).stem
  return config


class _Terminal(logging.Handler):
  """Lines above a progress bar, without timestamps."""

  def emit(self, record):
    tqdm.tqdm.write(self.format(record), file=sys.stderr)


def log_to_terminal():
  """Shows this package's messages, and of the libraries only warnings."""
  absl_logging.set_verbosity(absl_logging.WARNING)
  # When a write fails, threads of Orbax repeat what the error says.
  logging.getLogger('asyncio').setLevel(logging.CRITICAL)
  ours = logging.getLogger('audio_mae_jax')
  ours.setLevel(logging.INFO)
  ours.handlers = [_Terminal()]
  ours.propagate = False


def keep_programs(environ: Mapping[str, str] = os.environ):
  """Lets later runs find what this one compiles, on accelerators.

  In JAX's own cache, where the user has not given it a place. Not on CPUs:
  such programs are for one processor, and homes are shared between hosts.
  """
  if jax.config.jax_compilation_cache_dir or jax.default_backend() == 'cpu':
    return
  home = environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  place = os.path.join(home, 'audio_mae_jax', 'programs')
  try:
    os.makedirs(place, exist_ok=True)
    with tempfile.TemporaryFile(dir=place) as file:
      file.write(bytes(_TRIAL_BYTES))
  except OSError as error:  # XLA would end the run
    logging.getLogger(__name__).info(
        'Programs are compiled anew at each start: %s cannot be written (%s). '
        'JAX_COMPILATION_CACHE_DIR=DIR names another place.', place, error)
    return
  jax.config.update('jax_compilation_cache_dir', place)
  jax.config.update('jax_compilation_cache_max_size', _PROGRAMS_BYTES)


def run(action):
  """Calls `action(config)` with the recipe of the command line, and exits.

  Where there are several processes, they are connected. What the action gives
  is the exit status.
  """
  app.run(functools.partial(_main, action), flags_parser=_parse)


def _parse(argv):
  """Reads the flags; ml_collections raises for a setting that it has not."""
  try:
    return app.parse_flags_with_usage(argv)
  except OSError as error:
    stop(_no_recipe() or error)
  except (AttributeError, KeyError) as error:
    text = str(error).replace('\\n', ' ')
    typo = re.search(r'Did you mean "(.+)" instead of "(.+)"\?', text)
    if not typo:  # a mistake in the recipe: its author wants the traceback
      raise
    text = f'There is no setting {typo[2]!r}. Did you mean {typo[1]!r}?'
    stop(f'{text} Settings are given as --config.FIELD=VALUE; '
          'audio_mae_jax/config.py lists them.')


def _no_recipe():
  """What to tell if the recipe is a file that is not there, else None."""
  # The flag does not tell, if settings follow it.
  given = re.search(r'\0--?config[=\0]([^\0:]+)', '\0'.join(sys.argv))
  if not given or os.path.exists(path := given[1]):
    return None
  there = ', '.join(sorted(glob.glob('configs/*.py')))
  return (f'There is no recipe {path} in {os.getcwd()}. ' + (
      f'There are {there}.' if there else
      "Those of this project are in its checkout's configs/: run from there, "
      'or give the whole path.'))


def _main(action, argv):
  if len(argv) > 1:
    stop(f'Unexpected argument {argv[1]!r}; settings are given as '
          '--config.FIELD=VALUE.')
  if _CONFIG.value is None:
    stop('Give a recipe: --config=configs/quickstart.py.')
  log_to_terminal()
  try:
    recipe = named(
        _CONFIG.value, config_flags.get_config_filename(flags.FLAGS['config']))
  except OSError as error:  # a missing file is told of at the first use
    stop(_no_recipe() or error)
  try:
    config = config_lib.typed(recipe)
    distributed.initialize(_start())
    if not distributed.is_first():
      logging.getLogger('audio_mae_jax').setLevel(logging.WARNING)
    keep_programs()
    status = action(config)
    # The first may be writing still, and JAX's own wait at the exit is short.
    distributed.meet()
    return status
  except KeyboardInterrupt:  # in training a second one: it waits for nobody
    _interrupted()
  except Exception as error:
    end(error)


def _interrupted(advice: str = ''):
  print(f'\nInterrupted.{advice and " "}{advice}', file=sys.stderr)
  status = 128 + signal.SIGINT
  if distributed.is_several():
    distributed.leave(status)
  # As Python ends, XLA crashes or hangs over what still computes.
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


def end(error: Exception):
  """Ends this process with what `error` says, and the status that fits it."""
  if distributed.lost_process(error):
    text = ' '.join(str(error).split())
    stop(f'Another process of this run has ended, or cannot be reached '
         f'({text[:300]}). The first error among the logs of all processes '
         'says why. The same command goes on from the last checkpoint.',
         statuses.OUT_OF_REACH)
  if statuses.is_full(error):
    stop(f'{error}. Make room, and the same command goes on from the last '
         'checkpoint.')
  status = statuses.of(error)
  if status == statuses.CRASH and not isinstance(error, statuses.OtherEnded):
    traceback.print_exception(error)
    distributed.leave(status)
  stop(error, status)


def _start():
  return distributed.Start(
      _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value,
      _LOCAL_DEVICE_IDS.value and tuple(map(int, _LOCAL_DEVICE_IDS.value)),
      _HEARTBEAT_S.value, _WAIT_S.value)


@contextlib.contextmanager
def telling(interrupted: str = ''):
  """Ends a command with the message of an error that its user can mend, or at
  Ctrl-C with `interrupted`, what to do next."""
  try:
    yield
  except KeyboardInterrupt:
    _interrupted(interrupted)
  except OSError as error:  # of files that the user named
    stop(error)
  except Exception as error:
    if not statuses.is_users(error):
      raise
    stop(error)


def stop(message, status=statuses.USERS):
  """Says what is wrong, and exits."""
  print(f'\nerror: {message}', file=sys.stderr)
  distributed.leave(status)
