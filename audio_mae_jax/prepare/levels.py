"""Mean and standard deviation of log-mel: config.frontend.mean and .std.

Over the frames that lie wholly inside a clip, as the front end makes them;
padding is not counted. Sums are float64.
"""

from collections.abc import Callable
import concurrent.futures
import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np

from audio_mae_jax import config as config_lib
from audio_mae_jax import frontend
from audio_mae_jax.data import audio_io
from audio_mae_jax.data import recordings
from audio_mae_jax.prepare import check

_BATCH = 16


@dataclasses.dataclass(frozen=True)
class Level:
  mean: float
  std: float
  clips: int
  frames: int


def measure(rows: list, clip_s: float, count: int, seed: int = 0,
            item_of: Callable[..., dict] = check.item_of,
            sample_rate_hz: int = config_lib.Frontend().sample_rate_hz
            ) -> tuple[Level | None, dict]:
  """The level of `count` of `rows`, drawn by `seed` (0: of all).

  A clip that is longer than `clip_s` gives a random part of that length. Also
  returns the clips that could not be decoded, with the reason; None where no
  clip is left. Rows are a manifest's, or what `item_of` makes items of.
  """
  rng = np.random.default_rng(seed)
  if 0 < count < len(rows):
    chosen = np.sort(rng.choice(len(rows), count, replace=False))
    rows = [rows[i] for i in chosen]
  spec = dataclasses.replace(
      config_lib.Frontend(), sample_rate_hz=sample_rate_hz)
  num_samples = round(clip_s * spec.sample_rate_hz)
  spec = dataclasses.replace(
      spec, mean=0.0, std=0.5,  # which leave features as they are
      num_frames=frontend.num_frames(num_samples, spec))
  features = jax.jit(frontend.features, static_argnums=2)
  total, squares, frames, clips, bad = 0.0, 0.0, 0, 0, {}
  for audio, lengths in _batches(
      rows, item_of, num_samples, spec, seed, bad):
    x = np.asarray(
        features(jnp.asarray(audio), jnp.asarray(lengths), spec), np.float64)
    total, squares = total + x.sum(), squares + (x**2).sum()  # padding is 0
    good = lengths[lengths > 0]
    clips += len(good)
    frames += sum(frontend.num_frames(int(n), spec) for n in good)
  if not frames:
    return None, bad
  values = frames * spec.num_mel_bins
  mean = total / values
  return Level(float(mean), float(np.sqrt(squares / values - mean**2)), clips,
               frames), bad


def _batches(rows, item_of, num_samples, spec, seed, bad):
  """Yields samples [_BATCH, S] and their numbers [_BATCH]; fills `bad`."""
  with concurrent.futures.ThreadPoolExecutor(
      min(os.cpu_count() or 1, _BATCH)) as pool:
    for start in range(0, len(rows), _BATCH):
      block = rows[start:start + _BATCH]
      seeds = [(seed, start + i) for i in range(len(block))]
      results = pool.map(
          lambda row, own: _load(item_of, row, own, num_samples, spec), block,
          seeds)
      audio = np.zeros((_BATCH, num_samples), np.float32)
      lengths = np.zeros(_BATCH, np.int32)
      for i, (row, result) in enumerate(zip(block, results, strict=True)):
        if isinstance(result, str):
          bad[row] = result
        else:
          audio[i, :len(result)], lengths[i] = result, len(result)
      yield audio, lengths


def _load(item_of, row, seed, num_samples, spec):
  """Samples, or why there are none."""
  try:
    return audio_io.load(
        item_of(row), sample_rate_hz=spec.sample_rate_hz,
        num_samples=num_samples, crop='random',
        rng=np.random.default_rng(seed),
        min_samples=frontend.min_samples(spec))
  except recordings.BadAudio as error:
    return str(error)
