"""Which clips are alike: neighbours of a clip, and a map of all of them."""

from typing import NamedTuple

import numpy as np

from audio_mae_jax import pictures
from audio_mae_jax import registry
from audio_mae_jax.embed import formats

_PERPLEXITY = 30  # of t-SNE, at most


class Index(NamedTuple):
  """Embeddings of clips, to compare."""
  names: np.ndarray  # text [n]
  labels: np.ndarray  # text [n]; may be empty
  embeddings: np.ndarray  # float32 [n, D]
  settings: dict  # what made them

  @classmethod
  def read(cls, path) -> 'Index':
    """An output of `python -m audio_mae_jax.embed`.

    Raises:
      ValueError: it is none.
    """
    settings = formats.read_settings(path)
    rows = formats.read(path, cls._fields[:3])
    return cls(*(rows[name] for name in cls._fields[:3]), settings)

  def check(self, model, path):
    """Raises ValueError if `model` is not what made the index `path`."""
    if model.fingerprint != self.settings['fingerprint']:
      raise ValueError(
          f'{path} was made with other weights ({self.settings["checkpoint"]}) '
          'than these: name those with --checkpoint, or embed the clips again.')

  def nearest(self, query: np.ndarray, count: int
              ) -> list[tuple[float, str, str]]:
    """(similarity, name, label) of the clips most like `query` [D].

    Similarity is the cosine, -1 to 1, of standardised embeddings: what all
    clips have in common would make all of them alike.
    """
    known, asked = self._unit(self.embeddings), self._unit(query)
    scores = known @ asked
    order = np.argsort(-scores, kind='stable')[:count]
    return [(float(scores[i]), str(self.names[i]), str(self.labels[i]))
            for i in order]

  def _unit(self, x):
    return unit(standardized(x, self.embeddings))


def standardized(x: np.ndarray, known: np.ndarray) -> np.ndarray:
  """[..., D] by mean and deviation of `known` [n, D]."""
  return (x - known.mean(0)) / np.maximum(known.std(0), 1e-6)


def unit(x: np.ndarray) -> np.ndarray:
  """[..., D] of length 1."""
  return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def project(embeddings: np.ndarray, method: str = 'tsne') -> np.ndarray:
  """[n, D] -> [n, 2], the same for the same embeddings.

  Raises:
    ValueError: `method` is not known, or there are too few clips.
  """
  run = registry.lookup(METHODS, method, '--method')
  if len(embeddings) < 4:
    raise ValueError(
        f'A map takes 4 clips or more; the index has {len(embeddings)}.')
  import threadpoolctl
  # In one thread: where others use the cores, threads that wait for each other
  # take a hundred times as long.
  with threadpoolctl.threadpool_limits(1):
    return run(unit(standardized(embeddings, embeddings)))


def _tsne(x):
  from sklearn import manifold  # heavy, and needed by maps alone
  perplexity = min(_PERPLEXITY, (len(x) - 1) / 3)
  return manifold.TSNE(
      perplexity=perplexity, init='pca', random_state=0).fit_transform(x)


def _pca(x):
  from sklearn import decomposition
  return decomposition.PCA(2, random_state=0).fit_transform(x)


METHODS = {'tsne': _tsne, 'pca': _pca}
_TITLES = {'tsne': 't-SNE', 'pca': 'principal components'}


def plot(index: Index, path, method: str = 'tsne'):
  """A PNG at `path`: a point for each clip, coloured and named by its label."""
  pictures.scatter(
      project(index.embeddings, method), index.labels, path,
      title=f'{len(index.names):,} clips, {_TITLES[method]}')
