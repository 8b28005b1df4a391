"""In which order clips are taken: a function of the seed and the position.

Position q of a run belongs to epoch q // clips_per_epoch. Nothing else decides
which clip lies there, so any number of processes agree, and a resumed run goes
on at its step without drawing what came before.
"""

import collections
import itertools
import threading

from etils import epy
import numpy as np

from audio_mae_jax import config
from audio_mae_jax import registry
from audio_mae_jax.data import files

with epy.lazy_imports():  # slow to import
  import grain

_KEPT_EPOCHS = 2  # orders in memory: threads read ahead over an epoch's end


class Shuffle:
  """Every clip once an epoch."""

  def __init__(self, source: files.Source, cfg: config.Config):
    _refuse_settings_of_balanced(cfg.data)
    self.clips_per_epoch = len(source)
    self._order = grain.MapDataset.range(len(source)).seed(
        cfg.train.seed).shuffle().repeat()
    self._order[0]  # Grain sets itself up at first use, not safely in threads

  def __getitem__(self, position: int) -> int:
    return self._order[position]


class Balanced:
  """Clips of rare classes more often (paper, appendix B; AudioSet).

  A class weighs 1000 / (its clips + 0.01), a clip as much as its labels
  together (gen_weight.py of the released code). An epoch is
  `data.epoch_clips` draws by that weight, without replacement as the paper says
  (the released script meant to, but its flag reads 'False' as true).
  """

  def __init__(self, source: files.Source, cfg: config.Config):
    data, total = cfg.data, len(source)
    self.clips_per_epoch = data.epoch_clips or total
    if self.clips_per_epoch < 1:
      raise ValueError(f'config.data.epoch_clips={data.epoch_clips}; it takes '
                       '1 or more, or 0 for as many as there are clips.')
    weight = clip_weights(
        [source.labels_of(i) for i in range(total)], len(source.class_names))
    drawable = int((weight > 0).sum())
    if not drawable or (
        not data.replacement and self.clips_per_epoch > drawable):
      raise ValueError(
          f'config.data.epoch_clips={self.clips_per_epoch} of the {drawable} '
          'labelled clips there are cannot be drawn without replacement. Lower '
          'it, or set config.data.replacement=True.')
    self._seed, self._replacement = cfg.train.seed, data.replacement
    self._weight = weight
    self._epochs = collections.OrderedDict()
    self._lock = threading.Lock()

  def __getitem__(self, position: int) -> int:
    epoch, place = divmod(position, self.clips_per_epoch)
    with self._lock:
      if epoch not in self._epochs:
        self._epochs[epoch] = self._draw(epoch)
        while len(self._epochs) > _KEPT_EPOCHS:
          self._epochs.popitem(last=False)
      return int(self._epochs[epoch][place])

  def _draw(self, epoch):
    rng = np.random.default_rng((self._seed, epoch))
    if self._replacement:
      total = np.cumsum(self._weight)
      draws = rng.uniform(0, total[-1], self.clips_per_epoch)
      return np.searchsorted(total, draws, side='right').astype(np.int32)
    # Efraimidis and Spirakis, 2006: the largest u ** (1 / w), in this order,
    # are successive draws without replacement. As logarithms, which keep apart
    # what powers of tiny weights would round to 0.
    with np.errstate(divide='ignore'):
      key = rng.exponential(size=len(self._weight)) / self._weight
    drawn = np.argsort(key)[:self.clips_per_epoch].astype(np.int32)
    # Successive draws get ever less rare; an epoch should not.
    return rng.permutation(drawn)


def clip_weights(labels, num_classes: int) -> np.ndarray:
  """Labels of each clip -> its weight, float64 [n]; 0 for one without."""
  # At once, not clip by clip: AudioSet has two million.
  flat = np.fromiter(itertools.chain.from_iterable(labels), np.int64)
  clip = np.repeat(np.arange(len(labels)), [len(found) for found in labels])
  weight = 1000 / (np.bincount(flat, minlength=num_classes) + 0.01)
  return np.bincount(clip, weight[flat], minlength=len(labels))


def _refuse_settings_of_balanced(data):
  for name in ('epoch_clips', 'replacement'):
    if getattr(data, name):
      raise ValueError(
          f'config.data.{name}={getattr(data, name)} has no effect with '
          f"config.data.sampling='shuffle'; set config.data.sampling="
          "'balanced', or leave it out.")


SAMPLINGS = {'shuffle': Shuffle, 'balanced': Balanced}


def make(source: files.Source, cfg: config.Config) -> Shuffle | Balanced:
  """The order that `config.data.sampling` names, over the clips of `source`."""
  return registry.lookup(
      SAMPLINGS, cfg.data.sampling, 'config.data.sampling')(source, cfg)
