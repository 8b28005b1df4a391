"""Metrics against the released code's, scikit-learn's and plain counting."""

import goldens
import numpy as np
import pytest
from sklearn import metrics as sk

from audio_mae_jax import metrics


def random(n=60, classes=7, seed=0, multilabel=True):
  rng = np.random.default_rng(seed)
  scores = rng.normal(size=(n, classes)).round(1)  # with ties
  if multilabel:
    return scores, (rng.random((n, classes)) < 0.3).astype(int)
  return scores, np.eye(classes, dtype=int)[rng.integers(classes, size=n)]


def test_multilabel_metrics_equal_the_released_code():
  golden = goldens.read('metrics')
  found = metrics.multilabel_metrics(golden['scores'], golden['targets'])
  np.testing.assert_allclose(
      found.per_class['average_precision'], golden['AP'], rtol=1e-12)
  np.testing.assert_allclose(found.per_class['AUC'], golden['auc'], rtol=1e-12)
  for name, value in (('mAP', golden['mAP']), ('d_prime', golden['d_prime']),
                      ('AUC', golden['auc'].mean())):
    np.testing.assert_allclose(found.values[name], value, rtol=1e-12)


def test_a_class_without_positives_or_negatives_is_left_out():
  scores, targets = random()
  targets[:, 2], targets[:, 4] = 0, 1
  found = metrics.compute(scores, targets, multilabel=True)
  assert np.isnan(found.per_class['average_precision'][2])
  assert found.per_class['average_precision'][4] == pytest.approx(1)
  np.testing.assert_array_equal(
      np.isnan(found.per_class['AUC']), np.isin(np.arange(7), (2, 4)))
  others = [0, 1, 3, 5, 6]
  np.testing.assert_allclose(found.values['AUC'], sk.roc_auc_score(
      targets[:, others], scores[:, others]))
  np.testing.assert_allclose(found.values['mAP'], sk.average_precision_score(
      targets[:, [*others, 4]], scores[:, [*others, 4]]))
  np.testing.assert_array_equal(found.per_class['clips'], targets.sum(0))


def test_no_class_with_positives_gives_no_number():
  scores, targets = random()
  found = metrics.compute(scores, 0 * targets, multilabel=True)
  assert all(np.isnan(x) for x in found.values.values())


def test_single_label_metrics_equal_scikit_learns():
  scores, targets = random(n=300, classes=9, multilabel=False)
  scores += np.random.default_rng(1).normal(size=scores.shape) * 1e-3
  truth = targets.argmax(1)
  found = metrics.compute(scores, targets, multilabel=False)
  predicted = scores.argmax(1)
  expected = {
      'accuracy': sk.accuracy_score(truth, predicted),
      'balanced_accuracy': sk.balanced_accuracy_score(truth, predicted),
      'accuracy_top5': sk.top_k_accuracy_score(truth, scores, k=5)}
  assert found.values.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(found.values[name], value, err_msg=name)
  precision, recall, _, count = sk.precision_recall_fscore_support(
      truth, predicted)
  np.testing.assert_allclose(found.per_class['precision'], precision)
  np.testing.assert_allclose(found.per_class['recall'], recall)
  np.testing.assert_array_equal(found.per_class['clips'], count)


def test_ties_are_no_luck():
  """A model that says the same of all classes is not in the top 5 of many."""
  targets = np.eye(8, dtype=int)
  found = metrics.compute(np.zeros((8, 8)), targets, multilabel=False)
  assert found.values['accuracy'] == 1 / 8
  assert found.values['accuracy_top5'] == 0


def test_five_classes_have_no_top_five():
  scores, targets = random(classes=5, multilabel=False)
  assert 'accuracy_top5' not in metrics.compute(
      scores, targets, multilabel=False).values


@pytest.mark.parametrize('scores, targets, multilabel, message', [
    (np.zeros((3, 2)), np.zeros((2, 2)), True, r'\(3, 2\) and targets \(2, 2'),
    (np.zeros((0, 2)), np.zeros((0, 2)), True, 'of at least one clip'),
    (np.full((3, 2), np.nan), np.eye(3, 2), True,
     '3 of 3 clips are not finite .the first is row 0.'),
    (np.zeros((2, 2)), np.full((2, 2), 0.5), True, 'Targets must be 0 or 1'),
    (np.zeros((2, 2)), np.ones((2, 2)), False,
     '2 of 2 clips have no label or several.*multilabel=True'),
])
def test_what_has_no_metric_is_refused(scores, targets, multilabel, message):
  with pytest.raises(ValueError, match=message):
    metrics.compute(scores, targets, multilabel)


@pytest.mark.parametrize('multilabel, asked, message', [
    (False, 'mAP', "metric='mAP' is for data with several, and "
     'labels.multilabel=False says one label a clip. Give one of accuracy'),
    (True, 'accuracy', "'accuracy' is for data with one, and .*=True says "
     'several labels a clip. Give one of mAP'),
    (True, 'f1', "'f1' is not known. Give one of mAP, AUC, d_prime"),
])
def test_a_metric_of_other_labels_is_refused(multilabel, asked, message):
  with pytest.raises(ValueError, match=message):
    metrics.main_metric(multilabel, asked)


def test_the_usual_metric_needs_no_name():
  assert metrics.main_metric(True) == 'mAP'
  assert metrics.main_metric(False) == 'accuracy'
  assert metrics.main_metric(True, 'AUC') == 'AUC'
