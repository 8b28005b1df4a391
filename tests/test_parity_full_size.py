"""The released ViT-B, of 430 tensors, in PyTorch and here, in every number.

  pytest -m slow tests/test_parity_full_size.py -s

Needs the extra [torch], three minutes and 8 GB; -s shows the figures reached.
The peer is peers.AudioMAE, which test_peers.py holds against recordings of the
released code. It computes in float32, as ours does, and in float64, which tells
the errors of the two apart.

The weights are drawn by one generator, NumPy's PCG64 of seed 0, in the order of
golden/pretrain_keys.tsv (pretrain_global_keys.tsv), without position tables:
- tokens: normal, deviation 0.02;
- arrays of two and more axes: uniform within (6 / (in + out)) ** 0.5, with
  `out` the first axis and `in` the product of the others;
- norms: weights 1 + normal, deviation 0.1; offsets normal, deviation 0.1;
- tau: 1 + |normal|, deviation 0.5;
- other biases: normal, deviation 0.02.
They are drawn as float64 and rounded to float32.
"""

import ctypes
import functools
import gc
from typing import NamedTuple

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
from audio_mae_jax import trees

torch = pytest.importorskip('torch')
peers = pytest.importorskip('peers')  # and with it timm

pytestmark = pytest.mark.slow

SHAPE = 1024, 128
TABLES = {'local': 'pretrain_keys', 'global': 'pretrain_global_keys'}
STEPS, RATE = 3, 1e-4


def settings_of(decoder, **overrides):
  """The released model; decay that shows in three steps."""
  return tiny.config({
      'patch.positions': 'released', 'model.decoder.name': decoder,
      'model.decoder.depth': 16 if decoder == 'local' else 8,
      'optimizer.weight_decay': 5.0}, overrides)


def draw(rng, name, shape):
  """One tensor by the rule above."""
  if name.endswith('token'):
    array = rng.normal(0, 0.02, shape)
  elif len(shape) > 1:
    bound = (6 / (shape[0] + np.prod(shape[1:]))) ** 0.5
    array = rng.uniform(-bound, bound, shape)
  elif name.endswith('tau'):
    array = 1 + np.abs(rng.normal(0, 0.5, shape))
  elif 'norm' in name:
    array = rng.normal(0, 0.1, shape) + name.endswith('weight')
  else:
    array = rng.normal(0, 0.02, shape)
  return array.astype(np.float32)


def weights_of(decoder):
  """All tensors that are trained, by released name."""
  rows = goldens.table(TABLES[decoder])
  rng = np.random.Generator(np.random.PCG64(0))
  return {name: draw(rng, name, tuple(map(int, shape.split('x'))))
          for name, shape, *_ in rows if name not in peers.FROZEN}


def spectrograms():
  """[2, T, F] like normalised log-mel: tones, clicks and noise over a slope.

  The second clip ends after six seconds and is padded as the front end pads.
  """
  rng = np.random.default_rng(1)
  time, mel = np.arange(SHAPE[0])[:, None], np.arange(SHAPE[1])
  clips = []
  for length in (SHAPE[0], 600):
    x = -0.4 - 0.6 * mel / SHAPE[1] + rng.normal(0, 0.12, SHAPE)
    pitch = 25 + 8 * np.sin(time / rng.uniform(40, 120))
    for k in range(1, 5):  # harmonics of a gliding tone, that comes and goes
      loud = np.maximum(np.sin(time / 90 + rng.uniform(0, 6)), 0)
      x += 0.9 / k * loud * np.exp(-((mel - 24 * np.log2(k) - pitch) / 2) ** 2)
    for start in rng.integers(0, length, 12):  # and sounds that die away
      after = np.clip(time - start, 0, None)
      x += (time >= start) * 0.8 * np.exp(-after / rng.uniform(5, 40))
    x[length:] = 0.467  # log-mel 0, as normalised
    clips.append(x)
  return np.stack(clips).astype(np.float32)


class Side(NamedTuple):
  """What one implementation makes of the weights; names are ours."""
  blocks: list[np.ndarray]  # the output of each, the encoder's first
  latent: np.ndarray
  prediction: np.ndarray
  losses: np.ndarray  # [steps, 2]
  gradients: dict[str, np.ndarray]  # in the first step
  moved: dict[str, np.ndarray]  # parameters, by all steps together


def moved(params, start):
  return {name: np.asarray(params[name] - value, np.float32)
          for name, value in start.items()}


def peer_side(decoder, weights, inputs, dtype, steps) -> Side:
  peer = peers.AudioMAE(settings_of(decoder), SHAPE).to(dtype).load(weights)
  adamw = peers.adamw(peer, peer.settings.optimizer, RATE)
  first = peers.run(peer, *inputs, compare.NORMALIZED)
  # Copies: the next step writes to the model's own. In float32, for memory.
  gradients = {name: array.astype(np.float32) for name, array in
               compare.to_ours(first.gradients).items()}
  losses = [first.losses]
  for step in range(steps):
    adamw.step()
    if step + 1 < steps:
      losses.append(peers.run(peer, *inputs, compare.NORMALIZED).losses)
  final = compare.to_ours({
      name: peers.numpy(value) for name, value in peer.released().items()})
  return Side(
      list(first.blocks.values()), first.latent, first.prediction,
      np.stack(losses), gradients,
      moved(final, compare.to_ours(weights)) if steps else {})


def our_side(decoder, weights, inputs) -> Side:
  start = compare.to_ours(weights)
  blocks = jax.jit(compare.Model(settings_of(decoder), *inputs).blocks)(
      reference.nest(start))
  # The loop over layers is the smaller program.
  settings = settings_of(decoder, **{'model.scan_layers': True})
  run = jax.jit(compare.Model(settings, *inputs).with_gradient)
  tx = optim.make(settings.optimizer, lambda step: RATE)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def update(params, state, grads):  # apart from `run`: less memory at once
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  params = jax.tree.map(jnp.array, reference.nest(start))
  state, losses = tx.init(params), []
  for step in range(STEPS):
    outputs, grads = run(params)
    losses.append(outputs[2])
    if not step:
      latent, prediction, _ = outputs
      gradients = trees.flatten(grads)
    params, state = update(params, state, grads)
  return Side(*jax.tree.map(np.asarray, (
      blocks, latent, prediction, np.stack(losses), gradients,
      moved(trees.flatten(params), start))))


def free():
  """Gives back what is free: glibc keeps arrays of less than 32 MB."""
  gc.collect()
  trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
  if trim:
    trim(0)


@pytest.fixture(scope='module', params=TABLES)
def sides(request):
  """-> {'ours', 'float32', 'float64'} -> Side, and if the decoder is local."""
  decoder = request.param
  weights = weights_of(decoder)
  noise = np.random.default_rng(2).random((2, 512), np.float32)
  given = decoder, weights, (spectrograms(), noise)
  found = {}
  for name, make in (  # the largest first; without AdamW's state
      ('float64', lambda: peer_side(*given, torch.float64, steps=0)),
      ('ours', lambda: our_side(*given)),
      ('float32', lambda: peer_side(*given, torch.float32, STEPS))):
    found[name] = make()
    free()
  yield found, decoder == 'local'
  found.clear()
  free()


@pytest.fixture
def report(request, record_property):
  """Keeps a figure with the test's result, and prints it."""
  def keep(what, value):
    record_property(what, str(value))  # what xdist can carry
    print(f'\n{request.node.name}: {what} {value}', end='')
  return keep


def errors(sides, measure, report, what):
  """`measure` of ours against the peer, and of both against float64.

  Ours may be four times as far from float64 as the peer is, for which XLA's
  and MKL's ways to add up are reason enough; 2.2 was reached.
  """
  figure = {(a, b): measure(sides[a], sides[b]) for a, b in (
      ('ours', 'float32'), ('ours', 'float64'), ('float32', 'float64'))}
  report(what, ', '.join(
      f'{a} - {b}: {value:.2g}' for (a, b), value in figure.items()))
  assert figure['ours', 'float64'] < 4 * figure['float32', 'float64']
  return figure['ours', 'float32']


def test_every_block_gives_what_the_peers_gives(sides, report):
  sides, local = sides
  assert len(sides['ours'].blocks) == len(sides['float64'].blocks) == (
      28 if local else 20)
  for i, block in enumerate(sides['float64'].blocks):
    largest = np.abs(block).max()
    error = errors(
        sides, lambda a, b, i=i: np.abs(a.blocks[i] - b.blocks[i]).max(),
        report, f'block {i} of values to {largest:.3g}')
    # 2e-5 was the aim. The last local blocks do not reach it: they only ever
    # add to what they are given, up to 24, of which float32 resolves 2e-6; they
    # differ by 2.5e-5, and both from float64 by 1.4e-5 and more.
    assert error < max(2e-5, 2e-6 * largest)


def test_latent_and_prediction_equal_the_peers(sides, report):
  for what in ('latent', 'prediction'):
    error = errors(
        sides[0],
        lambda a, b, what=what: np.abs(
            getattr(a, what) - getattr(b, what)).max(), report, what)
    assert error < 2e-5  # 6e-6 was reached, of values to 4.8


def test_gradients_of_all_parameters_equal_the_peers(sides, report):
  sides, local = sides
  grads = {name: side.gradients for name, side in sides.items()}
  assert grads['ours'].keys() == grads['float64'].keys()
  assert len(grads['ours']) == (428 if local else 252)
  both = lambda a, b: compare.gradient_errors(a.gradients, b.gradients, local)
  error = errors(
      sides, lambda a, b: max(both(a, b)[0].values()), report,
      'largest error of a gradient, of its maximum')
  assert error < 1e-5  # 2.1e-6 was reached
  _, zeros = both(sides['ours'], sides['float64'])
  report('gradients that should be 0, of the largest', zeros)
  assert zeros < 1e-7  # 3e-9 was reached


def test_losses_of_three_steps_equal_the_peers(sides, report):
  ours, peer, exact = (sides[0][name].losses for name in (
      'ours', 'float32', 'float64'))
  report('losses', exact[0].tolist())
  for name, losses in (('ours', ours), ('float32', peer)):
    error = np.abs(losses[0] / exact[0] - 1).max()
    report(f'{name} - float64', error)
    assert error < 1e-6  # 9e-8; the peer's, 1.2e-7
  error = np.abs(ours / peer - 1).max(axis=1)
  report('ours - float32, by step', error.tolist())
  assert error[0] < 1e-6  # 1.2e-7
  # By now parameters differ, too. 6e-7 was reached; with AdamW in float64 as
  # well, 9e-8 of it was ours.
  assert error.max() < 3e-6


def test_parameters_after_three_steps_equal_the_peers(sides, report):
  sides, local = sides
  ours, peer = sides['ours'].moved, sides['float32'].moved
  assert ours.keys() == peer.keys()
  whole, single = {}, {}
  for name, value in peer.items():
    got, want = (compare.split(name, array, local)[0]
                 for array in (ours[name], value))
    if want.size:
      whole[name] = compare.relative(got, want)
      single[name] = float(np.abs(got - want).max() / RATE)
  for figures, what in (
      (whole, 'error of a whole parameter, of its way'),
      (single, 'error of one element, in steps')):
    report(what, max((value, name) for name, value in figures.items()))
  assert max(whole.values()) < 1e-3  # 2.1e-4
  # AdamW turns the smallest gradients, which are mostly rounding, into steps.
  assert max(single.values()) < 0.25  # 0.08
