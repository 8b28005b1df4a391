"""Embeddings of audio of any length: what they are, and that all ways agree."""

import re
import subprocess
import sys

import embedding
from embedding import CLIP_SAMPLES
from embedding import HZ
from embedding import noise
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import soundfile

import audio_mae_jax
from audio_mae_jax import benchmark
from audio_mae_jax import features
from audio_mae_jax import frontend
from audio_mae_jax import patches
from audio_mae_jax import weights
from audio_mae_jax.data import splits
from audio_mae_jax.embed import model as model_lib
from audio_mae_jax.embed import speed
from audio_mae_jax.embed import windows
from audio_mae_jax.models import encoder as encoder_lib
from audio_mae_jax.tasks import classify

D = 16


@pytest.fixture(scope='module', autouse=True)
def programs(compile_once):
  """Models of one size have programs in common."""


def test_frames_are_what_the_encoder_makes_of_columns_of_patches():
  """Of a clip whose length is no bucket's, by hand and without padding."""
  model, columns = embedding.model(), 5
  samples = noise(model.grid.samples(columns))
  config = embedding.config({'frontend.num_frames': 8 * columns})
  tree = reference.nest(embedding.encoder().params)['encoder']

  @jax.jit
  def encode(audio):
    spectrogram = frontend.features(
        audio, jnp.array([len(samples)]), config.frontend)
    return encoder_lib.make(config).apply(
        {'params': tree}, patches.patchify(spectrogram, config.patch),
        weights.grid_of(config))

  wanted = encode(samples[None])[0, 1:].reshape(columns, -1, D).mean(1)
  assert columns not in model.grid.buckets
  found = model.embed_frames(samples, HZ)
  np.testing.assert_allclose(found.embeddings, wanted, atol=1e-5)
  np.testing.assert_allclose(
      model.embed(samples, HZ), np.mean(wanted, 0), atol=1e-5)
  assert found.embeddings.dtype == np.float32


@pytest.mark.slow
def test_a_clip_as_in_training_has_the_features_that_probes_read(tmp_path):
  (tmp_path / 'a').mkdir()
  path = tmp_path / 'a' / '0.wav'
  soundfile.write(path, noise(CLIP_SAMPLES), HZ, subtype='FLOAT')
  config = embedding.config({
      'probe.train.name': 'folder', 'probe.train.path': str(tmp_path),
      'train.batch_size': 8})
  split = splits.Split.open(config.probe.train, config.data, 'x')
  found = features.extract(
      config, embedding.encoder().params, split, tmp_path / 'features')
  np.testing.assert_allclose(
      embedding.model().embed(path), found.means[0, -1], atol=1e-5)


@pytest.mark.parametrize('rate, channels', [(HZ, 1), (44100, 2), (8000, 1)])
@pytest.mark.parametrize('chunk', [997, 30000])
def test_a_stream_gives_the_numbers_of_the_whole(rate, channels, chunk):
  model = embedding.model()
  samples = np.stack([noise(int(3.21 * rate), i) for i in range(channels)], 1)
  whole = model.embed_frames(samples, rate)
  stream, parts = model.stream(rate), []
  for start in range(0, len(samples), chunk):
    parts.append(stream.push(samples[start:start + chunk]))
  before = sum(len(part.times_s) for part in parts)
  assert before > len(whole.times_s) // 2  # it does not wait for the end
  parts.append(stream.finish())
  embeddings, times_s = map(np.concatenate, zip(*parts))
  np.testing.assert_allclose(embeddings, whole.embeddings, atol=1e-5)
  np.testing.assert_array_equal(times_s, whole.times_s)
  np.testing.assert_allclose(
      stream.embedding, model.embed(samples, rate), atol=1e-5)
  with pytest.raises(ValueError, match='The stream has ended: begin another'):
    stream.push(samples)


def test_a_stream_that_was_too_short_has_ended():
  stream = embedding.model().stream(44100)
  stream.push(noise(300))
  with pytest.raises(ValueError, match='The stream cannot be used: too short'):
    stream.finish()
  for more in stream.finish, lambda: stream.push(noise(300)):
    with pytest.raises(ValueError, match='The stream has ended: begin another'):
      more()


def test_long_audio_is_its_windows_each_frame_from_the_better_one():
  model = embedding.model()
  grid = model.grid
  assert (grid.size, grid.hop) == (8, 6)
  samples = noise(grid.samples(8 + 6 + 6 + 3) + 100)  # and a short window
  found = model.embed_frames(samples, HZ)
  assert len(found.times_s) == 23
  alone = [
      model.embed_frames(samples[start:start + grid.samples(8)], HZ).embeddings
      for start in np.arange(4) * grid.place(6)]
  wanted = np.concatenate(
      [alone[0][:7], alone[1][1:7], alone[2][1:7], alone[3][1:]])
  np.testing.assert_allclose(found.embeddings, wanted, atol=1e-5)
  np.testing.assert_allclose(
      model.embed(samples, HZ), wanted.mean(0), atol=1e-5)


def test_times_are_the_centres_of_what_a_frame_has_heard():
  """A click is loudest in the frame whose time is nearest to it."""
  model = embedding.model()
  quiet = 1e-4 * noise(4 * HZ)
  base = model.embed_frames(quiet, HZ)
  np.testing.assert_allclose(np.diff(base.times_s[:-1]), 0.08)
  assert base.times_s[0] == (7 * 160 + 400) / 2 / HZ
  assert base.times_s[-1] < 4
  for at_s in (0.32, 1.5, 2.23, 3.7):
    clicked = quiet.copy()
    clicked[int(at_s * HZ):][:160] += 0.5
    moved = np.abs(model.embed_frames(clicked, HZ).embeddings
                   - base.embeddings).sum(1)
    assert abs(base.times_s[moved.argmax()] - at_s) <= 0.08


@pytest.mark.parametrize('samples, columns', [
    (400, 1), (400 + 10 * 160, 1), (400 + 11 * 160, 2),
    (400 + 18 * 160, 2), (400 + 19 * 160, 3)])
def test_a_column_counts_if_half_of_it_is_inside(samples, columns):
  grid = embedding.model().grid
  assert grid.columns(samples) == columns
  found = embedding.model().embed_frames(noise(samples), HZ)
  assert found.embeddings.shape == (columns, D)
  assert np.all(found.times_s < samples / HZ)


@pytest.mark.parametrize('size, hop', [(8, 8), (8, 6), (7, 5), (8, 4), (1, 1)])
def test_any_cutting_gives_each_column_once(size, hop):
  grid = windows.Layout(embedding.config().frontend, 8, 8, size, hop)
  for total in (1, size - 1, size, size + 1, 2 * hop, 3 * hop + size, 40):
    if total < 1:
      continue
    cutter, joiner = windows.Cutter(grid), windows.Joiner(grid)
    audio = np.arange(grid.samples(total), dtype=np.float32)
    found = [w for chunk in np.array_split(audio, 13)
             for w in cutter.push(chunk)] + cutter.finish()
    columns = []
    for window in found:
      assert len(window.samples) == grid.samples(window.columns)
      assert window.samples[0] == grid.place(window.first)
      frames = np.arange(window.first, window.first + window.columns)
      columns += joiner.push(window, frames[:, None])[1][:, 0].tolist()
    columns += joiner.finish()[1][:, 0].tolist()
    assert columns == list(range(total))


@pytest.mark.parametrize('columns', [1, 2, 3, 12, 62])
def test_the_overlap_of_a_layout_makes_it_again(columns):
  config = embedding.config({
      'data.clip_s': (8 * columns + 2) / 100,
      'frontend.num_frames': 8 * columns})
  for overlap in (0.0, 0.25, 0.4, 0.5):
    grid = windows.layout(config, overlap)
    share = grid.overlap / grid.size
    assert grid.size == columns and share <= 0.5 and grid.overlap % 2 == 0
    assert windows.layout(config, share) == grid


def test_what_is_held_of_a_long_recording_is_less_than_two_windows():
  grid = embedding.model().grid
  cutter = windows.Cutter(grid)
  for _ in range(200):
    cutter.push(np.zeros(3000, np.float32))
    assert sum(map(len, cutter._chunks)) < grid.samples(grid.size)


def test_lengths_inside_a_bucket_compile_nothing():
  model = model_lib.Model(embedding.encoder(), batch_size=4)
  assert model.grid.buckets == (1, 2, 4, 8)
  for columns in (3, 4):
    for more in (0, 33, 161):
      model.embed(noise(model.grid.samples(columns) - more), HZ)
  assert model.programs.compiled == [('encode', 1, 4)]
  model.embed([noise(n) for n in range(3000, 9 * 10480, 5100)], HZ)
  assert set(model.programs.compiled) <= {
      ('encode', batch, columns)
      for batch in (1, 4) for columns in (1, 2, 4, 8)}
  # And none was traced for a second shape.
  assert model.programs.num_traced == len(model.programs.compiled)


@pytest.mark.slow
@pytest.mark.parametrize('settings', [
    {'patch.positions': 'released'}, {'patch.positions': 'table'},
    {'patch.stride': (5, 10), 'frontend.num_frames': 63},
    {'patch.size': (4, 128)}, {'frontend.hop_ms': 30.0, 'data.clip_s': 2.0}])
def test_any_patches_and_positions_are_cut_and_joined(settings):
  config = weights.with_positions(embedding.config(settings))
  model = model_lib.Model(
      weights.Weights(features.random_params(config), config, {}))
  samples = noise(40000)
  whole, stream = model.embed_frames(samples, HZ), model.stream(HZ)
  parts = [stream.push(part) for part in np.array_split(samples, 7)]
  embeddings, times_s = map(np.concatenate, zip(*parts, stream.finish()))
  np.testing.assert_allclose(embeddings, whole.embeddings, atol=1e-5)
  np.testing.assert_allclose(np.diff(times_s), model.grid.frame_s)
  assert times_s[-1] < 2.5 <= times_s[-1] + 1.5 * model.grid.frame_s + 0.1


@pytest.mark.slow
@pytest.mark.parametrize('remat', ['none', 'full'])
def test_layers_that_are_scanned_do_not_see_padding_either(remat):
  deep = {'model.encoder.depth': 2}
  params = features.random_params(embedding.config(deep))
  once, scanned = (
      model_lib.Model(weights.Weights(params, embedding.config(settings), {}))
      for settings in (deep, deep | {
          'model.scan_layers': True, 'model.remat': remat}))
  np.testing.assert_allclose(
      scanned.embed(noise(7000), HZ), once.embed(noise(7000), HZ), atol=1e-5)


def test_clips_of_a_batch_do_not_change_each_other():
  model = embedding.model()
  clips = [noise(n, n) for n in (400, 9000, 60000, 3000, 9000, 31000, 12345)]
  together = model.embed(clips, HZ)
  assert together.shape == (7, D)
  for clip, row in zip(clips, together):
    np.testing.assert_allclose(model.embed(clip, HZ), row, atol=1e-5)
  for clip, found in zip(clips, model.embed_frames(clips, HZ)):
    np.testing.assert_allclose(
        model.embed_frames(clip, HZ).embeddings, found.embeddings, atol=1e-5)


@pytest.mark.slow
def test_devices_share_a_batch():
  many = model_lib.Model(
      embedding.encoder(), batch_size=8, devices=jax.devices()[:4])
  clips = [noise(9000, i) for i in range(13)]
  np.testing.assert_allclose(
      many.embed(clips, HZ), embedding.model().embed(clips, HZ), atol=1e-5)


def test_audio_is_a_file_or_an_array_of_any_kind(tmp_path):
  model, samples = embedding.model(), noise(12000)
  wanted = model.embed(samples, HZ)
  soundfile.write(tmp_path / 'a.wav', samples, HZ, subtype='FLOAT')
  same = {
      'file': (tmp_path / 'a.wav', None),
      'name': (str(tmp_path / 'a.wav'), None),
      'stereo': (np.stack([samples, samples], 1), HZ),
      'float64': (samples.astype(np.float64), HZ),
      'int16': ((samples * 2**15).round().astype(np.int16), HZ),
      'of JAX': (jnp.asarray(samples), HZ),
      'numbers': (samples.tolist(), HZ)}
  for what, (audio, rate) in same.items():
    np.testing.assert_allclose(
        model.embed(audio, rate), wanted, atol=2e-3, err_msg=what)
  batch = model.embed(np.stack([samples, samples]), HZ)
  np.testing.assert_allclose(batch, [wanted, wanted], atol=1e-5)


@pytest.mark.parametrize('audio, rate, message', [
    (noise(399), HZ, 'Clip: too short: 0.0249 s, the model needs 0.0250 s.'),
    ([noise(500), noise(0)], HZ, 'Clip 1: empty.'),
    (np.full(500, np.nan), HZ, 'Clip: NaN or infinite samples.'),
    (noise(500), None, 'sample_rate=None: give the rate of the samples in Hz'),
    (np.zeros((2, 3, 500)), HZ, 'audio has the shape (2, 3, 500); it takes'),
    ([np.zeros((2, 500))], HZ, 'Clip 0 has the shape (2, 500); a clip is [S]'),
    ([], HZ, 'audio is an empty list: give at least one clip.'),
    ('nowhere.wav', None, 'nowhere.wav: no such file.')])
def test_what_cannot_be_embedded_is_an_error_that_says_why(
    audio, rate, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    embedding.model().embed(audio, rate)


def test_weights_that_have_diverged_are_no_embeddings():
  weights_ = embedding.encoder()
  broken = model_lib.Model(weights.Weights(
      weights_.params | {'encoder/cls_token': np.full(D, np.nan, np.float32)},
      weights_.config, {}))
  with pytest.raises(ValueError, match='these weights have diverged'):
    broken.embed(noise(500), HZ)


@pytest.mark.parametrize(
    'multilabel', [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_classifier_predicts_what_evaluation_would(multilabel):
  weights_ = embedding.classifier(multilabel)
  model, task = model_lib.Model(weights_), classify.Classify(weights_.config)
  clips = [noise(CLIP_SAMPLES), noise(4000)]
  audio = np.zeros((2, CLIP_SAMPLES), np.float32)
  for row, clip in zip(audio, clips):
    row[:len(clip)] = clip
  logits = np.asarray(jax.jit(lambda batch: task.apply(
      reference.nest(weights_.params),
      task.prepare(batch, jax.random.key(0), train=False)))({
          'audio': audio, 'num_samples': jnp.array([CLIP_SAMPLES, 4000]),
          'labels': jnp.zeros((2, 3))}))
  wanted = np.asarray(
      (jax.nn.sigmoid if multilabel else jax.nn.softmax)(logits))
  found = model.predict(clips, HZ)
  np.testing.assert_allclose(found.scores, wanted, atol=1e-5)
  assert found.classes == ('cat', 'dog', 'rain')
  best = model.predict(clips[0], HZ).top(2)
  assert best[0] == (found.classes[wanted[0].argmax()],
                     pytest.approx(wanted[0].max(), abs=1e-5))
  assert [len(top) for top in found.top(2)] == [2, 2]
  # Of longer audio, the mean of stretches; a short rest does not count.
  long = np.concatenate([clips[0], clips[0][::-1], clips[1]])
  np.testing.assert_allclose(
      model.predict(long, HZ).scores,
      np.mean(model.predict([clips[0], clips[0][::-1]], HZ).scores, 0),
      atol=1e-5)
  # Its embedding is what its head reads.
  head = lambda x: x @ weights_.params['head/kernel'] + weights_.params[
      'head/bias']
  np.testing.assert_allclose(
      head(model.embed(clips[0], HZ)), logits[0], atol=1e-4)


def test_stretches_of_several_clips_share_a_call(monkeypatch):
  model, calls = model_lib.Model(embedding.classifier(), batch_size=4), []
  call = model.programs.classify
  monkeypatch.setattr(model.programs, 'classify', lambda clips: (
      calls.append(len(clips)), call(clips))[1])
  clips = [noise(n, n) for n in (
      5000, 3 * CLIP_SAMPLES, 400, 700, 2 * CLIP_SAMPLES, 900)]
  together = model.predict(clips, HZ).scores
  assert calls == [4, 4, 1]
  for clip, scores in zip(clips, together):
    np.testing.assert_allclose(
        model.predict(clip, HZ).scores, scores, atol=1e-5)
  with pytest.raises(ValueError, match='Clip 1: too short: 399 samples'):
    model.predict([noise(500), noise(399)], HZ)


def test_the_encoder_of_a_classifier_is_loaded_if_it_has_a_norm():
  with pytest.raises(ValueError, match='without the norm that follows it'):
    model_lib.Model(embedding.classifier().part('encoder'))
  old = embedding.encoder()
  config = embedding.config({
      'task': 'classify', 'mask.name': '',
      'model.classifier.pool': 'class_token'})
  model = model_lib.Model(weights.Weights(old.params, config, {}).part(
      'encoder'))
  assert model.classes == ()
  np.testing.assert_allclose(
      model.embed(noise(9000), HZ), embedding.model().embed(noise(9000), HZ),
      atol=1e-5)


def test_what_is_no_classifier_does_not_predict():
  with pytest.raises(ValueError, match='These weights are no classifier'):
    embedding.model().predict(noise(500), HZ)
  with pytest.raises(ValueError, match='2 names of classes are given'):
    model_lib.Model(embedding.classifier(), classes=('a', 'b'))


def test_weights_of_a_folder_are_loaded(tmp_path):
  weights.save(tmp_path / 'w', embedding.encoder())
  model = audio_mae_jax.load(tmp_path / 'w', overlap=0.5)
  assert (model.grid.hop, model.width, model.sample_rate_hz) == (4, D, HZ)
  assert model.fingerprint != embedding.model().fingerprint
  with pytest.raises(ValueError, match='overlap=0.7: the share of a window'):
    audio_mae_jax.load(tmp_path / 'w', overlap=0.7)
  with pytest.raises(AttributeError, match="no attribute 'laod'"):
    audio_mae_jax.laod  # noqa: B018


def test_importing_the_package_takes_no_jax():
  subprocess.run(
      [sys.executable, '-c', 'import sys, audio_mae_jax\n'
       'assert "jax" not in sys.modules and "numpy" not in sys.modules'],
      check=True, timeout=60)


@pytest.mark.slow
def test_the_benchmark_tells_the_speed_of_embedding():
  result = speed.measure(embedding.config(), windows=2, steps=2, warmup=1)
  found = result['embed']
  assert found['clips_per_s'] > 0 and found['clip_median_s'] > 0
  assert found['real_time'] == pytest.approx(
      found['clips_per_s'] * CLIP_SAMPLES / HZ)
  # Of 1, 4 and 16 windows: there are eight devices.
  assert (found['programs'], found['new_lengths']) == (3, 4)
  table = benchmark.table(result)
  assert re.search(r'throughput +.* clips/s, .* times real time', table)
  assert '4 lengths of one bucket compiled none' in table


def test_frames_can_come_closer_together():
  model, samples = embedding.model(), noise(20000)
  dense = model.embed_frames(samples, HZ, shifts=4)
  np.testing.assert_allclose(np.diff(dense.times_s), 0.02)
  np.testing.assert_allclose(
      dense.embeddings[::4], model.embed_frames(samples, HZ).embeddings,
      atol=1e-5)
  assert model.embed_frames(samples[:400], HZ, shifts=4).times_s.shape == (1,)
  with pytest.raises(ValueError, match='shifts=3 does not divide the 8'):
    model.embed_frames(samples, HZ, shifts=3)


@pytest.mark.slow
def test_an_hour_takes_little_memory_and_is_its_parts(tmp_path):
  """In a process of its own, as its peak of memory is what is measured."""
  path = tmp_path / 'hour.flac'
  with soundfile.SoundFile(path, 'w', HZ, 1) as file:
    for i in range(360):
      file.write(noise(10 * HZ, i))
  weights.save(tmp_path / 'w', embedding.encoder())
  code = f'''
import numpy as np, soundfile, audio_mae_jax
from audio_mae_jax import memory
model = audio_mae_jax.load({str(tmp_path / 'w')!r})
frames = model.embed_frames({str(path)!r})
assert memory.process_peak() < 1e9
np.testing.assert_allclose(
    model.embed({str(path)!r}), frames.embeddings.mean(0), atol=1e-4)
samples, rate = soundfile.read({str(path)!r}, dtype='float32')
grid, half = model.grid, model.grid.overlap // 2
assert len(frames.times_s) == grid.columns(len(samples))
for window in range(0, 7000, 501):
  first = window * grid.hop
  start = grid.place(first)
  part = model.embed_frames(
      samples[start:start + grid.samples(grid.hop * 50 + grid.size)], rate)
  inner = slice(half, -half)
  at = first + np.arange(len(part.times_s))[inner]
  np.testing.assert_allclose(
      part.embeddings[inner], frames.embeddings[at], atol=1e-5)
  np.testing.assert_allclose(
      part.times_s[inner] + start / rate, frames.times_s[at])
'''
  subprocess.run([sys.executable, '-c', code], check=True, timeout=600)
