"""Readers of sets of everyday sounds: AudioSet, ESC-50, FSD50K."""

import csv
import os

from audio_mae_jax import registry
from audio_mae_jax.data import files
from audio_mae_jax.data import manifests
from audio_mae_jax.prepare import layout

_AUDIOSET = 'https://research.google.com/audioset/download.html'
_ESC50 = 'https://github.com/karolpiczak/ESC-50'
_FSD50K = 'https://zenodo.org/records/4060432'
_ID_LENGTH = 11  # characters of a YouTube id
_SEGMENTS = {  # split: its name in the files, clips in its list
    'balanced': ('balanced_train', 22_160),
    'unbalanced': ('unbalanced_train', 2_041_789),
    'eval': ('eval', 20_371),
}


def audioset(place):
  """Segments lists of YouTube ids, and what could be downloaded of them.

  A split whose folder audio/SPLIT does not exist is left out.
  """
  ids, names = manifests.read_classes(layout.need(
      place, 'class_labels_indices.csv', 'the class table', _AUDIOSET))
  rows, absent = [], []
  for split, (name, _) in _SEGMENTS.items():
    folder = os.path.join(place, 'audio', name)
    if not os.path.isdir(folder):
      absent.append(name)
      continue
    segments = layout.need(
        place, f'{name}_segments.csv', f'the list of {split} clips', _AUDIOSET)
    audio = _by_youtube_id(folder)
    for youtube_id, labels in _segments(segments):
      path = audio.get(youtube_id, f'{youtube_id}.wav')
      rows.append(manifests.Row(
          os.path.join(folder, path), tuple(labels), split))
  if not rows:
    raise FileNotFoundError(
        f'No clips under {place}/audio: looked for the folders '
        f'{", ".join(name for name, _ in _SEGMENTS.values())} with files named '
        'YTID.wav, YYTID.wav or YTID_START.wav (or .flac, ...). '
        f'{_AUDIOSET} has the lists only; see docs/data.md.')
  note = absent and ('Left out, for want of a folder: '
                     f'{", ".join(f"audio/{name}" for name in absent)}.')
  return layout.Found(
      rows, {split: count for split, (_, count) in _SEGMENTS.items()},
      ids, names, train=('balanced', 'unbalanced'), note=note or '')


def _segments(path):
  """(YouTube id, labels) of each line: id, start, end, "label,label"."""
  with open(path, encoding='utf-8', newline='') as file:
    lines = (line for line in file if not line.startswith('#'))
    for entry in csv.reader(lines, skipinitialspace=True):
      if len(entry) != 4:
        raise ValueError(
            f'{path} has the line {entry}; it takes YTID, start, end, '
            '"labels". Is it the file as published?')
      yield entry[0], entry[3].split(',')


def _by_youtube_id(folder):
  """Audio files by YouTube id: ID.wav, YID.wav (PANNs) or ID_START.wav."""
  found = {}
  for path in files.walk(folder):
    stem = os.path.splitext(os.path.basename(path))[0]
    if len(stem) == _ID_LENGTH + 1 and stem[0] == 'Y':
      stem = stem[1:]
    found[stem[:_ID_LENGTH]] = path
  return found


_ESC_SUBSETS = {'': (2000, None), 'esc10': (400, 'esc10')}


def esc50(place, *, subset):
  """Five folds, no splits; `subset` 'esc10' is its small brother."""
  count, column = registry.lookup(_ESC_SUBSETS, subset, 'subset')
  home = layout.inside(place, 'ESC-50-master')
  table = layout.read_csv(
      layout.need(home, 'meta/esc50.csv', 'the list of clips', _ESC50),
      ('filename', 'fold', 'target', 'category', 'esc10'))
  audio = layout.need(home, 'audio', 'the folder of clips', _ESC50)
  table = [e for e in table if not column or e[column] == 'True']
  classes = dict(sorted(
      {int(e['target']): e['category'] for e in table}.items()))
  rows = [manifests.Row(os.path.join(audio, e['filename']), (e['category'],),
                        fold=e['fold']) for e in table]
  names = list(classes.values())
  return layout.Found(rows, {'': count}, names, names, train=())


def fsd50k(place):
  """Freesound clips of up to 30 s with several labels each."""
  truth = layout.need(
      place, 'FSD50K.ground_truth', 'the folder of labels', _FSD50K)
  with open(layout.need(truth, 'vocabulary.csv', 'the class table', _FSD50K),
            encoding='utf-8', newline='') as file:  # index, name, id
    vocabulary = sorted(csv.reader(file), key=lambda entry: int(entry[0]))
  rows, names = [], {'train': 'train', 'val': 'valid', None: 'test'}
  for part in ('dev', 'eval'):
    folder = layout.need(
        place, f'FSD50K.{part}_audio', 'a folder of clips', _FSD50K)
    table = layout.read_csv(
        layout.need(truth, f'{part}.csv', 'a list of clips', _FSD50K),
        ('fname', 'mids', 'split') if part == 'dev' else ('fname', 'mids'))
    for e in table:
      rows.append(manifests.Row(
          os.path.join(folder, f'{e["fname"]}.wav'),
          tuple(e['mids'].split(',')), names[e.get('split')]))
  return layout.Found(
      rows, {'train': 36_796, 'valid': 4_170, 'test': 10_231},
      [entry[2] for entry in vocabulary], [entry[1] for entry in vocabulary])
