"""The model against implementations in PyTorch that others published.

Needs the extra [torch]. `peers.AudioMAE` is put together from timm's parts; the
recordings of the released code show that it is the released model, and then it
answers what was not recorded. timm's VisionTransformer and transformers'
ViTMAEForPreTraining are compared as they are.

Both sides compute in float32 and round differently: tolerances are a few times
what was reached, which stands beside them.
"""

import functools
import re

import compare
import goldens
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
import tiny

from audio_mae_jax import optim
from audio_mae_jax import patches
from audio_mae_jax import trees
from audio_mae_jax.models import mae

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
peers = pytest.importorskip('peers')  # and with it timm

OUTPUT = 4096  # elements that a golden file keeps of an activation
LOCAL = ('local', 'local_params_0', 'local_params_1')


@functools.cache
def recorded(*files):
  """-> arrays of golden/, and our tree of the parameters among them."""
  golden = goldens.read(*files)
  return golden, reference.nest(goldens.under(golden, 'param/'))


def peer_of(settings, params, shape):
  peer = peers.AudioMAE(settings, shape)
  return peer.load(compare.to_released(params, peer.shapes()))


def assert_gradients(got, want, local=False):
  """Within so much of each one's maximum; zeros within 1e-7 of the largest.

  5e-7 was reached, and 2e-5 with 16 local blocks, whose gradients lose digits:
  there the peer itself is 3e-5 from its result in float64, ours 1e-5.
  """
  errors, zeros = compare.gradient_errors(got, want, local)
  for name, error in errors.items():
    assert error < (6e-5 if local else 2e-6), name
  assert zeros < 1e-7  # 7e-9


@pytest.mark.parametrize('decoder, depth, table', [
    ('local', 16, 'pretrain_keys'), ('global', 8, 'pretrain_global_keys')])
def test_the_peer_has_the_released_tensors_and_decay(decoder, depth, table):
  settings = tiny.config({
      'model.decoder.name': decoder, 'model.decoder.depth': depth})
  with torch.device('meta'):  # shapes only
    peer = peers.AudioMAE(settings, (1024, 128))
  assert peer.shapes() == {
      name: tuple(map(int, shape.split('x')))
      for name, shape, *_ in goldens.table(table)}
  decay = {id(parameter): group['weight_decay'] for group in peers.adamw(
      peer, settings.optimizer, 1.0).param_groups
           for parameter in group['params']}
  for name, _, released in goldens.table('pretrain_decay_groups'):
    if name in peer.released():
      ours = decay.get(id(peer.released()[name]), 'frozen')
      assert str(ours) == released, name


# Files, sizes, overrides; prefix of the outputs, weights of the losses, and
# prefix of the gradients.
RECORDED = {
    'local': (LOCAL, tiny.LOCAL, {}, 'random80/', None, ''),
    'local_raw': (
        LOCAL, tiny.LOCAL, {},
        'normpix_off/', compare.RAW, 'normpix_off/grad/'),
    'local_unshifted': (
        LOCAL, tiny.LOCAL, {'model.decoder.shift': (0, 0)},
        'no_shift/', compare.NORMALIZED, 'no_shift/grad/'),
    'global': (
        ('global',), tiny.GLOBAL, {}, '', compare.NORMALIZED, 'grad/'),
    'global_raw': (
        ('global',), tiny.GLOBAL, {}, '', compare.RAW, 'normpix_off/grad/'),
}


@pytest.mark.parametrize('variant', RECORDED)
def test_the_peer_is_the_released_model(variant):
  files, base, overrides, prefix, weights, gradients = RECORDED[variant]
  golden, params = recorded(*files)
  settings = tiny.config(base, overrides)
  peer = peer_of(settings, params, golden['spectrograms'].shape[1:])
  result = peers.run(
      peer, golden['spectrograms'], golden[f'{prefix}noise'], weights)
  for got, name in ((result.latent, 'latent'), (result.prediction, 'pred')):
    # 2e-6 was reached, of values up to 3.6.
    np.testing.assert_allclose(
        goldens.sample(got, OUTPUT), golden[prefix + name], rtol=0, atol=1e-5)
  want = [golden[f'{prefix}loss_normpix'], golden[f'{prefix}loss_pix']]
  np.testing.assert_allclose(result.losses, want, rtol=1e-6)  # 2e-7
  if weights:
    want = goldens.under(golden, gradients)
    got = compare.to_ours(result.gradients)
    assert_gradients(
        {name: goldens.sample(got[name]) for name in want}, want,
        base is tiny.LOCAL)


def test_the_peer_is_the_released_model_in_blocks_of_the_released_size():
  golden, params = recorded('local_16', 'local_16_params')
  settings = tiny.config(tiny.RELEASED, {'model.decoder.depth': 2})
  inputs = golden['spectrograms'], golden['noise']
  result = peers.run(peer_of(settings, params, (1024, 128)), *inputs)
  np.testing.assert_allclose(  # 1e-6
      goldens.sample(result.latent, OUTPUT), golden['latent'],
      rtol=0, atol=1e-5)
  ours = jax.jit(compare.Model(settings, *inputs).blocks)(params)
  for block in (result.blocks['decoder_blocks.1'], ours[3]):
    # 6e-6 was reached, of values up to 7.8.
    np.testing.assert_allclose(block, golden['block_1'], rtol=0, atol=2e-5)


def random_params(model, seed, *inputs, **settings):
  """Weights that show every part: biases and scales are not 0 and 1."""
  shapes = jax.eval_shape(
      lambda: model.init(jax.random.key(0), *inputs, **settings))['params']
  rng = np.random.default_rng(seed)

  def draw(name, leaf):
    if name.endswith('kernel'):
      bound = (6 / sum(leaf.shape)) ** 0.5
      return rng.uniform(-bound, bound, leaf.shape).astype(np.float32)
    noise = rng.normal(0, 0.1, leaf.shape)
    return (noise + name.endswith(('scale', 'tau'))).astype(np.float32)

  return trees.map_named(draw, shapes)


@pytest.mark.parametrize('positions', ['time_freq', 'released'])
@pytest.mark.parametrize('shape, size', [
    ((1024, 128), (16, 16)), ((256, 128), (16, 16)), ((96, 64), (8, 32))])
def test_the_encoder_equals_timms_vision_transformer(shape, size, positions):
  settings = tiny.config(tiny.RELEASED, {
      'patch.size': size, 'patch.positions': positions})
  rng = np.random.default_rng(0)
  spectrograms = rng.normal(0, 1, (2, *shape)).astype(np.float32)
  x = patches.patchify(jnp.asarray(spectrograms), settings.patch)
  grid = patches.grid_of(shape, settings.patch)
  model = mae.make(settings)
  params = random_params(model, 1, x, grid, method='encode')
  weights = rng.normal(0, 1, (2, 1 + x.shape[1], 48)).astype(np.float32)

  peer = peers.vision_transformer.VisionTransformer(
      shape, size, in_chans=1, num_classes=0, global_pool='', embed_dim=48,
      depth=2, num_heads=3, norm_layer=peers.NORM)
  trained = dict(peer.named_parameters())
  table = trained.pop('pos_embed')
  arrays = compare.to_released(
      params, {name: array.shape for name, array in trained.items()})
  with torch.no_grad():
    table[0] = torch.from_numpy(peers.positions(settings, grid, 48).copy())
    for name, array in arrays.items():
      trained[name].copy_(torch.from_numpy(array.copy()))
  want = peer.forward_features(torch.from_numpy(spectrograms)[:, None])
  (want * torch.from_numpy(weights)).sum().backward()

  @functools.partial(jax.grad, has_aux=True)
  def run(params):
    latent = model.apply({'params': params}, x, grid, method='encode')
    return (latent * weights).sum(), latent

  grads, latent = jax.jit(run)(params)
  # 3e-6 was reached, of values up to 4.
  np.testing.assert_allclose(latent, peers.numpy(want), rtol=0, atol=1e-5)
  assert_gradients(trees.flatten(grads), compare.to_ours({
      name: peers.numpy(value.grad) for name, value in trained.items()}))


# In transformers -> as released; queries, keys and values are apart in it.
VIT_MAE = (
    (r'vit\.embeddings\.patch_embeddings\.projection', 'patch_embed.proj'),
    (r'vit\.embeddings\.position_embeddings', 'pos_embed'),
    (r'vit\.embeddings\.', ''),
    (r'vit\.layernorm', 'norm'),
    (r'vit\.layers', 'blocks'),
    (r'decoder\.decoder_layers', 'decoder_blocks'),
    (r'^decoder\.', ''),
    (r'attention\.[qkv]_proj', 'attn.qkv'),
    (r'attention\.o_proj', 'attn.proj'),
    (r'layernorm_before', 'norm1'),
    (r'layernorm_after', 'norm2'),
)


def vit_mae_name(name):
  """The released name of a parameter of transformers."""
  for theirs, released in VIT_MAE:
    name = re.sub(theirs, released, name)
  return name


def vit_mae(settings, side, arrays):
  """transformers' model of `settings` with `arrays`, by released name."""
  encoder, decoder = settings.model.encoder, settings.model.decoder
  peer = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(
      image_size=side, patch_size=settings.patch.size[0], num_channels=1,
      hidden_size=encoder.width, num_hidden_layers=encoder.depth,
      num_attention_heads=encoder.heads, intermediate_size=4 * encoder.width,
      decoder_hidden_size=decoder.width,
      decoder_num_hidden_layers=decoder.depth,
      decoder_num_attention_heads=decoder.heads,
      decoder_intermediate_size=4 * decoder.width, layer_norm_eps=1e-6,
      mask_ratio=settings.mask.ratio, norm_pix_loss=True)).eval()
  with torch.no_grad():
    for name, parameter in peer.named_parameters():
      array = arrays[vit_mae_name(name)]
      for i, part in enumerate('qkv'):
        if f'.{part}_proj.' in name:
          array = np.split(array, 3)[i]
      parameter.copy_(torch.from_numpy(array.copy()))
  return peer


@pytest.mark.parametrize('side, ratio', [(128, 0.8), (64, 0.5)])
def test_the_global_model_equals_transformers(side, ratio):
  """On squares, the only images that it takes."""
  settings = tiny.config(tiny.GLOBAL, {
      'mask.ratio': ratio, 'patch.positions': 'time_freq'})
  rng = np.random.default_rng(2)
  spectrograms = rng.normal(0, 1, (2, side, side)).astype(np.float32)
  noise = rng.random((2, (side // 16) ** 2), np.float32)
  ours = compare.Model(settings, spectrograms, noise)
  params = random_params(ours.model, 3, ours.patches, ours.grid, ours.mask)
  (latent, prediction, losses), grads = jax.jit(ours.with_gradient)(params)

  arrays = {
      name: peers.numpy(value) for name, value in
      peer_of(settings, params, (side, side)).released().items()}
  peer = vit_mae(settings, side, arrays)
  inputs = torch.from_numpy(spectrograms)[:, None]
  noise = torch.from_numpy(noise)
  want = peer(inputs, noise=noise)
  want.loss.backward()
  np.testing.assert_array_equal(ours.mask.removed, want.mask == 1)
  np.testing.assert_array_equal(ours.mask.restore_ids, want.ids_restore)
  for got, theirs in (
      (latent, peer.vit(inputs, noise=noise).last_hidden_state),
      (prediction, want.logits)):
    # 1.4e-6 was reached, of values up to 3.7.
    np.testing.assert_allclose(got, peers.numpy(theirs), rtol=0, atol=1e-5)
  # It divides by the unbiased variance, too. 1.2e-7 was reached.
  np.testing.assert_allclose(losses[0], want.loss.item(), rtol=1e-6)
  theirs = {}
  for name, parameter in peer.named_parameters():
    if parameter.requires_grad:
      theirs.setdefault(vit_mae_name(name), []).append(
          peers.numpy(parameter.grad))
  theirs = compare.to_ours({
      name: np.concatenate(parts) for name, parts in theirs.items()})
  assert theirs.keys() == trees.flatten(params).keys()
  assert_gradients(trees.flatten(grads), theirs)


@functools.cache
def in_bfloat16():
  """-> {side: (errors of outputs, errors of gradients by name)}, relative.

  Of ours, and of the peer under torch's automatic casts, against float32.
  """
  golden, params = recorded(*LOCAL)
  inputs = golden['spectrograms'], golden['random80/noise']
  results = {}
  for dtype in ('float32', 'bfloat16'):
    settings = tiny.config(tiny.LOCAL, {'model.dtype': dtype})
    outputs, grads = jax.jit(
        compare.Model(settings, *inputs).with_gradient)(params)
    results['ours', dtype] = outputs, trees.flatten(grads)
    peer = peers.run(peer_of(settings, params, (256, 32)), *inputs,
                     compare.NORMALIZED, autocast=dtype == 'bfloat16')
    results['peer', dtype] = (
        (peer.latent, peer.prediction, peer.losses),
        compare.to_ours(peer.gradients))
  errors = {}
  for side in ('ours', 'peer'):
    (low, low_grads), (high, high_grads) = (
        results[side, dtype] for dtype in ('bfloat16', 'float32'))
    errors[side] = list(map(compare.relative, low, high)), {
        name: compare.relative(low_grads[name], value)
        for name, value in high_grads.items()
        if compare.split(name, value, local=True)[0].size}
  return errors


def test_outputs_in_bfloat16_err_as_rounding_does():
  """And not much more than under torch's casts, which add up in float32."""
  ours, peer = (in_bfloat16()[side][0] for side in ('ours', 'peer'))
  for error, theirs, blocks in zip(ours[:2], peer[:2], (2, 18)):
    # A block rounds what it adds up five times, by 2 ** -9 at most, and the
    # errors walk at random: 0.6 % after 2 blocks, 1.9 % after 18. Reached are
    # 0.6 % and 1.2 %; by torch, 0.4 % and 0.9 %.
    assert error < (5 * blocks) ** 0.5 * 2 ** -9 * 1.5
    assert error < 2 * theirs
  # A mean over many: their errors are independent. 0.04 %, torch 0.07 %.
  assert ours[2] < 2 ** -9


def test_gradients_in_bfloat16_err_no_more_than_torchs():
  ours, peer = (in_bfloat16()[side][1] for side in ('ours', 'peer'))
  for name, error in ours.items():
    assert error < 3 * peer[name], name  # 1.9 was reached
  mean = lambda errors: np.mean(list(errors.values()))
  assert mean(ours) < 1.2 * mean(peer)  # 2.6 % and 4.0 % were reached


@pytest.mark.parametrize('files, base, noise', [
    (LOCAL, tiny.LOCAL, 'random80/noise'), (('global',), tiny.GLOBAL, 'noise')],
    ids=['local', 'global'])
def test_five_steps_equal_torchs_adamw(files, base, noise):
  # With more decay than the paper's, which would not show in five steps. At ten
  # times the rate, float32 and float64 part after three steps in torch alone.
  golden, params = recorded(*files)
  rate, local = 1e-4, base is tiny.LOCAL
  settings = tiny.config(base, {'optimizer.weight_decay': 5.0})
  inputs = golden['spectrograms'], golden[noise]
  ours = compare.Model(settings, *inputs)
  tx = optim.make(settings.optimizer, lambda step: rate)

  @jax.jit
  def step(params, state):
    (*_, losses), grads = ours.with_gradient(params)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state, losses

  peer = peer_of(settings, params, inputs[0].shape[1:])
  adamw = peers.adamw(peer, settings.optimizer, rate)
  before, state = trees.flatten(params), tx.init(params)
  for _ in range(5):
    params, state, losses = step(params, state)
    want = peers.run(peer, *inputs, compare.NORMALIZED).losses
    adamw.step()
    np.testing.assert_allclose(losses, want, rtol=5e-6)  # 1e-6
  params = trees.flatten(params)
  theirs = compare.to_ours({
      name: peers.numpy(value) for name, value in peer.released().items()})
  assert params.keys() == theirs.keys()
  for name, value in theirs.items():
    part = lambda array, name=name: compare.split(name, array, local)[0]
    want, got = part(value), part(params[name])
    if want.size:
      # Of all that a parameter moved, 0.2 % was reached (global: 5e-5): a bias
      # of units that hardly ever fire, whose gradients are mostly rounding.
      start = part(before[name])
      assert compare.relative(got - start, want - start) < 5e-3, name
      # No element is half a step away; 0.11 steps were reached.
      assert np.abs(got - want).max() < rate / 2, name
