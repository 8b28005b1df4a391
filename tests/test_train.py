"""The loop: what it leaves, how it goes on, what stops it."""

import json
import os
import pathlib
import shutil
import signal

import jax
import numpy as np
import pytest
import soundfile

from audio_mae_jax import bookkeeping
from audio_mae_jax import checkpoint
from audio_mae_jax import config as config_lib
from audio_mae_jax import copies
from audio_mae_jax import meta
from audio_mae_jax import record
from audio_mae_jax import storage
from audio_mae_jax import train
from audio_mae_jax import trees
from audio_mae_jax import workdirs
from audio_mae_jax.data import audio_io

pytestmark = [
    pytest.mark.usefixtures('compile_once'),
    # Orbax leaves the reads of other arrays behind when one fails.
    pytest.mark.filterwarnings(
        'ignore::pytest.PytestUnraisableExceptionWarning')]


def tiny(workdir, **overrides):
  """12 steps of a model of a few thousand parameters on synthetic clips."""
  c = config_lib.default()
  c.workdir = str(workdir)
  c.frontend.num_frames = 64
  c.augment.gain_concentration = 0.0  # a second to compile
  c.model.encoder.update(width=24, depth=1, heads=2)
  c.model.decoder.update(width=16, depth=2, heads=2)
  c.data.train = dict(name='synthetic', num_clips=16)
  c.data.clip_s = 0.7
  c.data.num_threads = 1
  c.train.batch_size = 4
  c.train.epochs = 3.0
  c.optimizer.warmup_epochs = 1.0
  c.optimizer.base_lr = 0.05
  c.log.update(every_steps=2, picture_every_steps=-1, tensorboard=False,
               progress=False)
  c.update_from_flattened_dict(overrides)
  return config_lib.typed(c)


def run(config):
  return train.train(config, devices=jax.devices()[:1])


def lines(workdir):
  """The record without what depends on the clock."""
  timed = ('time', 'clips_per_second', 'flops_per_second', 'utilisation')
  return [{k: v for k, v in line.items() if k not in timed}
          for line in record.read(os.path.join(workdir, record.NAME))]


def assert_same_bits(a, b):
  a, b = trees.flatten(a), trees.flatten(b)
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A run that nothing interrupted: (workdir, state)."""
  workdir = tmp_path_factory.mktemp('whole')
  return workdir, run(tiny(workdir))


@pytest.fixture
def signal_at(monkeypatch):
  """Makes the process signal itself right after the update of a step."""

  def arm(step, number=signal.SIGTERM):
    after_update = bookkeeping.Bookkeeper.after_update

    def patched(self, at, *args):
      after_update(self, at, *args)
      if at == step:
        os.kill(os.getpid(), number)

    monkeypatch.setattr(bookkeeping.Bookkeeper, 'after_update', patched)

  return arm


def interrupted(tmp_path, signal_at, monkeypatch, step=6, **overrides):
  with monkeypatch.context() as patch:
    signal_at(step)
    state = run(tiny(tmp_path, **overrides))
    patch.undo()
  monkeypatch.undo()
  assert int(state.step) == step
  return state


def test_a_run_leaves_record_curve_pictures_and_checkpoint(tmp_path):
  state = run(tiny(tmp_path, **{
      'log.picture_every_steps': 6, 'log.tensorboard': True,
      'data.valid.name': 'synthetic', 'data.valid.num_clips': 6}))
  assert int(state.step) == 12
  written = lines(tmp_path)
  assert (tmp_path / 'metrics.jsonl').exists()
  assert [x['step'] for x in written if 'train/loss' in x] == [
      2, 4, 6, 8, 10, 12]
  assert [x['step'] for x in written if 'valid/loss' in x] == [4, 8, 12]
  assert all(x['valid/num_clips'] == 6 for x in written if 'valid/loss' in x)
  assert sorted(os.listdir(tmp_path / 'pictures')) == [
      'step_000006.png', 'step_000012.png']
  assert (tmp_path / 'loss_curve.png').stat().st_size > 10_000
  assert sorted(os.listdir(tmp_path / 'checkpoints'), key=int) == [
      '4', '8', '12']
  assert os.listdir(tmp_path / 'tensorboard')


def test_the_loss_falls(whole):
  losses = [x['train/loss'] for x in lines(whole[0])]
  assert losses[-1] < losses[0] - 0.02


def test_a_run_after_sigterm_ends_with_the_same_bits(
    whole, tmp_path, signal_at, monkeypatch):
  interrupted(tmp_path, signal_at, monkeypatch)
  assert '6' in os.listdir(tmp_path / 'checkpoints')
  assert_same_bits(run(tiny(tmp_path)), whole[1])
  assert lines(tmp_path) == lines(whole[0])


@pytest.mark.slow
def test_a_run_on_a_mesh_has_the_losses_of_one_device(whole, tmp_path):
  train.train(tiny(tmp_path, **{'mesh.data': 2, 'mesh.fsdp': 2}),
              devices=jax.devices()[:4])
  mesh, one = lines(tmp_path), lines(whole[0])
  # Sums in another order, through 12 updates at a high learning rate.
  np.testing.assert_allclose(
      [x['train/loss'] for x in mesh], [x['train/loss'] for x in one],
      rtol=1e-5)


@pytest.mark.slow
def test_the_profiler_and_the_average_can_be_switched_on(tmp_path):
  state = run(tiny(tmp_path, **{
      'log.profile_start': 3, 'log.profile_steps': 2, 'train.steps': 6,
      'optimizer.ema_decay': 0.9}))
  assert list((tmp_path / 'profile').rglob('*.xplane.pb'))
  same = [np.array_equal(a, b) for a, b in zip(
      jax.tree.leaves(state.params), jax.tree.leaves(state.ema))]
  assert not all(same)


@pytest.mark.slow
def test_what_was_read_but_not_logged_survives_a_stop(
    whole, tmp_path, signal_at, monkeypatch):
  """Means over steps 1-3 are those of one run, though it stopped at 2."""
  overrides = {'log.every_steps': 3, 'checkpoint.every_steps': 6}
  one = run(tiny(tmp_path / 'one', **overrides))
  two = tmp_path / 'two'
  interrupted(two, signal_at, monkeypatch, step=2, **overrides)
  assert_same_bits(run(tiny(two, **overrides)), one)
  assert lines(two) == lines(tmp_path / 'one')
  assert_same_bits(one, whole[1])


def test_a_second_run_in_the_same_place_is_refused(tmp_path):
  with workdirs.lock(tmp_path):
    with pytest.raises(ValueError, match='Another process is training'):
      run(tiny(tmp_path))


@pytest.mark.slow
def test_clips_that_do_not_suit_the_model_are_warned_of(tmp_path, caplog):
  with caplog.at_level('INFO', 'audio_mae_jax'):
    run(tiny(tmp_path, **{'data.clip_s': 2.0, 'train.steps': 1,
                          'train.batch_size': 20,
                          'optimizer.warmup_epochs': 0.0,
                          'data.train.num_clips': 16}))
  assert '198 frames, and the model takes frontend.num_frames=64' in caplog.text
  assert 'a batch of 20 is more than the 16 clips' in caplog.text


def test_a_finished_run_does_nothing_more(whole, tmp_path, caplog):
  shutil.copytree(whole[0], tmp_path / 'copy')
  before = (tmp_path / 'copy' / record.NAME).read_bytes()
  config = tiny(tmp_path / 'copy')
  with caplog.at_level('INFO', 'audio_mae_jax'):
    assert_same_bits(run(config), whole[1])
  assert 'Nothing to do' in caplog.text
  assert (tmp_path / 'copy' / record.NAME).read_bytes() == before


def test_other_settings_are_an_error_that_names_them(whole):
  with pytest.raises(ValueError, match=r'mask.ratio: was 0.8, is 0.7') as error:
    run(tiny(whole[0], **{'mask.ratio': 0.7, 'data.clip_s': 0.8}))
  assert 'data.clip_s: was 0.7, is 0.8' in str(error.value)
  assert '--config.workdir' in str(error.value)


def test_other_data_is_an_error(whole):
  with pytest.raises(ValueError, match='data'):
    run(tiny(whole[0], **{'data.train.num_clips': 15}))


def test_settings_that_change_no_result_may_differ(whole, tmp_path):
  shutil.copytree(whole[0], tmp_path / 'moved')
  state = run(tiny(tmp_path / 'moved', **{
      'log.every_steps': 5, 'data.num_threads': 2, 'checkpoint.keep': 9,
      # What pre-training has no use for.
      'labels.multilabel': False, 'model.classifier.num_classes': 527}))
  assert_same_bits(state, whole[1])


def test_other_places_and_another_memory_are_the_same_run():
  folder = pathlib.Path('run/checkpoints')
  stored = meta.of(tiny('run'), {'names': 'a', 'labels': 'b'})
  moved = meta.of(tiny('run', **{
      'data.root': '/b', 'data.train.path': '/b/list.json',
      'data.train.labels_csv': '/b/classes.csv', 'data.cache_gb': 8.0}),
      {'names': 'a', 'labels': 'b'})
  meta.check(stored, moved, folder)
  with pytest.raises(ValueError, match=r"the data \(labels\): was 'b', is 'c'"):
    meta.check(stored, moved | {'data': {'names': 'a', 'labels': 'c'}}, folder)


def test_a_setting_that_is_younger_than_the_run_has_its_default():
  present = meta.of(tiny('run'), {'clips': 4})
  stored = {**present, 'config': dict(present['config'])}
  del stored['config']['init_from']
  meta.check(stored, present, pathlib.Path('run/checkpoints'))
  younger = meta.of(tiny('run', init_from='weights'), {'clips': 4})
  with pytest.raises(ValueError, match="init_from: was '', is 'weights'"):
    meta.check(stored, younger, pathlib.Path('run/checkpoints'))


def _flip(path):
  content = bytearray(path.read_bytes())
  middle = len(content) // 2
  for i in range(middle, min(middle + 64, len(content))):
    content[i] ^= 0xFF
  path.write_bytes(content)


def _truncate(path):
  path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def _data_file(step):
  """The file that holds the arrays."""
  found = [p for p in (step / 'state').rglob('*') if p.is_file()]
  return max(found, key=lambda p: p.stat().st_size)


@pytest.mark.parametrize('damage', [
    lambda step: _flip(_data_file(step)),
    pytest.param(lambda step: _truncate(_data_file(step)),
                 marks=pytest.mark.slow),
    pytest.param(lambda step: _data_file(step).unlink(),
                 marks=pytest.mark.slow),
    lambda step: _truncate(step / 'meta' / 'metadata'),
    pytest.param(lambda step: shutil.rmtree(step / 'state'),
                 marks=pytest.mark.slow),
], ids=['flipped', 'truncated', 'missing', 'metadata', 'no_state'])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    whole, tmp_path, caplog, damage):
  workdir = tmp_path / 'run'
  shutil.copytree(whole[0], workdir)
  damage(workdir / 'checkpoints' / '12')
  with caplog.at_level('WARNING', 'audio_mae_jax'):
    state = run(tiny(workdir))
  assert_same_bits(state, whole[1])
  assert 'checkpoints/12 is damaged' in caplog.text
  assert 'Falling back to checkpoint 8' in caplog.text
  assert os.listdir(workdir / 'damaged') == ['12.0']
  assert '12' in os.listdir(workdir / 'checkpoints')
  assert lines(workdir) == lines(whole[0])


def test_changed_numbers_in_readable_files_are_noticed(
    whole, tmp_path, monkeypatch, caplog):
  """What no file format's checksum sees: the arrays are not what was saved."""
  workdir = tmp_path / 'run'
  shutil.copytree(whole[0], workdir)
  meta = next(p for p in (workdir / 'checkpoints' / '12' / 'meta').iterdir()
              if 'fingerprint' in p.read_text(errors='ignore'))
  content = json.loads(meta.read_text())
  content['fingerprint']['params/pred/bias'] ^= 1
  meta.write_text(json.dumps(content))
  with caplog.at_level('WARNING', 'audio_mae_jax'):
    assert_same_bits(run(tiny(workdir)), whole[1])
  assert 'not what was saved, e.g. params/pred/bias' in caplog.text


def test_no_whole_checkpoint_is_an_error_and_deletes_nothing(whole, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(whole[0], workdir)
  for step in (workdir / 'checkpoints').iterdir():
    _flip(_data_file(step))
  with pytest.raises(ValueError, match='None of the 3 checkpoints'):
    run(tiny(workdir))
  assert len(os.listdir(workdir / 'checkpoints')) == 3


def test_a_checkpoint_that_was_not_finished_is_not_one(whole, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(whole[0], workdir)
  folder = workdir / 'checkpoints'
  (folder / '12').rename(folder / '12.orbax-checkpoint-tmp')
  assert_same_bits(run(tiny(workdir)), whole[1])
  assert '12' in os.listdir(folder)


def _write(folder, number, samples):
  folder.mkdir(exist_ok=True)
  soundfile.write(folder / f'{number:02d}.wav', samples, 16000, subtype='FLOAT')


def _noise(seed):
  rng = np.random.default_rng(seed)
  return rng.uniform(-0.5, 0.5, 16000).astype(np.float32)


def test_a_loss_that_is_no_number_names_the_step_and_the_clip(
    tmp_path, monkeypatch):
  monkeypatch.setattr(audio_io, '_MAX_PEAK', np.inf)
  for i in range(4):
    _write(tmp_path / 'audio', i, _noise(i))
  # Finite, so that the loader can take it; its power is not, in float32.
  _write(tmp_path / 'audio', 4, _noise(4) * np.float32(1e30))
  config = tiny(tmp_path / 'run', **{
      'data.train.name': 'folder', 'data.train.path': str(tmp_path / 'audio'),
      'data.train.num_clips': 1024, 'checkpoint.every_steps': 1})
  with pytest.raises(
      bookkeeping.NonFiniteLoss, match=r'Step \d+: loss nan') as error:
    run(config)
  assert '1 of 4 clips' in str(error.value)
  assert 'Clips: 04.wav' in str(error.value)
  assert 'clip_norm' in str(error.value)


def test_weights_that_diverge_are_told_from_a_bad_clip(tmp_path):
  with pytest.raises(
      bookkeeping.NonFiniteLoss, match='weights diverged|overflow'):
    run(tiny(tmp_path, **{'optimizer.base_lr': 1e30,
                          'optimizer.warmup_epochs': 0.1}))
  # Nothing of it was saved.
  kept = os.listdir(tmp_path / 'checkpoints')
  for line in lines(tmp_path):
    assert np.isfinite(line['train/loss'])
  assert all(int(step) <= 12 for step in kept)


def test_a_bad_file_is_skipped_counted_and_named(tmp_path):
  for i in range(60):
    _write(tmp_path / 'audio', i, _noise(i))
  (tmp_path / 'audio' / '07.wav').write_bytes(b'not audio')
  run(tiny(tmp_path / 'run', **{
      'data.train.name': 'folder', 'data.train.path': str(tmp_path / 'audio'),
      'data.train.num_clips': 1024, 'train.epochs': 1.0,
      'optimizer.warmup_epochs': 0.5}))
  report = json.loads((tmp_path / 'run' / 'bad_files.json').read_text())
  assert [os.path.basename(name) for name in report['bad']] == ['07.wav']
  assert lines(tmp_path / 'run')[-1]['bad_files'] == 1


def test_a_file_that_disappears_is_replaced_counted_and_named(
    tmp_path, monkeypatch):
  for i in range(60):
    _write(tmp_path / 'audio', i, _noise(i))
  after_update = bookkeeping.Bookkeeper.after_update

  def removes(self, step, *args):
    after_update(self, step, *args)
    if step == 3:
      (tmp_path / 'audio' / '07.wav').unlink()

  monkeypatch.setattr(bookkeeping.Bookkeeper, 'after_update', removes)
  state = run(tiny(tmp_path / 'run', **{
      'data.train.name': 'folder', 'data.train.path': str(tmp_path / 'audio'),
      'data.train.num_clips': 1024, 'train.steps': 18,
      'optimizer.warmup_epochs': 0.5}))
  assert int(state.step) == 18
  report = json.loads((tmp_path / 'run' / 'bad_files.json').read_text())
  assert {os.path.basename(name): why for name, why in report['bad'].items()
          } == {'07.wav': 'no such file'}
  found = lines(tmp_path / 'run')
  assert (found[0]['bad_files'], found[-1]['bad_files']) == (0, 1)


def test_a_run_in_a_store_is_that_of_a_folder(
    bucket, whole, signal_at, monkeypatch, caplog):
  place = f'{bucket}/runs/two'
  interrupted(place, signal_at, monkeypatch)
  with caplog.at_level('INFO', 'audio_mae_jax'):
    assert_same_bits(run(tiny(place)), whole[1])
  assert f'Work directory: {place}. Going on from step 6.' in caplog.text
  assert f'Record: {place}/metrics.jsonl' in caplog.text
  with storage.local_copy(place) as copy:
    assert lines(copy) == lines(whole[0])
    assert sorted(os.listdir(copy)) == [
        'checkpoints', 'loss_curve.png', 'metrics.jsonl']
    assert sorted(os.listdir(copy / 'checkpoints'), key=int) == ['6', '8', '12']
  assert not workdirs.copy_of(storage.path_of(place)).exists()
  # Others start from it.
  params, meta = checkpoint.read_params(place)
  assert_same_bits(params, whole[1].params)
  assert meta['config']['workdir'] == place
  assert [path.name for path in checkpoint.steps_in(place)] == ['12', '8', '6']


@pytest.mark.slow
def test_what_is_half_copied_or_damaged_in_a_store_is_no_checkpoint(
    bucket, whole, caplog):
  place = f'{bucket}/run'
  storage.copy_out(whole[0], place, [
      path.relative_to(whole[0]).as_posix()
      for path in whole[0].rglob('*') if path.is_file()])
  storage.remove(f'{place}/checkpoints/12', [copies.COMMITTED])
  with storage.local_copy(f'{place}/checkpoints/8') as copy:
    eight = pathlib.Path(copy)
    _flip(_data_file(eight))
    storage.copy_out(eight, f'{place}/checkpoints/8', [
        _data_file(eight).relative_to(eight).as_posix()])
  assert [path.name for path in checkpoint.steps_in(place)] == ['8', '4']
  with caplog.at_level('WARNING', 'audio_mae_jax'):
    assert_same_bits(run(tiny(place)), whole[1])
  assert 'Falling back to checkpoint 4' in caplog.text
  assert {name.split('/')[0] for name in storage.below(f'{place}/damaged')} == {
      '8.0'}
  assert storage.is_file(f'{place}/damaged/8.0/{copies.COMMITTED}')
  assert [path.name for path in checkpoint.steps_in(place)] == ['12', '8', '4']
  with storage.local_copy(place) as copy:
    assert lines(copy) == lines(whole[0])


@pytest.mark.slow
def test_clips_in_a_store_train_as_those_of_a_folder(bucket, tmp_path):
  for i in range(16):
    _write(tmp_path / 'audio', i, _noise(i))
  storage.copy_out(tmp_path, bucket, [f'audio/{i:02d}.wav' for i in range(16)])
  settings = {'data.train.name': 'folder', 'data.train.num_clips': 1024,
              'data.train.path': 'audio'}
  here, there = (
      run(tiny(tmp_path / name, **settings, **{'data.root': root}))
      for name, root in (('a', str(tmp_path)), ('b', bucket)))
  assert_same_bits(here, there)
  assert lines(tmp_path / 'a') == lines(tmp_path / 'b')


def test_too_many_bad_files_stop_the_run_with_the_list(tmp_path):
  for i in range(8):
    _write(tmp_path / 'audio', i, _noise(i))
  for i in (1, 5, 6):
    (tmp_path / 'audio' / f'{i:02d}.wav').write_bytes(b'not audio')
  with pytest.raises(ValueError, match='max_bad_fraction') as error:
    run(tiny(tmp_path / 'run', **{
        'data.train.name': 'folder', 'data.train.path': str(tmp_path / 'audio'),
        'data.train.num_clips': 1024,
        'train.seed': 1}))  # it begins with a good one
  assert '01.wav' in str(error.value) or '05.wav' in str(error.value)
  # The report is there, though no step was logged.
  report = json.loads((tmp_path / 'run' / 'bad_files.json').read_text())
  assert 1 < report['num_bad'] <= 3


def test_no_source_is_an_error_that_lists_them(tmp_path):
  with pytest.raises(ValueError, match='data.train.name is empty.*folder'):
    run(tiny(tmp_path, **{'data.train.name': '',
                          'data.train.num_clips': 1024}))


def test_wrong_settings_stop_before_anything_is_written(tmp_path):
  for overrides, message in (
      ({'mask.ratio': 1.0}, 'mask.ratio=1.0 keeps 0'),
      ({'mask.ratio': 0.0}, 'mask.ratio=0.0 keeps'),
      ({'patch.size': (24, 16)}, 'do not tile'),
      ({'optimizer.warmup_epochs': 9.0}, 'warmup_epochs'),
      ({'checkpoint.keep': 0}, 'checkpoint.keep=0 would keep none'),
      ({'log.every_steps': -1}, 'log.every_steps=-1'),
      ({'optimizer.accumulate': 3}, 'accumulate=3'),
      ({'optimizer.accumulate': 0}, 'accumulate=0'),
      ({'train.batch_size': 0}, 'batch_size=0'),
      ({'train.seed': -1}, 'seed=-1'),
      ({'frontend.sample_rate_hz': -16000}, 'sample_rate_hz=-16000 must be'),
      ({'data.clip_s': 0.01}, 'less than one analysis window'),
      ({'data.crop': 'rnadom'}, "Did you mean 'random'"),
      ({'data.resample': 'linear'}, 'data.resample'),
      ({'data.num_threads': -1}, 'num_threads=-1'),
      ({'mesh.fsdp': 3}, 'needs 3 devices|there are 1'),
  ):
    with pytest.raises(ValueError, match=message):
      run(tiny(tmp_path / 'run', **overrides))
  assert not (tmp_path / 'run').exists()


def test_a_work_directory_that_cannot_be_written_is_an_error(tmp_path):
  (tmp_path / 'file').write_text('in the way')
  with pytest.raises(ValueError, match='Cannot write in work directory'):
    run(tiny(tmp_path / 'file' / 'run'))
