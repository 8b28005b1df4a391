"""Augmentation: recorded draws of the released code, and what must hold."""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from audio_mae_jax import augment
from audio_mae_jax import config
from audio_mae_jax import frontend

GOLDEN = np.load(pathlib.Path(__file__).parent / 'golden' / 'augment.npz')
ESC50 = config.Frontend(num_frames=512, mean=-6.6268077, std=5.358466)


def read(clip):
  return GOLDEN[f'{clip}/pcm16'].astype(np.float32) / 32768


@jax.jit
def features(audio):
  """[S] -> [T, F]"""
  return frontend.features(audio[None], jnp.array(audio.shape), ESC50)[0]


# Three times the float32 noise floor of each clip, normalised: see the reasons
# in test_frontend.py.
@pytest.mark.parametrize('name, factor, tolerance', [
    ('speech_5s/dataset_esc50', None, 2e-4),
    ('roll_mag_mono_5s/dataset_esc50', 'roll_mag_mono_5s/mag', 2e-4)])
def test_mean_removal_and_gain_equal_the_released_code(name, factor, tolerance):
  audio = read('speech_5s')[None]
  audio = augment.remove_mean(audio, jnp.array([audio.shape[1]]))
  audio = augment.apply_roll(audio, jnp.array([80000]), jnp.array([0]))
  audio = audio[0] * (GOLDEN[factor] if factor else 1)
  np.testing.assert_allclose(
      features(audio), GOLDEN[name][0], rtol=0, atol=tolerance)


def test_roll_equals_the_released_code_with_its_draw():
  # That code rolled both channels of a stereo file as one flat array, by 1.
  both = read('stereo_1s').T.reshape(1, -1)
  audio = augment.remove_mean(both, jnp.array([both.size]))
  shift = int(GOLDEN['roll_mag_stereo_1s/idx'])
  assert shift == 1
  audio = augment.apply_roll(audio, jnp.array([both.size]), jnp.array([shift]))
  audio = audio[0, :both.size // 2] * GOLDEN['roll_mag_stereo_1s/mag']
  np.testing.assert_allclose(
      features(audio), GOLDEN['roll_mag_stereo_1s/dataset_esc50'][0], rtol=0,
      atol=1e-4)


def test_roll_moves_valid_samples_only():
  lengths = np.array([10, 7, 7, 1, 0, 10], np.int32)
  shifts = np.array([0, 3, 6, 0, 0, 9], np.int32)
  audio = 1 + np.arange(60, dtype=np.float32).reshape(6, 10)
  rolled = jax.jit(augment.apply_roll)(audio, lengths, shifts)
  for row, n, shift, actual in zip(audio, lengths, shifts, rolled):
    np.testing.assert_array_equal(actual[:n], np.roll(row[:n], shift))
    assert not actual[n:].any()


def test_rolls_are_permutations_and_differ_between_clips():
  audio = np.tile(1 + np.arange(500, dtype=np.float32), (64, 1))
  lengths = np.full(64, 400, np.int32)
  rolled = augment.roll(jax.random.key(0), audio, lengths)
  np.testing.assert_array_equal(
      np.sort(rolled[:, :400], axis=1), audio[:, :400])
  assert len(np.unique(rolled[:, 0])) > 50


def test_shifts_are_uniform_over_each_clips_samples():
  lengths = np.repeat(np.array([8, 5, 1], np.int32), 2000)
  audio = np.tile(np.arange(8, dtype=np.float32), (6000, 1))
  first = np.asarray(augment.roll(jax.random.key(1), audio, lengths)[:, 0])
  for n in (8, 5, 1):
    counts = np.bincount(first[lengths == n].astype(int), minlength=n)
    assert len(counts) == n
    assert n == 1 or stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize('c', [0.75, 2.0, 10.0])
def test_gains_are_beta_distributed(c):
  audio = np.ones((20000, 2), np.float32)
  gains = augment.gain(jax.random.key(2), audio, c)
  assert gains.dtype == jnp.float32
  np.testing.assert_array_equal(gains[:, 0], gains[:, 1])
  assert 0.5 <= gains.min() < gains.max() <= 1.5
  expected = stats.beta(c, c, loc=0.5)
  assert stats.kstest(np.asarray(gains[:, 0]), expected.cdf).pvalue > 1e-3


def test_mean_is_taken_over_valid_samples():
  audio = np.array([[1, 3, 9, 9], [2, 2, 2, 2], [5, 5, 5, 5]], np.float32)
  actual = augment.remove_mean(audio, np.array([2, 4, 0], np.int32))
  np.testing.assert_array_equal(
      actual, [[-1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


def test_a_large_offset_is_removed_over_a_long_clip():
  noise = 1e-3 * np.random.default_rng(0).standard_normal(160000)
  audio = (0.5 + noise).astype(np.float32)[None]
  actual = augment.remove_mean(audio, np.array([160000]))
  assert abs(np.asarray(actual).mean()) < 1e-6


def test_settings_switch_the_parts():
  rng = jax.random.key(3)
  audio = np.random.default_rng(1).standard_normal((8, 300), np.float32)
  lengths = np.array([300, 250, 200, 150, 100, 90, 70, 50], np.int32)
  run = lambda **settings: np.asarray(augment.augment(
      rng, audio, lengths, config.Augment(**settings)))
  plain = run(roll=False, gain_concentration=0.0)
  np.testing.assert_allclose(
      plain, augment.remove_mean(audio, lengths), atol=1e-6)
  rolled = run(gain_concentration=0.0)
  louder = run(roll=False)
  both = run()
  np.testing.assert_allclose(
      np.sort(rolled[0]), np.sort(plain[0]), rtol=1e-6)
  gains = louder[:, :50] / plain[:, :50]
  np.testing.assert_allclose(both, rolled * gains[:, :1], rtol=1e-4, atol=1e-6)
  for x in (plain, rolled, louder, both):
    assert x.dtype == np.float32
    assert not any(row[n:].any() for row, n in zip(x, lengths))


def test_draws_do_not_depend_on_the_sharding():
  mesh = jax.make_mesh((8,), ('data',), (jax.sharding.AxisType.Auto,))
  rng = jax.random.key(4)
  audio = np.random.default_rng(2).standard_normal((8, 300), np.float32)
  lengths = np.arange(293, 301, dtype=np.int32)
  run = jax.jit(functools.partial(augment.augment, settings=config.Augment()))
  expected = augment.augment(rng, audio, lengths, config.Augment())
  arguments = jax.device_put(
      (audio, lengths), jax.NamedSharding(mesh, jax.P('data')))
  program = run.lower(rng, *arguments).compile()
  assert not re.search(
      'all-gather|all-to-all|all-reduce|collective-permute|reduce-scatter',
      program.as_text())
  np.testing.assert_allclose(program(rng, *arguments), expected, atol=1e-6)


def test_a_negative_concentration_is_refused():
  with pytest.raises(ValueError, match='concentration=-1 must be above 0.5'):
    augment.augment(jax.random.key(0), jnp.ones((1, 4)), jnp.array([4]),
                    config.Augment(gain_concentration=-1.0))
