"""Features of a frozen encoder: what they are, and when they are stale."""

import dataclasses
import logging
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import soundfile
import tiny

from audio_mae_jax import distributed
from audio_mae_jax import features
from audio_mae_jax import frontend
from audio_mae_jax import patches
from audio_mae_jax import sharding
from audio_mae_jax import storage
from audio_mae_jax import weights
from audio_mae_jax.data import splits
from audio_mae_jax.models import encoder as encoder_lib

pytestmark = pytest.mark.usefixtures('compile_once')

HZ, CLIP_S = 16000, 0.65
SMALL = tiny.MODEL | {
    'model.encoder.depth': 2, 'data.clip_s': CLIP_S, 'train.batch_size': 8,
    'data.max_bad_fraction': 0.5}


def write_clips(folder, count=10):
  """Noise of `count` colours, every other clip of class a, and of b."""
  rng = np.random.default_rng(0)
  for i in range(count):
    place = folder / 'ab'[i % 2]
    place.mkdir(parents=True, exist_ok=True)
    samples = rng.normal(0, 0.01 * (i + 1), round(CLIP_S * HZ))
    soundfile.write(place / f'{i}.wav', samples, HZ)
  return folder


def settings(folder, overrides=None):
  return tiny.config(SMALL, {
      'probe.train.name': 'folder', 'probe.train.path': str(folder),
      **(overrides or {})})


def open_split(config):
  return splits.Split.open(
      config.probe.train, config.data, 'config.probe.train')


@pytest.fixture(scope='module')
def clips(tmp_path_factory):
  """Ten clips in two folders, of which the third cannot be read."""
  folder = write_clips(tmp_path_factory.mktemp('clips'))
  (folder / 'a' / '4.wav').write_bytes(b'no audio')
  return folder


@pytest.fixture(scope='module')
def computed(clips, tmp_path_factory):
  """(config, parameters, folder, features) of these clips."""
  config = settings(clips)
  params = features.random_params(config)
  folder = tmp_path_factory.mktemp('features')
  return config, params, folder, features.extract(
      config, params, open_split(config), folder, tokens=True)


def test_features_are_of_every_block_and_of_the_usable_clips_in_order(computed):
  config, params, _, found = computed
  source = open_split(config).source
  names = [source.name_of(int(i)) for i in found.index]
  assert names == [f'{c}/{i}.wav' for c in 'ab' for i in range(10)
                   if i % 2 == 'ab'.index(c) and i != 4]
  np.testing.assert_array_equal(
      found.targets, [[1, 0]] * 4 + [[0, 1]] * 5)
  # By hand, one clip at a time.
  encoder = encoder_lib.make(config)
  tree = reference.nest(params)['encoder']

  @jax.jit
  def encode(audio):
    spectrogram = frontend.features(
        audio, jnp.full(len(audio), audio.shape[1]), config.frontend)
    return encoder.apply({'params': tree}, patches.patchify(
        spectrogram, config.patch), weights.grid_of(config), every=True)

  for i, means, tokens in zip(found.index, found.means, found.tokens):
    samples, _ = soundfile.read(source[int(i)]['audio'], dtype='float32')
    normed, (first, _) = encode(samples[None])
    np.testing.assert_allclose(means, np.stack(
        [first[0, 1:].mean(0), normed[0, 1:].mean(0)]), atol=2e-5)
    np.testing.assert_allclose(tokens, normed[0, 1:], atol=4e-3)
  assert (found.means.dtype, found.tokens.dtype) == (np.float32, np.float16)


def test_a_second_run_reads_what_the_first_computed(computed, caplog):
  config, params, folder, found = computed
  with caplog.at_level(logging.INFO, 'audio_mae_jax'):
    again = features.extract(config, params, open_split(config), folder)
  assert 'as computed before' in caplog.text
  np.testing.assert_array_equal(again.means, found.means)
  assert again.tokens is None


def test_tokens_that_are_missing_are_computed(computed, caplog, tmp_path):
  config, params, _, found = computed
  args = config, params, open_split(config), tmp_path
  features.extract(*args)
  with caplog.at_level(logging.INFO, 'audio_mae_jax'):
    np.testing.assert_allclose(
        features.extract(*args, tokens=True).tokens, found.tokens, atol=4e-3)
  assert 'as computed before' not in caplog.text
  assert len(list(tmp_path.iterdir())) == 1


def test_the_first_process_alone_looks_at_the_files(
    computed, monkeypatch):
  config, params, folder, _ = computed
  asked = []
  version = lambda path: asked.append(path) or ()
  monkeypatch.setattr(features.storage, 'version', version)
  monkeypatch.setattr(distributed, 'is_first', lambda: False)
  # What the first one says: that nothing has failed, that features are there.
  told = iter([[None, None], [True, None]])
  monkeypatch.setattr(distributed, 'gather', lambda own: next(told))
  assert features.extract(config, params, open_split(config), folder) is None
  assert not asked and next(told, 'all asked for') == 'all asked for'


def test_files_out_of_reach_of_the_first_process_end_all(
    computed, monkeypatch):
  config, params, folder, _ = computed

  def gone(path):
    raise storage.Unreachable(f'{path} cannot be reached')

  told = []
  monkeypatch.setattr(features.storage, 'version', gone)
  monkeypatch.setattr(
      distributed, 'gather', lambda own: told.append(own) or [own])
  with pytest.raises(storage.Unreachable):
    features.extract(config, params, open_split(config), folder)
  (text, status), = told
  assert text.startswith('Unreachable: /') and status == 69


def test_what_features_depend_on_is_in_the_fingerprint(tmp_path):
  write_clips(tmp_path, 4)

  def key(overrides=None, params=None):
    config = settings(tmp_path, overrides)
    return features.fingerprint(config, params or {'encoder/x': np.zeros(3)},
                                open_split(config))

  keys = [key(), key(params={'encoder/x': np.ones(3)}),
          key(params={'encoder/y': np.zeros(3)})]
  keys += [key(dict([one])) for one in (
      ('frontend.mean', 1.0), ('patch.size', (16, 16)), ('data.clip_s', 0.6),
      ('data.channels', 'first'), ('data.resample', 'error'),
      ('model.encoder.heads', 4), ('model.dtype', 'bfloat16'))]
  changed = tmp_path / 'a' / '0.wav'
  os.utime(changed, (0, 0))
  keys.append(key())
  changed.unlink()
  keys.append(key())
  assert len(set(keys)) == len(keys)
  assert key() == keys[-1]
  assert key({'train.batch_size': 4, 'model.remat': 'full'}) == keys[-1]


def test_labels_are_those_of_now(tmp_path):
  for name in 'wx':
    soundfile.write(tmp_path / f'{name}.wav', np.zeros(9), HZ)
  found = []
  for labels in ('cat', 'dog'), ('dog', 'cat'), ('cat;dog', ''):
    path = tmp_path / 'list.csv'
    path.write_text('path,labels\nw.wav,{}\nx.wav,{}\n'.format(*labels))
    split = open_split(tiny.config(SMALL, {
        'probe.train.name': 'manifest', 'probe.train.path': str(path)}))
    found.append(features.targets(split, [1, 0]).tolist())
  assert found == [[[0, 1], [1, 0]], [[1, 0], [0, 1]], [[0, 0], [1, 1]]]


def test_a_pass_that_fails_leaves_nothing(computed, tmp_path):
  config, params, *_ = computed
  params = params | {'encoder/norm/scale': np.full(16, np.nan, np.float32)}
  with pytest.raises(ValueError, match=re.escape(
      "The encoder gives no finite numbers for 7 of 7 clips ('a/0.wav', "
      "'a/2.wav', 'a/6.wav'")):
    features.extract(config, params, open_split(config), tmp_path)
  assert not list(tmp_path.iterdir())


def test_weights_of_another_shape_are_refused(computed, tmp_path):
  config, params, *_ = computed
  with pytest.raises(ValueError, match='do not fit the encoder that they say'):
    features.extract(
        config, params | {'encoder/norm/bias': np.zeros(4, np.float32)},
        open_split(config), tmp_path)


def test_no_readable_clip_is_an_error(computed, tmp_path):
  for name in 'ab':
    (tmp_path / f'{name}.wav').write_bytes(b'no audio')
  config = settings(tmp_path, {'data.max_bad_fraction': 1.0})
  with pytest.raises(ValueError, match='No readable file'):
    features.extract(
        config, computed[1], open_split(config), tmp_path / 'features')


def test_rows_come_in_the_order_of_the_split_from_any_mesh(computed):
  config, _, _, found = computed
  split, (turned, count) = open_split(config), ([], [])

  def embed(params, batch):  # as from hosts whose devices are interleaved
    count.append(len(batch['audio'].sharding.device_set))
    turned.append(np.asarray(batch['index'])[::-1])
    return {name: batch[name][::-1] for name in ('index', 'valid')}

  mesh = sharding.make_mesh(config.mesh, 8)
  rows = list(features.one_pass(embed, {}, split, config, mesh))
  np.testing.assert_array_equal(
      np.concatenate([row['index'] for row in rows]), found.index)
  assert count == [8, 8] and [len(row['index']) for row in rows] == [7, 2]


def test_a_fine_tuned_encoder_has_no_last_norm(computed, tmp_path):
  config, params, _, with_norm = computed
  params = {name: x for name, x in params.items()
            if not name.startswith('encoder/norm/')}
  found = features.extract(config, params, open_split(config), tmp_path)
  np.testing.assert_allclose(
      found.means[:, 0], with_norm.means[:, 0], atol=1e-5)
  assert np.abs(found.means[:, 1] - with_norm.means[:, 1]).max() > 0.1


def test_random_weights_are_those_of_a_fresh_encoder(computed):
  config, params, *_ = computed
  want = {name: leaf.shape for name, leaf in weights.shapes(config).items()
          if name.startswith('encoder/')}
  assert {name: x.shape for name, x in params.items()} == want
  other = features.random_params(dataclasses.replace(
      config, train=dataclasses.replace(config.train, seed=1)))
  assert (other['encoder/cls_token'] != params['encoder/cls_token']).any()


KNOWN = settings('', {
    'frontend.num_frames': 56, 'frontend.mean': -6.0,
    'patch.positions': 'released', 'model.encoder.drop_path': 0.1,
    'model.decoder.name': 'global'})


def adopt(**overrides):
  return features.adopt(tiny.config({}, overrides), KNOWN)


@pytest.mark.parametrize('clip_s, frames', [
    (CLIP_S, 56),  # as in training, though a clip has 63
    (0.6, 64), (0.65001, 64), (1.3, 128), (0.2, 24), (0.03, 8)])
def test_frames_are_those_of_the_clips_in_whole_patches(clip_s, frames):
  config = adopt(**{'data.clip_s': clip_s})
  assert config.frontend == dataclasses.replace(
      KNOWN.frontend, num_frames=frames)
  assert config.patch.positions_grid == (7, 8)  # that of the training
  assert config.patch.positions == 'released'


def test_overlapping_patches_reach_as_far_as_the_clip():
  known = dataclasses.replace(KNOWN, patch=dataclasses.replace(
      KNOWN.patch, stride=(5, 16)))
  config = features.adopt(tiny.config({}, {'data.clip_s': 1.0}), known)
  assert config.frontend.num_frames == 8 + 18 * 5  # of the 98 in 1 s


def test_the_encoder_is_that_of_the_weights():
  config = adopt(**{'data.clip_s': CLIP_S, 'model.dtype': 'bfloat16'})
  assert encoder_lib.sizes(config.model.encoder) == (16, 2, 2)
  assert config.model.encoder.drop_path == 0
  assert config.model.dtype == 'bfloat16'
  # What is asked may be what they have, as in the recipe that trained them.
  asked = dataclasses.replace(KNOWN, model=dataclasses.replace(
      KNOWN.model, encoder=dataclasses.replace(
          KNOWN.model.encoder, drop_path=0.0)))
  assert features.adopt(asked, KNOWN).patch == config.patch


@pytest.mark.parametrize('name, value, used', [
    ('frontend.mean', -1.0, '-6.0'), ('patch.size', (4, 4), '(8, 16)'),
    ('model.encoder.depth', 3, '2'), ('frontend.num_frames', 96, '56')])
def test_a_setting_that_the_weights_decide_is_refused(name, value, used):
  with pytest.raises(ValueError, match=re.escape(
      f'config.{name}={value} has no effect: the encoder is probed as it was '
      f'trained, with {used}.')):
    adopt(**{name: value, 'data.clip_s': CLIP_S})
