"""The PyTorch side of benchmarks/ does the same work. Needs torch.

Losses, gradients, features and updates are compared in float32; both sides
round differently. What was reached stands beside the tolerances.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from audio_mae_jax import frontend
from audio_mae_jax import masking
from audio_mae_jax import optim
from audio_mae_jax import patches
from audio_mae_jax import tasks
from audio_mae_jax import trees
from audio_mae_jax.models import classifier
from benchmarks import work

torch = pytest.importorskip('torch')
torch_audio_mae = pytest.importorskip('benchmarks.torch_audio_mae')
torch_inputs = pytest.importorskip('benchmarks.torch_inputs')
torch_steps = pytest.importorskip('benchmarks.torch_steps')


def recipe(task, **settings):
  """The small size, without dropout: what is random differs."""
  parser = argparse.ArgumentParser()
  work.add_flags(parser)
  args = parser.parse_args(['--tiny', '--batch_size=3'])
  args.task, args.set = task, list(settings.items())
  return work.config(args)


def noisy(params):
  """Nothing at its initial zero or one, where much would look the same."""
  rng = np.random.default_rng(0)
  return jax.tree.map(
      lambda x: x + 0.1 * rng.standard_normal(x.shape, np.float32), params)


PIXELS = np.random.default_rng(1).standard_normal((3, 64, 256), np.float32)


def loss_and_gradients(task, params, inputs):
  return jax.jit(jax.value_and_grad(
      lambda params: task.losses(params, inputs)['loss'].mean()))(params)


def assert_gradients(model, gradients):
  gradients = trees.flatten(gradients)
  largest = max(np.abs(x).max() for x in gradients.values())
  for name, want in gradients.items():
    got = torch_audio_mae.ours(model)[name].grad.numpy()
    got = got.T if name.endswith('kernel') else got
    # A bias that all keys share has no gradient: what is left is rounding.
    np.testing.assert_allclose(
        got, want, rtol=0, err_msg=name,
        atol=2e-5 * np.abs(want).max() + 1e-8 * largest)


@functools.cache
def pretraining():
  config = recipe('pretrain')
  task = tasks.make(config)
  params = noisy(task.init(jax.random.key(0)))
  mask = task.draw_mask(jax.random.key(2), 3)
  return config, params, mask, *loss_and_gradients(
      task, params, {'patches': PIXELS, 'mask': mask})


@pytest.mark.parametrize('windows', torch_audio_mae.WINDOWS)
def test_pretraining_has_our_loss_and_gradients(windows):
  config, params, mask, loss, gradients = pretraining()
  model = torch_steps.model_of(config, windows).eval()
  torch_audio_mae.load(model, trees.flatten(params))
  order = np.concatenate([mask.keep_ids, mask.removed_ids], 1)
  got = model(torch.from_numpy(PIXELS), torch.from_numpy(order).long(),
              mask.keep_ids.shape[1])
  got.backward()
  assert got.item() == pytest.approx(float(loss), rel=1e-6)
  assert_gradients(model, gradients)


def test_fine_tuning_has_our_loss_and_gradients():
  config = recipe('finetune')
  task = tasks.make(config)
  params = noisy(task.init(jax.random.key(0)))
  labels = np.eye(3, work.CLASSES, dtype=np.float32)
  keep_ids = task.draw_kept(jax.random.key(2), 3)
  loss, gradients = loss_and_gradients(task, params, {
      'patches': PIXELS, 'labels': labels, 'keep_ids': keep_ids})

  model = torch_steps.model_of(config).eval()
  torch_audio_mae.load(model, trees.flatten(params))
  logits = model(
      torch.from_numpy(PIXELS), torch.from_numpy(np.array(keep_ids)).long())
  got = torch.nn.functional.binary_cross_entropy_with_logits(
      logits, torch.from_numpy(labels))
  got.backward()
  assert got.item() == pytest.approx(float(loss), rel=1e-6)
  assert_gradients(model, gradients)


def test_embeddings_are_ours():
  config = recipe('embedding')
  model = torch_steps.model_of(config).eval()
  mine = classifier.make(config)
  params = noisy(mine.init(jax.random.key(0), PIXELS, (8, 8))['params'])
  torch_audio_mae.load(model, trees.flatten(params))
  with torch.inference_mode():
    got = model(torch.from_numpy(PIXELS))
  np.testing.assert_allclose(
      got, mine.apply({'params': params}, PIXELS, (8, 8)), atol=1e-5)


@pytest.mark.parametrize('transform', ['fft', 'matmul'])
def test_features_are_ours(transform):
  config = recipe('front_end')
  audio = 0.1 * np.random.default_rng(0).standard_normal(
      (3, 20_800), np.float32)
  num_samples = np.array([20_800, 9_000, 300], np.int32)
  want = frontend.features(audio, num_samples, config.frontend)
  got = torch_inputs.Features(config.frontend, transform)(
      torch.from_numpy(audio), torch.from_numpy(num_samples))
  np.testing.assert_allclose(got, want, atol=1e-4)
  np.testing.assert_array_equal(
      torch_inputs.patchify(got, config.patch),
      patches.patchify(jnp.asarray(got.numpy()), config.patch))


@pytest.mark.parametrize('task', ['pretrain', 'finetune'])
def test_masks_keep_as_many_and_as_ours(task):
  config = recipe(task)
  order, num_keep = torch_inputs.draw_order(4, (8, 8), config.mask, 'cpu')
  ours = masking.make(jax.random.key(0), 4, (8, 8), config.mask)
  assert num_keep == ours.keep_ids.shape[1]
  np.testing.assert_array_equal(order.sort(1).values[0], np.arange(64))
  if task == 'finetune':
    for kept in order[:, :num_keep].numpy():
      rows, columns = np.unique(kept // 8), np.unique(kept % 8)
      assert len(rows) * len(columns) == num_keep
      assert (np.diff(kept) > 0).all()
  with pytest.raises(ValueError, match="'block' is not compared"):
    torch_inputs.draw_order(
        4, (8, 8), recipe('pretrain', **{'mask.name': 'block'}).mask, 'cpu')


def test_clips_are_rolled_mixed_and_labels_with_them():
  settings = recipe('finetune').augment
  torch.manual_seed(0)
  audio, num_samples = torch.randn(64, 500), torch.full((64,), 500)
  labels = torch.eye(64)
  out, mixed = torch_inputs.augment(audio, num_samples, labels, settings)
  torch.testing.assert_close(mixed.sum(1), torch.ones(64))
  both = (mixed > 0).sum(1)
  assert set(both.tolist()) == {1, 2}  # with probability a half
  clean = torch_inputs.remove_mean(audio, num_samples)
  alone = int(torch.nonzero(both == 1)[0])
  # Rolled and louder or softer: the same values but for a factor.
  ratio = out[alone].sort().values / clean[alone].sort().values
  torch.testing.assert_close(ratio, ratio[:1].expand(500), rtol=1e-3, atol=0)
  assert not torch.allclose(out[alone] / clean[alone], ratio)


@pytest.mark.parametrize('task', ['pretrain', 'finetune'])
def test_an_update_is_ours(task):
  config = recipe(task, **{'optimizer.weight_decay': 0.5})
  rng = np.random.default_rng(0)
  params = noisy(tasks.make(config).init(jax.random.key(0)))
  gradients = jax.tree.map(
      lambda x: rng.standard_normal(x.shape, np.float32), params)
  tx = optim.make(config.optimizer, lambda step: 0.1)
  updates, _ = tx.update(gradients, tx.init(params), params)
  want = trees.flatten(optax.apply_updates(params, updates))

  model = torch_audio_mae.load(
      torch_steps.model_of(config), trees.flatten(params))
  mine = torch_audio_mae.ours(model)
  for name, gradient in trees.flatten(gradients).items():
    mine[name].grad = torch.from_numpy(
        gradient.T.copy() if name.endswith('kernel') else gradient)
  optimizer = torch_steps.adamw(model, config.optimizer)
  torch_steps.set_rate(optimizer, 0.1)
  optimizer.step()
  for name, parameter in mine.items():
    got = parameter.detach().numpy()
    np.testing.assert_allclose(
        got.T if name.endswith('kernel') else got, want[name], atol=1e-5,
        err_msg=name)


def test_what_is_not_compared_is_refused():
  config = recipe('pretrain', **{'model.decoder.name': 'global'})
  with pytest.raises(ValueError, match='only the local decoder'):
    torch_steps.model_of(config)
  model = torch_steps.model_of(recipe('finetune'))
  with pytest.raises(ValueError, match='Not the same parameters'):
    torch_audio_mae.load(model, {})
