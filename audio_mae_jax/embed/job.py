"""Embedding many files: decoded ahead, resumed, bad ones named, speed told."""

import collections
from collections.abc import Iterator
from concurrent import futures
import contextlib
import itertools
import os
import pathlib
import time

import numpy as np
import tqdm

from audio_mae_jax import config as config_lib
from audio_mae_jax import storage
from audio_mae_jax.data import recordings
from audio_mae_jax.data import report as report_lib
from audio_mae_jax.embed import engine
from audio_mae_jax.embed import inputs
from audio_mae_jax.embed import model as model_lib
from audio_mae_jax.embed import store as store_lib

_THREADS = 16
# Of a clip, decoded ahead of its turn: about 16 s to a minute at common rates.
# What is longer comes block by block.
_BLOCKS_AHEAD = 4


def run(model: model_lib.Model, checkpoint: str, clips: list[inputs.Clip],
        output, frames: bool = False) -> dict:
  """Embeds `clips` to `output`, those that are not there already.

  Returns:
    'clips', 'skipped', 'embedded', 'bad', their 'listing', 'rows' (of
    `output`), 'seconds' (of audio), 'wall_s'.

  Raises:
    TooManyBadFiles: not one of the clips can be used; they are listed.
    ValueError: `output` holds something else.
  """
  report = bad_files(len(clips))
  seconds, begin = 0.0, time.monotonic()
  with store_lib.Store(
      output, settings(model, checkpoint, frames)) as store:
    wanted = [clip for clip in clips if not store.has(clip)]
    if len(wanted) < len(clips):
      report.saw_good()
    with contextlib.closing(ahead(model, wanted)) as sources, tqdm.tqdm(
        total=len(wanted), unit='clip', disable=None) as bar:
      for clip, result in zip(wanted, engine.embed_all(
          model.programs, model.grid, sources, frames)):
        if result.error:
          with _listed(report, output):
            report.add(clip.name, result.error)
        else:
          report.saw_good()
          store.add(clip, _row(model, result, frames))
          seconds += result.seconds
        bar.update()
        speed = seconds / max(time.monotonic() - begin, 1e-9)
        bar.set_postfix_str(f'{speed:.0f} x real time')
    store.finish()
  _list(report, output)
  return {'clips': len(clips), 'skipped': len(clips) - len(wanted),
          'embedded': len(wanted) - report.count, 'bad': report.count,
          'listing': report.listing(), 'rows': store.count,
          'seconds': seconds, 'wall_s': time.monotonic() - begin}


def _list(report, output):
  place = pathlib.Path(f'{output}.bad_files.json')
  place.unlink(missing_ok=True)  # of an earlier run
  report.write(place)


@contextlib.contextmanager
def _listed(report, output):
  """Lists what was bad if that ends the run."""
  try:
    yield
  except report_lib.TooManyBadFiles:
    _list(report, output)
    raise


def settings(model, checkpoint, frames) -> dict:
  """What is kept beside embeddings."""
  return {
      'checkpoint': storage.absolute(checkpoint),
      'fingerprint': model.fingerprint,
      'frames': frames, 'overlap': model.grid.overlap / model.grid.size,
      'sample_rate_hz': model.sample_rate_hz, 'frame_s': model.grid.frame_s,
      'width': model.width}


def bad_files(count: int) -> report_lib.BadFiles:
  """A report that any number of bad files may go to, if one is good."""
  return report_lib.BadFiles(count, config_lib.Data(max_bad_fraction=1.0))


def ahead(model: model_lib.Model, clips: list[inputs.Clip]
          ) -> Iterator[tuple[str, Iterator[np.ndarray]]]:
  """(name, blocks of samples) of each clip, decoded in threads ahead of it."""
  count = min(os.cpu_count() or 1, _THREADS)
  queue, rest = collections.deque(), iter(clips)
  with futures.ThreadPoolExecutor(count) as pool:
    try:
      while True:
        for clip in itertools.islice(rest, 2 * count - len(queue)):
          queue.append((clip.name, pool.submit(_begun, model, clip)))
        if not queue:
          return
        name, begun = queue.popleft()
        yield name, begun.result()
    finally:
      for _, begun in queue:
        begun.cancel()


def _begun(model, clip):
  """The blocks of a clip, of which the first are decoded now."""
  blocks, first, error = model.read(clip.item), [], None
  try:
    first += itertools.islice(blocks, _BLOCKS_AHEAD)
  except recordings.BadAudio as caught:
    error = caught

  def generate():
    yield from first
    if error:
      raise error
    yield from blocks

  return generate()


def _row(model, result, frames):
  row = {'seconds': result.seconds, 'embeddings': model.normed(result.mean)}
  if frames:
    embeddings, times_s = result.frames
    row |= {'frames': model.normed(embeddings), 'times_s': times_s,
            'counts': len(times_s)}
  return row
