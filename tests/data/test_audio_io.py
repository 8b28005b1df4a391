"""Decoding, down-mixing, resampling, cropping, and what is refused."""

import io
import re

import numpy as np
import pytest
import soundfile

from audio_mae_jax.data import audio_io
from audio_mae_jax.data import crops
from audio_mae_jax.data import recordings

RATE_HZ = 16000
FORMATS = ['wav', 'flac', 'ogg', 'oga', 'opus', 'mp3', 'aiff']


def load(audio, num_samples=RATE_HZ, crop='start', seed=0, rate_hz=RATE_HZ,
         **keywords):
  item = {'audio': audio, 'id': 'x', 'start_s': 0.0, 'duration_s': None}
  item |= {name: keywords.pop(name) for name in
           ('start_s', 'duration_s', 'sample_rate_hz') if name in keywords}
  return audio_io.load(
      item, sample_rate_hz=rate_hz, num_samples=num_samples, crop=crop,
      rng=np.random.default_rng(seed), **keywords)


def peak_hz(samples, rate_hz=RATE_HZ):
  spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
  return np.argmax(spectrum) * rate_hz / len(samples)


@pytest.mark.parametrize('suffix', FORMATS)
def test_every_format_is_decoded_from_a_path_and_from_bytes(
    write, tone, suffix):
  options = {'oga': dict(format='OGG', subtype='VORBIS')}.get(suffix, {})
  path = write(f'a.{suffix}', tone(1.5, 1000), **options)
  samples = load(path)
  assert samples.dtype == np.float32 and samples.shape == (RATE_HZ,)
  assert peak_hz(samples) == pytest.approx(1000, abs=1)
  with open(path, 'rb') as file:
    np.testing.assert_array_equal(load(file.read()), samples)


@pytest.mark.parametrize('dtype,scale', [
    (np.int16, 2**15), (np.int32, 2**31), (np.int64, 2**15), (np.float64, 1)])
def test_arrays_are_scaled_to_one(dtype, scale):
  samples = load((np.array([0.5, -0.5, 0.25] * 9) * scale).astype(dtype),
                 sample_rate_hz=RATE_HZ)
  np.testing.assert_array_equal(samples, np.tile(
      np.float32([0.5, -0.5, 0.25]), 9))


@pytest.mark.parametrize('rate_hz, channels, subtype', [
    (22050, 1, 'PCM_16'), (RATE_HZ, 2, 'PCM_16'), (RATE_HZ, 1, 'PCM_24')])
@pytest.mark.parametrize('suffix', ['wav', 'flac'])
def test_what_is_not_stored_as_int16_comes_as_floats(
    write, rate_hz, channels, subtype, suffix):
  samples = np.random.default_rng(0).normal(0, 0.1, (4000, channels))
  path = write(f'a.{suffix}', samples, rate_hz, subtype=subtype)
  got = load(path, as_stored=True)
  assert got.dtype == np.float32
  np.testing.assert_array_equal(got, load(path))


@pytest.mark.parametrize('suffix', ['wav', 'flac'])
def test_int16_comes_as_it_is_stored(write, suffix):
  samples = np.arange(-800, 800, dtype=np.int16)
  path = write(f'a.{suffix}', samples, subtype='PCM_16')
  with open(path, 'rb') as file:
    for audio in path, file.read():
      got = load(audio, as_stored=True)
      assert got.dtype == np.int16
      np.testing.assert_array_equal(got, samples)
      np.testing.assert_array_equal(load(audio), samples / np.float32(2**15))


def test_samples_go_to_the_memory_that_is_given(write):
  samples = np.arange(-800, 800, dtype=np.int16)
  path = write('a.wav', samples, subtype='PCM_16')
  wanted, memory = [], np.full(2000, np.nan, np.float32)

  def give(dtype):
    wanted.append(dtype)
    return memory

  got = load(path, as_stored=True, out=give)
  assert wanted == [np.int16] and got.base is memory
  np.testing.assert_array_equal(memory[:1600], samples / np.float32(2**15))


def test_channels_are_averaged(write, tone):
  left, right = tone(1, 500), tone(1, 2000)
  path = write('a.wav', np.stack([left, right], 1), subtype='FLOAT')
  np.testing.assert_allclose(load(path), (left + right) / 2, atol=1e-7)


def test_the_first_channel_can_be_taken_instead():
  frames = np.random.default_rng(0).normal(0, 0.1, (800, 2))
  got = load(frames.astype(np.float32), sample_rate_hz=RATE_HZ,
             channels='first')
  np.testing.assert_array_equal(got, frames[:, 0].astype(np.float32))
  with pytest.raises(ValueError, match="config.data.channels='left' is not"):
    load(frames, sample_rate_hz=RATE_HZ, channels='left')


@pytest.mark.parametrize(
    'rate_hz', [8000, 11025, 22050, 44100, 48000, 44101, 96000])
@pytest.mark.parametrize('resample', ['soxr_hq', 'soxr_vhq'])
def test_resampling_keeps_pitch_level_and_exact_length(
    write, tone, rate_hz, resample):
  path = write('a.wav', tone(1.3, 1000, rate_hz), rate_hz, subtype='FLOAT')
  samples = load(path, num_samples=10**6, resample=resample)
  assert len(samples) == round(1.3 * rate_hz) * RATE_HZ // rate_hz
  assert peak_hz(samples) == pytest.approx(1000, abs=1)
  assert np.abs(samples[2000:-2000]).max() == pytest.approx(0.5, abs=2e-3)
  assert load(path, num_samples=5001).shape == (5001,)


@pytest.mark.parametrize('suffix', ['wav', 'flac', 'ogg', 'opus', 'aiff'])
@pytest.mark.parametrize('rate_hz', [16000, 24000, 44100])
def test_a_window_equals_the_same_part_of_the_whole(
    write, suffix, rate_hz):
  if suffix == 'opus' and rate_hz == 44100:
    pytest.skip('Opus has no 44.1 kHz')
  noise = np.random.default_rng(0).uniform(-0.5, 0.5, 4 * rate_hz)
  path = write(f'a.{suffix}', noise, rate_hz)
  whole = load(path, num_samples=10**6)
  for seed in range(4):
    start = np.random.default_rng(seed).integers(len(whole) - 3000 + 1)
    np.testing.assert_allclose(
        load(path, num_samples=3000, crop='random', seed=seed),
        whole[start:start + 3000], atol=2e-5)


def test_random_crops_cover_the_clip_without_wrapping(write):
  path = write('a.wav', np.arange(100) / 100, subtype='FLOAT')
  starts = set()
  for seed in range(400):
    samples = load(path, num_samples=90, crop='random', seed=seed)
    starts.add(round(float(samples[0]) * 100))
    assert np.all(np.diff(samples) > 0)
  assert starts == set(range(11))


@pytest.mark.parametrize('crop', ['random', 'start'])
def test_short_clips_come_whole_and_unpadded(write, crop):
  ramp = np.float32(np.arange(50) / 50)
  path = write('a.wav', ramp, subtype='FLOAT')
  np.testing.assert_array_equal(load(path, num_samples=90, crop=crop), ramp)


@pytest.mark.parametrize('length,num_samples', [
    (100, 90), (100, 100), (50, 90), (7, 90), (1, 90)])
def test_cyclic_crops_wrap_and_fill(write, length, num_samples):
  path = write('a.wav', np.arange(length) / 128, subtype='FLOAT')
  starts = set()
  for seed in range(40 * length):
    samples = load(path, num_samples=num_samples, crop='cyclic', seed=seed)
    values = np.round(samples * 128).astype(int)
    starts.add(values[0])
    np.testing.assert_array_equal(
        values, (values[0] + np.arange(num_samples)) % length)
  assert starts == set(range(length))


@pytest.mark.parametrize('crop', crops.CROPS)
def test_the_same_generator_state_gives_the_same_samples(write, tone, crop):
  path = write('a.flac', tone(3, 300), 22050)
  first, again = (load(path, 8000, crop, seed=5) for _ in range(2))
  np.testing.assert_array_equal(first, again)
  assert crop == 'start' or np.any(load(path, 8000, crop, seed=6) != first)


def test_only_the_part_between_start_and_duration_is_used(write):
  path = write('a.wav', np.arange(1000) / 1000, 1000, subtype='FLOAT')
  for crop in crops.CROPS:
    for seed in range(20):
      samples = load(path, 50, crop, seed, 1000, start_s=0.2, duration_s=0.1)
      assert 0.2 <= samples.min() and samples.max() < 0.3
  assert len(load(path, 10**4, rate_hz=1000, start_s=0.2)) == 800
  assert len(load(path, 10**4, rate_hz=1000, duration_s=7.0)) == 1000


def test_silence_is_audio(write):
  assert load(write('a.wav', np.zeros(RATE_HZ))).max() == 0


def cut(path, share):
  with open(path, 'rb') as file:
    content = file.read()
  with open(path, 'wb') as file:
    file.write(content[:int(share * len(content))])
  return path


def with_data_size(path, size):
  with open(path, 'r+b') as file:
    file.seek(40)  # the size of the data chunk of a plain WAV
    file.write(size.to_bytes(4, 'little'))
  return path


@pytest.mark.parametrize('suffix,reason', [
    ('wav', 'truncated: .* bytes'), ('aiff', 'truncated: .* bytes'),
    ('flac', 'damaged or truncated between'), ('mp3', 'truncated: .* frames')])
def test_truncated_files_are_bad(write, suffix, reason):
  noise = np.random.default_rng(0).uniform(-0.5, 0.5, 3 * RATE_HZ)
  path = cut(write(f'a.{suffix}', noise), 0.6)
  with pytest.raises(recordings.BadAudio, match=reason):
    load(path, num_samples=3 * RATE_HZ)
  with pytest.raises(recordings.BadAudio, match=reason):
    load(path, num_samples=3 * RATE_HZ, crop='cyclic')


@pytest.mark.parametrize('size', [2**32 - 1, 0x7FFFF000])
def test_a_streamed_wav_that_does_not_know_its_length_is_good(
    write, tone, size):
  path = with_data_size(write('a.wav', tone(1)), size)
  assert len(load(path)) == RATE_HZ


def test_a_flac_that_does_not_know_its_length_is_bad(write, tone):
  path = write('a.flac', tone(1))
  with open(path, 'r+b') as file:
    content = bytearray(file.read())
    packed = int.from_bytes(content[18:26], 'big') >> 36 << 36
    content[18:26] = packed.to_bytes(8, 'big')
    file.seek(0)
    file.write(content)
  with pytest.raises(recordings.BadAudio, match='does not say how long'):
    load(path)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_bad(write, tone, value):
  samples = tone(1)
  samples[777] = value
  path = write('a.wav', samples, subtype='FLOAT')
  with pytest.raises(recordings.BadAudio, match='NaN or infinite samples'):
    load(path)
  with pytest.raises(recordings.BadAudio, match='NaN or infinite samples'):
    load(path, rate_hz=8000)


def test_samples_far_above_full_scale_are_bad(write, tone):
  path = write('a.wav', 65536 * tone(1), subtype='FLOAT')
  with pytest.raises(
      recordings.BadAudio, match=r'up to 3.28e\+04, where full scale is 1'):
    load(path)


def test_missing_empty_and_foreign_files_are_bad(write, tmp_path):
  with pytest.raises(recordings.BadAudio, match='no such file'):
    load(str(tmp_path / 'nothing.wav'))
  (tmp_path / 'zero.wav').write_bytes(b'')
  with pytest.raises(recordings.BadAudio, match='^empty$'):
    load(str(tmp_path / 'zero.wav'))
  for name in ('text.wav', 'text.mp3', 'text.raw'):
    (tmp_path / name).write_bytes(b'no audio at all ' * 99)
    with pytest.raises(recordings.BadAudio, match='^unreadable: [^/]+$'):
      load(str(tmp_path / name))
  with pytest.raises(recordings.BadAudio, match='unreadable'):
    load(b'')
  for crop in crops.CROPS:
    with pytest.raises(recordings.BadAudio, match='^empty$'):
      load(write('none.wav', np.zeros(0)), crop=crop)


@pytest.mark.parametrize('crop', crops.CROPS)
def test_clips_shorter_than_a_window_are_bad(write, crop):
  path = write('a.wav', np.zeros(399))
  with pytest.raises(recordings.BadAudio, match=(
      'too short: 0.0249 s, the model needs 0.0250 s')):
    load(path, crop=crop, min_samples=400)
  assert load(path, crop=crop, min_samples=399).size


def test_a_start_beyond_the_end_is_bad(write, tone):
  with pytest.raises(recordings.BadAudio, match=re.escape(
      'ends at 1.000 s, before the start of the clip at 2.000 s')):
    load(write('a.wav', tone(1)), start_s=2.0)


def test_arrays_of_other_types_are_bad():
  with pytest.raises(recordings.BadAudio, match='samples of type complex64'):
    load(np.zeros(100, np.complex64), sample_rate_hz=RATE_HZ)


def test_another_rate_can_be_refused(write, tone):
  path = write('a.wav', tone(1), 44100)
  with pytest.raises(audio_io.WrongRate, match=(
      'sampled at 44100 Hz, .*sample_rate_hz=16000.*soxr_hq')):
    load(path, resample='error')
  assert load(path, rate_hz=44100, resample='error').size


def test_unknown_settings_are_errors():
  audio = np.zeros(9, np.float32)
  with pytest.raises(ValueError, match="crop='middle' is not known"):
    load(audio, crop='middle', sample_rate_hz=RATE_HZ)
  with pytest.raises(ValueError, match="resample='linear' is not known"):
    load(audio, resample='linear', sample_rate_hz=RATE_HZ)


def test_bytes_that_are_cut_are_bad(tone):
  buffer = io.BytesIO()
  soundfile.write(buffer, tone(1), RATE_HZ, format='WAV')
  with pytest.raises(recordings.BadAudio, match='truncated'):
    load(buffer.getvalue()[:9000])


@pytest.fixture
def librosa(monkeypatch):
  """Without what it compiles when it is first used, for half a minute, and does
  not need to resample."""
  numba = pytest.importorskip('numba')
  for name in ('vectorize', 'guvectorize'):
    monkeypatch.setattr(numba, name, lambda *_, **__: lambda fn: fn)
  found = pytest.importorskip('librosa')
  assert found.resample  # is imported now
  return found


@pytest.mark.parametrize('rate_hz', [8000, 22050, 44100, 48000])
def test_resampling_agrees_with_librosa(tmp_path, rate_hz, librosa):
  samples = np.random.default_rng(rate_hz).uniform(-0.5, 0.5, rate_hz)
  soundfile.write(tmp_path / 'a.wav', samples, rate_hz, subtype='FLOAT')
  want = librosa.resample(
      samples.astype(np.float32), orig_sr=rate_hz, target_sr=16000,
      res_type='soxr_hq')
  got = audio_io.load(
      {'audio': str(tmp_path / 'a.wav'), 'id': 'a'}, sample_rate_hz=16000,
      num_samples=16000, crop='start', rng=None)
  np.testing.assert_allclose(got, want[:16000], atol=1e-6)
