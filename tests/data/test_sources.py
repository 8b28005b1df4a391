"""What is found where, what it is called, and what is said when it is not."""

import os
import re

import listing
import numpy as np
import pytest

from audio_mae_jax import config
from audio_mae_jax.data import audio_io
from audio_mae_jax.data import sources

# ---- all of them


def test_every_source_is_listed_when_the_name_is_unknown():
  with pytest.raises(ValueError, match=(
      r"train.name='foldr' is not known. Did you mean 'folder'\? Known: "
      'folder, manifest, records, tfds, synthetic, demo')):
    listing.make('foldr')


def test_a_setting_that_a_source_does_not_take_is_an_error():
  with pytest.raises(ValueError, match="split='train' has no effect"):
    listing.make('folder', path='x', split='train')


def test_messages_name_the_group_of_settings():
  with pytest.raises(ValueError, match='config.data.valid.path is empty'):
    sources.make(
        config.Source(name='folder'), config.Data(), 'config.data.valid')


# ---- folder


def test_a_folder_is_searched_in_depth_sorted_and_labelled(write, tmp_path):
  for name in ('b/x.wav', 'a/c/y.FLAC', 'a/z.ogg', 'top.wav', 'b/é.wav'):
    write(name, np.zeros(99))
  (tmp_path / 'b' / '._x.wav').write_bytes(b'left behind')
  (tmp_path / 'b' / 'notes.txt').write_text('no audio')
  os.symlink(tmp_path, tmp_path / 'b' / 'up')
  source = listing.make('folder', path=str(tmp_path))
  assert listing.ids(source) == ['a/c/y.FLAC', 'a/z.ogg', 'b/x.wav', 'b/é.wav',
                         'top.wav']
  assert listing.labels(source) == [('c',), ('a',), ('b',), ('b',), ()]
  assert source.num_files == 5
  assert source.describe() == f'folder {tmp_path}: 5 clips, 3 classes'
  assert source[2]['audio'] == str(tmp_path / 'b/x.wav')


def test_linked_folders_are_followed(write, tmp_path):
  write('store/a.wav', np.zeros(99))
  (tmp_path / 'set').mkdir()
  os.symlink(tmp_path / 'store', tmp_path / 'set' / 'link')
  source = listing.make('folder', path=str(tmp_path / 'set'))
  assert listing.ids(source) == ['link/a.wav']


def test_relative_paths_start_at_the_root_setting_or_variable(
    write, tmp_path, monkeypatch):
  write('d/a.wav', np.zeros(99))
  source = listing.make('folder', root=tmp_path, path='d')
  assert listing.ids(source) == ['a.wav']
  monkeypatch.setenv('AUDIO_MAE_DATA', str(tmp_path))
  assert listing.ids(listing.make('folder', path='d')) == ['a.wav']


def test_without_a_root_relative_paths_start_at_the_current_folder(
    write, tmp_path, monkeypatch):
  write('d/a.wav', np.zeros(99))
  monkeypatch.chdir(tmp_path)
  source = listing.make('folder', path='d')
  assert source[0]['audio'] == str(tmp_path / 'd/a.wav')


def test_a_relative_path_that_leads_nowhere_says_what_to_set():
  with pytest.raises(FileNotFoundError, match=(
      r"path='speech' \(the folder with your audio files\) is a relative path"
      r'.*--config.data.root=DIR or the environment variable AUDIO_MAE_DATA, '
      'so that DIR/speech exists')):
    listing.make('folder', path='speech')


def test_a_missing_folder_says_what_to_put_where(tmp_path):
  with pytest.raises(FileNotFoundError, match=(
      rf'No folder {tmp_path}/x. Put audio files \(.wav, .flac, .*\) there, or '
      'set config.data.train.path')):
    listing.make('folder', root=tmp_path, path='x')


def test_an_empty_folder_lists_the_suffixes(tmp_path):
  (tmp_path / 'notes.txt').write_text('no audio')
  with pytest.raises(FileNotFoundError, match=(
      f'No audio files under {tmp_path}. Looked for .wav, .flac, .ogg, .oga, '
      '.opus, .mp3, .aiff, .aif in it')):
    listing.make('folder', path=str(tmp_path))


# ---- classes


def test_classes_choose_clips_and_their_order_is_the_class_list(
    write, tmp_path):
  for name in ('ant/1.wav', 'bee/1.wav', 'cow/1.wav', 'cow/2.wav', '3.wav'):
    write(f'd/{name}', np.zeros(99))
  source = listing.make(
      'folder', path=str(tmp_path / 'd'), classes=('cow', 'ant'))
  assert source.class_names == ['cow', 'ant']
  assert listing.ids(source) == ['ant/1.wav', 'cow/1.wav', 'cow/2.wav']
  assert [source.labels_of(i) for i in range(3)] == [(1,), (0,), (0,)]


def test_other_labels_of_a_clip_are_dropped(write, tmp_path):
  for name in 'abc':
    write(f'{name}.wav', np.zeros(99))
  path = listing.write_csv(tmp_path / 'm.csv', [
      dict(path='a.wav', labels='/x;/y', split='train'),
      dict(path='b.wav', labels='/y', split='train'),
      dict(path='c.wav', labels='/z;/x', split='valid')])
  table = listing.write_csv(tmp_path / 'c.csv', [
      dict(index=i, mid=mid, display_name=name) for i, (mid, name) in
      enumerate([('/x', 'Axe'), ('/y', 'Yak'), ('/z', 'Zoo')])])

  def make(**fields):
    source = listing.make('manifest', path=path, labels_csv=table, **fields)
    return source.class_names, listing.ids(source), listing.labels(source)

  assert make(classes=('Zoo', '/x')) == (
      ['Zoo', '/x'], ['a.wav', 'c.wav'], [('/x',), ('Zoo', '/x')])
  with pytest.raises(ValueError, match=(
      r"config.data.train.classes=\('Yak',\) leaves none of the 1 clips that "
      'the other settings')):
    make(classes=('Yak',), split='valid')
  with pytest.raises(ValueError, match="has no class 'Zo'. Did you mean 'Zoo'"):
    make(classes=('Axe', 'Zo'))
  with pytest.raises(ValueError, match='names a class twice'):
    make(classes=('Axe', '/x'))


def test_many_classes_are_not_all_listed(write, tmp_path):
  for i in range(22):
    write(f'class{i:02d}/a.wav', np.zeros(9))
  with pytest.raises(ValueError, match=(
      r"no class '99'. Its classes: class00, .*, class19 and 2 more\.$")):
    listing.make('folder', path=str(tmp_path), classes=('99',))


def test_the_demo_set_has_classes():
  everything = listing.make('demo', split='valid')
  music = listing.make('demo', split='valid', classes=('electronic',))
  assert 0 < len(music) < len(everything)
  assert music.class_names == ['electronic']
  assert set(listing.labels(music)) == {('electronic',)}


# ---- segments


def test_long_recordings_are_cut_and_short_rests_merge(write, tmp_path):
  write('a.wav', np.zeros(2400), 1000)  # 1 + 1.4
  write('b.wav', np.zeros(2500), 1000)  # 1 + 1 + 0.5
  write('c.wav', np.zeros(1400), 1000)
  write('d.wav', np.zeros(300), 1000)
  (tmp_path / 'e.wav').write_bytes(b'garbage')
  source = listing.make('folder', path=str(tmp_path), segment_s=1.0)
  assert listing.ids(source) == ['a.wav+0s', 'a.wav+1s', 'b.wav+0s', 'b.wav+1s',
                         'b.wav+2s', 'c.wav', 'd.wav', 'e.wav']
  assert source.num_files == 5
  assert '8 clips of 5 files' in source.describe()
  lengths = [
      len(audio_io.load(source[i], sample_rate_hz=1000, num_samples=10**4,
                        crop='start', rng=None)) for i in range(7)]
  assert lengths == [1000, 1400, 1000, 1000, 500, 1400, 300]


def test_segments_stay_inside_the_listed_part_of_a_file(write, tmp_path):
  write('a.wav', np.zeros(10000), 1000)
  path = listing.write_csv(tmp_path / 'm.csv', [
      dict(path='a.wav', start_s=2, duration_s=2.2),
      dict(path='a.wav', start_s='7.5', duration_s='')])
  source = listing.make('manifest', path=path, segment_s=1.0)
  parts = [(source[i]['start_s'], source[i]['duration_s']) for i in range(5)]
  assert parts == [(2, 1), (3, pytest.approx(1.2)), (7.5, 1), (8.5, 1),
                   (9.5, None)]
  assert source.num_files == 1 and len(set(listing.ids(source))) == 5


def test_negative_segments_are_an_error():
  with pytest.raises(ValueError, match='segment_s=-1.0; it takes seconds'):
    listing.make('demo', segment_s=-1.0)


# ---- synthetic, demo


def test_synthetic_clips_depend_on_their_index_alone():
  one = listing.make('synthetic', num_clips=8)
  other = listing.make('synthetic', num_clips=9)
  clips = [one[i]['audio'] for i in range(8)]
  for i, clip in enumerate(clips):
    assert clip.shape == (160000,) and clip.dtype == np.float32
    assert 0.02 < np.abs(clip).max() <= 1
    np.testing.assert_array_equal(clip, other[i]['audio'])
  assert len({clip.tobytes() for clip in clips}) == 8
  assert listing.labels(one)[:4] == [
      ('tone',), ('chirp',), ('chord',), ('noise',)]
  assert one.describe() == 'synthetic: 8 clips, 4 classes'
  assert listing.ids(one)[3] == 'synthetic 3'


def test_no_synthetic_clips_is_an_error():
  with pytest.raises(ValueError, match='num_clips=0; it takes 1 or more'):
    listing.make('synthetic', num_clips=0)


def test_the_demo_set_is_a_manifest_in_the_package(
    write, tmp_path, monkeypatch):
  monkeypatch.setattr(sources, '_DEMO', tmp_path)
  with pytest.raises(FileNotFoundError, match=re.escape(
      f'The bundled recordings are not at {tmp_path}/manifest.csv')):
    listing.make('demo')
  write('a.flac', np.zeros(16000))
  listing.write_csv(tmp_path / 'manifest.csv', [
      dict(path='a.flac', label='x', kind='sfx', split=split, source='s',
           author='me', licence='CC0', duration_s=1.0)
      for split in ('train', 'valid')])
  source = listing.make('demo', split='train', segment_s=0.5)
  assert len(source) == 2 and source.class_names == ['x']
  assert source.describe() == (
      'demo recordings: 2 clips of 1 files, 1 classes')
