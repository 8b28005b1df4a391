"""Small classifiers on the features of a frozen encoder.

Each takes features of labelled clips and gives scores [clips, C] of others, the
same ones for the same seed. `linear` and `knn` read the last block's mean over
the patches, `gated` the means of all blocks, `attentive` the last block's
patches. To add one: a function, an entry in `PROBES`, a test, a line in
docs/probes.md.
"""

import functools
import logging

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from audio_mae_jax import config as config_lib
from audio_mae_jax import features as features_lib
from audio_mae_jax import metrics
from audio_mae_jax import registry

_log = logging.getLogger(__name__)

TOKENS = ('attentive',)  # kinds that read patches
ONLINE = ('linear', 'knn')  # kinds that cost a training little

# Of linear, to choose from.
_INVERSE_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
_HELD_OUT = 5  # one of so many training clips serves to choose
_ROWS = 1024  # clips that are compared with all others at a time
_CHUNK_BYTES = 2**29  # of an epoch, on the device at a time


def check(settings: config_lib.Probe, kinds: tuple[str, ...], where: str):
  """Raises ValueError if `kinds` cannot be fitted with `settings`."""
  if not kinds:
    raise ValueError(f'{where} is empty; choose of {", ".join(PROBES)}.')
  for kind in kinds:
    registry.lookup(PROBES, kind, where)
  for name in ('neighbours', 'epochs', 'batch_size'):
    if getattr(settings, name) < 1:
      raise ValueError(f'config.probe.{name}={getattr(settings, name)} must be '
                       '1 or more.')
  if settings.learning_rate <= 0 or settings.weight_decay < 0:
    raise ValueError(
        f'config.probe.learning_rate={settings.learning_rate} must be positive '
        f'and weight_decay={settings.weight_decay} not negative.')


def linear(train, test, settings, multilabel, seed):
  """Logistic regression, of one class against the rest if `multilabel`.

  The penalty is chosen on a fifth of the training clips, by mAP or accuracy.
  """
  del settings
  from sklearn import preprocessing  # heavy, and needed by probes alone

  scaler = preprocessing.StandardScaler().fit(_last(train))
  x = scaler.transform(_last(train))
  held = held_out(train.targets, seed)
  metric = metrics.main_metric(multilabel)
  chosen, best = _INVERSE_PENALTIES[0], -1.0
  for c in _INVERSE_PENALTIES if held.any() else ():
    scores = _logistic(
        x[~held], train.targets[~held], x[held], c, multilabel)
    value = metrics.compute(
        scores, train.targets[held], multilabel).values[metric]
    if value > best:  # of equals, the one with the larger penalty
      chosen, best = c, value
  _log.debug('linear: inverse penalty %g (%s %.4f on held-out training clips).',
             chosen, metric, best)
  return _logistic(x, train.targets, scaler.transform(_last(test)), chosen,
                   multilabel)


def knn(train, test, settings, multilabel, seed):
  """Votes of the nearest training clips by cosine, weighted by 1 / distance.

  Features are standardised: else what all clips have in common, most of the
  vector, makes all of them neighbours.
  """
  del multilabel, seed
  count = settings.neighbours
  if count > len(train.index):
    raise ValueError(
        f'config.probe.neighbours={count}, and there are {len(train.index)} '
        'training clips: ask for fewer.')
  known, asked = (x[:, -1] for x in _standardized(train, test))
  unit = lambda x: x / np.maximum(np.linalg.norm(x, axis=1), 1e-12)[:, None]
  known, asked = unit(known), unit(asked)
  scores = []
  for start in range(0, len(asked), _ROWS):
    distance = 1 - asked[start:start + _ROWS] @ known.T
    near = np.argsort(distance, axis=1, kind='stable')[:, :count]
    weight = 1 / np.maximum(np.take_along_axis(distance, near, 1), 1e-6)
    votes = (weight[..., None] * train.targets[near]).sum(1)
    scores.append(votes / weight.sum(1, keepdims=True))
  return np.concatenate(scores)


class Attentive(nn.Module):
  """[B, N, D] -> [B, C]: a learnt query per head attends over the patches.

  As attention with one query per head: its projection of keys is part of the
  query, and values are projected after they are summed, which is the same.
  """
  heads: int
  classes: int

  @nn.compact
  def __call__(self, tokens):
    tokens = tokens.astype(jnp.float32)
    width = tokens.shape[-1]
    query = self.param('query', nn.initializers.zeros, (self.heads, width))
    weights = jax.nn.softmax(
        jnp.einsum('bnd,hd->bhn', tokens, query) * width ** -0.5)
    pooled = jnp.einsum('bhn,bnd->bhd', weights, tokens)
    value = self.param(
        'value', nn.initializers.lecun_normal(batch_axis=0),
        (self.heads, width, width // self.heads))
    x = jnp.einsum('bhd,hdk->bhk', pooled, value).reshape(len(tokens), width)
    return nn.Dense(self.classes, name='head')(nn.LayerNorm(name='norm')(x))


class Gated(nn.Module):
  """[B, depth, D] -> [B, C]: a learnt mixture of the blocks, then linear."""
  classes: int

  @nn.compact
  def __call__(self, means):
    # AdamW moves each number by about its rate a step: times ten, a gate can
    # open and close within the epochs that there are.
    gates = jax.nn.softmax(10 * self.param(
        'gates', nn.initializers.zeros, (means.shape[1],)))
    return nn.Dense(self.classes, name='head')(
        jnp.einsum('bld,l->bd', means, gates))


def attentive(train, test, settings, multilabel, seed):
  """Attention over the patches, trained; see `Attentive`."""
  width = train.tokens.shape[-1]
  heads = max(h for h in (1, 2, 4, 8) if width % h == 0)
  return _trained(
      Attentive(heads, train.targets.shape[1]), train.tokens, train.targets,
      test.tokens, settings, multilabel, seed)


def gated(train, test, settings, multilabel, seed):
  """A mixture of all blocks, trained; see `Gated`."""
  known, asked = _standardized(train, test)
  return _trained(Gated(train.targets.shape[1]), known, train.targets, asked,
                  settings, multilabel, seed)


# (train Features, test Features, settings, multilabel, seed) -> [n_test, C]
PROBES = {
    'linear': linear, 'knn': knn, 'attentive': attentive, 'gated': gated}


def held_out(targets, seed) -> np.ndarray:
  """bool [n]: a fifth of the clips of each class, drawn by `seed`.

  A clip counts for the rarest of its labels. Of two to four clips it is one; a
  class that has a single clip keeps it.
  """
  # Clips without a label are a class of their own.
  rarity = np.where(targets > 0, targets.sum(0), np.inf)
  stratum = np.where(targets.any(1), rarity.argmin(1), -1)
  rng = np.random.default_rng(seed)
  held = np.zeros(len(targets), bool)
  for c in np.unique(stratum):
    rows = rng.permutation(np.flatnonzero(stratum == c))
    held[rows[:max(len(rows) // _HELD_OUT, int(len(rows) > 1))]] = True
  return held


def _last(features: features_lib.Features):
  return features.means[:, -1].astype(np.float64)


def _standardized(train, test):
  """Means of both, float32 [n, depth, D], by mean and deviation of `train`."""
  mean, std = train.means.mean(0), train.means.std(0)
  return tuple((x.means - mean) / np.maximum(std, 1e-6) for x in (train, test))


def _logistic(x, targets, asked, c, multilabel):
  """Scores of `asked` by logistic regression on `x`, with inverse penalty c."""
  from sklearn import linear_model
  import threadpoolctl

  def fit(y):
    # In one thread: the result does not depend on how many cores there are, and
    # where others use them, threads that wait for each other take a hundred
    # times as long.
    with threadpoolctl.threadpool_limits(1):
      return linear_model.LogisticRegression(C=c, max_iter=2000).fit(x, y)

  scores = np.zeros((len(asked), targets.shape[1]))
  if not multilabel:
    model = fit(targets.argmax(1))
    found = model.decision_function(asked)
    if found.ndim == 1:  # two classes: that of the second
      found = np.stack([-found, found], axis=1)
    scores[:] = found.min() - 1  # a class without a readable clip
    scores[:, model.classes_] = found
    return scores
  for k, y in enumerate(targets.T):
    if y.min() != y.max():  # else there is nothing to tell apart
      scores[:, k] = fit(y).decision_function(asked)
  return scores


def _optimizer(settings, steps):
  return optax.adamw(
      optax.cosine_decay_schedule(settings.learning_rate, steps),
      weight_decay=settings.weight_decay)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _start(module, settings, steps, key, x):
  """(parameters, optimizer's state), fresh."""
  params = module.init(key, x)['params']
  return params, _optimizer(settings, steps).init(params)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=4)
def _epoch(module, settings, steps, multilabel, state, x, y):
  """(parameters, optimizer's state) after the batches [steps, B, ...]."""
  tx = _optimizer(settings, steps)
  loss_of = (optax.sigmoid_binary_cross_entropy if multilabel
             else optax.softmax_cross_entropy)

  def step(state, batch):
    params, opt_state = state
    x, y = batch
    grads = jax.grad(lambda params: loss_of(
        module.apply({'params': params}, x), y).mean())(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), None

  return jax.lax.scan(step, state, (x, y))[0]


_apply = jax.jit(
    lambda module, params, x: module.apply({'params': params}, x),
    static_argnums=0)


def _trained(module, x, targets, asked, settings, multilabel, seed):
  """Scores of `asked` by `module`, trained on `x`."""
  size = min(settings.batch_size, len(x))
  per_epoch = len(x) // size
  steps = settings.epochs * per_epoch
  state = _start(module, settings, steps, jax.random.key(seed), x[:1])
  # As many batches as fit on the device: features of many clips lie on disk.
  most = max(1, int(_CHUNK_BYTES // (size * x[0].nbytes)))
  for epoch in range(settings.epochs):
    order = np.random.default_rng((seed, epoch)).permutation(len(x))
    order = order[:per_epoch * size].reshape(per_epoch, size)
    for start in range(0, per_epoch, most):
      rows = order[start:start + most]
      state = _epoch(module, settings, steps, multilabel, state, x[rows],
                     targets[rows].astype(np.float32))
  return np.concatenate([
      np.asarray(_apply(module, state[0], asked[i:i + size]))
      for i in range(0, len(asked), size)])
