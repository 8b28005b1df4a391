"""The command line: errors are one message, with the remedy."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def call(*arguments, **environment):
  env = {**os.environ, 'JAX_PLATFORMS': 'cpu', **environment}
  env.pop('AUDIO_MAE_DATA', None)
  return subprocess.run(
      [sys.executable, '-m', 'audio_mae_jax.main', *arguments], cwd=ROOT,
      env=env, capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize('arguments, expected', [
    ((), 'Give a recipe: --config=configs/quickstart.py'),
    (('--config=configs/quickstart.py', 'train'), 'Unexpected argument'),
    (('--config=configs/quickstart.py', '--config.train.batchsize=4'),
     'batch_size'),
    (('--config=configs/quickstart.py', '--config.train.batch_size=many'),
     'batch_size'),
    (('--config=configs/no_such.py',), 'no_such.py'),
    (('--config=configs/pretrain_as2m.py',), 'AUDIO_MAE_DATA'),
    (('--config=configs/pretrain_folder.py',), 'config.data.train.path'),
    (('--config=configs/pretrain_folder.py',
      '--config.data.train.path=/nowhere/at/all'), 'No folder /nowhere/at/all'),
    (('--config=configs/quickstart.py', '--config.mask.time_ratio=0.5'),
     'has no effect with mask.name='),
    (('--config=configs/quickstart.py', '--config.task=sing'), "task='sing'"),
    (('--config=configs/quickstart.py', '--config.train.batch_size=30'),
     'cannot be split over 8 devices'),
], ids=lambda x: x if isinstance(x, str) else None)
def test_what_the_user_can_mend_is_one_message(arguments, expected, tmp_path):
  workdir = f'--config.workdir={tmp_path}/run' if arguments else ''
  done = call(*arguments, *filter(None, [workdir]))
  assert done.returncode != 0
  assert expected in done.stderr + done.stdout
  assert 'error: ' in done.stderr and 'Traceback' not in done.stderr
  assert not (tmp_path / 'run').exists()
