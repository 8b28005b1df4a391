"""The front end against the released code, Kaldi and a float64 reference."""

import dataclasses
import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audio_mae_jax import augment
from audio_mae_jax import config
from audio_mae_jax import devices
from audio_mae_jax import frontend
from audio_mae_jax import sharding

GOLDEN = np.load(pathlib.Path(__file__).parent / 'golden' / 'frontend.npz')
TRANSFORMS = ('fft', 'matmul')

# The released code's own rounding: max and mean difference, in log-mel units,
# between its float32 result and its float64 run. Large maxima are cells of a
# chirp or tone that hold next to no energy.
FLOOR = {
    'speech_1s': (3.1e-4, 3.0e-6),
    'noise_1s': (2.0e-4, 1.1e-6),
    'chirp_1s': (1.2e-2, 2.0e-4),
    'silence_1s': (4.3e-7, 4.3e-7),
    'dc_1s': (2.1e-4, 7.8e-6),
    'impulse_1s': (1.2e-5, 4.4e-7),
    'square_fullscale_1s': (8.0e-5, 1.9e-6),
    'lsb_noise_1s': (9.8e-7, 3.6e-7),
    'len400': (1.8e-5, 9.6e-7),
    'len559': (2.7e-5, 1.2e-6),
    'len560': (3.4e-5, 7.0e-7),
    'stereo_1s': (2.5e-4, 2.9e-6),
    'sr22050_1s': (1.3e-2, 2.5e-4),
    'sr44100_1s': (1.8e-2, 4.1e-4),
    'sr8000_1s': (6.3e-3, 7.8e-5),
}
# The released code rounds its mel filters to float32 before it uses them, by up
# to 1.4e-5 of their peak; ours are computed in float64. On the same spectra
# this moves a cell by up to 6.4e-5 on the clips whose floor is lower than that
# (1.7e-4 on speech), and the mean by up to 8.3e-6.
FILTERS = (7e-5, 1e-5)

SPEECH_COMMANDS = dict(num_frames=128, mean=-6.845978, std=5.5654526)


def read(clip):
  """[S] in [-1, 1]; of stereo, channel 0 less the mean over both channels."""
  x = GOLDEN[f'{clip}/pcm16'].astype(np.float32) / 32768
  return x if x.ndim == 1 else x[:, 0] - x.mean()


def spec_of(clip, transform='matmul', **changes):
  return config.Frontend(
      sample_rate_hz=int(GOLDEN[f'{clip}/sr']), transform=transform, **changes)


@functools.lru_cache
def compiled(spec, function=frontend.log_mel):
  return jax.jit(functools.partial(function, spec=spec))


def log_mel(waveform, spec):
  """One clip, its mean removed as the released code does."""
  waveform = jnp.asarray(waveform, jnp.float32)[None]
  waveform = augment.remove_mean(waveform, jnp.array([waveform.shape[1]]))
  return np.asarray(compiled(spec)(waveform)[0])


def reference(waveform, spec):
  """[S] -> [frames, F] in float64, one step after the other."""
  x = np.asarray(waveform, np.float64)
  x = x - x.mean()
  length = int(spec.sample_rate_hz * spec.window_ms / 1000)
  hop = int(spec.sample_rate_hz * spec.hop_ms / 1000)
  starts = np.arange(0, len(x) - length + 1, hop)
  x = x[starts[:, None] + np.arange(length)]
  x = x - x.mean(1, keepdims=True)
  x = x - 0.97 * np.hstack([x[:, :1], x[:, :-1]])
  x = x * np.hanning(length)
  padded = int(2 ** np.ceil(np.log2(length)))
  power = np.abs(np.fft.rfft(x, padded)[:, :-1]) ** 2
  to_mel = lambda hz: 1127 * np.log(1 + hz / 700)
  low, high = to_mel(20), to_mel(spec.sample_rate_hz / 2)
  position = to_mel(np.arange(padded // 2) * spec.sample_rate_hz / padded)
  position = (position - low) / (high - low) * (spec.num_mel_bins + 1)
  centers = np.arange(1, spec.num_mel_bins + 1)
  filters = np.maximum(0, 1 - np.abs(position[:, None] - centers))
  return np.log(np.maximum(power @ filters, 2.0**-23))


@pytest.mark.parametrize('transform', TRANSFORMS)
@pytest.mark.parametrize('clip', FLOOR)
def test_log_mel_equals_the_released_code(clip, transform):
  # Two roundings meet, the reference's and ours, each of the floor's size;
  # a maximum over 12544 cells of rounding noise varies by as much again.
  actual = log_mel(read(clip), spec_of(clip, transform))
  error = np.abs(actual - GOLDEN[f'{clip}/fbank_raw'])
  assert error.max() <= 3 * FLOOR[clip][0] + FILTERS[0]
  assert error.mean() <= 2 * FLOOR[clip][1] + FILTERS[1]


@pytest.mark.parametrize('transform', TRANSFORMS)
def test_with_the_released_filters_only_rounding_remains(transform):
  for clip in FLOOR:
    if clip.endswith('_1s') and not clip.startswith('sr'):
      waveform = jnp.asarray(read(clip), jnp.float32)[None]
      waveform = augment.remove_mean(waveform, jnp.array([16000]))
      power = compiled(
          config.Frontend(), frontend.TRANSFORMS[transform])(waveform)[0]
      mel = np.asarray(power) @ GOLDEN['mel_bank_16k'][:, :-1].T
      actual = np.log(np.maximum(mel, np.float32(2.0**-23)))
      error = np.abs(actual - GOLDEN[f'{clip}/fbank_raw'])
      assert error.max() <= 3 * FLOOR[clip][0], clip
      assert error.mean() <= 2 * FLOOR[clip][1], clip


@pytest.mark.parametrize('transform', TRANSFORMS)
@pytest.mark.parametrize(
    'clip', [c for c in FLOOR if f'{c}/fbank_raw_float64' in GOLDEN])
def test_log_mel_equals_the_released_code_run_in_float64(clip, transform):
  actual = log_mel(read(clip), spec_of(clip, transform))
  error = np.abs(actual - GOLDEN[f'{clip}/fbank_raw_float64'])
  assert error.max() <= 2 * FLOOR[clip][0] + FILTERS[0]
  assert error.mean() <= 1.5 * FLOOR[clip][1] + FILTERS[1]


def unexplained(actual, expected):
  """Errors [frames, F], but 0 in cells where float32 can do no better.

  To round the loudest amplitude of a frame once moves one that is d nats of
  power below it by 2^-24 e^(d / 2) of its own. Which of the cells that lie 12
  nats below are hit depends on the processor's order of sums: of 256 cells of
  the shortest clips it was one, five times as far off as on another processor.
  """
  below = expected.max(-1, keepdims=True) - expected
  error = np.abs(actual - expected)
  once = 2 * 2.0**-24 * np.exp(below / 2)
  return np.where((below > 12) & (error <= once), 0, error)


@pytest.mark.parametrize('transform', TRANSFORMS)
@pytest.mark.parametrize('clip', FLOOR)
def test_rounding_is_no_worse_than_the_released_codes(clip, transform):
  # No allowance for filters: those of the reference here are float64 as well.
  spec = spec_of(clip, transform)
  error = unexplained(log_mel(read(clip), spec), reference(read(clip), spec))
  assert error.max() <= 2 * FLOOR[clip][0]
  assert error.mean() <= 1.5 * FLOOR[clip][1]


def test_constants_equal_the_released_codes():
  const = frontend.tables(config.Frontend())
  np.testing.assert_allclose(
      const.mel.T, GOLDEN['mel_bank_16k'][:, :-1], atol=1.5e-5)
  np.testing.assert_allclose(
      const.window, GOLDEN['window_hanning_400'], atol=1e-6)
  assert not const.mel[:, 3].any()  # as in Kaldi: narrower than a bin
  assert all(table.dtype == np.float32 for table in const)


@pytest.mark.parametrize('transform', TRANSFORMS)
def test_power_spectrum_equals_the_released_codes(transform):
  waveform = read('len560')[None]
  waveform = augment.remove_mean(jnp.asarray(waveform), jnp.array([560]))
  power = frontend.TRANSFORMS[transform](waveform, config.Frontend())[0]
  expected = GOLDEN['len560/power_spectrum'][:, :-1]
  np.testing.assert_allclose(power, expected, atol=1e-6 * expected.max())


def test_silence_is_at_the_floor():
  x = frontend.log_mel(jnp.zeros((1, 400)), config.Frontend())
  np.testing.assert_array_equal(x, np.log(np.float32(2.0**-23)))


@pytest.mark.parametrize('clip, frames', [
    ('len400', 1), ('len559', 1), ('len560', 2), ('speech_1s', 98)])
def test_only_whole_frames_count(clip, frames):
  spec = config.Frontend()
  waveform = read(clip)
  assert frontend.num_frames(len(waveform), spec) == frames
  assert log_mel(waveform, spec).shape == (frames, 128)


@pytest.mark.parametrize('clip, dataset, settings', [
    ('speech_1s', 'speechcommands', SPEECH_COMMANDS),
    ('stereo_1s', 'speechcommands', SPEECH_COMMANDS),
    ('len560', 'speechcommands', SPEECH_COMMANDS),
    ('speech_1s', 'audioset', {})])
def test_features_equal_the_released_datasets(clip, dataset, settings):
  spec = spec_of(clip, **settings)
  waveform = jnp.asarray(read(clip), jnp.float32)[None]
  actual = compiled(spec, frontend.features)(
      waveform, jnp.array([waveform.shape[1]]))
  expected = GOLDEN[f'{clip}/dataset_{dataset}']
  assert actual.shape == expected.shape == (1, spec.num_frames, 128)
  tolerance = (3 * FLOOR[clip][0] + FILTERS[0]) / (2 * spec.std)
  np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)
  padding = actual[:, frontend.num_frames(waveform.shape[1], spec):]
  np.testing.assert_allclose(padding, -spec.mean / (2 * spec.std), rtol=1e-6)


def test_features_do_not_depend_on_the_rest_of_the_batch():
  spec = config.Frontend(num_frames=60)
  lengths = [16000, 9000, 400, 399, 0]  # longer than T, shorter, no frame
  rng = np.random.default_rng(0)
  # What lies behind the valid samples must not matter: it is not zero here.
  audio = (0.1 + 0.1 * rng.standard_normal((5, 16000))).astype(np.float32)
  run = compiled(spec, frontend.features)
  together = run(audio, np.array(lengths, np.int32))
  assert together.shape == (5, 60, 128)
  padding = np.float32(-spec.mean) / np.float32(2 * spec.std)
  for row, length in enumerate(lengths):
    frames = 0
    if length >= 400:
      alone = run(audio[row:row + 1, :length], np.array([length], np.int32))[0]
      np.testing.assert_allclose(together[row], alone, atol=1e-4)
      frames = min(60, frontend.num_frames(length, spec))
      assert np.ptp(alone[:frames]) > 1
    np.testing.assert_allclose(together[row, frames:], padding, rtol=1e-6)


SETTINGS = [
    dict(sample_rate_hz=16000, num_mel_bins=128),
    dict(sample_rate_hz=16000, num_mel_bins=64, window='hamming'),
    dict(sample_rate_hz=8000, num_mel_bins=23, window='povey'),
    dict(sample_rate_hz=22050, num_mel_bins=80, window='rectangular'),
    dict(sample_rate_hz=44100, num_mel_bins=128, high_hz=-400.0),
    dict(sample_rate_hz=48000, num_mel_bins=64, low_hz=50.0, high_hz=14000.0),
    dict(sample_rate_hz=16000, num_mel_bins=40, window_ms=20.0, hop_ms=20.0),
    dict(sample_rate_hz=16000, num_mel_bins=40, window_ms=10.0, hop_ms=12.5),
    dict(sample_rate_hz=32000, num_mel_bins=64, preemphasis=0.0),
    dict(sample_rate_hz=16000, num_mel_bins=40, window='hamming',
         preemphasis=0.9, remove_dc_offset=False),
]


@pytest.mark.parametrize('settings, transform', (
    [(settings, 'matmul') for settings in SETTINGS]
    + [(settings, 'fft') for settings in SETTINGS[1::4]]))
def test_log_mel_equals_kaldi(settings, transform):
  knf = pytest.importorskip('kaldi_native_fbank')
  spec = config.Frontend(transform=transform, **settings)
  options = knf.FbankOptions()
  options.frame_opts.dither = 0.0
  options.frame_opts.samp_freq = spec.sample_rate_hz
  options.frame_opts.window_type = (
      'hanning' if spec.window == 'hann' else spec.window)
  options.frame_opts.frame_length_ms = spec.window_ms
  options.frame_opts.frame_shift_ms = spec.hop_ms
  options.frame_opts.preemph_coeff = spec.preemphasis
  options.frame_opts.remove_dc_offset = spec.remove_dc_offset
  options.mel_opts.num_bins = spec.num_mel_bins
  options.mel_opts.low_freq = spec.low_hz
  options.mel_opts.high_freq = spec.high_hz
  options.use_energy = False
  rng = np.random.default_rng(1)
  samples = spec.sample_rate_hz // 5
  waveform = (0.03 + 0.2 * rng.standard_normal(samples)).astype(np.float32)
  extractor = knf.OnlineFbank(options)
  extractor.accept_waveform(spec.sample_rate_hz, waveform.tolist())
  extractor.input_finished()
  expected = np.stack(
      [extractor.get_frame(i) for i in range(extractor.num_frames_ready)])
  actual = compiled(spec)(waveform[None])[0]
  assert actual.shape == expected.shape
  # Kaldi's filters are float32 too; a bin at a filter's very edge has a weight
  # near zero and so a large relative error.
  error = np.abs(actual - expected)
  assert error.max() <= 2e-3
  assert error.mean() <= 2e-5


@pytest.mark.parametrize('transform', TRANSFORMS)
@pytest.mark.parametrize('signal', ['offset', 'step', 'hum'])
def test_quiet_noise_survives_loud_low_frequencies(signal, transform):
  seconds = np.arange(16000) / 16000
  loud = {'offset': np.full(16000, 0.5),
          'step': np.where(seconds < 0.5, -0.5, 0.5),
          'hum': 0.9 * np.sin(2 * np.pi * 50 * seconds)}[signal]
  noise = 1e-3 * np.random.default_rng(2).standard_normal(16000)
  waveform = (np.round((loud + noise) * 32768) / 32768).astype(np.float32)
  spec = config.Frontend(transform=transform)
  actual = compiled(spec)(waveform[None])[0]  # its mean left in
  error = np.abs(actual - reference(waveform, spec))
  assert error.max() <= 5e-2
  assert error.mean() <= 1e-4


@pytest.mark.parametrize('transform', TRANSFORMS)
def test_precision_is_float32_whatever_the_defaults(transform):
  spec = config.Frontend(transform=transform, num_frames=16)
  waveform = read('speech_1s')[None, :3000]
  lengths = np.array([3000], np.int32)
  run = functools.partial(frontend.features, spec=spec)
  expected = jax.jit(run)(waveform, lengths)
  with jax.default_matmul_precision('bfloat16'):
    text = jax.jit(run).lower(waveform, lengths).as_text()
  products = re.findall(r'stablehlo\.(?:dot_general|convolution)\b.*', text)
  assert len(products) == (2 if transform == 'matmul' else 1)
  for line in products:
    assert re.search(r'HIGHEST[^\n]*HIGHEST', line)
  assert 'bf16' not in text and 'f64' not in text
  with jax.enable_x64(True):
    actual = jax.jit(run)(waveform.astype(np.float64), lengths)
  assert actual.dtype == jnp.float32
  np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize('transform', TRANSFORMS)
def test_each_device_transforms_its_own_clips(transform):
  mesh = sharding.make_mesh(config.Mesh(), 8)
  spec = config.Frontend(transform=transform, num_frames=20)
  log_mel = lambda x: frontend.log_mel(x, spec)
  rows = sharding.batch(mesh)
  program = sharding.jit(
      mesh, log_mel, in_shardings=rows, out_shardings=rows,
  ).lower(jnp.zeros((16, 4000))).compile()
  assert 'all-' not in program.as_text()
  x = np.random.default_rng(0).normal(size=(16, 4000)).astype(np.float32)
  # Compiled as well: both round a band that has next to nothing in it alike.
  np.testing.assert_allclose(
      program(jax.device_put(x, rows)), jax.jit(log_mel)(x), atol=2e-4)


@pytest.mark.parametrize('platform, transform', [
    ('gpu', 'fft'), ('tpu', 'matmul'), ('cpu', 'matmul'), (None, 'matmul')])
def test_auto_is_what_suits_the_devices(platform, transform, monkeypatch):
  monkeypatch.setattr(devices, 'platform', lambda: platform)
  text = lambda name: str(jax.make_jaxpr(lambda x: frontend.log_mel(
      x, config.Frontend(transform=name)))(jnp.zeros((1, 4000))))
  assert text('auto') == text(transform)
  assert ('fft' in text('auto')) == (transform == 'fft')


@pytest.mark.parametrize('transform', TRANSFORMS)
def test_gradients_are_finite(transform):
  spec = config.Frontend(transform=transform, num_frames=20)
  waveform = np.stack([read('speech_1s')[:3000], np.zeros(3000, np.float32)])
  lengths = np.array([3000, 3000])
  gradient = jax.jit(jax.grad(
      lambda x: frontend.features(x, lengths, spec).sum()))(waveform)
  assert np.isfinite(gradient).all()
  assert gradient[0].any() and not gradient[1].any()


def test_a_sharded_batch_needs_no_communication():
  spec = config.Frontend(num_frames=20)
  mesh = jax.make_mesh((8,), ('data',), (jax.sharding.AxisType.Auto,))
  split = jax.NamedSharding(mesh, jax.P('data'))
  rng = np.random.default_rng(3)
  audio = rng.standard_normal((8, 3000)).astype(np.float32)
  lengths = np.full(8, 2900, np.int32)
  run = jax.jit(functools.partial(frontend.features, spec=spec))
  expected = run(audio, lengths)
  arguments = jax.device_put((audio, lengths), split)
  program = run.lower(*arguments).compile()
  assert not re.search('all-|collective-|reduce-scatter', program.as_text())
  actual = program(*arguments)
  assert actual.sharding.is_equivalent_to(split, actual.ndim)
  np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize('samples, settings, message', [
    (399, {}, r'399 samples .* 400 samples are needed \(25 ms at 16000 Hz\)'),
    (800, dict(sample_rate_hz=44100), '1102 samples are needed .*44100 Hz'),
    (800, dict(transform='dct'), "'dct' is not known.*auto, matmul, fft"),
    (800, dict(window='han'), "'han' is not known. Did you mean 'hann'"),
    (800, dict(low_hz=9000.0), 'band of 9000 to 8000 Hz'),
    (800, dict(high_hz=9000.0), 'at or below 8000 Hz'),
    (800, dict(num_mel_bins=0), 'num_mel_bins=0 .* must be positive'),
    (800, dict(floor=0.0), 'floor=0 must be positive'),
    (800, dict(window_ms=0.1), 'window_ms=0.1 is 1 samples .* must be 2'),
    (800, dict(hop_ms=0.0), 'hop_ms=0 is 0 samples at 16000 Hz; .* 1 or more'),
    (800, dict(num_frames=0), 'num_frames=0 must be 1 or more')])
def test_impossible_settings_say_what_to_change(samples, settings, message):
  spec = dataclasses.replace(config.Frontend(), **settings)
  with pytest.raises(ValueError, match=message):
    frontend.features(jnp.zeros((1, samples)), jnp.array([samples]), spec)


def test_integer_samples_are_refused():
  with pytest.raises(ValueError, match='int16.*Divide 16-bit samples by 32768'):
    frontend.log_mel(np.zeros((1, 400), np.int16), config.Frontend())
