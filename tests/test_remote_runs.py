"""Whole runs whose work directory and data lie in stores."""


import exchange
import fsspec
import jax
import numpy as np
import pytest
import tiny

from audio_mae_jax import checkpoint
from audio_mae_jax import record
from audio_mae_jax import storage
from audio_mae_jax import train
from audio_mae_jax import trees
from audio_mae_jax import weights as weights_lib
from audio_mae_jax import workdirs

pytestmark = [
    pytest.mark.usefixtures('compile_once'),
    # Orbax leaves the reads of other arrays behind when one fails.
    pytest.mark.filterwarnings(
        'ignore::pytest.PytestUnraisableExceptionWarning')]

STEPS = 4


def run(workdir, **overrides):
  config = tiny.config(tiny.MODEL, exchange.RUN | {
      'workdir': str(workdir), 'train.steps': STEPS, 'data.num_threads': 1,
      'checkpoint.every_steps': 1, 'log.every_steps': 1, **overrides})
  return train.train(config, devices=jax.devices()[:1])


def losses(place):
  with storage.open_text(f'{place}/{record.NAME}') as file:
    lines = [record._parse(line.encode()) for line in file]
  return [(line['step'], line['train/loss']) for line in lines]


def assert_same_bits(a, b):
  exchange.assert_same_bits(
      *({name: np.asarray(x) for name, x in trees.flatten(tree).items()}
        for tree in (a, b)))


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('whole')
  return run(workdir), losses(workdir)


def names(bucket):
  return fsspec.filesystem(bucket.split(':')[0]).find(bucket)


def interrupted(place, monkeypatch, step):
  """A run that fails right after the update of `step`."""
  with monkeypatch.context() as patch:
    from audio_mae_jax import bookkeeping
    after = bookkeeping.Bookkeeper.after_update

    def fails(self, at, *args):
      if at == step:
        raise RuntimeError('interrupted')
      after(self, at, *args)

    patch.setattr(bookkeeping.Bookkeeper, 'after_update', fails)
    with pytest.raises(RuntimeError, match='interrupted'):
      run(place)


def test_a_run_in_a_store_is_that_of_a_folder_and_goes_on(
    bucket, whole, monkeypatch, caplog):
  place = f'{bucket}/runs/a'
  interrupted(place, monkeypatch, 3)
  assert losses(place) == whole[1][:2]
  with caplog.at_level('INFO', 'audio_mae_jax'):
    state = run(place)
  assert 'Going on from step 2.' in caplog.text
  assert f'Record: {place}/metrics.jsonl' in caplog.text
  assert_same_bits(state, whole[0])
  assert losses(place) == whole[1]
  # The newest three, the record and its curve, and nothing besides.
  found = storage.below(place)
  assert {name.split('/')[1] for name in found
          if name.startswith('checkpoints/')} == {'2', '3', '4'}
  assert [x for x in found if not x.startswith('checkpoints/')] == [
      'loss_curve.png', 'metrics.jsonl']
  assert not workdirs.copy_of(storage.path_of(place)).exists()
  # Others start from it.
  params = weights_lib.load(f'{place}/checkpoints/3').params
  assert params.keys() == trees.flatten(state.params).keys()
  params, meta = checkpoint.read_params(place)
  exchange.assert_same_bits(params, {
      name: np.asarray(x) for name, x in trees.flatten(state.params).items()})
  assert meta['config']['workdir'] == place
