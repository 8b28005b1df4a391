"""Batches: complete, deterministic, independent of the layout, resumable."""

import dataclasses
import os

import batching
import grain
import numpy as np
import pytest

from audio_mae_jax import config
from audio_mae_jax.data import audio_io
from audio_mae_jax.data import crops
from audio_mae_jax.data import pipeline
from audio_mae_jax.data import recordings
from audio_mae_jax.data import report as report_lib
from audio_mae_jax.data import sources


@pytest.mark.parametrize('crop', crops.CROPS)
def test_batches_have_the_shapes_of_the_contract(numbered, settings, crop):
  batch, = batching.train(numbered(6), settings(crop=crop), 1)
  assert {name: (value.shape, value.dtype.name)
          for name, value in batch.items()} == {
              'audio': ((4, 1600), 'float32'), 'num_samples': ((4,), 'int32'),
              'index': ((4,), 'int32'), 'valid': ((4,), 'float32')}
  np.testing.assert_allclose(
      batch['audio'], np.repeat((batch['index'][:, None] + 1) / 100, 1600, 1),
      rtol=1e-6)
  assert batch['valid'].tolist() == [1.0] * 4
  assert batch['num_samples'].tolist() == [1600] * 4


def test_short_clips_are_padded_with_zeros_at_the_end(write, settings,
                                                      tmp_path):
  write('a.wav', np.full(900, 0.5))
  source = sources.make(
      config.Source(name='folder', path=str(tmp_path)), config.Data())
  batch, = batching.train(source, settings(2, crop='random'), 1)
  assert batch['num_samples'].tolist() == [900, 900]
  assert np.all(batch['audio'][:, :900] == 0.5)
  assert np.all(batch['audio'][:, 900:] == 0)
  batch, = batching.train(source, settings(2, crop='cyclic'), 1)
  assert batch['num_samples'].tolist() == [1600, 1600]
  assert np.all(batch['audio'] == 0.5)


@pytest.mark.parametrize('num_clips', [1, 2, 7, 12])
def test_each_clip_comes_once_per_epoch_across_batch_borders(
    numbered, settings, num_clips):
  source = numbered(num_clips)
  batches = batching.train(source, settings(4), 3 * num_clips)
  index = batching.column(batches, 'index')
  epochs = index[:num_clips * (len(index) // num_clips)].reshape(-1, num_clips)
  for epoch in epochs:
    assert sorted(epoch) == list(range(num_clips))
  if num_clips > 2:
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert tuple(epochs[0]) != tuple(range(num_clips))


def test_order_and_crops_depend_on_the_seed_alone(settings):
  data = config.Data(clip_s=0.3)
  source = sources.make(config.Source(name='synthetic', num_clips=11), data)
  first = batching.train(source, settings(seed=3, num_threads=1), 6)
  batching.assert_equal(
      first, batching.train(source, settings(seed=3, num_threads=4), 6))
  other = batching.train(source, settings(seed=4), 6)
  index = batching.column(first, 'index')
  assert np.any(index != batching.column(other, 'index'))
  # One clip is cropped differently in every epoch.
  crops = batching.column(first, 'audio')[index == 5]
  assert len(crops) >= 2 and np.any(crops[0] != crops[1])


@pytest.mark.parametrize('process_count', [2, 4])
@pytest.mark.parametrize('bad', [(), (2, 5)])
def test_processes_together_make_the_batch_of_one(
    numbered, settings, process_count, bad):
  source = numbered(11, bad)
  cfg = settings(8, crop='random', max_bad_fraction=0.5)
  parts = [batching.train(source, cfg, 4, process_index=p,
                          process_count=process_count)
           for p in range(process_count)]
  together = [{name: np.concatenate([part[s][name] for part in parts])
               for name in parts[0][s]} for s in range(4)]
  batching.assert_equal(batching.train(source, cfg, 4), together)


@pytest.mark.parametrize('start_step', [1, 4, 7])
@pytest.mark.parametrize('bad', [(), (2, 5)])
def test_a_resumed_run_goes_on_with_the_same_bits(
    numbered, settings, start_step, bad):
  source = numbered(13, bad)  # steps 4 and 7 lie in the second and third epoch
  cfg = settings(4, max_bad_fraction=0.5)
  through = batching.train(source, cfg, 10)
  resumed = batching.train(source, cfg, 10 - start_step, start_step=start_step)
  batching.assert_equal(through[start_step:], resumed)


def test_resuming_far_away_reads_nothing_before(settings):
  source = sources.make(
      config.Source(name='synthetic', num_clips=5), config.Data(clip_s=0.1))
  assert len(batching.train(source, settings(), 1, start_step=10**9)) == 1


def test_a_bad_clip_gives_its_place_to_another(numbered, settings):
  source = numbered(9, bad=(3,))
  cfg = settings(3)
  bad = report_lib.BadFiles(source.num_files, cfg.data)
  index = batching.column(batching.train(source, cfg, 30, bad), 'index')
  assert 3 not in index and len(index) == 90
  assert bad.count == 1
  with_all = batching.column(batching.train(numbered(9), cfg, 30), 'index')
  np.testing.assert_array_equal(index[with_all != 3], with_all[with_all != 3])
  # Not always the same one.
  assert len(set(index[with_all == 3])) > 3


def test_parts_of_one_bad_file_count_once(write, tmp_path, settings):
  for name in 'abc':
    samples = np.full(16000, 0.1)
    write(f'{name}.wav', samples * (np.nan if name == 'a' else 1),
          subtype='FLOAT')
  source = sources.make(config.Source(
      name='folder', path=str(tmp_path), segment_s=0.25), config.Data())
  cfg = settings()
  bad = report_lib.BadFiles(source.num_files, cfg.data)
  batching.train(source, cfg, 9, bad)
  assert len(source) == 12 and bad.count == 1


def test_too_many_bad_files_reach_the_caller_with_the_list(numbered, settings):
  source = numbered(40, bad=(1, 5, 7, 11, 20, 30))
  # Two threads may find the fifth and the sixth at once.
  with pytest.raises(report_lib.TooManyBadFiles, match=(
      r'[56] of 40 files are bad, more than config.data.max_bad_fraction=0.1 '
      r'allows(.|\n)*\.wav: unreadable: Format not recognised')):
    batching.train(source, settings(max_bad_fraction=0.1), 100)


@pytest.mark.parametrize('fraction', [0.02, 1.0])
@pytest.mark.parametrize('read', [
    lambda *args: batching.train(*args, 1), batching.evaluate])
def test_no_readable_file_is_an_error(numbered, settings, fraction, read):
  source = numbered(5, bad=range(5))
  with pytest.raises(report_lib.TooManyBadFiles, match=(
      r'No readable file: all \d tried so far \(of 5\) are bad(.|\n)*'
      r'\.wav: unreadable')):
    read(source, settings(max_bad_fraction=fraction))


def test_the_search_for_a_readable_clip_ends(numbered, settings, monkeypatch):
  monkeypatch.setattr(pipeline, '_MAX_TRIES', 2)
  with pytest.raises(report_lib.TooManyBadFiles, match='of 8'):
    batching.train(numbered(8, bad=range(7)), settings(max_bad_fraction=1.0), 5)


def test_a_bad_file_can_stop_the_run(numbered, settings):
  with pytest.raises(report_lib.TooManyBadFiles, match='Bad audio file: .*003'):
    batching.train(numbered(9, bad=(3,)), settings(on_bad='stop'), 9)


def test_a_wrong_rate_stops_the_run(write, tmp_path, settings, tone):
  write('a.wav', tone(1), 44100)
  source = sources.make(
      config.Source(name='folder', path=str(tmp_path)), config.Data())
  with pytest.raises(audio_io.WrongRate, match='a.wav is sampled at 44100 Hz'):
    batching.train(source, settings(resample='error'), 1)


@pytest.mark.parametrize('process_count', [1, 2])
@pytest.mark.parametrize('num_clips', [1, 7, 8])
def test_evaluation_reads_every_clip_once_in_order(
    numbered, settings, process_count, num_clips):
  source = numbered(num_clips)
  cfg = settings(4)
  parts = [batching.evaluate(source, cfg, process_index=p,
                             process_count=process_count)
           for p in range(process_count)]
  batches = [{name: np.concatenate([part[i][name] for part in parts])
              for name in parts[0][i]} for i in range(len(parts[0]))]
  assert len(batches) == -(-num_clips // 4)
  index = batching.column(batches, 'index')
  valid = batching.column(batches, 'valid')
  padding = -num_clips % 4
  assert index.tolist() == list(range(num_clips)) + [-1] * padding
  assert valid.tolist() == [1.0] * num_clips + [0.0] * padding
  np.testing.assert_allclose(
      batching.column(batches, 'audio')[:, 0], (index + 1) / 100, rtol=1e-6)
  assert batching.column(batches, 'num_samples').tolist() == [1600] * len(index)


def test_evaluation_starts_at_the_start_and_marks_bad_clips(
    numbered, settings, tmp_path, write):
  source = numbered(6, bad=(2,))
  write('000.wav', np.arange(3000) / 3000, subtype='FLOAT')
  cfg = settings(4)
  bad = report_lib.BadFiles(source.num_files, cfg.data)
  batches = batching.evaluate(source, cfg, bad)
  np.testing.assert_allclose(
      batches[0]['audio'][0], np.arange(1600) / 3000, atol=1e-6)
  index = batching.column(batches, 'index')
  assert index.tolist() == [0, 1, 2, 3, 4, 5, -1, -1]
  assert batching.column(batches, 'valid').tolist() == [1, 1, 0, 1, 1, 1, 0, 0]
  assert not batches[0]['audio'][2].any() and bad.count == 1


def test_an_epoch_has_at_least_one_step(numbered, settings):
  source = numbered(9)
  assert [pipeline.steps_per_epoch(source, settings(b))
          for b in (1, 4, 9, 10)] == [9, 2, 1, 1]


def test_an_epoch_of_draws_has_its_own_length(settings):
  source = sources.make(
      config.Source(name='synthetic', num_clips=40), config.Data(clip_s=0.1))
  cfg = settings(4, sampling='balanced', epoch_clips=26)
  assert pipeline.steps_per_epoch(source, cfg) == 6


def test_labels_travel_as_ones_among_all_classes(settings):
  source = sources.make(
      config.Source(name='synthetic', num_clips=6), config.Data(clip_s=0.1))
  cfg = settings(4)
  cfg = dataclasses.replace(cfg, model=config.Model(
      classifier=config.Classifier(num_classes=4)))
  for batch in batching.train(source, cfg, 3, labelled=True):
    assert batch['labels'].dtype == np.float32
    np.testing.assert_array_equal(
        batch['labels'], np.eye(4)[batch['index'] % 4])
  last = batching.evaluate(source, cfg, labelled=True)[-1]
  np.testing.assert_array_equal(
      last['labels'], [*np.eye(4)[:2], [0] * 4, [0] * 4])
  assert 'labels' not in batching.evaluate(source, cfg)[0]


@pytest.mark.parametrize('make,message', [
    (dict(batch_size=0), 'batch_size=0 must be 1 or more'),
    (dict(batch_size=3), 'batch_size=3 .* number of processes, 2'),
    (dict(seed=-1), r'train.seed=-1; it takes 0 to 2\*\*32 - 1'),
    (dict(num_threads=-1), 'num_threads=-1; it takes 0'),
    (dict(clip_s=0.01), (
        'clip_s=0.01 at config.frontend.sample_rate_hz=16000 makes 160 samples '
        r'per clip, less than one analysis window \(400\)')),
    (dict(crop='middle'), "data.crop='middle' is not known"),
    (dict(resample='no'), "data.resample='no' is not known")])
def test_wrong_settings_are_refused_before_any_batch(
    numbered, settings, bad_files, make, message):
  source = numbered(2)
  with pytest.raises(ValueError, match=message):
    pipeline.train_batches(source, settings(**make), report=bad_files(source),
                           process_count=2)


@pytest.mark.parametrize('crop', ['random', 'cyclic'])
def test_a_clip_in_memory_is_decoded_once_and_not_changed(
    write, settings, tmp_path, monkeypatch, crop):
  rng = np.random.default_rng(0)
  for i in range(3):
    write(f'{i}.wav', rng.uniform(-0.5, 0.5, 4000 + i))
  source = sources.make(
      config.Source(name='folder', path=str(tmp_path)), config.Data())
  expected = batching.train(source, settings(crop=crop), 6)
  opened = []
  open_recording = recordings.open_recording

  def counted(item):
    if isinstance(item['audio'], str):
      opened.append(item['audio'])
    return open_recording(item)

  monkeypatch.setattr(recordings, 'open_recording', counted)
  cached = settings(crop=crop, cache_gb=1.0, num_threads=1)
  batching.assert_equal(expected, batching.train(source, cached, 6))
  # 24 rows and more; threads may meet at a clip that none has decoded yet.
  assert 3 <= len(opened) <= 8
  # With room for one clip only, the others are decoded at each use.
  opened.clear()
  small = settings(crop=crop, cache_gb=4001 * 2 / 1e9, num_threads=1)
  batching.assert_equal(expected, batching.train(source, small, 6))
  assert len(opened) > 12


def test_a_bad_clip_gives_its_place_to_one_of_the_same_epoch(
    numbered, settings, monkeypatch):
  """Balanced epochs differ in their clips."""

  class Pairs:
    """Epoch e is the bad clip 0, then clip 1 + e."""
    clips_per_epoch = 2

    def __getitem__(self, position):
      epoch, place = divmod(position, 2)
      return place * (1 + epoch)

  monkeypatch.setattr(pipeline.sampling, 'make', lambda *_: Pairs())
  batches = batching.train(
      numbered(6, bad=(0,)), settings(2, max_bad_fraction=0.5), 4)
  assert batching.column(batches, 'index').tolist() == [
      1, 1, 2, 2, 3, 3, 4, 4]


def test_batches_are_int16_until_a_clip_is_not_stored_so(write, settings):
  """And the same numbers, as the order of reading says where that changes."""
  stored = np.random.default_rng(0).integers(-9999, 9999, (6, 4000), np.int16)
  for i, samples in enumerate(stored):
    path = write(f'{i}.wav', samples)
  source = sources.make(config.Source(
      name='folder', path=os.path.dirname(path)), config.Data())
  assert batching.stored(source, settings(), 3) == [np.int16] * 3
  plain = batching.train(source, settings(), 6)
  write('3.wav', stored[3] / 2**15, subtype='FLOAT')
  assert batching.stored(source, settings(), 9)[-4:] == [np.float32] * 4
  for threads in 1, 3:
    batching.assert_equal(
        plain, batching.train(source, settings(num_threads=threads), 6))


@pytest.mark.parametrize('size, threads, together', [
    (512, 16, 16), (512, 2, 16), (64, 4, 8), (4, 2, 1), (1, 8, 1), (30, 2, 6)])
def test_rows_are_made_together_as_far_as_all_threads_have_some(
    size, threads, together):
  assert pipeline._rows_together(size, threads) == together


def test_grain_hands_out_groups_of_rows(settings, monkeypatch):
  """What it does for each element grows with how many are ready."""
  made, options = grain.ReadOptions, []

  def noted(**keywords):
    options.append(keywords)
    return made(**keywords)

  monkeypatch.setattr(grain, 'ReadOptions', noted)
  source = sources.make(
      config.Source(name='synthetic', num_clips=90), config.Data(clip_s=0.1))
  batch, = batching.train(source, settings(64), 1)
  assert options == [dict(num_threads=2, prefetch_buffer_size=4)]
  alone = batching.train(source, settings(64), 1, process_count=64,
                         process_index=37)
  np.testing.assert_array_equal(alone[0]['audio'][0], batch['audio'][37])
