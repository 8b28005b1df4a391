"""Weights as they are saved and loaded, and those of a run."""

import dataclasses
import functools
import json
import re

import exchange
import jax
import ml_dtypes
import numpy as np
import pytest
import tiny

from audio_mae_jax import storage
from audio_mae_jax import train
from audio_mae_jax import trees
from audio_mae_jax import weights
from audio_mae_jax.convert import files
from audio_mae_jax.convert import settings

of = functools.partial(exchange.random_weights, base=tiny.MODEL)


# -- the folder ----------------------------------------------------------------


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('part', ['all', 'encoder'])
def test_weights_come_back_as_they_were(dtype, part, tmp_path):
  want = of().part(part)
  want = dataclasses.replace(want, tables={
      'encoder': np.random.default_rng(0).normal(size=(65, 16))})
  weights.save(tmp_path / 'w', want, dtype)
  got = weights.load(tmp_path / 'w')
  kind = {'float32': np.float32, 'bfloat16': ml_dtypes.bfloat16}[dtype]
  exchange.assert_same_bits(got.params, {
      name: x.astype(kind) for name, x in want.params.items()})
  exchange.assert_same_bits(got.tables, want.tables)
  assert got.config == want.config and got.source == want.source
  assert weights.load_config(tmp_path / 'w') == want.config
  assert {path.name for path in (tmp_path / 'w').iterdir()} == {
      'config.json', 'model.safetensors'}


def test_weights_go_to_a_store_and_come_back(bucket, monkeypatch):
  want = of()
  put = []
  copy_out = storage.copy_out
  monkeypatch.setattr(storage, 'copy_out', lambda folder, path, names: (
      put.extend(names), copy_out(folder, path, names)))
  weights.save(f'{bucket}/w', want)
  assert put == ['w/model.safetensors', 'w/config.json']  # the last counts
  got = weights.load(f'{bucket}/w')
  exchange.assert_same_bits(got.params, want.params)
  assert weights.load_config(f'{bucket}/w') == want.config
  with pytest.raises(ValueError, match='exists already'):
    weights.save(f'{bucket}/w', want)
  with pytest.raises(ValueError, match=f'{bucket}/none holds no weights'):
    weights.load(f'{bucket}/none')
  files.write(f'{bucket}/out/x.safetensors', want.params, {})
  assert storage.below(f'{bucket}/out') == ['x.safetensors']


def test_the_place_of_positions_is_written_out():
  patch = of({'patch.stride': (4, 10)}).config.patch
  assert patch.positions_grid == (15, 12)
  assert patch.positions_stride == (4, 10)


def test_what_computes_attention_stays_with_the_devices_it_was_chosen_for(
    tmp_path):
  want = of()
  want = dataclasses.replace(want, config=dataclasses.replace(
      want.config, model=dataclasses.replace(
          want.config.model, attention='cudnn')))
  weights.save(tmp_path / 'w', want)
  assert weights.load(tmp_path / 'w').config.model.attention == 'auto'
  assert weights.load_config(tmp_path / 'w').model.attention == 'auto'
  notes = {files.NOTES: dataclasses.asdict(want.config)}
  assert settings.noted(notes).model.attention == 'auto'


def test_a_compact_folder_is_as_small_as_its_numbers(tmp_path):
  want = of()
  weights.save(tmp_path / 'w', want, 'bfloat16')
  numbers = sum(x.size for x in want.params.values())
  size = sum(path.stat().st_size for path in (tmp_path / 'w').iterdir())
  assert 2 * numbers < size < 2 * numbers + 20_000


def flip(folder):
  path = folder / 'model.safetensors'
  data = bytearray(path.read_bytes())
  data[-5] ^= 1
  path.write_bytes(data)


def edit(**values):
  def change(folder):
    path = folder / 'config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
  return change


@pytest.mark.parametrize('damage, message', [
    (flip, 'is not what was written (its checksum differs)'),
    (lambda folder: (folder / 'model.safetensors').unlink(),
     'holds no weights. It can be the work directory of a run'),
    (lambda folder: (folder / 'config.json').write_text('{'), 'is no JSON'),
    (edit(kind='vit'), 'is not of this project: import the folder first'),
    (edit(version=2), 'has version 2, and this program knows version 1'),
    (edit(version='x'), "has version 'x'"),
    (edit(config={'patch': {'sizes': 3}}),
     "are of another version: config.patch.sizes is not a setting. Did you "
     "mean 'size'?"),
])
def test_a_damaged_folder_is_refused(damage, message, tmp_path):
  weights.save(tmp_path / 'w', of())
  damage(tmp_path / 'w')
  with pytest.raises(ValueError, match=re.escape(message)):
    weights.load(tmp_path / 'w')


def test_nothing_is_overwritten_and_nothing_is_left_half(tmp_path, monkeypatch):
  weights.save(tmp_path / 'w', of())
  with pytest.raises(ValueError, match='exists already; choose another place'):
    weights.save(tmp_path / 'w', of())

  def full(*_, **__):
    raise OSError('No space left on device')

  monkeypatch.setattr('safetensors.numpy.save_file', full)
  with pytest.raises(OSError, match='No space left'):
    weights.save(tmp_path / 'v', of())
  assert [path.name for path in tmp_path.iterdir()] == ['w']


@pytest.mark.parametrize('call, message', [
    (lambda path: weights.save(path, of(), 'float16'),
     "dtype='float16' is not known. Did you mean 'bfloat16'?"),
    (lambda path: of().part('decoder'), "part='decoder' is not known."),
])
def test_unknown_choices_are_refused(call, message, tmp_path):
  with pytest.raises(ValueError, match=re.escape(message)):
    call(tmp_path / 'w')


# -- from a run ----------------------------------------------------------------


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """(work directory, last state) of a short run with averaged weights."""
  workdir = tmp_path_factory.mktemp('runs') / 'tiny'
  config = tiny.config(tiny.MODEL, exchange.RUN | {
      'workdir': str(workdir), 'optimizer.ema_decay': 0.5,
      'checkpoint.every_steps': 1})
  state = train.train(config, jax.devices()[:1])
  return workdir, jax.device_get(state)


def test_a_run_gives_its_averaged_weights(run):
  workdir, state = run
  got = weights.load(workdir)
  exchange.assert_same_bits(got.params, trees.flatten(state.ema))
  assert not np.array_equal(got.params['pred/kernel'],
                            state.params['pred']['kernel'])
  assert got.config.patch.positions_grid == (8, 8)
  assert got.config.patch.positions_stride == (8, 16)


def test_a_run_is_found_by_a_relative_path(run, monkeypatch):
  workdir, state = run
  monkeypatch.chdir(workdir.parent)
  exchange.assert_same_bits(
      weights.load('tiny').params, trees.flatten(state.ema))
  assert weights.load_config('tiny').patch.positions_grid == (8, 8)


def test_one_checkpoint_of_a_run_gives_its_own(run):
  workdir, state = run
  exchange.assert_same_bits(weights.load(workdir / 'checkpoints' / '2').params,
               trees.flatten(state.ema))
  first = weights.load(workdir / 'checkpoints' / '1').params
  assert not np.array_equal(first['pred/kernel'], state.ema['pred']['kernel'])


def test_a_damaged_checkpoint_gives_way_to_the_one_before(run, tmp_path):
  import shutil
  workdir, _ = run
  shutil.copytree(workdir, tmp_path / 'run')
  want = weights.load(workdir / 'checkpoints' / '1').params
  for path in (tmp_path / 'run' / 'checkpoints' / '2' / 'state').rglob('*'):
    if path.is_file() and path.stat().st_size > 10_000:
      path.write_bytes(b'\0' * path.stat().st_size)
  exchange.assert_same_bits(weights.load(tmp_path / 'run').params, want)
  with pytest.raises(ValueError, match='No checkpoint in .* could be read: '):
    weights.load(tmp_path / 'run' / 'checkpoints' / '2')


def test_a_run_without_checkpoints_is_told_of(tmp_path):
  (tmp_path / 'checkpoints').mkdir()
  with pytest.raises(ValueError, match='could be read; give the work directory '
                     'of a run'):
    weights.load(tmp_path)
