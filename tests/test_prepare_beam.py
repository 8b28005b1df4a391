"""Data sets become TensorFlow datasets in Beam: the samples of `records`."""

import json
import os
import sys

import miniatures
import pytest

from audio_mae_jax import config as config_lib
from audio_mae_jax.data import audio_io
from audio_mae_jax.data import sources
from audio_mae_jax.prepare import __main__ as command

pytest.importorskip('apache_beam')
pytest.importorskip('tensorflow_datasets')


def opened(name, path, **fields):
  return sources.make(config_lib.Source(name=name, path=str(path), **fields),
                      config_lib.Data())


def clips(source):
  """What there is, whatever its order: (labels, samples), sorted."""
  found = []
  for i in range(len(source)):
    samples = audio_io.load(source[i], sample_rate_hz=16000, num_samples=10**6,
                            crop='start', rng=None)
    names = sorted(source.class_names[k] for k in source.labels_of(i))
    found.append((names, samples.tobytes()))
  return sorted(found)


def write_words(root):
  miniatures.write_words(
      root / 'speech_commands_v2', ['bed/a.wav', 'bed/b.wav', 'cat/a.wav'],
      ['bed/b.wav'], ['cat/lost.wav', 'cat/a.wav'])


SETS = {  # how it is written, {split of Beam: selection of the records}
    'audioset': (miniatures.write_audioset, {
        'balanced': dict(split='balanced'), 'eval': dict(split='eval')}),
    'esc50': (miniatures.write_esc50, {
        'fold_1': dict(folds='1'), 'fold_2': dict(folds='2')}),
    'speech_commands_v1': (miniatures.write_speech_commands_v1, {
        name: dict(split=name) for name in ('train', 'valid', 'test')}),
    'speech_commands_v2': (write_words, {
        name: dict(split=name) for name in ('train', 'valid', 'test')}),
    'voxceleb1': (miniatures.write_voxceleb1, {
        name: dict(split=name) for name in ('train', 'valid', 'test')}),
}


PROCESSES = ('--direct_num_workers=2', '--direct_running_mode=multi_processing')


@pytest.mark.parametrize('name, options', [
    ('audioset', ()), *(pytest.param(name, (), marks=pytest.mark.slow)
                        for name in SETS if name != 'audioset'),
    pytest.param('esc50', PROCESSES, marks=pytest.mark.slow)],
    ids=lambda x: x if isinstance(x, str) else ' '.join(x))
def test_beam_makes_the_same_clips(tmp_path, capsys, name, options):
  write, splits = SETS[name]
  write(tmp_path)
  tables = ([] if name in ('voxceleb1', 'speech_commands_v2') else
            ['--labels_csv', f'{name}/classes.csv'])
  command.main([name, '--root', str(tmp_path)])
  command.main(['records', '--root', str(tmp_path), '--path',
                f'{name}/manifest.csv', *tables, '--output',
                str(tmp_path / 'records')])
  capsys.readouterr()
  command.main(['beam', name, '--root', str(tmp_path), '--output',
                str(tmp_path / 'tfds'), '--', '--runner=DirectRunner',
                *options])
  assert 'tensorflow' not in sys.modules
  said = capsys.readouterr().out
  place = tmp_path / 'tfds' / name / '1.0.0'
  assert f'--config.data.train.path={place}' in said
  for split, selection in splits.items():
    records = opened('records', tmp_path / 'records', **selection)
    beam = opened('tfds', place, split=split)
    assert beam.class_names == records.class_names
    assert clips(beam) == clips(records)
    assert f'  {split}: {len(beam)} clips' in said
  whole = opened('tfds', place)
  assert {whole.split_of(i)[0] for i in range(len(whole))} == set(splits)
  ids = {whole._examples[i]['id'].decode() for i in range(len(whole))}
  everything = opened('records', tmp_path / 'records')
  assert ids == {everything.name_of(i) for i in range(len(everything))}
  if name == 'audioset':
    lost = 'audio/balanced_train/ccccccccccc.wav'
    assert (f'left out: 1, all in {place.parent}/bad.jsonl\n'
            f'      {lost}: no such file\n') in said
    assert json.loads((place.parent / 'bad.jsonl').read_text()) == [
        'balanced', lost, 'no such file']


def test_beam_refuses_what_it_could_not_do(tmp_path, capsys, monkeypatch):
  def said(*arguments):
    with pytest.raises(SystemExit):
      command.main(['beam', *arguments])
    return capsys.readouterr().err
  here = ['--root', str(tmp_path), '--output', str(tmp_path)]
  assert "NAME='esc5' is not known. Did you mean 'esc50'" in said('esc5', *here)
  assert 'No ' + os.path.join(tmp_path, 'esc50/meta/esc50.csv') in said(
      'esc50', *here)
  assert '--output=gs://b is an address' in said(
      'esc50', '--root', 'x', '--output', 'gs://b')
  monkeypatch.setitem(sys.modules, 'apache_beam', None)
  assert "pip install 'audio_mae_jax[beam]'" in said('esc50', *here)
