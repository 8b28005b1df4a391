"""Starting from weights: what fits, what travels, what is refused."""

import dataclasses
import functools
import logging
import re

import exchange
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import tiny

from audio_mae_jax import compare
from audio_mae_jax import config as config_lib
from audio_mae_jax import init_from
from audio_mae_jax import patches
from audio_mae_jax import train
from audio_mae_jax import trees
from audio_mae_jax import weights
from audio_mae_jax.models import encoder

pytestmark = pytest.mark.usefixtures('compile_once')

of = functools.partial(exchange.random_weights, base=tiny.MODEL)


def config_from(folder, overrides=None):
  return tiny.config(tiny.MODEL, exchange.RUN | {
      'init_from': str(folder)} | (overrides or {}))


def initial(config, classes=()):
  return init_from.initial(
      config, weights.load(config.init_from), classes)


@pytest.fixture
def saved(tmp_path):
  weights.save(tmp_path / 'w', of())
  return tmp_path / 'w'


def test_a_run_starts_from_the_weights(saved, tmp_path):
  config = config_from(saved, {
      'workdir': str(tmp_path / 'run'), 'optimizer.base_lr': 0.0,
      'optimizer.min_lr': 0.0, 'optimizer.ema_decay': 0.5,
      'mesh.fsdp': 2})
  state = train.train(config, jax.devices()[:2])
  want = weights.load(saved).params
  exchange.assert_same_bits(trees.flatten(jax.device_get(state.params)), want)
  for name, x in trees.flatten(jax.device_get(state.ema)).items():
    np.testing.assert_allclose(x, want[name], rtol=1e-6)
  # What it was started from is on record, with its positions.
  kept = weights.load_config(tmp_path / 'run')
  assert kept.init_from == str(saved)
  assert kept.patch.positions_grid == (8, 8)


@pytest.mark.slow
def test_a_run_goes_on_without_the_weights_it_started_from(saved, tmp_path):
  import shutil
  whole = train.train(config_from(
      saved, {'workdir': str(tmp_path / 'whole')}), jax.devices()[:1])
  parts = {'workdir': str(tmp_path / 'parts'), 'checkpoint.every_steps': 1}
  train.train(config_from(saved, parts), jax.devices()[:1])
  shutil.rmtree(tmp_path / 'parts' / 'checkpoints' / '2')
  shutil.rmtree(saved)
  again = train.train(config_from(saved, parts), jax.devices()[:1])
  exchange.assert_same_bits(trees.flatten(jax.device_get(again.params)),
               trees.flatten(jax.device_get(whole.params)))


def test_parts_that_only_one_has_are_left_out_and_told(saved, tmp_path, caplog):
  weights.save(tmp_path / 'encoder', of().part('encoder'), 'bfloat16')
  with caplog.at_level(logging.INFO):
    got = initial(config_from(tmp_path / 'encoder'))
  assert all(name.startswith('encoder/') for name in got)
  assert all(x.dtype == np.float32 for x in got.values())
  assert 'Fresh: decoder, pred.' in caplog.text
  caplog.clear()
  with caplog.at_level(logging.INFO):
    got = initial(config_from(saved, {
        'task': 'classify', 'model.classifier.num_classes': 3}))
  assert all(name.startswith('encoder/') for name in got)
  assert not any(name.startswith('encoder/norm') for name in got)
  assert 'Fresh: fc_norm, head. Not used: decoder, encoder/norm, pred.' in (
      caplog.text)


def test_a_head_for_other_classes_is_fresh(tmp_path, caplog):
  weights.save(tmp_path / 'w', of({
      'task': 'classify', 'model.classifier.num_classes': 5}))
  with caplog.at_level(logging.INFO):
    got = initial(config_from(tmp_path / 'w', {
        'task': 'classify', 'model.classifier.num_classes': 7}))
  assert 'fc_norm/scale' in got and 'head/bias' not in got
  assert 'Fresh: head. Not used: head.' in caplog.text
  got = initial(config_from(tmp_path / 'w', {
      'task': 'classify', 'model.classifier.num_classes': 5}))
  assert 'head/bias' in got


def test_a_head_for_as_many_other_classes_is_fresh_too(tmp_path):
  settings = {'task': 'classify', 'model.classifier.num_classes': 3}
  weights.save(tmp_path / 'w', dataclasses.replace(
      of(settings), classes=('a', 'b', 'c')))
  assert weights.load(tmp_path / 'w').classes == ('a', 'b', 'c')
  config = config_from(tmp_path / 'w', settings)
  assert 'head/bias' in initial(config, ['a', 'b', 'c'])
  assert 'head/bias' in initial(config)
  got = initial(config, ['a', 'b', 'd'])
  assert 'head/bias' not in got and 'fc_norm/scale' in got


UNFIT = {
    'wider': ({'model.encoder.width': 32},
              'the encoder is 16 wide, not 32; set model.encoder.variant or '
              'model.encoder.width'),
    'deeper': ({'model.encoder.depth': 2},
               'it has 1 encoder blocks, not 2; set model.encoder.depth=1'),
    'patches': ({'patch.size': (16, 16)},
                'have patches of (8, 16) (frames, mel bins), and the model of '
                '(16, 16)'),
    'heads': ({'model.encoder.heads': 4},
              'have 2 heads in the encoder, and the model 4: set '
              'model.encoder.heads=2'),
    'decoder heads': ({'model.decoder.heads': 4},
                      'have 2 heads in the decoder, and the model 4'),
    'positions': ({'patch.positions': 'released'},
                  "patch.positions='released', and the weights were trained "
                  "with 'time_freq'"),
    'decoder': ({'model.decoder.name': 'global'},
                'these are 2 local-decoder blocks; set model.decoder.name=local'
                ' and model.decoder.depth=2'),
    'decoder depth': ({'model.decoder.depth': 4},
                      'it has 2 decoder blocks, not 4; set '
                      'model.decoder.depth=2'),
    'decoder width': ({'model.decoder.width': 8},
                      'the decoder is 16 wide, not 8; set model.decoder.width'),
}


@pytest.mark.parametrize('case', UNFIT)
def test_weights_that_do_not_fit_stop_before_anything_is_written(
    case, saved, tmp_path):
  overrides, message = UNFIT[case]
  workdir = tmp_path / 'run'
  with pytest.raises(ValueError, match=re.escape(message)):
    train.train(config_from(saved, overrides | {'workdir': str(workdir)}))
  assert not workdir.exists()


def test_global_blocks_do_not_fit_a_local_decoder():
  wanted = {name: x.shape for name, x in weights.shapes(
      tiny.config(tiny.MODEL)).items()}
  found = {name: x.shape for name, x in weights.shapes(tiny.config(
      tiny.MODEL, {'model.decoder.name': 'global'})).items()}
  assert compare.likely_cause(wanted, found) == (
      '  Likely cause: these are 2 global-decoder blocks; set '
      'model.decoder.name=global and model.decoder.depth=2.')
  assert compare.likely_cause(wanted, wanted) == ''


# -- positions travel ----------------------------------------------------------

LONG, SHORT = (16, 8), (8, 8)  # patches of 8 x 16: 128 and 64 frames
LAYOUTS = [{'patch.positions': 'time_freq'}, {'patch.positions': 'released'},
           {'patch.positions': 'table'}]


def encode(config, params, spectrogram, keep=None):
  grid = patches.grid_of(spectrogram.shape[1:], config.patch)
  params = reference.nest({
      name.removeprefix('encoder/'): x for name, x in params.items()
      if name.startswith('encoder/')})
  return encoder.make(config).apply(
      {'params': params}, patches.patchify(spectrogram, config.patch), grid,
      keep)


@pytest.mark.parametrize('layout', LAYOUTS, ids=lambda x: x['patch.positions'])
def test_a_shorter_model_sees_what_the_long_one_saw(layout, tmp_path):
  # Patches of the first half of a clip, out of the whole or by themselves.
  long = of({'frontend.num_frames': 128} | layout)
  weights.save(tmp_path / 'w', long)
  config, params = init_from.prepare(
      config_from(tmp_path / 'w', {'frontend.num_frames': 64}), tmp_path / 'no')
  assert config.patch.positions == layout['patch.positions']
  assert config.patch.positions_grid == LONG
  spectrogram = jax.random.normal(jax.random.key(0), (2, 128, 128))
  keep = jnp.tile(jnp.arange(64, dtype=jnp.int32), (2, 1))
  want = encode(long.config, long.params, spectrogram, keep)
  got = encode(config, params, spectrogram[:, :64])
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
  if layout['patch.positions'] == 'released':
    # The code of the shorter grid is not what the weights were trained with;
    # it is there for those who ask.
    official, _ = init_from.prepare(config_from(tmp_path / 'w', {
        'frontend.num_frames': 64, 'patch.positions_grid': SHORT}),
                                  tmp_path / 'no')
    other = encode(official, params, spectrogram[:, :64])
    assert np.abs(other - want).max() > 0.1


def test_a_longer_model_keeps_the_codes_of_what_it_knew(tmp_path):
  short = of({'frontend.num_frames': 64, 'patch.positions': 'released'})
  weights.save(tmp_path / 'w', short)
  config, params = init_from.prepare(config_from(
      tmp_path / 'w', {'frontend.num_frames': 128}), tmp_path / 'no')
  spectrogram = jax.random.normal(jax.random.key(0), (2, 128, 128))
  keep = jnp.tile(jnp.arange(64, dtype=jnp.int32), (2, 1))
  np.testing.assert_allclose(
      encode(config, params, spectrogram, keep),
      encode(short.config, short.params, spectrogram[:, :64]), rtol=0,
      atol=1e-5)


def test_positions_move_on_with_every_start(tmp_path):
  # From 128 frames to 64 and from there to 32: still the codes of 128.
  weights.save(tmp_path / 'a', of({
      'frontend.num_frames': 128, 'patch.positions': 'released'}))
  config, params = init_from.prepare(config_from(
      tmp_path / 'a', {'frontend.num_frames': 64}), tmp_path / 'no')
  weights.save(tmp_path / 'b', weights.Weights(
      params, weights.with_positions(config), {}))
  config, _ = init_from.prepare(config_from(
      tmp_path / 'b', {'frontend.num_frames': 32}), tmp_path / 'no')
  assert config.patch.positions_grid == LONG
  assert config.patch.positions_stride == (8, 16)


def test_a_table_is_trained_only_when_asked():
  for asked in (False, True):
    config = tiny.config(tiny.MODEL, {
        'patch.positions': 'table', 'patch.train_positions': asked})
    model = encoder.make(config)
    pixels = jax.random.normal(jax.random.key(0), (2, 64, 128))
    params = model.init(jax.random.key(1), pixels, (8, 8))['params']
    np.testing.assert_array_equal(params['positions'], patches.position_table(
        (8, 8), 16, config_lib.Patch()))
    grads = jax.grad(lambda params, model=model, pixels=pixels: (model.apply(
        {'params': params}, pixels, (8, 8)) ** 3).sum())(params)
    assert bool(np.any(grads['positions'])) == asked
  from audio_mae_jax import optim
  decays = optim.decayed(config_lib.Optimizer(), params)
  assert not decays['positions'] and decays['patch_embed']['kernel']


def test_what_shapes_do_not_show_is_told_of(saved, caplog):
  with caplog.at_level(logging.WARNING):
    initial(config_from(saved, {
        'model.decoder.window': (2, 2), 'frontend.mean': 0.0,
        'frontend.num_frames': 128}))
  assert 'with model.decoder.window=(4, 4), and the model has (2, 2)' in (
      caplog.text)
  assert 'with frontend.mean=-4.2677393, and the model has 0.0' in caplog.text
  assert 'num_frames' not in caplog.text  # positions see to it


def test_a_table_can_be_made_of_any_positions(tmp_path):
  # To train what the released weights have fixed (flag pos_trainable).
  source = of({'patch.positions': 'released'})
  weights.save(tmp_path / 'w', source)
  config, params = init_from.prepare(config_from(tmp_path / 'w', {
      'patch.positions': 'table', 'patch.train_positions': True}),
                                     tmp_path / 'no')
  for name in ('encoder/positions', 'decoder/tokens/positions'):
    np.testing.assert_array_equal(params[name], patches.position_table(
        (8, 8), 16, source.config.patch))
  assert config.patch.positions == 'table'
  spectrogram = jax.random.normal(jax.random.key(0), (2, 64, 128))
  np.testing.assert_allclose(
      encode(config, params, spectrogram),
      encode(source.config, source.params, spectrogram), rtol=0, atol=1e-6)


def test_the_class_token_has_a_position_too():
  config = tiny.config(tiny.MODEL, {'patch.positions': 'table'})
  model = encoder.make(config)
  pixels = jnp.zeros((1, 64, 128))
  params = model.init(jax.random.key(1), pixels, (8, 8))['params']
  moved = jax.tree.map(lambda x: x, params)
  shift = jnp.arange(16.0)
  moved['positions'] = params['positions'].at[0].add(shift)
  other = params | {'cls_token': params['cls_token'] + shift}
  np.testing.assert_allclose(
      model.apply({'params': moved}, pixels, (8, 8)),
      model.apply({'params': other}, pixels, (8, 8)), rtol=0, atol=1e-6)
