"""Recorded outputs of the released code; `golden/README.md` describes them."""

import pathlib

import numpy as np

FOLDER = pathlib.Path(__file__).parent / 'golden'


def read(*names: str) -> dict[str, np.ndarray]:
  """All arrays of golden/NAME.npz for each name, together."""
  arrays = {}
  for name in names:
    with np.load(FOLDER / f'{name}.npz') as found:
      arrays.update(found)
  return arrays


def under(arrays: dict, prefix: str) -> dict:
  """The entries whose names start with `prefix`, by the rest of the name."""
  return {name[len(prefix):]: array for name, array in arrays.items()
          if name.startswith(prefix)}


def table(name: str) -> list[list[str]]:
  """Rows of golden/NAME.tsv."""
  lines = (FOLDER / f'{name}.tsv').read_text().splitlines()
  return [line.split('\t') for line in lines if not line.startswith('#')]


def sample(array, limit: int = 256) -> np.ndarray:
  """At most `limit` elements of `array`, spread over all of it.

  Steps of a prime visit every row and column, so an error anywhere but in a few
  elements shows, at a fiftieth of the bytes.
  """
  flat = np.asarray(array).reshape(-1)
  if flat.size <= limit:
    return flat
  return flat[np.arange(limit) * 7919 % flat.size]
