"""Data sets as they are downloaded, in miniature."""

import numpy as np
import soundfile


def tone(path, seconds=0.05, rate_hz=16000):
  """A file of noise whose loudness its name decides."""
  path.parent.mkdir(parents=True, exist_ok=True)
  rng = np.random.default_rng(list(path.name.encode()))
  soundfile.write(path, rng.uniform(-0.5, 0.5) * rng.normal(
      size=round(seconds * rate_hz)), rate_hz, format='WAV', subtype='FLOAT')


def text(path, content):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(content)


def write_esc50(root):
  home = root / 'esc50/ESC-50-master'
  rows = ['filename,fold,target,category,esc10,src_file,take']
  for fold in (1, 2):
    for target, category, ten in ((1, 'rooster', True), (2, 'pig', False)):
      name = f'{fold}-{category}.wav'
      rows.append(f'{name},{fold},{target},{category},{ten},1,A')
      tone(home / 'audio' / name)
  text(home / 'meta/esc50.csv', '\n'.join(rows) + '\n')
  return home


def write_words(home, words, valid, test, noise_s=0):
  for path in words:
    tone(home / path)
  text(home / 'validation_list.txt', '\n'.join(valid) + '\n')
  text(home / 'testing_list.txt', '\n'.join(test) + '\n')
  tone(home / '_background_noise_/hum.wav', noise_s or 0.1)


def write_speech_commands_v1(root):
  """Six clips of other words, ten windows of noise, two keywords."""
  home = root / 'speech_commands_v1'
  unknown = [f'cat/{i}.wav' for i in range(5)] + ['dog/a.wav']
  write_words(home / 'speech_commands_v0.01',
              [*unknown, 'yes/a.wav', 'yes/b.wav', 'go/a.wav', 'go/t.wav'],
              ['yes/b.wav'], ['go/t.wav'], noise_s=11.5)
  for label in ('yes', '_unknown_', '_silence_'):
    tone(home / f'speech_commands_test_set_v0.01/{label}/t.wav')


def write_audioset(root):
  home = root / 'audioset'
  text(home / 'class_labels_indices.csv',
       'index,mid,display_name\n0,/m/a,Speech\n1,/m/b,"Bark, dog"\n')
  head = '# Segments csv\n# num_ytids=3\n# YTID, start_seconds, end_seconds\n'
  text(home / 'balanced_train_segments.csv', head
       + '--aaaaaaaaa, 0.000, 10.000, "/m/a,/m/b"\n'
       + 'Ybbbbbbbbbb, 1.000, 11.000, "/m/b"\n'
       + 'ccccccccccc, 1.000, 11.000, "/m/b"\n')
  text(home / 'eval_segments.csv', head
       + 'ddddddddddd, 0.000, 10.000, "/m/a"\n')
  for name in ('balanced_train/Y--aaaaaaaaa.wav',
               'balanced_train/a/Ybbbbbbbbbb.wav',
               'eval/ddddddddddd_30.000.wav'):
    tone(home / 'audio' / name)
  return home


def write_voxceleb1(root):
  home = root / 'voxceleb1'
  paths = ['id1/x/1.wav', 'id1/y/1.wav', 'id2/x/1.wav', 'id2/x/2.wav']
  for path in paths:
    tone(home / 'wav' / path)
  text(home / 'iden_split.txt', ''.join(
      f'{number} {path}\n' for number, path in zip((1, 3, 1, 2), paths)))
  return home
