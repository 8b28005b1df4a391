"""Sources from plain keywords, and what they list."""

import csv

from audio_mae_jax import config
from audio_mae_jax.data import sources


def make(name, root='', **fields):
  return sources.make(
      config.Source(name=name, **fields), config.Data(root=str(root)))


def ids(source):
  names = [item['id'] for item in map(source.__getitem__, range(len(source)))]
  assert names == [source.name_of(i) for i in range(len(source))]
  return names


def labels(source):
  return [tuple(source.class_names[i] for i in source[k]['labels'])
          for k in range(len(source))]


def write_csv(path, rows):
  with open(path, 'w', newline='') as file:
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
  return str(path)


def write_text(path, text):
  path.write_text(text)
  return str(path)
