"""The command line: errors are one message, with the remedy."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def unreadable(tmp_path):
  (tmp_path / 'audio').mkdir()
  for name in ('a.wav', 'b.wav'):
    (tmp_path / 'audio' / name).write_bytes(b'not audio')
  return str(tmp_path / 'audio')


SMALL = [f'--config.model.{part}.{size}' for part in ('encoder', 'decoder')
         for size in ('width=16', 'depth=1', 'heads=2')]
LATER = [
    (('--config=configs/pretrain_folder.py',
      '--config.data.train.path={unreadable}',
      '--config.workdir={place}/run'), 'No readable file'),
    (('--config=configs/quickstart.py', '--config.data.resample=error',
      '--config.frontend.sample_rate_hz=8000', '--config.probe.online=()',
      '--config.workdir={place}/run'), "config.data.resample='error' refuses"),
    # test_train.py has it in its own process.
    pytest.param(
        ('--config=configs/quickstart.py', '--config.workdir={place}/file/run'),
        'Cannot write in work', marks=pytest.mark.slow),
]


@pytest.mark.parametrize(
    'arguments, expected', LATER,
    ids=lambda x: x if isinstance(x, str) else None)
def test_errors_of_other_threads_and_later_phases_are_one_message_too(
    arguments, expected, unreadable, tmp_path):
  (tmp_path / 'file').write_text('in the way')
  done = call(*(x.format(unreadable=unreadable, place=tmp_path)
                for x in arguments), '--config.train.batch_size=8', *SMALL)
  assert done.returncode == 1, done.stderr
  assert expected in done.stderr
  assert 'error: ' in done.stderr and 'Traceback' not in done.stderr


def call(*arguments, **environment):
  env = {**os.environ, 'JAX_PLATFORMS': 'cpu', **environment}
  env.pop('AUDIO_MAE_DATA', None)
  return subprocess.run(
      [sys.executable, '-m', 'audio_mae_jax.main', *arguments], cwd=ROOT,
      env=env, capture_output=True, text=True, timeout=240)


MISTAKES = [
    ((), 'Give a recipe: --config=configs/quickstart.py'),
    (('--config=configs/quickstart.py', '--config.train.batchsize=4'),
     'batch_size'),
    (('--config=configs/no_such.py',),
     f'There is no recipe configs/no_such.py in {ROOT}. There are configs/'),
    (('--config=configs/quickstart.py', '--config.train.batch_size=30'),
     'cannot be split over 8 devices'),
]
# The same ways out, and each is two seconds of imports.
MORE_MISTAKES = [
    (('--config=configs/quickstart.py', 'train'), 'Unexpected argument'),
    (('--config=configs/pretrain_folder.py',
      '--config.data.train.path=/nowhere/at/all'), 'No folder /nowhere/at/all'),
    (('--config=configs/quickstart.py', '--config.train.batch_size=many'),
     'batch_size'),
    (('--config=configs/pretrain_as2m.py',), 'AUDIO_MAE_DATA'),
    (('--config=configs/pretrain_folder.py',), 'config.data.train.path'),
    (('--config=configs/quickstart.py', '--config.mask.time_ratio=0.5'),
     'has no effect with mask.name='),
    (('--config=configs/quickstart.py', '--config.task=sing'), "task='sing'"),
]


@pytest.mark.parametrize('arguments, expected', MISTAKES + [
    pytest.param(*mistake, marks=pytest.mark.slow)
    for mistake in MORE_MISTAKES],
    ids=lambda x: x if isinstance(x, str) else None)
def test_what_the_user_can_mend_is_one_message(arguments, expected, tmp_path):
  workdir = f'--config.workdir={tmp_path}/run' if arguments else ''
  done = call(*arguments, *filter(None, [workdir]))
  assert done.returncode != 0
  assert expected in done.stderr + done.stdout
  assert 'error: ' in done.stderr and 'Traceback' not in done.stderr
  assert not (tmp_path / 'run').exists()
