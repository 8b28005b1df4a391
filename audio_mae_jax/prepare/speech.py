"""Readers of speech: Speech Commands 1 and 2, VoxCeleb1."""

import collections
import os

import soundfile

from audio_mae_jax.data import files
from audio_mae_jax.data import manifests
from audio_mae_jax.prepare import layout

_SPEECH = 'http://download.tensorflow.org/data/'
_VOXCELEB = 'https://www.robots.ox.ac.uk/~vgg/data/voxceleb/vox1.html'
_NOISE = '_background_noise_'
_UNKNOWN, _SILENCE = '_unknown_', '_silence_'
# In the order of SUPERB's keyword spotting.
_KEYWORDS = [
    'yes', 'no', 'up', 'down', 'left', 'right', 'on', 'off', 'stop', 'go',
    _SILENCE, _UNKNOWN]
_VALID_SILENCE = 10  # every tenth second of noise is for validation


def speech_commands_v2(place):
  """35 words, one second each."""
  home = layout.inside(place, 'speech_commands_v0.02')
  rows = _words(home, f'{_SPEECH}speech_commands_v0.02.tar.gz')
  return layout.Found(
      rows, {'train': 84_843, 'valid': 9_981, 'test': 11_005})


def speech_commands_v1(place):
  """12 classes: ten keywords, all other words, silence (SUPERB).

  Training and validation are those of the v0.01 archive, silence seconds of its
  background noise; the test set is the archive of its own.
  """
  archive = f'{_SPEECH}speech_commands_v0.01.tar.gz'
  home = layout.need(
      place, 'speech_commands_v0.01', 'the unpacked archive', archive)
  test = layout.need(
      place, 'speech_commands_test_set_v0.01', 'the unpacked test set',
      f'{_SPEECH}speech_commands_test_set_v0.01.tar.gz')
  rows = [manifests.Row(row.path, (_keyword(row.labels[0]),), row.split)
          for row in _words(home, archive) if row.split != 'test']
  rows += _seconds_of_noise(layout.need(
      home, _NOISE, 'the folder of background noise', archive))
  for path in files.walk(test):
    label = path.split('/')[0]
    rows.append(manifests.Row(
        os.path.join(test, path), (_keyword(label),), 'test'))
  return layout.Found(
      rows, {'train': 51_088, 'valid': 6_798, 'test': 3_081},
      _KEYWORDS, _KEYWORDS, finish=balance)


def balance(rows):
  """Rows of split train repeated until each class has half of `_unknown_`.

  Footnote to the paper's table 3. Repeats go round, so that no clip comes more
  than once more often than another.
  """
  classes = collections.defaultdict(list)
  for row in rows:
    if row.split == 'train':
      classes[row.labels[0]].append(row)
  wanted = len(classes[_UNKNOWN]) // 2
  repeats = [members[i % len(members)]
             for label, members in classes.items()
             for i in range(len(members), wanted)]
  return rows + repeats


def _keyword(word):
  return word if word in _KEYWORDS else _UNKNOWN


def _words(home, archive):
  """Rows of HOME/WORD/*.wav; two lists name what is not for training."""
  splits = {}
  for split, name in (('valid', 'validation_list.txt'),
                      ('test', 'testing_list.txt')):
    listed = layout.read_lines(
        layout.need(home, name, f'the list of {split} clips', archive))
    splits.update(dict.fromkeys(listed, split))
  # What is listed and not there is to be found missing.
  paths = sorted({path for path in files.walk(home)
                  if path.count('/') == 1} | set(splits))
  return [manifests.Row(os.path.join(home, path), (path.split('/')[0],),
                        splits.get(path, 'train'))
          for path in paths if not path.startswith(_NOISE)]


def _seconds_of_noise(folder):
  """Windows of one second, a tenth of them for validation."""
  rows = []
  for name in files.walk(folder):
    path = os.path.join(folder, name)
    try:
      length_s = int(soundfile.info(path).duration)
    except (OSError, RuntimeError):
      length_s = 1  # the check will say what is wrong
    for second in range(length_s):
      split = 'train' if (second + 1) % _VALID_SILENCE else 'valid'
      rows.append(manifests.Row(path, (_SILENCE,), split, '', second, 1.0))
  return rows


def voxceleb1(place):
  """Who speaks: 1,251 people, the split for identification."""
  listed = layout.need(
      place, 'iden_split.txt', 'the list of clips for identification',
      'https://www.robots.ox.ac.uk/~vgg/data/voxceleb/meta/iden_split.txt')
  audio = layout.need(place, 'wav', 'the folder of clips', _VOXCELEB)
  rows = []
  for line in layout.read_lines(listed):
    number, _, path = line.partition(' ')
    if number not in ('1', '2', '3') or not path:
      raise ValueError(
          f'{listed} has the line {line!r}; it takes 1, 2 or 3 and a path, '
          'e.g. "1 id10001/Y8hIVOBuels/00001.wav".')
    rows.append(manifests.Row(
        os.path.join(audio, path), (path.split('/')[0],),
        ('train', 'valid', 'test')[int(number) - 1]))
  return layout.Found(
      rows, {'train': 138_361, 'valid': 6_904, 'test': 8_251})
