"""`python -m audio_mae_jax.embed`: files, resumption, bad audio, search."""

import json
import os
import pathlib
import re
import sys

import embedding
from embedding import HZ
from embedding import noise
import matplotlib.image
import numpy as np
import pyarrow.parquet
import pytest
import soundfile
import zarr

from audio_mae_jax import weights
from audio_mae_jax.embed import __main__ as command
from audio_mae_jax.embed import engine
from audio_mae_jax.embed import formats
from audio_mae_jax.embed import inputs
from audio_mae_jax.embed import model as model_lib
from audio_mae_jax.embed import store as store_lib

OUTPUTS = ['out.npz', 'out.parquet', 'out.zarr']


@pytest.fixture(scope='module', autouse=True)
def models():
  """A model that one command has loaded serves the next: it has compiled."""
  load, loaded = model_lib.load, {}

  def once(path, *, overlap, **settings):
    if (path, overlap) not in loaded:
      loaded[path, overlap] = load(path, overlap=overlap, **settings)
    return loaded[path, overlap]

  with pytest.MonkeyPatch.context() as patched:
    patched.setattr(model_lib, 'load', once)
    yield


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  place = tmp_path_factory.mktemp('weights') / 'encoder'
  weights.save(place, embedding.encoder())
  return str(place)


@pytest.fixture(scope='module')
def clips(tmp_path_factory):
  """Five files in two folders: short and long, of three rates."""
  folder = tmp_path_factory.mktemp('clips')
  for i, (rate, seconds) in enumerate(
      [(HZ, 0.7), (44100, 0.3), (HZ, 2.1), (8000, 0.5), (HZ, 0.7)]):
    place = folder / 'ab'[i % 2] / f'{i}.wav'
    place.parent.mkdir(exist_ok=True)
    soundfile.write(place, noise(int(rate * seconds), i), rate)
  return folder


@pytest.fixture
def embed(checkpoint, capsys):
  """Runs the command with these arguments; what it prints."""

  def run(*args, of=checkpoint):
    command.main([*map(str, args), *(['--checkpoint', of] if of else [])])
    return capsys.readouterr().out

  return run


@pytest.fixture
def fails(embed, capsys):
  """Runs the command, which must stop with this message."""

  def run(message, *args, **settings):
    with pytest.raises(SystemExit) as stopped:
      embed(*args, **settings)
    assert stopped.value.code == 1
    assert re.search(re.escape(message), capsys.readouterr().err)

  return run


def names(folder):
  return [str(folder / f'{c}/{i}.wav')
          for c in 'ab' for i in range(5) if i % 2 == 'ab'.index(c)]


@pytest.mark.parametrize('output', OUTPUTS)
def test_every_format_has_the_embeddings_and_frames_of_each_file(
    output, clips, embed, tmp_path):
  path = tmp_path / output
  said = embed(clips, '--output', path, '--frames')
  assert re.search(
      r'5 clips, 0\.00 h, in .* s: .* clips/s, .* times real time\.', said)
  assert f'5 embeddings of width 16: {path}' in said
  rows = formats.read(path, formats.COLUMNS + formats.FRAMES)
  assert rows['names'].tolist() == names(clips)
  assert rows['labels'].tolist() == ['a', 'a', 'a', 'b', 'b']
  np.testing.assert_allclose(
      rows['embeddings'], embedding.model().embed(names(clips)), atol=1e-5)
  stop = np.cumsum(rows['counts'])
  for name, start, end in zip(names(clips), stop - rows['counts'], stop):
    wanted = embedding.model().embed_frames(name)
    np.testing.assert_allclose(
        rows['frames'][start:end], wanted.embeddings, atol=1e-5)
    np.testing.assert_array_equal(rows['times_s'][start:end], wanted.times_s)
  np.testing.assert_allclose(rows['seconds'][:2], [0.7, 2.1], atol=1e-3)
  assert formats.read_settings(path)['frame_s'] == 0.08
  assert sorted(x.name for x in tmp_path.iterdir()) == [output]


def test_other_programs_read_the_formats(clips, embed, tmp_path):
  for output in OUTPUTS:
    embed(clips, '--output', tmp_path / output)
  wanted = dict(np.load(tmp_path / 'out.npz'))
  table = pyarrow.parquet.read_table(tmp_path / 'out.parquet').to_pydict()
  group = zarr.open_group(tmp_path / 'out.zarr', mode='r')
  for name in formats.COLUMNS:
    np.testing.assert_array_equal(np.array(table[name]), wanted[name])
    np.testing.assert_array_equal(group[name][:], wanted[name])
  assert group.attrs['settings'] == json.loads(str(wanted['settings']))


@pytest.mark.parametrize('output', OUTPUTS)
def test_a_second_run_embeds_what_is_new_or_has_changed(
    output, clips, embed, tmp_path, monkeypatch):
  folder, path = tmp_path / 'own', tmp_path / output
  folder.mkdir()
  for i in range(3):
    soundfile.write(folder / f'{i}.wav', noise(5000, i), HZ)
  embed(folder, '--output', path)
  soundfile.write(folder / '1.wav', noise(6000, 7), HZ)
  soundfile.write(folder / '3.wav', noise(5000, 8), HZ)
  opened = []
  read = model_lib.Model.read
  monkeypatch.setattr(model_lib.Model, 'read', lambda self, item: (
      opened.append(pathlib.Path(item['id']).name), read(self, item))[1])
  said = embed(folder, '--output', path)
  assert '2 clips are there already.' in said
  assert sorted(opened) == ['1.wav', '3.wav']
  rows = formats.read(path)
  assert [pathlib.Path(x).name for x in rows['names']] == [
      '0.wav', '2.wav', '1.wav', '3.wav']
  np.testing.assert_allclose(
      rows['embeddings'], embedding.model().embed(rows['names'].tolist()),
      atol=1e-5)
  before = path.stat().st_mtime_ns
  assert '4 clips are there already.' in embed(folder, '--output', path)
  assert '4 embeddings of width 16' in embed(
      folder / '0.wav', '--output', path)
  assert path.stat().st_mtime_ns == before


def test_a_run_that_ends_early_leaves_what_it_has_done(
    clips, embed, tmp_path, monkeypatch):
  path, results = tmp_path / 'out.npz', engine.embed_all

  def interrupted(*args):
    found = results(*args)
    yield next(found)
    yield next(found)
    raise KeyboardInterrupt

  with monkeypatch.context() as patched:
    patched.setattr(os, '_exit', sys.exit)
    patched.setattr(engine, 'embed_all', interrupted)
    with pytest.raises(SystemExit, match='130'):
      embed(clips, '--output', path)
  assert not path.exists()
  assert '2 clips are there already.' in embed(clips, '--output', path)
  assert formats.read(path)['names'].tolist() == names(clips)
  assert not (tmp_path / 'out.npz.parts').exists()


SETTINGS = {'fingerprint': 'x', 'frames': False}
ROW = {'seconds': 1.0, 'embeddings': np.ones(3, np.float32)}


def test_parts_are_written_as_a_run_goes_on(tmp_path, monkeypatch):
  monkeypatch.setattr(store_lib, '_PART_ROWS', 2)
  with store_lib.Store(tmp_path / 'out.npz', SETTINGS) as store:
    for i in range(5):
      store.add(inputs.Clip(f'clip{i}', __file__), ROW)
    assert len(list((tmp_path / 'out.npz.parts').glob('*.npz'))) == 2
    store.finish()
  assert len(formats.read(tmp_path / 'out.npz')['names']) == 5


@pytest.mark.parametrize('output', OUTPUTS)
def test_what_is_there_is_read_in_blocks_as_rows_are_added(
    output, tmp_path, monkeypatch):
  monkeypatch.setattr(store_lib, '_PART_ROWS', 7)
  monkeypatch.setattr(formats, '_BLOCK_ROWS', 3)
  monkeypatch.setattr(formats, '_BLOCK_FRAMES', 20)
  monkeypatch.setattr(formats, '_ZARR_ROWS', 4)
  settings, path = SETTINGS | {'frames': True}, tmp_path / output

  def row(i, more):  # of 0 to 30 frames
    n = 30 if i == 9 else i % 5
    return {'seconds': i + 0.5, 'embeddings': np.full(3, i + more, np.float32),
            'frames': np.arange(3. * n, dtype=np.float32).reshape(n, 3) + i,
            'times_s': np.arange(n) + more + 0.1, 'counts': n}

  rows = {}
  for more, added in (0, range(20)), (0.5, [3, 9, 25]):
    with store_lib.Store(path, settings) as store:
      for i in added:
        rows.pop(i, None)
        rows[i] = row(i, more)
        store.add(inputs.Clip(f'clip{i}', __file__), rows[i])
      store.finish()
  columns = formats.COLUMNS + formats.FRAMES
  blocks = list(formats.read_blocks(path, columns))
  found = formats.read(path, columns)
  assert len(blocks) > 2 and max(len(x['names']) for x in blocks) <= 7
  assert found['names'].tolist() == [f'clip{i}' for i in rows]
  for name in ('seconds', 'embeddings', 'counts'):
    np.testing.assert_array_equal(
        found[name], np.array([x[name] for x in rows.values()]))
  for name in ('frames', 'times_s'):
    np.testing.assert_array_equal(
        found[name], np.concatenate([x[name] for x in rows.values()]))
    np.testing.assert_array_equal(
        formats.read(path, (name,))[name], found[name])


def test_a_start_that_has_left_no_rows_does_not_bind_the_next(tmp_path):
  other = SETTINGS | {'fingerprint': 'y'}
  with store_lib.Store(tmp_path / 'out', SETTINGS):
    pass
  with store_lib.Store(tmp_path / 'out', other) as store:
    store.add(inputs.Clip('clip', __file__), ROW)
  with pytest.raises(ValueError, match='out.parts has embeddings of other'):
    with store_lib.Store(tmp_path / 'out', SETTINGS):
      pass


def test_a_folder_is_replaced_at_no_time_without_one_that_is_whole(tmp_path):
  clip = inputs.Clip('clip', __file__)
  with store_lib.Store(tmp_path / 'out', SETTINGS) as store:
    store.add(clip, ROW)
    store.finish()
  # Killed after the old one was put aside.
  (tmp_path / 'out').rename(tmp_path / '.old-out')
  with store_lib.Store(tmp_path / 'out', SETTINGS) as store:
    assert store.has(clip)
  assert (tmp_path / 'out').exists()


def test_one_process_writes_an_output_at_a_time(tmp_path):
  with store_lib.Store(tmp_path / 'out', SETTINGS):
    with pytest.raises(ValueError, match='Another process is writing'):
      with store_lib.Store(tmp_path / 'out', SETTINGS):
        pass


def test_bad_files_do_not_end_a_run_and_are_named(embed, tmp_path):
  folder, samples = tmp_path / 'audio', noise(2 * HZ)
  folder.mkdir()
  soundfile.write(folder / 'good.wav', samples, HZ)
  soundfile.write(folder / 'silent.flac', np.zeros(HZ), HZ)
  soundfile.write(folder / 'clipping.wav', np.clip(99 * samples, -1, 1), HZ)
  soundfile.write(folder / 'slow.wav', samples[:9000], 8000)
  soundfile.write(folder / 'fast.flac', samples, 192000)
  soundfile.write(folder / 'eight.wav', np.stack([samples] * 8, 1), 48000)
  (folder / 'empty.wav').write_bytes(b'')
  (folder / 'text.mp3').write_text('no audio at all')
  (folder / 'notes.txt').write_text('no audio, and it does not say so')
  soundfile.write(folder / 'one.wav', samples[:1], HZ)
  content = (folder / 'good.wav').read_bytes()
  (folder / 'cut.wav').write_bytes(content[:len(content) // 2])
  path = tmp_path / 'out.npz'
  said = embed(folder, '--output', path)
  reasons = {
      'cut.wav': 'truncated', 'empty.wav': 'empty', 'one.wav': 'too short',
      'text.mp3': 'unreadable'}
  for name, reason in reasons.items():
    assert f'{folder / name}: {reason}' in said
  assert 'Passed over, as they are no audio: 1 files' in said
  bad = json.loads((tmp_path / 'out.npz.bad_files.json').read_text())['bad']
  assert {pathlib.Path(x).name for x in bad} == set(reasons)
  rows = formats.read(path)
  assert len(rows['names']) == 6 and np.isfinite(rows['embeddings']).all()
  # Repaired, it is embedded, and no longer named.
  (folder / 'cut.wav').write_bytes(content)
  embed(folder, '--output', path)
  bad = json.loads((tmp_path / 'out.npz.bad_files.json').read_text())['bad']
  assert str(folder / 'cut.wav') not in bad
  assert len(formats.read(path)['names']) == 7


def test_nothing_but_bad_files_is_an_error(fails, tmp_path):
  (tmp_path / 'a.wav').write_text('no audio')
  fails('No readable file: all 1 tried so far (of 1) are bad',
        tmp_path, '--output', tmp_path / 'out.npz')
  assert not (tmp_path / 'out.npz').exists()
  bad = json.loads((tmp_path / 'out.npz.bad_files.json').read_text())['bad']
  assert list(bad) == [str(tmp_path / 'a.wav')]


def test_manifests_name_parts_and_labels(clips, embed, tmp_path):
  manifest = clips / 'list.csv'
  manifest.write_text(
      'path,label,start_s,duration_s\n'
      'a/2.wav,rain,,\na/2.wav,hail,0.5,0.9\n')
  embed(manifest, clips / 'b' / '1.wav', '--output', tmp_path / 'out.npz')
  rows = formats.read(tmp_path / 'out.npz')
  long = str(clips / 'a/2.wav')
  assert rows['names'].tolist() == [
      long, f'{long}@0.5s+0.9s', str(clips / 'b/1.wav')]
  assert rows['labels'].tolist() == ['rain', 'hail', 'b']
  samples, _ = soundfile.read(long, dtype='float32')
  np.testing.assert_allclose(
      rows['embeddings'][1],
      embedding.model().embed(samples[8000:8000 + 14400], HZ), atol=1e-5)


def test_parts_that_differ_at_all_are_different_clips(clips):
  (clips / 'parts.csv').write_text(
      'path,label,start_s,duration_s\n'
      'a/2.wav,x,12345.67,\na/2.wav,x,12345.71,\n'
      'a/2.wav,x,0,5\na/2.wav,x,0,10\na/2.wav,x,,\n'
      'a/2.wav,y,0,5\na/2.wav,x,0,5\n')
  found, _, repeated = inputs.find(
      [str(clips / 'parts.csv'), str(clips / 'a/2.wav')])
  (clips / 'parts.csv').unlink()
  assert [x.name.rpartition('2.wav')[2] for x in found] == [
      '@12345.67s', '@12345.71s', '@0s+5s', '@0s+10s', '']
  assert len({x.version for x in found}) == 5
  assert [x.label for x in found] == ['x', 'x', 'x;y', 'x', 'x']
  assert repeated == 3


def test_embeddings_of_different_weights_are_not_mixed(
    clips, embed, fails, tmp_path):
  path = tmp_path / 'out.npz'
  embed(clips / 'b', '--output', path)
  fails('has embeddings of other weights or windows: they do not belong',
        clips, '--output', path, '--overlap', '0.5')
  fails('has embeddings with and without frames', clips, '--output', path,
        '--frames')
  (tmp_path / 'other.npz').write_text('my notes')
  fails('is no file of embeddings', clips, '--output', tmp_path / 'other.npz')
  assert (tmp_path / 'other.npz').read_text() == 'my notes'


def test_a_classifier_tells_labels(clips, embed, fails, tmp_path):
  weights.save(tmp_path / 'w', embedding.classifier())
  (clips / 'b' / 'bad.wav').write_text('no audio')
  said = embed(clips, '--top', '2', of=str(tmp_path / 'w'))
  (clips / 'b' / 'bad.wav').unlink()
  wanted = model_lib.Model(embedding.classifier()).predict(names(clips)).top(2)
  for name, ((first, score), (second, _)) in zip(names(clips), wanted):
    assert re.search(rf'{name}: {first} {score:.3f}, {second} ', said)
  assert '1 could not be used:' in said and 'bad.wav: unreadable' in said
  fails('These weights are no classifier', clips, '--top', '2')


@pytest.mark.parametrize(
    'method', ['pca', pytest.param('tsne', marks=pytest.mark.slow)])
def test_the_most_similar_clips_are_found_and_drawn(
    method, clips, checkpoint, embed, fails, tmp_path, monkeypatch):
  path = tmp_path / 'out.npz'
  monkeypatch.chdir(pathlib.Path(checkpoint).parent)
  embed(clips, '--output', path, of=pathlib.Path(checkpoint).name)
  query = names(clips)[2]
  monkeypatch.chdir('/')
  lines = embed('--query', query, '--index', path, '--top', '3', of=None)
  assert lines.splitlines()[0] == f'1.000  {query}  (a)'
  assert len(lines.splitlines()) == 3
  picture = tmp_path / 'map.png'
  embed('--index', path, '--plot', picture, '--method', method, of=None)
  pixels = matplotlib.image.imread(picture)[..., :3]
  colours = np.unique((255 * pixels[::2]).round().reshape(-1, 3), axis=0)
  for colour in (31, 119, 180), (255, 127, 14):  # one for each label
    assert (colours == colour).all(1).any()
  fails('out.npz was made with other weights', '--query', query, '--index',
        path, of=str(_other(tmp_path)))


def _other(tmp_path):
  old = embedding.encoder()
  weights.save(tmp_path / 'other', weights.Weights(
      old.params | {'encoder/cls_token': np.ones(16, np.float32)},
      old.config, {}))
  return tmp_path / 'other'


@pytest.mark.parametrize('message, args', [
    ('Give audio files, folders or manifests, --checkpoint, and either', ['x']),
    ('--query and --plot read embeddings that are there', ['--query', 'x']),
    ('--query and --plot are two commands: give one of them at a time.',
     ['--query', 'x', '--plot', 'y', '--index', 'z']),
    ('--top=-3: give 1 or more.', [__file__, '--top', '-3']),
    ('There is no nowhere. Give audio files', ['nowhere', '--output', 'x.npz']),
    ('has the suffix .csv. Embeddings are written as .npz',
     [__file__, '--output', 'x.csv']),
    ('--output=gs://a/b: it is written to the disk of this machine',
     [__file__, '--output', 'gs://a/b']),
])
def test_arguments_that_cannot_be_followed_are_refused(message, args, fails):
  fails(message, *args)
