"""A worker that runs this package: `python -m benchmarks.ours pretrain`."""

import argparse
import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np

from audio_mae_jax import frontend
from audio_mae_jax import patches as patches_lib
from audio_mae_jax import sharding
from audio_mae_jax import step as step_lib
from audio_mae_jax.data import pipeline
from audio_mae_jax.models import classifier
from benchmarks import work
from benchmarks import worker


def main(argv):
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('task', choices=TASKS)
  parser.add_argument(
      '--transform', default='matmul', choices=frontend.TRANSFORMS)
  work.add_flags(parser)
  args = parser.parse_args(argv)
  worker.limit(args.threads)
  jax.config.update(
      'jax_platforms', 'cpu' if args.device == 'cpu' else 'cuda')
  device = jax.devices()[0]
  step, wait = TASKS[args.task](work.config(args), args)
  worker.serve(
      {'jax': jax.__version__, 'device': device.device_kind}, step, wait,
      lambda: (device.memory_stats() or {}).get('peak_bytes_in_use'))


def audio(config):
  """[B, S] of noise and [B]: all of it valid."""
  shape = config.train.batch_size, pipeline.clip_samples(config)
  samples = 0.1 * np.random.default_rng(0).standard_normal(shape, np.float32)
  return samples, np.full(shape[0], shape[1], np.int32)


def train(config, args):
  """The whole step, as training runs it."""
  del args
  program = step_lib.build(config, 1000, jax.devices()[:1])
  samples, num_samples = audio(config)
  clips = len(samples)
  batch = {'audio': samples, 'num_samples': num_samples,
           'index': np.arange(clips, dtype=np.int32),
           'valid': np.ones(clips, np.float32)}
  if program.task.labelled:
    batch['labels'] = np.eye(
        clips, config.model.classifier.num_classes, dtype=np.float32)
  batch = jax.device_put(batch, program.batch_sharding)
  state = program.init()

  def step():
    nonlocal state
    state, _ = program.train_step(state, batch)

  return step, lambda: jax.block_until_ready(state)


def embedder(config):
  """The model that embeds, its grid of patches and random parameters."""
  model, front = classifier.make(config), config.frontend
  grid = patches_lib.grid_of(
      (front.num_frames, front.num_mel_bins), config.patch)
  pixels = config.patch.size[0] * config.patch.size[1]
  params = jax.jit(lambda rng: model.init(
      rng, jnp.zeros((1, grid[0] * grid[1], pixels)), grid))(jax.random.key(0))
  return model, grid, params['params']


def embedding(config, args):
  """Waveforms -> the mean over the tokens of each clip, nothing hidden."""
  del args
  model, grid, params = embedder(config)
  mesh = sharding.make_mesh(
      config.mesh, config.train.batch_size, jax.devices()[:1])

  @functools.partial(sharding.jit, mesh)
  def forward(params, audio, num_samples):
    features = frontend.features(audio, num_samples, config.frontend)
    return model.apply(
        {'params': params}, patches_lib.patchify(features, config.patch), grid)

  return _repeated(forward, params, *map(jnp.asarray, audio(config)))


def front_end(config, args):
  """Waveforms -> log-mel."""
  spec = dataclasses.replace(config.frontend, transform=args.transform)
  features = jax.jit(lambda audio, n: frontend.features(audio, n, spec))
  return _repeated(features, *map(jnp.asarray, audio(config)))


def _repeated(fn, *args):
  out = None

  def step():
    nonlocal out
    out = fn(*args)

  return step, lambda: jax.block_until_ready(out)


TASKS = {'pretrain': train, 'finetune': train, 'embedding': embedding,
         'front_end': front_end}

if __name__ == '__main__':
  main(sys.argv[1:])
