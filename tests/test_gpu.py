"""On an NVIDIA GPU: what runs only there, against float32 and against a CPU.

  JAX_PLATFORMS=cuda,cpu python -m pytest -m gpu

The kernels of norm and GELU have their tests in test_row_kernels.py.
"""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
import tiny

from audio_mae_jax import frontend
from audio_mae_jax import record
from audio_mae_jax import sharding
from audio_mae_jax import tasks
from audio_mae_jax import train
from audio_mae_jax import trees
from audio_mae_jax.models import pointwise
from benchmarks import attention as attention_benchmark

pytestmark = pytest.mark.gpu

# Wide enough for kernels and cuDNN; the second block of the decoder shifts.
SIZES = {
    'model.encoder.width': 192, 'model.encoder.depth': 2,
    'model.encoder.heads': 3, 'model.decoder.width': 128,
    'model.decoder.depth': 4, 'model.decoder.heads': 4,
    'train.batch_size': 16}


@pytest.mark.parametrize('tokens', [103, 307])
def test_every_way_to_attend_gives_what_the_reference_does(
    tokens, tmp_path, capsys):
  path = tmp_path / 'attention.json'
  attention_benchmark.main([
      '--clips=16', '--rounds=1', f'--tokens={tokens}', f'--output={path}'])
  print(capsys.readouterr().out)
  found = json.loads(path.read_text())['results']
  names = {case: set(rows) for case, rows in found.items()}
  ways = {'windows', 'blocks', 'cudnn', 'pallas'}
  assert names == {f'{tokens} tokens': {'xla', 'cudnn'}, 'windows': ways,
                   'shifted windows': ways}


def gradients(monkeypatch, dtype, attention, kernels):
  """Loss and gradients by name, float64, and the program."""
  config = tiny.config(
      SIZES, {'model.dtype': dtype, 'model.attention': attention})
  task = tasks.make(config)
  batch, size = config.train.batch_size, config.patch.size
  n = task.grid[0] * task.grid[1]
  noise = lambda x: x + 0.02 * jax.random.normal(
      jax.random.key(x.size), x.shape)
  params = jax.tree.map(noise, jax.jit(task.init)(jax.random.key(0)))
  inputs = {
      'patches': jax.random.normal(
          jax.random.key(1), (batch, n, size[0] * size[1])),
      'mask': task.draw_mask(jax.random.key(2), batch)}
  mesh = sharding.make_mesh(config.mesh, batch, jax.devices()[:1])
  with monkeypatch.context() as patch:
    if not kernels:
      patch.setattr(pointwise, '_kernels', lambda x: None)
    step = sharding.jit(mesh, jax.value_and_grad(
        lambda params, inputs: task.losses(
            params, inputs, jax.random.key(3))['loss'].mean()))
    with jax.default_matmul_precision(
        'highest' if dtype == 'float32' else 'default'):
      loss, found = step(params, inputs)
    text = step.lower(params, inputs).as_text()
  as_float64 = lambda x: np.asarray(x, np.float64)
  return float(loss), jax.tree.map(as_float64, trees.flatten(found)), text


def test_gradients_in_bfloat16_are_as_near_with_kernels_as_without(monkeypatch):
  """To those in float32 without any."""
  run = functools.partial(gradients, monkeypatch)
  exact, want, _ = run('float32', 'xla', False)
  errors = {}
  for kernels in False, True:
    loss, found, text = run(
        'bfloat16', 'auto' if kernels else 'xla', kernels)
    assert loss == pytest.approx(exact, rel=2e-3)
    # Parameters count alike, whatever their size.
    errors[kernels] = np.array([
        np.linalg.norm(found[name] - want[name]) / np.linalg.norm(want[name])
        for name in want])
    seen = [name in text for name in (
        'layer_norm', 'gelu_back', 'window_attention', 'cudnn')]
    assert seen == [kernels] * 4
  assert np.median(errors[True]) < 0.02
  assert np.median(errors[True]) < 1.2 * np.median(errors[False])
  assert errors[True].max() < 1.5 * errors[False].max()


@pytest.mark.parametrize('transform', ['fft', 'matmul'])
def test_features_are_those_of_a_cpu(transform):
  """As near as those of a CPU by the other transform: the logarithm of a band
  with little in it multiplies what rounding does to the loud ones."""
  config = tiny.config({'frontend.transform': transform})
  rng = np.random.default_rng(0)
  audio = rng.normal(0, 0.1, (3, 160000)).astype(np.float32)
  num_samples = np.array([160000, 90000, 400], np.int32)
  found = []
  for device in jax.devices('cpu')[0], jax.devices()[0]:
    args = jax.device_put((audio, num_samples), device)
    found.append(np.asarray(jax.jit(
        lambda audio, n: frontend.features(audio, n, config.frontend))(*args)))
  np.testing.assert_allclose(found[1], found[0], rtol=0, atol=2e-4)
  assert np.quantile(np.abs(found[1] - found[0]), 0.99) < 5e-6


def test_masks_are_those_of_a_cpu():
  """Bit by bit: a run goes on elsewhere with the same patches."""
  for strategy in 'unstructured', 'time_freq':
    config = tiny.config({'mask.name': strategy})
    task = tasks.make(config)
    for key in range(3):
      there, here = (
          jax.jit(task.draw_mask, static_argnums=1)(
              jax.device_put(jax.random.key(key), device), 8)
          for device in (jax.devices('cpu')[0], jax.devices()[0]))
      jax.tree.map(np.testing.assert_array_equal, there, here)


def test_a_run_goes_on_from_its_checkpoint(tmp_path):
  """And has the losses of one that was not stopped, up to what bfloat16 and
  sums in another order make of them in some steps."""
  config = tiny.config(SIZES, {
      'workdir': str(tmp_path), 'model.dtype': 'bfloat16',
      'data.train.name': 'synthetic', 'data.train.num_clips': 64,
      'data.clip_s': 10.0, 'train.epochs': 3.0, 'checkpoint.every_steps': 6,
      'log.every_steps': 1, 'log.picture_every_steps': -1,
      'log.progress': False, 'log.tensorboard': False,
      'optimizer.warmup_epochs': 0.5, 'optimizer.base_lr': 0.002})

  def losses():
    state = train.train(config, devices=jax.devices()[:1])
    assert int(state.step) == 12
    return [line['train/loss'] for line in record.read(
        tmp_path / record.NAME) if 'train/loss' in line]

  whole = losses()
  assert len(whole) == 12 and whole[-1] < 0.97 * whole[0]
  shutil.rmtree(tmp_path / 'checkpoints' / '12')
  again = losses()
  assert again[:6] == whole[:6]
  np.testing.assert_allclose(again[6:], whole[6:], rtol=2e-3)
