"""A small corpus, and `prepare records` on it, for tests."""

import csv
import json

import numpy as np
import pytest
import soundfile

from audio_mae_jax import config as config_lib
from audio_mae_jax.data import audio_io
from audio_mae_jax.data import sources
from audio_mae_jax.prepare import __main__ as command


def sound(path, seed, seconds=0.1, rate_hz=16000, channels=1, scale=0.1,
          **keywords):
  rng = np.random.default_rng(seed)
  samples = np.clip(rng.normal(0, scale, (round(seconds * rate_hz), channels)),
                    -1.5, 1.5)
  soundfile.write(path, samples, rate_hz, **keywords)


def corpus(place):
  """A manifest of seven clips in splits and folds, in several formats."""
  place.mkdir()
  rows = [('path', 'labels', 'split', 'fold', 'start_s', 'duration_s')]
  for i in range(5):
    sound(place / f'{i}.wav', i, seconds=0.1 + 0.01 * i)
    rows.append((f'{i}.wav', 'ab'[i % 2], 'train', i % 2, '', ''))
  sound(place / 'stereo.flac', 9, rate_hz=44100, channels=2)
  rows.append(('stereo.flac', 'a;b', 'valid', 1, '', ''))
  rows.append(('1.wav', 'b', 'valid', 0, 0.05, 0.04))
  with open(place / 'manifest.csv', 'w', newline='') as file:
    csv.writer(file).writerows(rows)
  return place


def convert(place, output, *options, source='manifest'):
  path = place / 'manifest.csv' if source == 'manifest' else place
  command.main(['records', '--source', source, '--path', str(path),
                '--output', str(output), *options])
  return json.loads((output / 'index.json').read_text())


def opened(name, path, **fields):
  return sources.make(config_lib.Source(name=name, path=str(path), **fields),
                      config_lib.Data())


def load(source, i, **keywords):
  keywords = {'num_samples': 10**6, 'crop': 'start'} | keywords
  return audio_io.load(
      source[i], sample_rate_hz=16000, rng=np.random.default_rng(0), **keywords)


def content(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def refuse(capsys, *arguments, **keywords):
  with pytest.raises(SystemExit) as stop:
    convert(*arguments, **keywords)
  assert stop.value.code == 1
  said = capsys.readouterr().err
  assert said.startswith('\nerror: ')
  return said
