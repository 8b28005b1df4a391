"""Lists of files: the formats, their labels, and what is wrong with them."""

import json
import os

import listing
import numpy as np
import pytest

from audio_mae_jax.data import manifests


def test_a_csv_manifest_has_labels_splits_and_parts(write, tmp_path):
  for name in 'abc':
    write(f'{name}.wav', np.zeros(99))
  path = listing.write_csv(tmp_path / 'm.csv', [
      dict(path='a.wav', label='rain, heavy', labels='', split='train',
           start_s='', duration_s='', other=1),
      dict(path='b.wav', label='', labels='dog; cat', split='valid',
           start_s='0.5', duration_s='2', other=2),
      dict(path='c.wav', label='', labels='', split='train',
           start_s='', duration_s='', other=3)])
  source = listing.make('manifest', path=path)
  assert source.class_names == ['cat', 'dog', 'rain, heavy']
  assert listing.labels(source) == [('rain, heavy',), ('dog', 'cat'), ()]
  assert listing.ids(source) == ['a.wav', 'b.wav@0.5s', 'c.wav']
  assert source[1]['start_s'] == 0.5 and source[1]['duration_s'] == 2
  valid = listing.make('manifest', path=path, split='valid')
  assert listing.ids(valid) == ['b.wav@0.5s']
  assert valid.class_names == source.class_names
  with pytest.raises(ValueError, match=(
      "no rows of split 'test'; its splits are 'train', 'valid'")):
    listing.make('manifest', path=path, split='test')


@pytest.fixture
def folds(tmp_path):
  """folds(**fields of config.Source) -> ids of the chosen rows."""
  rows = [('a', 'train', '1'), ('b', 'train', '2'), ('c', 'valid', '10'),
          ('d', 'test', '')]
  for name, _, _ in rows:
    listing.write_text(tmp_path / name, '')
  path = listing.write_csv(tmp_path / 'm.csv', [
      dict(path=name, split=split, fold=fold) for name, split, fold in rows])
  return lambda **fields: listing.ids(
      listing.make('manifest', path=path, **fields))


@pytest.mark.parametrize('fields, ids', [
    (dict(), 'abcd'), (dict(folds='1'), 'a'), (dict(folds='10, 2'), 'bc'),
    (dict(split='train+valid', folds='!1'), 'bc'),
    (dict(split='train+valid', folds='!1,10'), 'b'),
    (dict(split='train', folds='!2'), 'a'), (dict(split='train+test'), 'abd')])
def test_rows_are_chosen_by_split_and_fold(folds, fields, ids):
  assert folds(**fields) == list(ids)


@pytest.mark.parametrize('fields, message', [
    (dict(folds='3'), r"config.data.train.folds='3': .*m.csv has no fold '3'; "
     r"it has 1, 2, 10. Name some \('1,2'\), or all but some \('!1'\)"),
    (dict(folds='!0'), "has no fold '0'"),
    (dict(folds='!1'), "folds='!1', and 1 rows of .*m.csv have no fold, the "
     'first of them d: they would be trained on in every fold'),
    (dict(split='train', folds='10'), "no fold '10' of split 'train'; it has "
     '1, 2.'),
    (dict(split='train', folds='!1,2'), "folds='!1,2' leaves no row of split "
     "'train' of .*m.csv: its folds are 1, 2"),
    (dict(split='test', folds='1'), "the rows of split 'test' in .*m.csv have "
     'no folds. Give it a column "fold"'),
    (dict(split='train+tets'), "no rows of split 'tets'; its splits are "
     "'test', 'train', 'valid'. Set config.data.train.split")])
def test_what_leaves_no_rows_is_named(folds, fields, message):
  with pytest.raises(ValueError, match=message):
    folds(**fields)


def test_a_split_may_have_a_plus_in_its_name(write, tmp_path):
  write('a.wav', np.zeros(99))
  path = listing.write_csv(
      tmp_path / 'm.csv', [dict(path='a.wav', split='train+noise')])
  assert len(listing.make('manifest', path=path, split='train+noise')) == 1


@pytest.mark.parametrize('rows', [
    [manifests.Row('a.wav')],
    [manifests.Row('a, "b".wav', ('x; y',), 'train'),
     manifests.Row('é.wav', (), '')],
    [manifests.Row('a.wav', ('x', 'y'), '', '2', 0.5, 1.25),
     manifests.Row('b.wav', ('x',), 'test', '0', 0.0, None)]])
def test_what_is_written_is_read_back(tmp_path, rows):
  path = str(tmp_path / 'm.csv')
  manifests.write(path, rows)
  assert manifests.read(path) == rows


def test_columns_that_nothing_needs_are_not_written(tmp_path):
  path = tmp_path / 'm.csv'
  manifests.write(str(path), [manifests.Row('a.wav', ('x',))])
  assert path.read_bytes() == b'path,label\na.wav,x\n'


def test_several_labels_with_separators_cannot_be_written(tmp_path):
  with pytest.raises(ValueError, match=(
      r"a.wav has the labels \('x', 'y, z'\); .* Rename them")):
    manifests.write(
        str(tmp_path / 'm.csv'), [manifests.Row('a.wav', ('x', 'y, z'))])
  assert not list(tmp_path.iterdir())


def test_class_tables_are_read_back(tmp_path):
  path = str(tmp_path / 'c.csv')
  manifests.write_classes(path, ['/m/b', '/m/a'], ['Bark, dog', 'Alarm'])
  assert manifests.read_classes(path) == (
      ['/m/b', '/m/a'], ['Bark, dog', 'Alarm'])


@pytest.mark.parametrize('entry, labels', [
    ('"label": 0', ('0',)), ('"labels": [0, 2]', ('0', '2')),
    ('"labels": 3', ('3',)), ('"labels": "a;b"', ('a', 'b')),
    ('"label": ""', ()), ('"labels": null', ())])
def test_labels_are_numbers_or_words_one_or_many(tmp_path, entry, labels):
  path = tmp_path / 'm.jsonl'
  path.write_text('{"path": "a.wav", ' + entry + '}\n')
  row, = manifests.read(str(path))
  assert row.labels == labels


def test_a_jsonl_manifest_says_the_same(write, tmp_path):
  write('a.wav', np.zeros(99))
  path = listing.write_text(
      tmp_path / 'm.jsonl',
      '{"path": "a.wav", "labels": ["x, y", "z"], "start_s": 1}\n\n'
      '{"path": "a.wav", "label": 7, "duration_s": 2.5}\n')
  source = listing.make('manifest', path=path)
  assert listing.labels(source) == [('x, y', 'z'), ('7',)]
  assert source[0]['start_s'] == 1.0 and source[1]['duration_s'] == 2.5


def test_the_json_of_the_ast_code_base_is_read(write, tmp_path):
  audio = write('a.wav', np.zeros(99))
  path = listing.write_text(tmp_path / 'm.json', json.dumps({'data': [
      {'wav': audio, 'labels': '/m/b,/m/a'}, {'wav': audio, 'labels': '/m/a'}
  ]}))
  table = listing.write_csv(tmp_path / 'class_labels_indices.csv', [
      dict(index=1, mid='/m/b', display_name='Bark, dog'),
      dict(index=0, mid='/m/a', display_name='Alarm'),
      dict(index=2, mid='/m/c', display_name='Car')])
  source = listing.make('manifest', path=path, labels_csv=table)
  assert source.class_names == ['Alarm', 'Bark, dog', 'Car']
  assert [source[i]['labels'] for i in range(2)] == [(1, 0), (0,)]
  assert listing.make('manifest', path=path).class_names == ['/m/a', '/m/b']


def test_rows_may_start_at_the_root(write, tmp_path):
  write('audio/a.wav', np.zeros(99))
  (tmp_path / 'lists').mkdir()
  listing.write_csv(tmp_path / 'lists' / 'm.csv', [dict(path='a.wav')])
  source = listing.make(
      'manifest', root=tmp_path / 'audio', path='../lists/m.csv')
  assert source[0]['audio'] == str(tmp_path / 'audio/a.wav')


def test_some_missing_files_are_left_to_the_report(write, tmp_path):
  write('a.wav', np.zeros(99))
  path = listing.write_csv(
      tmp_path / 'm.csv', [dict(path='no.wav'), dict(path='a.wav')])
  assert len(listing.make('manifest', path=path)) == 2


def test_a_manifest_whose_files_all_miss_shows_where_it_looked(tmp_path):
  (tmp_path / 'root').mkdir()
  path = listing.write_csv(tmp_path / 'm.csv', [dict(path=f'{i}.wav')
                                        for i in range(120)])
  with pytest.raises(FileNotFoundError, match=(
      f'None of the first 100 files in {path} exists; looked for '
      f'{tmp_path}/0.wav and {tmp_path}/root/0.wav. Paths in a manifest')):
    listing.make('manifest', root=tmp_path / 'root', path=path)


@pytest.mark.parametrize('name,text,message', [
    ('m.csv', 'file,label\na.wav,x\n',
     'has no column "path"; its first line names file, label'),
    ('m.csv', '', 'no column "path"; its first line names nothing'),
    ('m.csv', 'path,label\n', 'has no rows'),
    ('m.csv', 'path,label\n,x\n', 'line 2 has no path'),
    ('m.csv', 'path,start_s\na.wav,soon\n',
     "line 2: start_s is 'soon', not a number of seconds"),
    ('m.csv', 'path,duration_s\na.wav,-1\n', "duration_s is '-1'"),
    ('m.csv', 'path,duration_s\na.wav,nan\n', "duration_s is 'nan'"),
    ('m.jsonl', '{"path": "a.wav"}\noops\n', 'line 2 is not JSON'),
    ('m.jsonl', '["a.wav"]\n', 'line 1 is not a JSON object'),
    ('m.jsonl', '{"name": "a.wav"}\n', 'line 1 has no path'),
    ('m.json', '{"rows": []}', r'is not \{"data": .*suffix .jsonl'),
    ('m.json', '{"data": ["a.wav"]}', "entry 0 is not an object: 'a.wav'"),
    ('m.txt', 'a.wav', "suffix='.txt' is not known.*.csv, .jsonl, .json")])
def test_a_wrong_manifest_says_what_is_wrong(tmp_path, name, text, message):
  path = listing.write_text(tmp_path / name, text)
  with pytest.raises(ValueError, match=message) as error:
    listing.make('manifest', path=path)
  assert path in str(error.value)


def test_a_missing_manifest_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match='No manifest at .*/m.csv'):
    listing.make('manifest', root=tmp_path, path='m.csv')


def test_a_wrong_class_table_says_what_is_wrong(write, tmp_path):
  write('a.wav', np.zeros(99))
  path = listing.write_csv(
      tmp_path / 'm.csv', [dict(path='a.wav', label='/m/a')])

  def with_table(text):
    listing.write_text(tmp_path / 'c.csv', text)
    listing.make('manifest', root=tmp_path, path=path, labels_csv='c.csv')

  with pytest.raises(ValueError, match='lacks the columns display_name, mid'):
    with_table('index,name\n0,x\n')
  with pytest.raises(ValueError, match='index column .* does not count'):
    with_table('index,mid,display_name\n1,/m/a,x\n')
  with pytest.raises(ValueError, match=(
      "labels a.wav with '/m/a', which is not in the mid column")):
    with_table('index,mid,display_name\n0,/m/b,x\n')
  with pytest.raises(ValueError, match="index 'x' is not a number"):
    with_table('index,mid,display_name\nx,/m/b,x\n')
  os.remove(tmp_path / 'c.csv')
  with pytest.raises(FileNotFoundError, match='No class table at .*c.csv'):
    listing.make('manifest', root=tmp_path, path=path, labels_csv='c.csv')
