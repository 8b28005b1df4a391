"""Which clips an epoch takes: balanced by label, and always the same."""

import dataclasses
import pathlib

import batching
import numpy as np
import pytest

from audio_mae_jax import config
from audio_mae_jax.data import files
from audio_mae_jax.data import sampling
from audio_mae_jax.data import sources

GOLDEN = np.load(
    pathlib.Path(__file__).parents[1] / 'golden' / 'sample_weights.npz')
COUNTS = (600, 60, 6)  # clips of each class


class Labelled(files.Source):
  """Clips that are only their labels."""
  title = 'labelled'

  def __init__(self, labels, num_classes):
    self.class_names = [f'class {c}' for c in range(num_classes)]
    self.num_files = len(labels)
    self._labels = labels

  def __len__(self):
    return len(self._labels)

  def labels_of(self, i):
    return self._labels[i]


def skewed():
  return Labelled(
      [(c,) for c, n in enumerate(COUNTS) for _ in range(n)], len(COUNTS))


def balanced(seed=0, **data):
  return config.Config(
      data=config.Data(sampling='balanced', **data),
      train=config.Train(seed=seed, batch_size=4))


def epoch(order, number):
  first = number * order.clips_per_epoch
  return [order[first + i] for i in range(order.clips_per_epoch)]


def test_weights_equal_the_released_codes():
  labels = [tuple(int(mid.removeprefix('/m/')) for mid in row.split(','))
            for row in GOLDEN['labels']]
  np.testing.assert_allclose(
      sampling.clip_weights(labels, 527), GOLDEN['sample_weight'], rtol=1e-12)


def test_an_epoch_without_replacement_has_no_clip_twice():
  order = sampling.make(skewed(), balanced(epoch_clips=200))
  first, second = epoch(order, 0), epoch(order, 1)
  assert len(set(first)) == 200 == len(set(second))
  assert set(first) != set(second)
  # All six of the rarest class, and most of the next.
  classes = np.bincount([skewed().labels_of(i)[0] for i in first])
  assert classes[2] == 6
  assert classes[1] > 50


def test_rare_clips_do_not_crowd_at_the_start_of_an_epoch():
  order = sampling.make(skewed(), balanced(epoch_clips=200))
  place = [i for e in range(20) for i, clip in enumerate(epoch(order, e))
           if clip >= 660]
  assert 80 < np.mean(place) < 120


def test_draws_with_replacement_follow_the_weights():
  source = skewed()
  order = sampling.make(
      source, balanced(epoch_clips=30000, replacement=True))
  drawn = np.array(epoch(order, 0))
  classes = np.bincount([source.labels_of(i)[0] for i in drawn]) / len(drawn)
  np.testing.assert_allclose(classes, 1 / 3, atol=0.015)
  # And evenly within a class.
  assert np.bincount(drawn[drawn < 600], minlength=600).max() < 50
  assert len(np.unique(drawn)) == 666


def test_the_first_draw_follows_the_weights_without_replacement_too():
  """One clip of three: its chance is its weight's share."""
  source = Labelled([(0,), (0,), (1,)], 2)
  order = sampling.make(source, balanced(epoch_clips=1))
  drawn = np.bincount([order[e] for e in range(4000)], minlength=3) / 4000
  weight = sampling.clip_weights([(0,), (0,), (1,)], 2)
  np.testing.assert_allclose(drawn, weight / weight.sum(), atol=0.03)


def test_order_is_a_function_of_seed_and_position():
  make = lambda seed: sampling.make(skewed(), balanced(seed, epoch_clips=50))
  positions = [0, 49, 50, 173, 3, 260, 0]
  one, other = make(1), make(1)
  expected = [one[p] for p in range(300)]
  assert [other[p] for p in positions] == [expected[p] for p in positions]
  assert [make(2)[p] for p in positions] != [expected[p] for p in positions]


def test_batches_are_the_same_for_any_number_of_processes_and_on_resume():
  data = config.Data(
      clip_s=0.1, num_threads=2, sampling='balanced', epoch_clips=10)
  cfg = dataclasses.replace(balanced(), data=data)
  source = sources.make(config.Source(name='synthetic', num_clips=16), data)
  whole = batching.train(source, cfg, 6)
  halves = [batching.train(source, cfg, 6, process_index=p, process_count=2)
            for p in (0, 1)]
  joined = [{name: np.concatenate([a[name], b[name]]) for name in a}
            for a, b in zip(*halves, strict=True)]
  batching.assert_equal(whole, joined)
  batching.assert_equal(whole[4:], batching.train(source, cfg, 2, start_step=4))


def test_clips_without_labels_are_never_drawn():
  source = Labelled([(0,), (), (1,), ()], 2)
  for replacement in (False, True):
    order = sampling.make(
        source, balanced(epoch_clips=2, replacement=replacement))
    assert {order[p] for p in range(60)} == {0, 2}


@pytest.mark.parametrize('data, message', [
    (dict(sampling='balanced', epoch_clips=667),
     'epoch_clips=667 of the 666 labelled clips .*replacement=True'),
    (dict(sampling='balanced', epoch_clips=-1), 'it takes 1 or more, or 0'),
    (dict(epoch_clips=5), "epoch_clips=5 has no effect with .*'shuffle'"),
    (dict(replacement=True), "replacement=True has no effect with"),
    (dict(sampling='weighted'), "sampling='weighted' is not known"),
])
def test_an_order_that_cannot_be_is_refused(data, message):
  with pytest.raises(ValueError, match=message):
    sampling.make(skewed(), config.Config(data=config.Data(**data)))


def test_no_labels_cannot_be_balanced():
  with pytest.raises(ValueError, match='of the 0 labelled clips'):
    sampling.make(Labelled([(), ()], 0), balanced())
