"""How good scores are. NumPy in, plain numbers out; scikit-learn does the work.

Everything is computed from all clips of a split at once, in float64. A class
that no clip has defines no average precision, and one that none or all have no
AUC: it is left out of that mean.
"""

import dataclasses
import math

import numpy as np

MULTILABEL = ('mAP', 'AUC', 'd_prime')
SINGLE_LABEL = ('accuracy', 'accuracy_top5', 'balanced_accuracy')


@dataclasses.dataclass(frozen=True)
class Result:
  """Metrics of a split: in one number each, and by class."""
  values: dict[str, float]  # NaN where no class defines it
  per_class: dict[str, np.ndarray]  # [C] each; NaN where it is not defined


def main_metric(multilabel: bool, asked: str = '') -> str:
  """`asked`, or the usual one; ValueError if these labels do not define it."""
  known = MULTILABEL if multilabel else SINGLE_LABEL
  if not asked:
    return known[0]
  if asked in known:
    return asked
  kind, other = ('several labels a clip', 'one')
  if not multilabel:
    kind, other = ('one label a clip', 'several')
  elsewhere = asked in MULTILABEL + SINGLE_LABEL
  raise ValueError(
      f'labels.metric={asked!r} is '
      + (f'for data with {other}, and labels.multilabel={multilabel} says '
         f'{kind}. ' if elsewhere else 'not known. ')
      + f'Give one of {", ".join(known)}, or leave it empty for {known[0]!r}'
      + (', or correct labels.multilabel.' if elsewhere else '.'))


def compute(scores, targets, multilabel: bool) -> Result:
  """The metrics of `multilabel` or single-label data; arguments as below."""
  return (multilabel_metrics if multilabel else single_label_metrics)(
      scores, targets)


def multilabel_metrics(scores, targets) -> Result:
  """[n, C] scores (any monotonic scale), [n, C] 0/1 targets.

  mAP and AUC are unweighted means over classes, d' belongs to the mean AUC
  (util/stat.py of the released code, which fails where a class is empty).
  """
  # Heavy, and of no use to a run that does not evaluate.
  from scipy import stats
  from sklearn import metrics

  scores, targets = _checked(scores, targets)
  positives = targets.sum(0)
  precision = np.full(targets.shape[1], np.nan)
  auc = np.full(targets.shape[1], np.nan)
  for c in np.flatnonzero(positives):
    precision[c] = metrics.average_precision_score(
        targets[:, c], scores[:, c])
    if positives[c] < len(targets):
      auc[c] = metrics.roc_auc_score(targets[:, c], scores[:, c])
  mean_auc = _mean(auc)
  return Result(
      {'mAP': _mean(precision), 'AUC': mean_auc,
       'd_prime': math.sqrt(2) * float(stats.norm.ppf(mean_auc))},
      {'clips': positives, 'average_precision': precision, 'AUC': auc,
       'd_prime': math.sqrt(2) * stats.norm.ppf(auc)})


def single_label_metrics(scores, targets) -> Result:
  """[n, C] scores, [n, C] targets with a single 1 in each row; shares of clips.

  Top-5 is left out where there are not more than 5 classes. Of equal scores,
  the class that comes first is predicted; in the top 5, a tie counts against.
  """
  scores, targets = _checked(scores, targets)
  if (targets.sum(1) != 1).any():
    wrong = int((targets.sum(1) != 1).sum())
    raise ValueError(
        f'{wrong} of {len(targets)} clips have no label or several, and '
        'labels.multilabel=False means one a clip: correct the labels, or set '
        'labels.multilabel=True.')
  truth = targets.argmax(1)
  right = scores.argmax(1) == truth
  clips = targets.sum(0)
  predicted = np.bincount(scores.argmax(1), minlength=targets.shape[1])
  hits = np.bincount(truth[right], minlength=targets.shape[1])
  with np.errstate(invalid='ignore'):
    recall, precision = hits / clips, hits / predicted
  values = {'accuracy': float(right.mean()),
            'balanced_accuracy': _mean(recall)}
  if targets.shape[1] > 5:
    own = scores[np.arange(len(truth)), truth]
    ahead = (scores >= own[:, None]).sum(1) - 1
    values['accuracy_top5'] = float((ahead < 5).mean())
  return Result(
      values, {'clips': clips, 'recall': recall, 'precision': precision})


def _checked(scores, targets):
  scores, targets = np.asarray(scores, np.float64), np.asarray(targets)
  if scores.shape != targets.shape or scores.ndim != 2 or not len(scores):
    raise ValueError(
        f'Scores {scores.shape} and targets {targets.shape} must both be '
        '[clips, classes], of at least one clip.')
  if not np.isfinite(scores).all():
    rows = np.flatnonzero(~np.isfinite(scores).all(1))
    raise ValueError(
        f'The scores of {len(rows)} of {len(scores)} clips are not finite '
        f'(the first is row {rows[0]}): the weights have diverged.')
  if not np.isin(targets, (0, 1)).all():
    raise ValueError('Targets must be 0 or 1; for metrics, labels are whole.')
  return scores, targets.astype(np.int64)


def _mean(values):
  """Over the classes that define it."""
  defined = values[~np.isnan(values)]
  return float(defined.mean()) if len(defined) else math.nan
