"""Augmentation: recorded draws of the released code, and what must hold."""

import re

import goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from audio_mae_jax import augment
from audio_mae_jax import config
from audio_mae_jax import frontend

GOLDEN = goldens.read('augment', 'mixup', 'frontend')
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


def pair(first, second):
  """Two clips of up to 5 s, without their means: ([2, 80000], [2])."""
  clips = [read(name) for name in (first, second)]
  lengths = np.array([len(clip) for clip in clips], np.int32)
  audio = np.stack([np.pad(clip, (0, 80000 - len(clip))) for clip in clips])
  return augment.remove_mean(audio, lengths), lengths


# 1e-4, 2e-5 and 2e-5 were reached.
@pytest.mark.parametrize('name, tolerance', [
    ('mixup_equal_len', 2e-4), ('mixup_short_second', 1e-4),
    ('mixup_short_first', 1e-4)])
def test_mixup_equals_the_released_code(name, tolerance):
  golden = goldens.under(GOLDEN, f'{name}/')
  audio, lengths = pair(*golden['clips'])
  share = np.array([golden['lambda'], 1], np.float32)
  # The recorded clips have the labels a, b and b, c.
  labels = np.array([[1, 1, 0], [0, 1, 1]], np.float32)
  mixed, mixed_labels = augment.apply_mixup(audio, lengths, share, labels)
  n = lengths[0]
  np.testing.assert_allclose(
      features(mixed[0, :n]), golden['dataset_esc50'][0], rtol=0,
      atol=tolerance)
  assert not mixed[0, n:].any()
  # Half a bit at 1.
  np.testing.assert_allclose(mixed_labels[0], golden['labels'], atol=6e-8)
  np.testing.assert_array_equal(mixed[1], audio[1])
  np.testing.assert_array_equal(mixed_labels[1], labels[1])


def test_partners_are_the_next_clips_as_they_were():
  audio = np.random.default_rng(5).standard_normal((4, 50), np.float32)
  lengths = np.full(4, 50, np.int32)
  audio = np.asarray(augment.remove_mean(audio, lengths))
  share = np.array([0.25, 0.5, 1, 0.75], np.float32)
  labels = np.eye(4, dtype=np.int32)
  mixed, mixed_labels = augment.apply_mixup(audio, lengths, share, labels)
  assert mixed_labels.dtype == jnp.float32
  for i in range(4):
    blend = lambda x, i=i: share[i] * x[i] + (1 - share[i]) * x[(i + 1) % 4]
    np.testing.assert_allclose(mixed[i], blend(audio), atol=1e-6)
    np.testing.assert_array_equal(mixed_labels[i], blend(labels))
  without, nothing = augment.apply_mixup(audio, lengths, share)
  np.testing.assert_array_equal(without, mixed)
  assert nothing is None


def test_a_clip_that_is_not_mixed_knows_nothing_of_its_partner():
  audio = np.array([[1, 2, -3, 0], [np.nan, np.inf, 1, 1]], np.float32)
  mixed, labels = augment.apply_mixup(
      audio, np.array([3, 4]), np.ones(2, np.float32), np.eye(2))
  # Its mean is not removed a second time either: bit for bit the same.
  np.testing.assert_array_equal(mixed, audio)
  np.testing.assert_array_equal(labels, np.eye(2))


def test_clips_are_mixed_at_the_given_rate_in_beta_shares():
  n = 20000
  audio, lengths = np.zeros((n, 1), np.float32), np.ones(n, np.int32)
  labels = np.tile(np.eye(2, dtype=np.float32), (n // 2, 1))
  run = lambda **settings: np.asarray(augment.mixup(
      jax.random.key(6), audio, lengths, config.Augment(**settings),
      labels)[1]).max(1, where=labels > 0, initial=0)
  share = run(mixup=0.3)
  mixed = share < 1
  # Four deviations of the mean of so many draws.
  assert abs(mixed.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / n)
  # Whether a clip is mixed tells nothing of its share.
  assert stats.kstest(share[mixed], stats.beta(10, 10).cdf).pvalue > 1e-3
  every = run(mixup=1.0, mixup_concentration=2.0)
  assert stats.kstest(every, stats.beta(2, 2).cdf).pvalue > 1e-3
  assert (run(mixup=0.0) == 1).all()


def test_spec_augment_equals_the_released_code_with_its_draws():
  band, stretch = GOLDEN['specaug/freqm_timem'].tolist()
  draws = GOLDEN['specaug/uniform_draws'][:, None]
  plain = GOLDEN['speech_5s/dataset_esc50']
  got = augment.apply_spec_augment(
      plain, draws, ESC50,
      config.Augment(freq_mask=band, time_mask=stretch))
  np.testing.assert_array_equal(got, GOLDEN['specaug/dataset_esc50'])
  hidden = np.asarray(got != plain)[0, :498]  # padding looks as if hidden
  assert (hidden.all(0).sum(), hidden.all(1).sum()) == (39, 128)


def hidden_by(time_mask, freq_mask):
  """bool [B, T, F]: what SpecAugment hides; its value is that of padding."""
  got = np.asarray(augment.spectrogram(
      jax.random.key(7), jnp.ones((3000, 12, 7)), config.Frontend(),
      config.Augment(time_mask=time_mask, freq_mask=freq_mask)))
  padding = frontend.features(
      jnp.zeros((1, 400)), jnp.zeros(1, jnp.int32),
      config.Frontend(num_frames=1))[0, 0, 0]
  hidden = got != 1
  np.testing.assert_allclose(got[hidden], padding, rtol=1e-7)  # one rounding
  return hidden


@pytest.mark.parametrize('axis, limits', [(1, (5, 0)), (2, (0, 5))])
def test_one_stretch_of_each_clip_is_hidden_anywhere(axis, limits):
  hidden = hidden_by(*limits)
  across = 3 - axis
  along = hidden.any(across)
  np.testing.assert_array_equal(along, hidden.all(across))
  # In one piece.
  assert (np.abs(np.diff(np.pad(along, ((0, 0), (1, 1))))).sum(1) <= 2).all()
  # Widths 0 .. 4 are equally likely; of the places, all but the last are hidden
  # at times: rounding down spares that one, as released.
  counts = np.bincount(along.sum(1))
  assert len(counts) == 5 and stats.chisquare(counts).pvalue > 1e-3
  assert along[:, :-1].any(0).all() and not along[:, -1].any()


def test_stretch_and_band_are_drawn_apart():
  hidden = hidden_by(12, 7)
  stretch, band = hidden.all(2).sum(1), hidden.all(1).sum(1)
  whole = (stretch < 12) & (band < 7)
  assert abs(np.corrcoef(stretch[whole], band[whole])[0, 1]) < 0.1
  np.testing.assert_array_equal(
      hidden, hidden.all(2)[:, :, None] | hidden.all(1)[:, None, :])


def test_noise_is_added_and_rolled_along_time():
  x, added = np.random.default_rng(8).standard_normal((2, 7, 6, 3), np.float32)
  shift = np.arange(-3, 4)
  got = augment.apply_noise(x, added, shift, 3)
  for row, n, by, actual in zip(x, added, shift, got):
    np.testing.assert_array_equal(actual, np.roll(row + n, by, axis=0))
  np.testing.assert_array_equal(
      augment.apply_noise(x, added, 0 * shift, 0), x + added)


def test_noise_is_uniform_below_an_amplitude_that_is_uniform():
  got = np.asarray(augment.spectrogram(
      jax.random.key(9), jnp.zeros((3000, 8, 16)), config.Frontend(),
      config.Augment(noise=0.5, noise_shift=4)))
  assert 0 <= got.min() < got.max() < 0.5
  loudest = got.max((1, 2))  # of 128 draws, so close to a clip's amplitude
  assert stats.kstest(loudest * 129 / 128, stats.uniform(0, 0.5).cdf
                      ).pvalue > 1e-3
  share = (got / loudest[:, None, None]).reshape(3000, -1)[:, 5]
  assert stats.kstest(share, stats.uniform.cdf).pvalue > 1e-3


def test_noise_lies_on_what_spec_augment_hid():
  run = lambda noise: np.asarray(augment.spectrogram(
      jax.random.key(12), jnp.ones((8, 16, 8)), config.Frontend(),
      config.Augment(time_mask=16, noise=noise)))
  quiet, noisy = run(0.0), run(0.1)
  assert (quiet != 1).any()
  assert (noisy > quiet).mean() > 0.99 and (noisy < quiet + 0.1).all()


@pytest.mark.parametrize('max_shift', [2, 8])
def test_spectrograms_shift_by_as_much_as_released(max_shift):
  marked = jnp.zeros((4000, 8, 1)).at[:, 0].set(1.0)
  got = np.asarray(augment.spectrogram(
      jax.random.key(10), marked, config.Frontend(),
      config.Augment(noise=1e-3, noise_shift=max_shift)))
  place = got[..., 0].argmax(1)
  # randint(-s, s) of NumPy never gives s; over 8 frames -8 .. 7 wraps twice.
  want = np.arange(-max_shift, max_shift) % 8
  counts = np.bincount(place, minlength=8)
  assert set(np.flatnonzero(counts)) == set(want)
  assert stats.chisquare(counts[counts > 0]).pvalue > 1e-3


def test_settings_switch_the_parts():
  rng = jax.random.key(3)
  audio = np.random.default_rng(1).standard_normal((8, 300), np.float32)
  lengths = np.array([300, 250, 200, 150, 100, 90, 70, 50], np.int32)
  labels = np.eye(8, 3, dtype=np.float32)
  run = lambda **settings: [np.asarray(x) for x in augment.waveform(
      rng, audio, lengths, config.Augment(**settings), labels)]
  plain, same = run(roll=False, gain_concentration=0.0)
  np.testing.assert_allclose(
      plain, augment.remove_mean(audio, lengths), atol=1e-6)
  rolled, _ = run(gain_concentration=0.0)
  louder, _ = run(roll=False)
  both, _ = run()
  mixed, mixed_labels = run(mixup=0.5)
  np.testing.assert_allclose(
      np.sort(rolled[0]), np.sort(plain[0]), rtol=1e-6)
  gains = louder[:, :50] / plain[:, :50]
  np.testing.assert_allclose(both, rolled * gains[:, :1], rtol=1e-4, atol=1e-6)
  # What is rolled and made louder is mixed, with the same draws.
  chosen = mixed_labels.max(1, where=labels > 0, initial=0) < 1
  chosen[3:] = (mixed[3:] != both[3:]).any(1)  # of clips without a label
  assert 0 < chosen.sum() < 8
  assert (mixed[chosen] != both[chosen]).any(1).all()
  np.testing.assert_array_equal(mixed[~chosen], both[~chosen])
  np.testing.assert_array_equal(same, labels)
  for x in (plain, rolled, louder, both, mixed):
    assert x.dtype == np.float32
    assert not any(row[n:].any() for row, n in zip(x, lengths))


def test_older_runs_keep_their_draws():
  rng = jax.random.key(11)
  audio = np.random.default_rng(3).standard_normal((4, 300), np.float32)
  lengths = np.array([300, 200, 100, 50], np.int32)
  gain_rng, roll_rng = jax.random.split(rng)
  rolled = augment.roll(
      roll_rng, augment.remove_mean(audio, lengths), lengths)
  got, _ = augment.waveform(rng, audio, lengths, config.Augment())
  np.testing.assert_array_equal(got, augment.gain(gain_rng, rolled, 10.0))


COLLECTIVE = (
    '(all-gather|all-to-all|all-reduce|collective-permute|reduce-scatter)')
EVERYTHING = config.Augment(
    mixup=0.5, time_mask=20, freq_mask=10, noise=0.1, noise_shift=5)


@pytest.mark.parametrize('settings, collectives', [
    (config.Augment(), []),
    # One clip and its labels go to the neighbour.
    (EVERYTHING, ['f32[1,300]', 'f32[1,5]'])], ids=['default', 'everything'])
def test_draws_do_not_depend_on_the_sharding(settings, collectives):
  mesh = jax.make_mesh((8,), ('data',), (jax.sharding.AxisType.Auto,))
  rng, draw = jax.random.key(4), np.random.default_rng(2)
  arrays = (
      draw.standard_normal((16, 300), np.float32),
      np.arange(285, 301, dtype=np.int32),
      draw.integers(0, 2, (16, 5)).astype(np.float32),
      draw.standard_normal((16, 64, 32), np.float32))

  def run(rng, audio, lengths, labels, features):
    return (augment.waveform(rng, audio, lengths, settings, labels),
            augment.spectrogram(rng, features, config.Frontend(), settings))

  shards = jax.device_put(arrays, jax.NamedSharding(mesh, jax.P('data')))
  program = jax.jit(run).lower(rng, *shards).compile()
  found = re.findall(rf'= (\S+?)(?:{{\S*)? {COLLECTIVE}', program.as_text())
  assert sorted(found) == [(x, 'collective-permute') for x in collectives]
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
      program(rng, *shards), run(rng, *arrays))


@pytest.mark.parametrize('changes, message', [
    ({'gain_concentration': -1.0},
     'augment.gain_concentration=-1 must be above 0.5. At 10, the paper\'s, '
     'draws spread by 0.11; 0 is for no gain.'),
    ({'mixup': 0.5, 'mixup_concentration': 0.5},
     'augment.mixup_concentration=0.5 must be above 0.5. At 10, the paper\'s, '
     'draws spread by 0.11; augment.mixup=0 is for no mixup.'),
    ({'mixup': 1.5}, 'augment.mixup=1.5 is the probability that a clip is '
     'mixed with another: give 0 to 1.'),
    ({'mixup': -0.5}, 'augment.mixup=-0.5 is the probability'),
    ({'mixup_concentration': 2.0}, 'augment.mixup_concentration=2 has no '
     'effect with augment.mixup=0. Leave it at 10, or raise augment.mixup.'),
])
def test_wrong_settings_of_waveforms_are_refused(changes, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    augment.waveform(jax.random.key(0), jnp.ones((1, 4)), jnp.array([4]),
                     config.Augment(**changes))


@pytest.mark.parametrize('changes, message', [
    ({'time_mask': 9}, 'augment.time_mask=9 does not fit spectrograms of 8 '
     'frames: give 0 (off) to 8.'),
    ({'freq_mask': 5}, 'augment.freq_mask=5 does not fit spectrograms of 4 mel '
     'bins: give 0 (off) to 4.'),
    ({'time_mask': -1}, 'augment.time_mask=-1 does not fit'),
    ({'freq_mask': -1}, 'augment.freq_mask=-1 does not fit'),
    ({'noise': 0.1, 'noise_shift': 9}, 'augment.noise_shift=9 does not fit'),
    ({'noise': 0.1, 'noise_shift': -1}, 'augment.noise_shift=-1 does not fit'),
    ({'noise': -0.1}, 'augment.noise=-0.1 is an amplitude: give 0 (off) or '
     'more; the released code has 0.1.'),
    ({'noise_shift': 2}, 'augment.noise_shift=2 has no effect with '
     'augment.noise=0. Leave it at 0, or raise augment.noise.'),
])
def test_wrong_settings_of_spectrograms_are_refused(changes, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    augment.spectrogram(jax.random.key(0), jnp.ones((1, 8, 4)),
                        config.Frontend(), config.Augment(**changes))
