"""How fast the encoder of a recipe embeds, on all devices of this process."""

import os
import time

import jax
import numpy as np

from audio_mae_jax import config as config_lib
from audio_mae_jax import features
from audio_mae_jax import flops
from audio_mae_jax import memory
from audio_mae_jax import weights as weights_lib
from audio_mae_jax.data import pipeline
from audio_mae_jax.embed import model as model_lib

_LONG = 10  # windows of the long recording


def measure(config: config_lib.Config, windows: int, steps: int,
            warmup: int) -> dict:
  """Times calls from samples in NumPy to embeddings in NumPy.

  `windows` of them are encoded at once by each device; weights are random.
  docs/embed.md says what the entries mean.

  Raises:
    RuntimeError: new lengths of audio have compiled a program.
  """
  devices = jax.local_devices()
  model = model_lib.Model(
      weights_lib.Weights(features.random_params(config), config, {}),
      batch_size=windows * len(devices), devices=devices)
  samples, rate = pipeline.clip_samples(config), model.sample_rate_hz
  batch = list(_noise(model.programs.sizes[-1], samples))
  grid = model.grid
  long = _noise(1, grid.samples(grid.size + (_LONG - 1) * grid.hop))[0]
  first_s = _times(lambda: model.embed(batch[0], rate), 1)[0]
  clips_s = _times(lambda: model.embed(batch, rate), steps, warmup)
  one_s = _times(lambda: model.embed(batch[0], rate), steps, warmup)
  long_s = _times(lambda: model.embed(long, rate), steps, warmup)
  clips_per_s = len(batch) / float(np.median(clips_s))
  work = _work(config, grid)
  return {
      'recipe': config.name, 'task': 'embed', 'setup': _setup(config, model),
      'flops_per_clip': {'encoder': work},
      'embed': {
          'clips_per_s': clips_per_s,
          'real_time': clips_per_s * samples / rate,
          'tflops': clips_per_s * work / 1e12,
          'clip_median_s': float(np.median(one_s)),
          'clip_p90_s': float(np.percentile(one_s, 90)),
          'long_s': len(long) / rate,
          'long_real_time': len(long) / rate / float(np.median(long_s)),
          'first_clip_s': first_s,
          'programs': len(model.programs.compiled),
          'new_lengths': _new_lengths(model)},
      'memory_peak': memory.peak(devices)}


def _new_lengths(model):
  """Lengths of one bucket that were embedded, and compiled nothing."""
  grid = model.grid
  low = grid.size // 2 + 1
  lengths = sorted({grid.samples(n) for n in (low, grid.size)}
                   | {grid.samples(low) + 17, grid.samples(grid.size) - 33})
  programs, before = model.programs, len(model.programs.compiled)
  traced = programs.num_traced
  for length in lengths:
    model.embed(_noise(1, length)[0], model.sample_rate_hz)
  if len(programs.compiled) != before or programs.num_traced != traced:
    raise RuntimeError(
        f'{len(lengths)} lengths of one bucket have compiled '
        f'{programs.compiled[before:]}, and {programs.num_traced - traced} '
        'shapes of input: this must not be.')
  return len(lengths)


def _noise(count, samples):
  rng = np.random.default_rng(0)
  return 0.1 * rng.standard_normal((count, samples), np.float32)


def _times(call, steps, warmup=0):
  """Seconds of each of `steps` calls; embeddings are on the host at its end."""
  seconds = []
  for _ in range(warmup + steps):
    begin = time.perf_counter()
    call()
    seconds.append(time.perf_counter() - begin)
  return seconds[warmup:]


def _work(config, grid):
  """Forward FLOPs of the encoder's blocks over a clip of training."""
  bands = weights_lib.grid_of(config)[1]
  return sum(flops.encoder(config, 1 + grid.size * bands).values())


def _setup(config, model):
  device = jax.local_devices()[0]
  return {
      'jax': jax.__version__, 'platform': device.platform,
      'device': device.device_kind, 'devices': len(jax.local_devices()),
      'cores': os.cpu_count(), 'dtype': config.model.dtype,
      'windows': model.programs.sizes[-1], 'clip_s': config.data.clip_s,
      'overlap': model.grid.overlap / model.grid.size, 'width': model.width}
