"""What the way forth of a step leaves for the way back, block by block."""

import jax
import jax.numpy as jnp
import pytest
import tiny

from audio_mae_jax import flops
from audio_mae_jax import tasks

WIDTH, DEPTH = 64, 6
SIZES = tiny.MODEL | {
    'model.dtype': 'bfloat16', 'model.attention': 'xla',
    'model.encoder.width': WIDTH,
    'model.encoder.depth': DEPTH, 'model.decoder.width': WIDTH,
    'model.decoder.depth': DEPTH}
# In widths, of each token: what qkv reads and gives, what attention gives, what
# fc1 reads and gives. And what norms read: in the local decoder the results of
# proj and fc2, elsewhere the tokens before each branch.
KEPT = 1 + 3 + 1 + 1 + 4 + 2


def kept_bytes(settings, clips):
  task = tasks.make(settings)
  n, p = task.grid[0] * task.grid[1], settings.patch.size
  inputs = {
      'patches': jax.ShapeDtypeStruct((clips, n, p[0] * p[1]), jnp.float32),
      'mask': jax.eval_shape(lambda: task.draw_mask(jax.random.key(0), clips))}
  params = jax.eval_shape(task.init, jax.random.key(0))

  def back(params, inputs):
    loss = lambda params: task.losses(
        params, inputs, jax.random.key(1))['loss'].mean()
    return jax.vjp(loss, params)[1]

  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(
      jax.eval_shape(back, params, inputs)))


@pytest.mark.parametrize('decoder', ['local', 'global'])
def test_products_and_what_they_read_are_kept_and_nothing_wider(decoder):
  """Each width more is 4 GB more for 512 clips in the released decoder."""
  settings = tiny.config(SIZES, {'model.decoder.name': decoder})
  kept = flops.kept(settings, (8, 8))
  tokens = 64 + (decoder == 'global') + 1 + kept
  want = jnp.dtype('bfloat16').itemsize * WIDTH * DEPTH * KEPT * tokens
  each = (kept_bytes(settings, 6) - kept_bytes(settings, 2)) / 4
  # Embeddings, heads and the loss are not counted.
  assert want < each < 1.08 * want


@pytest.mark.parametrize('scan', [
    pytest.param(False, marks=pytest.mark.slow), True])
def test_of_what_is_recomputed_the_products_are_kept_if_asked(scan):
  """`dots`: what qkv, proj, fc1 and fc2 give, beside the input of each block;
  `full`: the input alone."""
  settings = lambda remat: tiny.config(
      SIZES, {'model.remat': remat, 'model.scan_layers': scan})
  tokens = 64 + 1 + flops.kept(settings('none'), (8, 8))
  width = jnp.dtype('bfloat16').itemsize * WIDTH * DEPTH * tokens
  each = {remat: (kept_bytes(settings(remat), 6)
                  - kept_bytes(settings(remat), 2)) / 4
          for remat in ('none', 'dots', 'full')}
  assert each['full'] < 2 * width
  assert (3 + 1 + 4 + 1) * width < each['dots'] < 0.9 * each['none']
