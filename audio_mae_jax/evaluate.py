"""One pass over a split: losses, outputs and metrics of exactly its clips."""

import collections
import csv
import dataclasses
import json
import math
import os
import pathlib

import jax
import numpy as np

from audio_mae_jax import config as config_lib
from audio_mae_jax import step as step_lib
from audio_mae_jax.data import placement
from audio_mae_jax.data import splits

METRICS, PER_CLASS, PREDICTIONS = (
    'metrics.json', 'per_class.csv', 'predictions.npz')


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """What came out. Rows are the split's usable clips, in its order."""
  values: dict[str, float]  # means of losses, metrics, 'num_clips'
  per_class: dict[str, np.ndarray]  # [C] each
  outputs: dict[str, np.ndarray]  # [n, ...] each
  index: np.ndarray  # int [n], their places in the split


def batches(program: step_lib.Program, split: splits.Split,
            config: config_lib.Config):
  """The split's batches, on the devices, to be used in a `with`."""
  return placement.one_pass(
      split, config, program.batch_sharding, program.task.labelled)


def evaluate(program: step_lib.Program, params, split: splits.Split,
             config: config_lib.Config) -> Evaluation:
  """Evaluates `params` on the clips of `split`.

  Masks are those of every evaluation of the run. Rows that fill the last batch
  and clips that cannot be read do not count; all others do, once each, with any
  number of devices and processes.
  """
  totals, count, rows = collections.Counter(), 0, []
  with batches(program, split, config) as given:
    for number, batch in enumerate(given):
      sums, valid, outputs = jax.device_get(
          program.eval_step(params, batch, number))
      # Counter adds in float64: a sum over two million clips needs it.
      totals.update({name: float(value) for name, value in sums.items()})
      count += int(valid)
      used = outputs.pop('valid') > 0
      rows.append({name: x[used] for name, x in outputs.items()})
  split.report.share()
  if not count:
    split.report.stop()
  outputs = {name: np.concatenate([row[name] for row in rows])
             for name in rows[0]}
  index = outputs.pop('index')
  # Hosts interleave their rows; the split has an order.
  order = np.argsort(index)
  outputs = {name: x[order] for name, x in outputs.items()}
  result = program.task.metrics(outputs)
  values = {name: total / count for name, total in totals.items()}
  return Evaluation({**values, **result.values, 'num_clips': count},
                    result.per_class, outputs, index[order])


def summary(name: str, found: Evaluation, metric: str) -> str:
  """One line of what was found on the split `name`."""
  first = f', {metric} {found.values[metric]:.4f}' if metric else ''
  return (f'{name} loss {found.values["loss"]:.4f}{first} over '
          f'{found.values["num_clips"]} clips')


def write(folder, evaluation: Evaluation, split: splits.Split, about: dict):
  """Leaves metrics.json, per_class.csv and predictions.npz in `folder`.

  `about` says of what: it goes into the JSON as it is.
  """
  folder, source = pathlib.Path(folder), split.source
  folder.mkdir(parents=True, exist_ok=True)
  number = lambda x: float(x) if math.isfinite(x) else None
  content = {
      **about,
      'data': source.describe(), 'num_clips': len(evaluation.index),
      'num_unusable_clips': len(source) - len(evaluation.index),
      'metrics': {name: number(x) for name, x in evaluation.values.items()
                  if name != 'num_clips'}}
  clips = evaluation.per_class.get('clips')
  if clips is not None:
    content['classes_without_positives'] = [
        name for name, n in zip(source.class_names, clips) if not n]
    _write(folder / PER_CLASS, lambda file: _table(
        file, source.class_names, evaluation.per_class))
  if evaluation.outputs:
    arrays = {
        'ids': np.array([source.name_of(int(i)) for i in evaluation.index]),
        'class_names': np.array(source.class_names), **evaluation.outputs}
    _write(folder / PREDICTIONS, lambda file: np.savez_compressed(
        file, **arrays), mode='wb')
  _write(folder / METRICS, lambda file: json.dump(
      content, file, indent=1, ensure_ascii=False, allow_nan=False))


def _table(file, class_names, per_class):
  writer = csv.writer(file)
  writer.writerow(['class', *per_class])
  for c, name in enumerate(class_names):
    writer.writerow([name, *(
        '' if math.isnan(x[c]) else f'{x[c]:.6g}' for x in per_class.values())])


def _write(path, fill, mode='w'):
  """All of a file or nothing: a table that is half there would be believed."""
  partial = path.with_name(path.name + '.partial')
  text = {} if 'b' in mode else {'encoding': 'utf-8', 'newline': ''}
  with open(partial, mode, **text) as file:
    fill(file)
  os.replace(partial, path)
