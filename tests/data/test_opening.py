"""Splits opened together: one class list, sensible labels, no overlap."""

import csv
import dataclasses
import logging
import os
import re

import numpy as np
import pytest

from audio_mae_jax import config
from audio_mae_jax.data import files
from audio_mae_jax.data import labels as labels_lib
from audio_mae_jax.data import manifests
from audio_mae_jax.data import opening

SINGLE = config.Labels(multilabel=False, loss='ce')


@pytest.fixture
def corpus(write, tmp_path):
  """corpus(name, rows) writes a manifest of (file, label, more columns)."""
  for i in range(8):
    write(f'{i}.wav', np.full(1600, 0.1))

  def make(name, rows, fields=('path', 'label')):
    with open(tmp_path / name, 'w', newline='') as file:
      writer = csv.writer(file)
      writer.writerows([fields, *rows])
    return str(tmp_path / name)

  return make


def opened(train, valid=None, labels=SINGLE, num_classes=-1, split=''):
  source = lambda path: config.Source(
      name='manifest', path=path, split=split)
  data = config.Data(clip_s=0.1, train=source(train))
  if valid:
    data = dataclasses.replace(data, valid=source(valid))
  cfg = config.Config(
      task='classify', labels=labels, data=data, model=config.Model(
          classifier=config.Classifier(num_classes=num_classes)))
  return opening.for_training(cfg, labelled=True)


def test_held_out_labels_are_numbered_as_the_train_splits(corpus):
  train = corpus('train.csv', [('0.wav', 'a'), ('1.wav', 'b'), ('2.wav', 'c')])
  valid = corpus('valid.csv', [('3.wav', 'c'), ('4.wav', 'b')])
  cfg, data = opened(train, valid)
  assert cfg.model.classifier.num_classes == 3
  assert data.valid.source.class_names == ['a', 'b', 'c']
  assert [data.valid.source.labels_of(i) for i in (0, 1)] == [(2,), (1,)]
  assert [data.valid.source[i]['labels'] for i in (0, 1)] == [(2,), (1,)]
  assert data.valid.source.name_of(0) == '3.wav'
  assert data.test is None


def test_a_label_missing_from_the_class_list_is_named(corpus):
  train = corpus('train.csv', [('0.wav', 'a'), ('1.wav', 'b')])
  valid = corpus('valid.csv', [('3.wav', 'b'), ('4.wav', 'owl')])
  with pytest.raises(ValueError, match=(
      r"config.data.valid has labels that are missing from the class list: "
      r"'owl'. The list has 2 classes, 'a', 'b'. Correct")):
    opened(train, valid)


def test_an_empty_class_is_an_error_with_one_label_a_clip(corpus):
  rows = [('0.wav', 'a', 'train'), ('1.wav', 'b', 'test')]
  path = corpus('all.csv', rows, ('path', 'label', 'split'))
  with pytest.raises(ValueError, match=(
      r"config.data.train has no clip of 1 of its 2 classes: 'b'. They could "
      'not be learnt. Add clips of them, or name the classes to keep')):
    opened(path, split='train')


def test_an_empty_class_is_a_warning_with_several_labels(corpus, caplog):
  rows = [('0.wav', 'a', 'train'), ('1.wav', 'b', 'test')]
  path = corpus('all.csv', rows, ('path', 'label', 'split'))
  with caplog.at_level(logging.WARNING, 'audio_mae_jax'):
    logging.getLogger('audio_mae_jax').propagate = True
    cfg, _ = opened(path, labels=config.Labels(), split='train')
  assert cfg.model.classifier.num_classes == 2
  assert "no clip of 1 of its 2 classes: 'b'" in caplog.text


def test_a_held_out_clip_that_is_trained_on_is_named(corpus):
  train = corpus('train.csv', [('0.wav', 'a'), ('1.wav', 'b')])
  valid = corpus('valid.csv', [('2.wav', 'b'), ('1.wav', 'b')])
  with pytest.raises(ValueError, match=(
      r"1 of the 2 clips of config.data.valid are in the train split as well: "
      r"'1.wav'. Folds and splits must not overlap")):
    opened(train, valid)


@pytest.mark.parametrize('trained, held_out', [
    ('1.wav', './1.wav'), ('1.wav', 'link.wav'), ('link.wav', '1.wav'),
    ('link.wav', 'other.wav'), ('1.wav', 'linked/1.wav'),
    ('linked/1.wav', '1.wav'), ('linked/link.wav', './other.wav')])
def test_another_spelling_is_the_same_clip(
    corpus, tmp_path, trained, held_out):
  for name in ('link.wav', 'other.wav'):
    (tmp_path / name).symlink_to(tmp_path / '1.wav')
  (tmp_path / 'linked').symlink_to(tmp_path)
  train = corpus('train.csv', [('0.wav', 'a'), (trained, 'b')])
  valid = corpus('valid.csv', [('2.wav', 'b'), (held_out, 'b')])
  with pytest.raises(ValueError, match=re.escape(
      f'1 of the 2 clips of config.data.valid are in the train split as well: '
      f'{held_out!r}. Folds and splits must not overlap')):
    opened(train, valid)


def test_the_disk_is_asked_for_folders_and_not_for_each_clip(
    corpus, tmp_path, monkeypatch):
  (tmp_path / 'link.wav').symlink_to(tmp_path / '1.wav')
  asked, realpath = [], os.path.realpath

  def counted(path):
    asked.append(str(path))
    return realpath(path)

  monkeypatch.setattr(os.path, 'realpath', counted)
  source = lambda place, names: files.Files('', [
      files.File(f'{place}/{name}', name) for name in names], [], 0.0)
  names = [f'{i}.wav' for i in range(8)]
  for place, paths in (
      (str(tmp_path), [str(tmp_path)]), (f'{tmp_path}/./', [f'{tmp_path}/.']),
      ('gs://bucket/a', [])):
    labels_lib.check_disjoint(
        source(place, names[:6]), source(place, names[6:]), 'valid')
    assert asked == paths
    asked.clear()
    with pytest.raises(ValueError, match="1 of the 2 clips .*: '5.wav'"):
      labels_lib.check_disjoint(
          source(place, names[:6]), source(place, names[5:7]), 'valid')
    asked.clear()
  with pytest.raises(ValueError, match="1 of the 1 clips .*: 'link.wav'"):
    labels_lib.check_disjoint(
        source(tmp_path, names[:6]), source(tmp_path, ['link.wav']), 'valid')
  assert asked == [str(tmp_path), f'{tmp_path}/link.wav']


def test_clips_of_a_folder_that_cannot_be_listed_are_asked_for(
    corpus, tmp_path, monkeypatch):
  def denied(path):
    raise PermissionError(13, 'Permission denied', path)
  (tmp_path / 'link.wav').symlink_to(tmp_path / '1.wav')
  train = corpus('train.csv', [('0.wav', 'a'), ('1.wav', 'b')])
  valid = corpus('valid.csv', [('link.wav', 'b')])
  monkeypatch.setattr(os, 'scandir', denied)
  with pytest.raises(ValueError, match="well: 'link.wav'"):
    opened(train, valid)


def test_splits_of_one_manifest_are_parsed_once_and_not_kept(
    corpus, monkeypatch):
  rows = [('0.wav', 'a', 'train'), ('1.wav', 'b', 'train'),
          ('2.wav', 'a', 'valid'), ('3.wav', 'b', 'test')]
  fields = ('path', 'label', 'split')
  path, parse, parsed = corpus('all.csv', rows, fields), manifests._csv, []

  def counted(path):
    parsed.append(path)
    return parse(path)

  monkeypatch.setitem(manifests.FORMATS, '.csv', counted)
  source = lambda split: config.Source(name='manifest', path=path, split=split)
  cfg = config.Config(task='classify', labels=SINGLE, data=config.Data(
      clip_s=0.1, train=source('train'), valid=source('valid'),
      test=source('test')))
  for clips in (1, 2):
    _, data = opening.for_training(cfg, labelled=True)
    assert [len(split.source) for split in data] == [2, 1, clips]
    assert parsed == [path]
    assert manifests._parsed.get() is None
    parsed.clear()
    corpus('all.csv', [*rows, ('4.wav', 'b', 'test')], fields)
  with pytest.raises(ValueError, match='config.data.train has no clip of'):
    opened(path, split='valid')
  assert manifests._parsed.get() is None


def test_a_clip_to_test_on_is_not_one_to_validate_on(corpus):
  rows = [('0.wav', 'a', 'train'), ('1.wav', 'b', 'train'),
          ('2.wav', 'a', 'valid'), ('2.wav', 'a', 'test')]
  path = corpus('all.csv', rows, ('path', 'label', 'split'))
  source = lambda split: config.Source(
      name='manifest', path=path, split=split)
  cfg = config.Config(task='classify', labels=SINGLE, data=config.Data(
      clip_s=0.1, train=source('train'), valid=source('valid'),
      test=source('test')))
  with pytest.raises(ValueError, match=(
      "1 of the 1 clips of config.data.test are in the valid split as well")):
    opening.for_training(cfg, labelled=True)


@pytest.mark.parametrize('start, overlaps', [(0.04, True), (0.05, False)])
def test_parts_of_a_file_overlap_where_they_share_time(
    corpus, start, overlaps):
  fields = ('path', 'label', 'start_s', 'duration_s')
  train = corpus('train.csv', [('0.wav', 'a', 0, 0.05)], fields)
  valid = corpus('valid.csv', [('0.wav', 'a', start, 0.05)], fields)
  if overlaps:
    with pytest.raises(ValueError, match='must not overlap'):
      opened(train, valid)
  else:
    opened(train, valid)


@pytest.mark.parametrize('labels, found', [('', 'no labels'),
                                           ('a;b', '2 labels')])
def test_one_label_a_clip_means_one(corpus, labels, found):
  path = corpus('x.csv', [('0.wav', 'a'), ('1.wav', 'b'), ('2.wav', labels)],
                ('path', 'labels'))
  with pytest.raises(ValueError, match=(
      f'config.data.train: 2.wav has {found}, and labels.multilabel=False '
      'means one a clip')):
    opened(path)


def test_a_held_out_clip_has_one_label_too(corpus):
  train = corpus('train.csv', [('0.wav', 'a'), ('1.wav', 'b')])
  valid = corpus('valid.csv', [('2.wav', 'b'), ('3.wav', '')])
  with pytest.raises(ValueError, match=(
      'config.data.valid: 3.wav has no labels, and labels.multilabel=False')):
    opened(train, valid)


def test_no_labels_at_all_are_no_task(corpus):
  path = corpus('x.csv', [('0.wav', '')])
  with pytest.raises(ValueError, match='config.data.train has no labels, and '
                     'task classify needs them'):
    opened(path)


def test_another_number_of_classes_is_refused(corpus):
  path = corpus('x.csv', [('0.wav', 'a'), ('1.wav', 'b')])
  with pytest.raises(ValueError, match=(
      r"num_classes=527, and config.data.train has 2 classes \('a', 'b'\). Set "
      '-1 to take as many')):
    opened(path, num_classes=527)


def test_a_metric_that_the_labels_do_not_define_is_refused(corpus):
  path = corpus('x.csv', [('0.wav', 'a'), ('1.wav', 'b')])
  for metric, message in (('mAP', "'mAP' is for data with several"),
                          ('accuracy_top5', '2 classes: all are in the top 5')):
    labels = dataclasses.replace(SINGLE, metric=metric)
    with pytest.raises(ValueError, match=message):
      opened(path, labels=labels)


def test_changed_labels_are_another_data_set(corpus):
  rows = [('0.wav', 'a'), ('1.wav', 'b')]
  ids = []
  for labels in ('ab', 'ba', 'ac'):
    path = corpus('x.csv', [(row[0], label)
                            for row, label in zip(rows, labels)])
    _, data = opened(path)
    ids.append(opening.identity(data.train.source, labelled=True))
  assert len({found['labels'] for found in ids}) == 3
  assert len({found['names'] for found in ids}) == 1
  assert 'labels' not in opening.identity(data.train.source, labelled=False)


def test_nothing_to_train_on_is_said():
  with pytest.raises(ValueError, match='train.name is empty: say what to train'
                     ' on, one of folder'):
    opening.for_training(config.Config(), labelled=False)
