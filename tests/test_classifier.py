"""The classifier against the released one, and what its settings refuse."""

import re

import exchange
import goldens
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
import tiny

from audio_mae_jax import patches
from audio_mae_jax import trees
from audio_mae_jax.convert import names
from audio_mae_jax.models import classifier


@pytest.fixture(scope='module')
def released(tmp_path_factory):
  """(golden, weights): the recorded classifier, imported."""
  return goldens.read('finetune'), exchange.finetuned(
      tmp_path_factory.mktemp('released'))


def test_the_classifier_equals_the_released_one(released):
  golden, weights = released
  config = weights.config
  assert config.task == 'classify'
  assert config.model.classifier.num_classes == 20
  spectrograms = jnp.asarray(golden['imgs'][:, 0])
  grid = patches.grid_of(spectrograms.shape[1:], config.patch)
  pixels = patches.patchify(spectrograms, config.patch)
  model = classifier.make(config)
  targets = jnp.asarray(golden['targets'])

  def loss(params):
    logits = model.apply({'params': params}, pixels, grid)
    return optax.sigmoid_binary_cross_entropy(logits, targets).mean(), logits

  params = reference.nest(weights.params)
  (value, logits), grads = jax.jit(
      jax.value_and_grad(loss, has_aux=True))(params)
  np.testing.assert_allclose(
      logits, golden['eval/logits'], rtol=0, atol=2e-6)
  np.testing.assert_allclose(value, golden['eval/bce_loss'], rtol=1e-6)
  want = goldens.under(golden, 'eval/grad/')
  ours = trees.flatten(grads)
  assert len(ours) == len(want) == 43
  for name, grad in ours.items():
    (theirs,), transform = names.RELEASED.find(name)
    grad = goldens.sample(transform.theirs(np.asarray(grad), config.patch)[0])
    largest = np.abs(want[theirs]).max()
    assert np.abs(grad - want[theirs]).max() < 1e-5 * largest + 1e-9, name


def test_without_a_head_the_output_is_the_pooled_embedding(released):
  golden, weights = released
  import dataclasses
  config = dataclasses.replace(weights.config, model=dataclasses.replace(
      weights.config.model, classifier=dataclasses.replace(
          weights.config.model.classifier, num_classes=0)))
  spectrograms = jnp.asarray(golden['imgs'][:, 0])
  grid = patches.grid_of(spectrograms.shape[1:], config.patch)
  params = {name: x for name, x in weights.params.items() if 'head' not in name}
  got = jax.jit(lambda params: classifier.make(config).apply(
      {'params': params}, patches.patchify(spectrograms, config.patch), grid))(
          reference.nest(params))
  np.testing.assert_allclose(
      got, golden['eval/pooled_fc_norm'], rtol=0, atol=5e-6)


def test_the_class_token_is_pooled_after_the_encoders_norm():
  config = tiny.config(tiny.MODEL, {
      'model.classifier.pool': 'class_token',
      'model.classifier.num_classes': 3})
  model = classifier.make(config)
  grid = (8, 8)
  pixels = jax.random.normal(jax.random.key(0), (2, 64, 128))
  params = model.init(jax.random.key(1), pixels, grid)['params']
  assert 'fc_norm' not in params and 'norm' in params['encoder']
  params['head']['kernel'] = jnp.ones_like(params['head']['kernel'])
  got = model.apply({'params': params}, pixels, grid)
  tokens = model.encoder.apply({'params': params['encoder']}, pixels, grid)
  np.testing.assert_allclose(
      got, np.tile(tokens[:, 0].sum(-1, keepdims=True), 3), atol=1e-5)


def test_the_head_starts_small_as_released():
  config = tiny.config(tiny.MODEL, {'model.classifier.num_classes': 500})
  model = classifier.make(config)
  params = model.init(
      jax.random.key(0), jnp.zeros((1, 64, 128)), (8, 8))['params']
  assert 1.8e-5 < params['head']['kernel'].std() < 2.2e-5
  assert not params['head']['bias'].any()
  assert set(params['encoder']) == {'patch_embed', 'cls_token', 'blocks'}


def test_bfloat16_is_for_the_encoder_only():
  config = tiny.config(tiny.MODEL, {
      'model.dtype': 'bfloat16', 'model.classifier.num_classes': 7})
  model = classifier.make(config)
  pixels = jax.random.normal(jax.random.key(0), (2, 64, 128))
  params = model.init(jax.random.key(1), pixels, (8, 8))['params']
  assert model.apply({'params': params}, pixels, (8, 8)).dtype == jnp.float32


@pytest.mark.parametrize('overrides, message', [
    ({'model.classifier.pool': 'max'},
     "model.classifier.pool='max' is not known: mean, class_token"),
    ({'model.classifier.num_classes': -1},
     'model.classifier.num_classes=-1: -1 means as many as the data has'),
])
def test_wrong_settings_are_refused(overrides, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    classifier.make(tiny.config(tiny.MODEL, overrides))
