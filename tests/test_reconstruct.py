"""What is hidden, filled and heard in a report of reconstructions."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
import tiny

from audio_mae_jax import config as config_lib
from audio_mae_jax import frontend
from audio_mae_jax import losses
from audio_mae_jax import masking
from audio_mae_jax import patches as patches_lib
from audio_mae_jax.models import attention
from audio_mae_jax.reconstruct import clip as clip_lib
from audio_mae_jax.reconstruct import filling
from audio_mae_jax.reconstruct import hiding
from audio_mae_jax.reconstruct import model as model_lib
from audio_mae_jax.reconstruct import sound
from audio_mae_jax.reconstruct import study as study_lib
from audio_mae_jax.tasks import pretrain

CONFIG = tiny.config(tiny.MODEL, {'model.encoder.depth': 2})
RATE = CONFIG.frontend.sample_rate_hz


def snr_db(original, estimate):
  error = np.square(original - estimate).sum()
  return 10 * np.log10(np.square(original).sum() / max(error, 1e-300))


def tones(seconds=2.0):
  """Three partials that glide and fade, over noise."""
  t = np.arange(round(seconds * RATE)) / RATE
  x = sum(np.sin(2 * np.pi * (f * t + 40 * t * t)) for f in (220, 880, 3100))
  noise = np.random.default_rng(0).normal(size=len(t))
  return 0.1 * x * (1 + np.sin(2 * np.pi * 3 * t)) + 0.01 * noise


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
  path = tmp_path_factory.mktemp('clip') / 'tones.wav'
  soundfile.write(path, tones(), RATE, subtype='FLOAT')
  return clip_lib.read(path, CONFIG)


@pytest.fixture(scope='module')
def model():
  params = jax.jit(pretrain.Pretrain(CONFIG).init)(jax.random.key(0))
  # So that attention is not even.
  params['encoder']['blocks']['01']['attn']['qkv']['kernel'] *= 8
  return model_lib.Model(CONFIG, params)


@pytest.fixture(scope='module')
def transform(clip):
  return sound.Transform(clip.spec, clip.spec.num_frames)


def test_a_clip_is_what_the_model_sees_of_its_samples(clip):
  assert clip.spectrogram.shape == (64, 128)  # as many as in training
  assert len(clip.waveform) == 400 + 63 * 160
  expected = frontend.log_mel(
      jnp.asarray(clip.waveform, jnp.float32)[None], clip.spec)[0]
  np.testing.assert_allclose(
      clip_lib.log_mel(clip.spectrogram, clip.spec), expected, atol=1e-4)


def test_a_short_file_gives_whole_patches_and_no_padding(tmp_path):
  soundfile.write(tmp_path / 'a.wav', tones(0.5), RATE)
  short = clip_lib.read(tmp_path / 'a.wav', CONFIG, start_s=0.1)
  # 38 frames lie in 0.4 s: four patches of 8.
  assert short.spectrogram.shape == (32, 128)
  assert np.abs(short.waveform).max() > 0.05


@pytest.mark.parametrize('samples, start_s, said', [
    (tones(0.05), 0.0, r'at least 0\.1'),
    (tones(0.5), 0.6, '--start'),
    (np.zeros(RATE), 0.0, 'silent from 0 s'),
])
def test_files_without_a_clip_say_so(tmp_path, samples, start_s, said):
  soundfile.write(tmp_path / 'a.wav', samples, RATE)
  with pytest.raises(ValueError, match=said):
    clip_lib.read(tmp_path / 'a.wav', CONFIG, start_s)


def test_transform_is_the_front_ends_and_is_undone(clip, transform):
  spectrum = transform(clip.waveform)
  assert spectrum.shape == (64 + 2 * 2, 257)
  frame = clip.waveform[5 * 160:5 * 160 + 400] * transform.window
  np.testing.assert_allclose(
      spectrum[transform.frames][5], np.fft.rfft(frame, 512), atol=1e-9)
  assert snr_db(clip.waveform, transform.inverse(spectrum)) > 250
  power = np.square(np.abs(spectrum[transform.frames]))
  gain = np.abs(1 - 0.97 * np.exp(-1j * np.pi * np.arange(257) / 256)) ** 2
  mel = (power * gain)[:, :-1] @ frontend.tables(clip.spec).mel
  off = 10 / np.log(10) * (np.log(np.maximum(mel, clip.spec.floor))
                           - clip_lib.log_mel(clip.spectrogram, clip.spec))
  # The lowest bins hold what the front end takes from each frame's mean.
  assert np.sqrt(np.square(off[:, 24:]).mean()) < 0.5
  assert np.median(np.abs(off)) < 0.05


def test_frames_that_leave_samples_out_give_no_sound():
  spec = CONFIG.frontend
  for window, hop_ms in (('hann', 25), ('hamming', 30)):
    with pytest.raises(ValueError, match=f'every frontend.hop_ms={hop_ms} give '
                       f"no sound: .* the window '{window}'"):
      sound.Transform(dataclasses.replace(
          spec, window=window, hop_ms=hop_ms), 4)
  for window, hop_ms in (('hann', 12.5), ('hamming', 25)):
    transform = sound.Transform(dataclasses.replace(
        spec, window=window, hop_ms=hop_ms), 4)
    x = np.random.default_rng(0).normal(size=transform.num_samples)
    assert snr_db(x, transform.inverse(transform(x))) > 200


def test_inverse_is_nearest_for_spectra_of_no_waveform(clip, transform):
  """By the definition: windowed frames, added, over the sum of windows."""
  rng = np.random.default_rng(0)
  spectrum = transform(clip.waveform)
  spectrum = spectrum * np.exp(0.5j * rng.normal(size=spectrum.shape))
  total = np.zeros((len(spectrum) - 1) * 160 + 400)
  weight = np.zeros_like(total)
  for t, frame in enumerate(np.fft.irfft(spectrum, 512)[:, :400]):
    total[t * 160:t * 160 + 400] += frame * transform.window
    weight[t * 160:t * 160 + 400] += np.square(transform.window)
  inside = slice(320, 320 + transform.num_samples)
  np.testing.assert_allclose(
      transform.inverse(spectrum), total[inside] / weight[inside], atol=1e-9)


def test_magnitudes_have_the_mel_energies(clip, transform):
  log_mel = clip_lib.log_mel(clip.spectrogram, clip.spec)
  known = np.abs(transform(clip.waveform)[transform.frames])
  hidden = np.zeros_like(known, bool)
  hidden[16:32, 60:] = True
  found = sound.magnitudes(log_mel, known, hidden, clip.spec)
  np.testing.assert_array_equal(found[~hidden], known[~hidden])
  gain = np.abs(1 - 0.97 * np.exp(-1j * np.pi * np.arange(257) / 256)) ** 2
  mel = (np.square(found) * gain)[16:32, :-1] @ frontend.tables(clip.spec).mel
  off = 10 / np.log(10) * (np.log(mel[:, 80:]) - log_mel[16:32, 80:])
  assert np.sqrt(np.square(off).mean()) < 0.5
  distance = sound.log_spectral_distance(
      np.square(known), np.square(found), hidden)
  assert distance < 8  # a filter does not tell what lies inside of it


def test_with_nothing_hidden_the_sound_is_the_original(clip, transform):
  hidden = np.zeros(clip.spectrogram.shape, bool)
  sounds = study_lib.render(
      transform, clip, {'model': clip.spectrogram}, hidden, iterations=3)
  for x in sounds.values():
    assert snr_db(clip.waveform, x) > 250


def test_griffin_lim_finds_phases_and_keeps_those_that_are_known(
    clip, transform):
  truth = transform(clip.waveform)
  known = np.abs(truth[transform.frames])
  hidden = np.zeros_like(known, bool)
  hidden[20:30, 40:120] = True  # with the partial at 3.1 kHz
  off = {}
  for iterations in (1, 60):
    x = sound.griffin_lim(
        transform, clip.waveform, known, hidden, iterations=iterations)
    now = transform(x)
    off[iterations] = np.linalg.norm(
        np.abs(now[transform.frames]) - known) / np.linalg.norm(known)
  assert off[60] < off[1] / 4
  assert np.linalg.norm(now - truth) / np.linalg.norm(truth) < 0.5
  far = np.r_[0:180 * 16, 35 * 160:len(x)]
  np.testing.assert_allclose(x[far], clip.waveform[far], atol=2e-2)


def test_samples_outside_of_a_gap_are_the_originals(clip, transform, model):
  hidden = hiding.gaps(60, clip, CONFIG.patch, 1, seed=3)
  lost = hidden.lost[0]
  assert lost.sum() == 960
  filled = study_lib.fills(
      model, clip, hidden.removed[0], hidden.hidden[0])
  sounds = study_lib.render(
      transform, clip, filled, hidden.hidden[0], lost, iterations=5)
  assert set(sounds) == {'silence', 'interpolation', 'model', 'leaked', 'truth'}
  for key, x in sounds.items():
    np.testing.assert_array_equal(x[~lost], clip.waveform[~lost])
    assert (np.abs(x[lost]).max() > 1e-3) == (key != 'silence')


def test_log_spectral_distance_by_hand():
  reference = np.array([[1.0, 10.0], [100.0, 1.0], [1.0, 1.0]])
  estimate = np.array([[10.0, 10.0], [1.0, 1.0], [0.0, 0.0]])
  cells = np.array([[True, True], [True, False], [False, False]])
  # 10 dB and 0; then 20 dB alone.
  expected = (np.sqrt((10**2 + 0) / 2) + 20) / 2
  assert sound.log_spectral_distance(
      reference, estimate, cells) == pytest.approx(expected)
  # Silence counts as 80 dB below the loudest, which is 100.
  nothing = sound.log_spectral_distance(
      reference, estimate, np.array([[False] * 2, [False] * 2, [True] * 2]))
  assert nothing == pytest.approx(60)
  with pytest.raises(ValueError, match='needs a bin'):
    sound.log_spectral_distance(reference, estimate, ~cells & cells)


def test_levels_of_the_original_undo_the_normalisation():
  rng = np.random.default_rng(0)
  patches = rng.normal(3, 2, (6, 20)).astype(np.float32)
  normal = (patches - patches.mean(1, keepdims=True)) / np.sqrt(
      patches.var(1, ddof=1, keepdims=True) + 1e-6)
  np.testing.assert_allclose(
      filling.from_original(normal, patches), patches, atol=1e-5)
  half = filling.from_original(normal / 2, patches)
  np.testing.assert_allclose(
      half.std(1, ddof=1), patches.std(1, ddof=1) / 2, rtol=1e-4)


def test_levels_from_the_visible_lie_between_their_neighbours():
  patches = np.stack([np.array([-1, 1.0]) * s + m for m, s in
                      ((0, 1), (9, 9), (4, 3))]).astype(np.float32)
  removed = np.array([False, True, False])
  found = filling.from_visible(np.full((3, 2), 1.0), patches, removed, (3, 1))
  # Means 0 and 4, deviations sqrt(2) and 3 sqrt(2): in the middle.
  np.testing.assert_allclose(found[1], 2 + 2 * 2**0.5, rtol=1e-5)


def test_what_is_drawn_goes_on_from_what_is_known_beside_it():
  original = np.array([[5.0], [6], [99], [99], [99], [9], [5]])
  drawn = np.array([[0.0], [3], [1], [2], [1], [1], [0]])
  removed = np.array([[0], [1], [1], [1], [1], [1], [0]], bool)
  hidden = original == 99
  # Off by 3 before and by 8 behind.
  np.testing.assert_allclose(
      filling.join(drawn, original, removed, hidden)[2:5, 0],
      [1 + 4.25, 2 + 5.5, 1 + 6.75])


def test_interpolation_is_linear_in_time_then_over_frequency():
  values = np.array([[0.0, 9, 2], [9, 9, 9], [4, 9, 4], [9, 9, 8]])
  known = np.array([[1, 0, 1], [0, 0, 0], [1, 0, 1], [0, 0, 1]], bool)
  np.testing.assert_allclose(
      filling.interpolate(values, known),
      [[0, 1, 2], [2, 2.5, 3], [4, 4, 4], [4, 6, 8]])
  with pytest.raises(ValueError, match='Nothing is visible'):
    filling.interpolate(values, known & ~known)


@pytest.mark.parametrize('make', [
    lambda clip: hiding.strategy(
        'unstructured', 0.8, clip, CONFIG.patch, 1, 0),
    lambda clip: hiding.gaps(60, clip, CONFIG.patch, 1, 0),
    lambda clip: hiding.bands(3000, clip, CONFIG.patch),
], ids=['patches', 'gaps', 'bands'])
def test_only_fills_that_say_so_know_what_is_hidden(clip, model, make):
  hidden = make(clip)
  gone = hidden.hidden[0]
  other = clip._replace(spectrogram=np.where(
      gone, 3.0 - clip.spectrogram, clip.spectrogram).astype(np.float32))
  one, two = (study_lib.fills(model, x, hidden.removed[0], gone)
              for x in (clip, other))
  for key in one:
    same = np.allclose(one[key], two[key], atol=1e-5)
    assert same == (key in ('interpolation', 'model')), key
    np.testing.assert_array_equal(one[key][~gone], clip.spectrogram[~gone])


@pytest.mark.parametrize('normalize', [False, True])
def test_what_lies_under_no_patch_is_interpolated(tmp_path, normalize):
  config = tiny.config(tiny.MODEL, {
      'patch.stride': (5, 10), 'objective.normalize_patches': normalize})
  soundfile.write(tmp_path / 'a.wav', tones(), RATE)
  clip = clip_lib.read(tmp_path / 'a.wav', config)
  x, patch = clip.spectrogram, config.patch
  assert x.shape == (63, 128)  # 12 x 12 patches: of bins only 126
  answer = patches_lib.patchify(x[None], patch)
  if normalize:
    answer = losses.normalize_patches(answer)
  oracle = types.SimpleNamespace(
      config=config, predict=lambda *_: np.asarray(answer[0]),
      grid=lambda shape: patches_lib.grid_of(shape, patch))
  key = 'leaked' if normalize else 'model'
  gap = hiding.gaps(60, clip, patch, 1, seed=0)
  found = study_lib.fills(
      oracle, clip, gap.removed[0], gap.hidden[0])
  np.testing.assert_allclose(found[key][:, :126], x[:, :126], atol=1e-4)
  np.testing.assert_array_equal(
      found[key][:, 126:], found['interpolation'][:, 126:])
  band = hiding.bands(4000, clip, patch)
  found = study_lib.fills(oracle, clip, band.removed[0], band.hidden[0])
  np.testing.assert_array_equal(
      found['model'][:, 126:], np.repeat(found['model'][:, 125:126], 2, 1))


def test_strategies_are_those_of_training(clip):
  found = hiding.strategy('time_freq', 0.75, clip, CONFIG.patch, 3, seed=5)
  expected = masking.make(
      jax.random.key(5), 3, (8, 8), config_lib.Mask(
          name='time_freq', time_ratio=0.5, freq_ratio=0.5))
  np.testing.assert_array_equal(found.removed, expected.removed)
  assert found.removed.mean() == 0.75
  np.testing.assert_array_equal(
      found.hidden, np.kron(found.removed.reshape(3, 8, 8),
                            np.ones((8, 16), bool)))


def test_a_gap_hides_each_frame_that_it_touches_and_their_patches(clip):
  found = hiding.gaps(20, clip, CONFIG.patch, 4, seed=0)
  for lost, frames, removed in zip(
      found.lost, found.hidden[..., 0], found.removed):
    assert lost.sum() == 320
    touched = [lost[t * 160:t * 160 + 400].any() for t in range(64)]
    np.testing.assert_array_equal(frames, touched)
    np.testing.assert_array_equal(
        removed.reshape(8, 8).any(1), frames.reshape(8, 8).any(1))
    assert (removed.reshape(8, 8).all(1) == removed.reshape(8, 8).any(1)).all()
  starts = found.lost.argmax(1)
  assert len(set(starts)) > 1


def test_bands_hide_what_reaches_above_the_cutoff(clip):
  found = hiding.bands(4000, clip, CONFIG.patch)
  hz = np.arange(256) * 8000 / 256
  mel = frontend.tables(clip.spec).mel
  seen = mel[:, ~found.hidden[0, 0]]
  assert 3900 < hz[seen.any(1)].max() <= 4000
  assert 10 < found.hidden[0, 0].sum() < 64


@pytest.mark.parametrize('call, said', [
    (lambda clip: hiding.strategy('none', 0.5, clip, CONFIG.patch, 1, 0),
     "'none' is not known: unstructured"),
    (lambda clip: hiding.strategy('time', 1.5, clip, CONFIG.patch, 1, 0),
     'not a share of patches'),
    (lambda clip: hiding.strategy('time', 0.95, clip, CONFIG.patch, 1, 0),
     "0.95 cannot be hidden by 'time' of 8 x 8 patches"),
    (lambda clip: hiding.gaps(600, clip, CONFIG.patch, 1, 0),
     'at most 328 ms'),
    (lambda clip: hiding.bands(9000, clip, CONFIG.patch), 'none is above'),
    (lambda clip: hiding.bands(20, clip, CONFIG.patch), 'all is above'),
    (lambda clip: hiding.gaps(320, clip, dataclasses.replace(
        CONFIG.patch, size=(64, 16)), 1, 0), 'nothing is left to see'),
])
def test_what_cannot_be_hidden_is_said(clip, call, said):
  with pytest.raises(ValueError, match=said):
    call(clip)


def test_errors_are_the_losses_of_training(clip, model):
  task = pretrain.Pretrain(CONFIG)
  study = study_lib.Settings(draws=2, seed=4)
  row = study_lib._error(model, clip, 'unstructured', 0.8, study)
  hidden = hiding.strategy('unstructured', 0.8, clip, CONFIG.patch, 2, 4)
  patches = patches_lib.patchify(clip.spectrogram[None], CONFIG.patch)
  losses = jax.jit(task.losses)
  expected = [losses(model._params, {
      'patches': patches, 'mask': masking.from_scores(
          jnp.asarray(removed, jnp.float32)[None], int((~removed).sum()))
  })['loss'][0] for removed in hidden.removed]
  np.testing.assert_allclose(row.values, expected, rtol=1e-5)
  assert row.flat == pytest.approx(127 / 128, abs=2e-3)


def test_attention_is_what_the_block_attends_with(clip, model):
  removed = np.arange(64) % 4 > 0
  patches, mask, grid = model._inputs(clip.spectrogram, removed)
  weights = model._attend(model._params, patches, mask.keep_ids, grid, 2)
  np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
  encoder, params = model._mae.encoder, model._params['encoder']
  one = jax.jit(lambda: encoder.clone(depth=1, final_norm=False).apply(
      {'params': params}, patches, grid, mask.keep_ids))()
  block = params['blocks']['01']
  normal = np.asarray(one) - np.asarray(one).mean(-1, keepdims=True)
  normal /= np.sqrt(np.square(normal).mean(-1, keepdims=True) + 1e-6)
  normal = normal * block['norm1']['scale'] + block['norm1']['bias']
  qkv = normal @ block['attn']['qkv']['kernel'] + block['attn']['qkv']['bias']
  values = attention.split_heads(jnp.asarray(qkv), 2)[2]
  np.testing.assert_allclose(
      jnp.einsum('hqk,bkhd->bqhd', weights, values).reshape(1, 17, 16),
      attention.full(jnp.asarray(qkv), 2, 'xla'), atol=1e-3)
  maps = model.attention(clip.spectrogram, removed, 2)
  assert maps.shape == (2, 2, 8, 8)
  np.testing.assert_array_equal(
      np.isnan(maps), np.broadcast_to(removed.reshape(8, 8), maps.shape))
  np.testing.assert_allclose(
      maps[0, 1].reshape(-1)[~removed], weights[1, 0, 1:], rtol=1e-5)
  with pytest.raises(ValueError, match='give one of 1 to 2'):
    model.attention(clip.spectrogram, removed, 3)


def test_raw_targets_need_no_levels(clip, model):
  config = dataclasses.replace(CONFIG, objective=dataclasses.replace(
      CONFIG.objective, normalize_patches=False))
  raw = model_lib.Model(config, model._params)
  hidden = hiding.strategy('unstructured', 0.5, clip, config.patch, 1, 0)
  filled = study_lib.fills(raw, clip, hidden.removed[0], hidden.hidden[0])
  assert set(filled) == {'interpolation', 'model', 'truth'}
  drawn = patches_lib.unpatchify(
      raw.predict(clip.spectrogram, hidden.removed[0])[None], (64, 128),
      config.patch)[0]
  loudest = clip.spectrogram[~hidden.hidden[0]].max()
  np.testing.assert_allclose(
      filled['model'][hidden.hidden[0]],
      np.minimum(drawn, loudest)[hidden.hidden[0]], atol=1e-6)


@pytest.mark.parametrize('setting, said', [
    ({'draws': 0}, 'draws=0 must be 1 or more'),
    ({'ratios': (0.5, 1.0)}, 'above 0 and below 1'),
    ({'gaps_ms': (20, -1)}, 'all must be above 0'),
    ({'layer': 3, 'masks': ('bands',)}, 'give one of 1 to 2'),
    ({'masks': ('bands',), 'cutoffs_hz': (9000.0,)}, 'Nothing can be hidden'),
])
def test_settings_out_of_range_stop_before_the_work(clip, model, setting, said):
  with pytest.raises(ValueError, match=said):
    study_lib.run(model, clip, study_lib.Settings(**setting))
