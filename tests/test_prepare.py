"""Data sets as they are downloaded, in miniature, become manifests."""

import ast
import contextlib
import csv
import json
import shlex

import jax.numpy as jnp
import miniatures
import numpy as np
import pytest
import recipes
import soundfile

from audio_mae_jax import config as config_lib
from audio_mae_jax import frontend
from audio_mae_jax import modes
from audio_mae_jax.data import manifests
from audio_mae_jax.data import sources
from audio_mae_jax.prepare import __main__ as command
from audio_mae_jax.prepare import levels
from audio_mae_jax.prepare import speech


@pytest.fixture(autouse=True)
def no_data_root(monkeypatch):
  monkeypatch.delenv('AUDIO_MAE_DATA', raising=False)


def run(root, name, *options):
  """Runs the command; the report and what the manifest has, by split."""
  command.main([name, '--root', str(root), *options])
  folder = {'csv': 'own', 'folder': 'own'}.get(name, name)
  if '--subset' in options:
    folder = options[-1]
  report = json.loads((root / folder / 'report.json').read_text())
  return report, folder


def clips(root, folder, classes=True, **fields):
  """(path, labels) of the manifest's rows, read as a recipe reads them."""
  table = f'{folder}/classes.csv' if classes else ''
  source = sources.make(
      config_lib.Source(name='manifest', path=f'{folder}/manifest.csv',
                        labels_csv=table, **fields),
      config_lib.Data(root=str(root)))
  return source, [
      (source.name_of(i), *(source.class_names[k] for k in source.labels_of(i)))
      for i in range(len(source))]


def refuse(capsys, root, name, *options):
  """What the command says when it refuses."""
  with pytest.raises(SystemExit) as stop:
    command.main([name, '--root', str(root), *options])
  assert stop.value.code == 1
  said = capsys.readouterr().err
  assert said.startswith('\nerror: ')
  return said


# ---- the data sets


def test_esc50_has_folds_and_its_own_order_of_classes(tmp_path, capsys):
  miniatures.write_esc50(tmp_path)
  report, folder = run(tmp_path, 'esc50')
  source, found = clips(tmp_path, folder, folds='!2')
  assert source.class_names == ['rooster', 'pig']
  assert found == [
      ('ESC-50-master/audio/1-rooster.wav', 'rooster'),
      ('ESC-50-master/audio/1-pig.wav', 'pig')]
  assert report['folds'] == {'1': 2, '2': 2}
  assert report['splits'] == {
      '': {'clips': 4, 'files': 4, 'published': 2000, 'rows': 4}}
  said = capsys.readouterr().out
  assert '  all: 4 clips; 4 files, 2,000 published (-1,996)' in said
  assert said.endswith(
      'python -m audio_mae_jax.main --config=configs/finetune_esc50.py \\\n'
      f'      --config.data.root={tmp_path} --config.init_from=WEIGHTS\n')


def test_esc10_lies_beside_it(tmp_path, capsys):
  miniatures.write_esc50(tmp_path)
  report, folder = run(tmp_path, 'esc50', '--subset', 'esc10')
  _, found = clips(tmp_path, folder)
  assert [labels for _, *labels in found] == [['rooster'], ['rooster']]
  assert found[0][0] == '../esc50/ESC-50-master/audio/1-rooster.wav'
  assert report['splits']['']['published'] == 400
  assert 'finetune_esc50.py:esc10 ' in capsys.readouterr().out
  assert "subset='esc5' is not known" in refuse(
      capsys, tmp_path, 'esc50', '--subset', 'esc5')


def test_speech_commands_2_has_its_lists(tmp_path, capsys):
  words = ['bed/a.wav', 'bed/b.wav', 'cat/a.wav', 'cat/b.wav', 'cat/c.wav']
  miniatures.write_words(tmp_path / 'speech_commands_v2', words, ['bed/b.wav'],
              ['cat/c.wav', 'cat/lost.wav'])
  report, folder = run(tmp_path, 'speech_commands_v2')
  assert clips(tmp_path, folder, False, split='train')[1] == [
      ('bed/a.wav', 'bed'), ('cat/a.wav', 'cat'), ('cat/b.wav', 'cat')]
  assert clips(tmp_path, folder, False, split='valid')[1] == [
      ('bed/b.wav', 'bed')]
  assert clips(tmp_path, folder, False, split='test')[1] == [
      ('cat/c.wav', 'cat')]
  assert report['missing'] == ['cat/lost.wav']
  assert report['broken'] == {}
  assert [report['splits'][split]['published']
          for split in ('train', 'valid', 'test')] == [84_843, 9_981, 11_005]
  assert 'missing: 1 files, e.g. cat/lost.wav' in capsys.readouterr().out


def test_speech_commands_1_has_12_balanced_classes(tmp_path):
  miniatures.write_speech_commands_v1(tmp_path)
  report, folder = run(tmp_path, 'speech_commands_v1')
  source, train = clips(tmp_path, folder, split='train')
  assert source.class_names[9:] == ['go', '_silence_', '_unknown_']
  labels = [label for _, label in train]
  # Half as many of each as of other words are wanted.
  assert {name: labels.count(name) for name in set(labels)} == {
      '_unknown_': 6, '_silence_': 10, 'yes': 3, 'go': 3}
  silence = [source[i] for i in range(len(source))
             if source.labels_of(i) == (10,)]
  assert [x['start_s'] for x in silence] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10]
  assert {x['duration_s'] for x in silence} == {1.0}
  assert [label for _, label in clips(tmp_path, folder, split='valid')[1]] == [
      'yes', '_silence_']
  assert sorted(label for _, label in clips(
      tmp_path, folder, split='test')[1]) == ['_silence_', '_unknown_', 'yes']
  assert report['splits'] == {
      'train': {'clips': 18, 'files': 8, 'published': 51_088, 'rows': 22},
      'valid': {'clips': 2, 'files': 1, 'published': 6_798, 'rows': 2},
      'test': {'clips': 3, 'files': 3, 'published': 3_081, 'rows': 3}}


def test_balancing_goes_round_the_clips_of_a_class():
  row = lambda path, label, split='train': manifests.Row(path, (label,), split)
  rows = [row(str(i), '_unknown_') for i in range(11)]
  rows += [row('a', 'yes'), row('b', 'yes'), row('v', 'yes', 'valid')]
  assert [r.path for r in speech.balance(rows)[len(rows):]] == ['a', 'b', 'a']


def test_voxceleb1_has_the_split_for_identification(tmp_path, capsys):
  home = miniatures.write_voxceleb1(tmp_path)
  report, folder = run(tmp_path, 'voxceleb1')
  assert clips(tmp_path, folder, False, split='train')[1] == [
      ('wav/id1/x/1.wav', 'id1'), ('wav/id2/x/1.wav', 'id2')]
  assert clips(tmp_path, folder, False, split='test')[1] == [
      ('wav/id1/y/1.wav', 'id1')]
  assert report['splits']['valid'] == {
      'clips': 1, 'files': 1, 'published': 6_904, 'rows': 1}
  miniatures.text(home / 'iden_split.txt', '4 id1/x/1.wav\n')
  assert "has the line '4 id1/x/1.wav'; it takes 1, 2 or 3" in refuse(
      capsys, tmp_path, 'voxceleb1')


def test_fsd50k_has_several_labels_a_clip(tmp_path, capsys):
  home = tmp_path / 'fsd50k'
  truth = home / 'FSD50K.ground_truth'
  miniatures.text(
      truth / 'vocabulary.csv', '0,Bark,/m/b\n1,Car,/m/c\n2,Zip,/m/z\n')
  miniatures.text(truth / 'dev.csv', 'fname,labels,mids,split\n'
       '1,"Car,Bark","/m/c,/m/b",train\n2,Car,/m/c,val\n')
  miniatures.text(truth / 'eval.csv', 'fname,labels,mids\n3,Bark,/m/b\n')
  for name in ('dev_audio/1', 'dev_audio/2', 'eval_audio/3'):
    miniatures.tone(home / f'FSD50K.{name}.wav', rate_hz=44100)
  report, folder = run(tmp_path, 'fsd50k')
  assert [clips(tmp_path, folder, split=split)[1]
          for split in ('train', 'valid', 'test')] == [
      [('FSD50K.dev_audio/1.wav', 'Car', 'Bark')],
      [('FSD50K.dev_audio/2.wav', 'Car')],
      [('FSD50K.eval_audio/3.wav', 'Bark')]]
  assert report['classes'] == {'Bark': 2, 'Car': 2, 'Zip': 0}
  assert report['clips_per_class'] == {'min': 0, 'median': 2, 'max': 2}
  assert report['sample_rates_hz'] == {'44100': 3}
  said = capsys.readouterr().out
  assert '3 classes of 0 to 2 clips, median 2\n  without clips: Zip\n' in said
  miniatures.text(truth / 'eval.csv', 'fname,labels,mids\n3,Bark,/m/q\n')
  assert "label '/m/q', which the class table of" in refuse(
      capsys, tmp_path, 'fsd50k')
  miniatures.text(truth / 'eval.csv', 'fname,labels\n3,Bark\n')
  assert "eval.csv lacks the column 'mids'" in refuse(
      capsys, tmp_path, 'fsd50k')


def test_audioset_takes_what_could_be_downloaded(tmp_path, capsys):
  miniatures.write_audioset(tmp_path)
  report, folder = run(tmp_path, 'audioset')
  source, found = clips(tmp_path, folder, split='balanced')
  assert source.class_names == ['Speech', 'Bark, dog']
  assert found == [
      ('audio/balanced_train/Y--aaaaaaaaa.wav', 'Speech', 'Bark, dog'),
      ('audio/balanced_train/a/Ybbbbbbbbbb.wav', 'Bark, dog')]
  assert clips(tmp_path, folder, split='eval')[1] == [
      ('audio/eval/ddddddddddd_30.000.wav', 'Speech')]
  assert report['missing'] == ['audio/balanced_train/ccccccccccc.wav']
  assert {k: v['clips'] for k, v in report['splits'].items()} == {
      'balanced': 2, 'unbalanced': 0, 'eval': 1}
  assert report['splits']['unbalanced']['published'] == 2_041_789
  said = capsys.readouterr().out
  assert 'for want of a folder: audio/unbalanced_train.' in said
  assert 'configs/finetune_as20k.py' in said
  assert 'configs/finetune_as2m.py' in said
  # The level is that of the training clips: none of the evaluation set.
  assert report['frontend']['clips'] == 2


def test_audioset_without_audio_says_where_it_looked(tmp_path, capsys):
  home = miniatures.write_audioset(tmp_path)
  (home / 'audio').rename(home / 'sound')
  assert ('looked for the folders balanced_train, unbalanced_train, eval with '
          'files named YTID.wav') in refuse(capsys, tmp_path, 'audioset')
  (home / 'sound').rename(home / 'audio')
  miniatures.text(home / 'eval_segments.csv', 'ddddddddddd, 0.000\n')
  assert "it takes YTID, start, end, \"labels\"" in refuse(
      capsys, tmp_path, 'audioset')


@pytest.mark.parametrize('name, missing, what', [
    ('audioset', 'class_labels_indices.csv', 'the class table'),
    ('esc50', 'meta/esc50.csv', 'the list of clips'),
    ('speech_commands_v2', 'validation_list.txt', 'the list of valid clips'),
    ('speech_commands_v1', 'speech_commands_v0.01', 'the unpacked archive'),
    ('voxceleb1', 'iden_split.txt', 'the list of clips for identification'),
    ('fsd50k', 'FSD50K.ground_truth', 'the folder of labels')])
def test_a_part_that_is_missing_is_named(
    tmp_path, capsys, name, missing, what):
  said = refuse(capsys, tmp_path, name)
  assert f'{tmp_path}/{name}/{missing}' in said
  assert what in said and 'http' in said and 'docs/data.md' in said


# ---- your own data


def test_folders_of_classes_get_a_validation_split(tmp_path, capsys):
  for label, count in (('cat', 10), ('dog', 20)):
    for i in range(count):
      miniatures.tone(tmp_path / f'sounds/{label}/{i}.wav')
  report, folder = run(tmp_path, 'folder', '--path', 'sounds')
  valid = clips(tmp_path, folder, False, split='valid')[1]
  assert [label for _, label in valid] == ['cat', 'dog', 'dog']
  assert all(name.startswith('../sounds/') for name, _ in valid)
  assert report['splits']['train']['clips'] == 27
  assert '10% of each class became it' in capsys.readouterr().out
  first = (tmp_path / 'own/manifest.csv').read_bytes()
  run(tmp_path, 'folder', '--path', 'sounds')
  assert (tmp_path / 'own/manifest.csv').read_bytes() == first
  assert '--valid=1 is a share' in refuse(
      capsys, tmp_path, 'folder', '--path', 'sounds', '--valid', '1')


def test_folders_named_after_splits_are_splits(tmp_path, capsys):
  for name in ('train/cat/a', 'train/dog/a', 'valid/cat/b'):
    miniatures.tone(tmp_path / f'own/{name}.wav')
  report, folder = run(tmp_path, 'folder')
  assert clips(tmp_path, folder, False, split='train')[1] == [
      ('train/cat/a.wav', 'cat'), ('train/dog/a.wav', 'dog')]
  assert report['note'] == '' and report['frontend']['clips'] == 2
  assert 'No audio files under' in refuse(
      capsys, tmp_path, 'folder', '--path', str(tmp_path / 'none'))


def test_a_csv_keeps_folds_parts_and_repeats(tmp_path, capsys):
  miniatures.tone(tmp_path / 'lists/a.wav', 1.0)
  miniatures.text(tmp_path / 'lists/mine.csv',
       'path,labels,fold,start_s,duration_s\n'
       'a.wav,x;y,1,0.25,0.5\na.wav,x;y,1,0.25,0.5\na.wav,,2,,\n')
  report, folder = run(tmp_path, 'csv', '--manifest', 'lists/mine.csv')
  assert (tmp_path / 'own/manifest.csv').read_text() == (
      'path,labels,fold,start_s,duration_s\n'
      '../lists/a.wav,x;y,1,0.25,0.5\n../lists/a.wav,x;y,1,0.25,0.5\n'
      '../lists/a.wav,,2,0.0,\n')
  assert report['unlabelled'] == 1
  assert report['duration_s'] == {'min': 0.5, 'median': 0.75, 'max': 1.0}
  assert 'without a label: 1 clips' in capsys.readouterr().out
  miniatures.text(tmp_path / 'own/mine.csv', 'path\n../lists/a.wav\n')
  assert 'lies where the result is written' in refuse(
      capsys, tmp_path, 'csv', '--manifest', 'own/mine.csv')
  assert '--manifest is empty' in refuse(capsys, tmp_path, 'csv')


def test_a_part_that_does_not_exist_leaves_the_others(tmp_path):
  miniatures.tone(tmp_path / 'a.wav', 0.4)
  miniatures.text(tmp_path / 'm.csv', 'path,label,split,start_s,duration_s\n'
       'a.wav,x,train,0,0.2\na.wav,x,train,3,0.2\n')
  report, _ = run(tmp_path, 'csv', '--manifest', 'm.csv', '--valid', '0')
  assert list(report['broken']) == ['../a.wav@3s']
  assert 'ends at 0.400 s' in report['broken']['../a.wav@3s']
  assert report['splits']['train']['clips'] == 1


def test_parts_of_a_recording_stay_in_one_split(tmp_path):
  rows = ['path,label,start_s,duration_s']
  for i in range(6):
    miniatures.tone(tmp_path / f'{i}.wav', 0.4)
    rows += [f'{i}.wav,x,{start},0.2' for start in (0, 0.2)]
  miniatures.text(tmp_path / 'm.csv', '\n'.join(rows) + '\n')
  run(tmp_path, 'csv', '--manifest', 'm.csv', '--valid', '0.5')
  found = manifests.read(str(tmp_path / 'own/manifest.csv'))
  split = {row.path: row.split for row in found}
  assert sorted(split.values()) == ['train'] * 3 + ['valid'] * 3
  assert all(row.split == split[row.path] for row in found)


def test_paths_outside_the_root_stay_absolute(tmp_path):
  miniatures.tone(tmp_path / 'away/a.wav')
  miniatures.tone(tmp_path / 'away/b.wav')
  miniatures.text(tmp_path / 'root/m.csv', 'path,label\n'
       f'{tmp_path}/away/a.wav,x\n{tmp_path}/away/b.wav,x\n')
  run(tmp_path / 'root', 'csv', '--manifest', 'm.csv')
  assert [row.path for row in manifests.read(
      str(tmp_path / 'root/own/manifest.csv'))] == [
          f'{tmp_path}/away/a.wav', f'{tmp_path}/away/b.wav']


# ---- the check


def test_broken_clips_are_named_and_left_out(tmp_path, capsys):
  home = tmp_path / 'own'
  for name in ('good', 'cut', 'nan', 'short'):
    miniatures.tone(home / f'x/{name}.wav', 0.001 if name == 'short' else 0.5)
  (home / 'x/none.wav').write_bytes(b'')
  cut = (home / 'x/cut.wav').read_bytes()
  (home / 'x/cut.wav').write_bytes(cut[:len(cut) // 2])
  samples = np.zeros(8000, np.float32)
  samples[-1] = np.nan  # where only decoding sees it
  soundfile.write(home / 'x/nan.wav', samples, 16000, subtype='FLOAT')
  report, folder = run(tmp_path, 'folder', '--valid', '0', '--decode')
  assert [name for name, _ in clips(tmp_path, folder, False)[1]] == [
      'x/good.wav']
  assert report['missing'] == []
  assert report['broken']['x/none.wav'] == 'empty'
  assert report['broken']['x/nan.wav'] == 'NaN or infinite samples'
  assert report['broken']['x/cut.wav'].startswith('truncated')
  assert 'the model needs 0.0250 s' in report['broken']['x/short.wav']
  said = capsys.readouterr().out
  assert 'broken, left out: 4\n' in said
  assert '    x/none.wav: empty\n' in said


def test_samples_are_seen_by_measuring_and_by_decode(tmp_path):
  for i in range(3):
    samples = np.zeros(8000, np.float32)
    samples[-1] = np.nan
    soundfile.write(tmp_path / f'{i}.wav', samples, 16000, subtype='FLOAT')
  miniatures.tone(tmp_path / '3.wav', 0.5)
  miniatures.text(tmp_path / 'm.csv', 'path,label,split\n' + ''.join(
      f'{i}.wav,x,{split}\n' for i, split in enumerate(
          ('train', 'valid', 'valid', 'train'))))
  report, _ = run(tmp_path, 'csv', '--manifest', 'm.csv')
  assert list(report['broken']) == ['../0.wav']
  assert report['splits']['valid']['clips'] == 2
  assert report['frontend']['clips'] == 1
  report, _ = run(tmp_path, 'csv', '--manifest', 'm.csv', '--decode')
  assert list(report['broken']) == ['../0.wav', '../1.wav', '../2.wav']


def test_nothing_but_broken_clips_is_an_error(tmp_path, capsys):
  miniatures.text(tmp_path / 'own/x/a.wav', 'no audio')
  assert ('None of the 1 clips of folder can be used; the first, '
          f'{tmp_path}/own/x/a.wav: unreadable') in refuse(
              capsys, tmp_path, 'folder')
  assert not (tmp_path / 'own/manifest.csv').exists()


def test_mean_and_std_are_those_of_whole_frames(tmp_path, capsys):
  waveforms = []
  for i, seconds in enumerate((0.3, 0.12, 0.5)):
    miniatures.tone(tmp_path / f'own/train/x/{i}.wav', seconds)
    waveforms.append(soundfile.read(tmp_path / f'own/train/x/{i}.wav')[0])
  miniatures.tone(tmp_path / 'own/valid/x/loud.wav', 0.4)
  report, _ = run(tmp_path, 'folder', '--clips', '0')
  cells = np.concatenate([np.asarray(frontend.log_mel(
      jnp.asarray(w - w.mean(), jnp.float32)[None], config_lib.Frontend()),
      np.float64).ravel() for w in waveforms])
  level = report['frontend']
  assert level['clips'] == 3
  assert level['frames'] == sum(
      1 + (len(w) - 400) // 160 for w in waveforms) == len(cells) // 128
  assert level['mean'] == pytest.approx(cells.mean(), abs=1e-5)
  assert level['std'] == pytest.approx(cells.std(), abs=1e-5)
  assert (f'--config.frontend.mean={cells.mean():.5g}' in
          capsys.readouterr().out)


def test_some_clips_are_drawn_by_the_seed(tmp_path):
  rows = []
  for i in range(8):
    miniatures.tone(tmp_path / f'{i}.wav')
    rows.append(manifests.Row(str(tmp_path / f'{i}.wav')))
  measure = lambda count, seed: levels.measure(rows, 0.05, count, seed)[0]
  assert measure(2, 0) == measure(2, 0)
  assert len({measure(2, seed).mean for seed in range(4)}) > 1
  assert measure(2, 0).clips == 2
  assert measure(9, 0) == measure(0, 1)


def test_long_clips_give_a_part(tmp_path):
  miniatures.tone(tmp_path / 'a.wav', 1.0)
  level, _ = levels.measure([manifests.Row(str(tmp_path / 'a.wav'))], 0.1, 0)
  assert level.frames == 8


# ---- what to run next


def recipe_with_flags(said):
  """The recipe of the command that was told, with its flags applied."""
  told = said.split('--config=configs/')[1].replace('\\\n', ' ')
  config = recipes.load(told.split('.py')[0])
  for flag in shlex.split(told)[1:]:
    name, value = flag.removeprefix('--config.').split('=', 1)
    with config.unlocked():
      with contextlib.suppress(ValueError, SyntaxError):
        value = ast.literal_eval(value)
      config.update_from_flattened_dict({name: value})
  return config_lib.typed(config)


def test_the_next_command_fits_short_clips_of_several_labels(
    tmp_path, capsys):
  rows = ['path,labels,split']
  for i in range(6):
    miniatures.tone(tmp_path / f'{i}.wav', 0.4)
    rows.append(f'{i}.wav,x;y,{("train", "test")[i == 5]}')
  miniatures.text(tmp_path / 'm.csv', '\n'.join(rows) + '\n')
  report, folder = run(
      tmp_path, 'csv', '--manifest', 'm.csv', '--valid', '0.2')
  config = recipe_with_flags(capsys.readouterr().out)
  assert config.data.root == str(tmp_path)
  assert config.frontend.mean == pytest.approx(report['frontend']['mean'])
  assert (config.data.clip_s, config.frontend.num_frames) == (0.4, 64)
  assert config.augment.time_mask == 24
  assert (config.labels.multilabel, config.labels.loss) == (True, 'bce')
  sizes = [len(sources.make(part, config.data)) for part in (
      config.data.train, config.data.valid, config.data.test)]
  assert sizes == [4, 1, 1]


def test_the_next_command_goes_over_folds(tmp_path, capsys):
  for i in range(2):
    miniatures.tone(tmp_path / f'{i}.wav', 11)
  miniatures.text(tmp_path / 'm.csv', 'path,label,fold\n0.wav,x,a\n1.wav,y,b\n')
  run(tmp_path, 'csv', '--manifest', 'm.csv')
  config = recipe_with_flags(capsys.readouterr().out)
  assert config.folds == ('a', 'b')
  assert not config.labels.multilabel and config.labels.loss == 'ce'
  assert (config.data.clip_s, config.frontend.num_frames) == (10, 1024)
  one = modes.of_fold(config, 'a').data
  assert [sources.make(part, one).name_of(0)
          for part in (one.train, one.valid)] == ['../1.wav', '../0.wav']


def test_other_names_of_splits_are_for_the_user_to_tell(tmp_path, capsys):
  miniatures.tone(tmp_path / 'a.wav')
  miniatures.text(tmp_path / 'm.csv', 'path,label,split\na.wav,x,dev\n')
  report, _ = run(tmp_path, 'csv', '--manifest', 'm.csv')
  assert report['frontend']['clips'] == 1
  said = capsys.readouterr().out
  assert '--config.data.train.split=SPLIT' in said
  assert '--config.data.valid.split=SPLIT' in said


# ---- the command


@pytest.mark.parametrize('arguments, message', [
    (['esc51'], "name='esc51' is not known. Did you mean 'esc50'?"),
    (['fsd50k', '--subset', 'esc10'], "subset='esc10' has no effect with"),
    (['esc50', '--valid', '0.2'], 'valid=0.2 has no effect with'),
    (['esc50', '--clips', '-1'], '--clips=-1; it takes 0 (all) or more')])
def test_wrong_options_are_refused(tmp_path, capsys, arguments, message):
  assert message in refuse(capsys, tmp_path, *arguments)


def test_the_manifest_is_plain_csv(tmp_path):
  miniatures.write_esc50(tmp_path)
  run(tmp_path, 'esc50')
  with open(tmp_path / 'esc50/manifest.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  assert rows[0] == {'path': 'ESC-50-master/audio/1-rooster.wav',
                     'label': 'rooster', 'fold': '1'}
  assert sorted(path.name for path in (tmp_path / 'esc50').glob('*.*')) == [
      'classes.csv', 'manifest.csv', 'report.json']
