"""What is stored beside the arrays of a checkpoint: settings, data, classes."""

import dataclasses
import re

from audio_mae_jax import config as config_lib

# Where, how fast and how often may change from one start to the next; these
# decide what the result is, and may not.
FREE = (r'name', r'workdir', r'mesh\..*', r'checkpoint\..*', r'log\..*',
        # Other clips or classes than before show in the data.
        r'data\.(root|train\.(path|labels_csv)|valid\..*|test\..*)',
        r'data\.(num_threads|prefetch_batches|cache_gb)',
        r'data\.(on_bad|max_bad_fraction)',
        r'model\.(remat|scan_layers|attention)', r'frontend\.transform',
        r'mode', r'folds', r'probe\..*', r'labels\.metric')


def of(config: config_lib.Config, data: dict, classes=()) -> dict:
  """What is stored beside the arrays.

  `data` says which clips there are, `classes` are the names of a classifier's.
  """
  return {'config': dataclasses.asdict(config), 'data': data,
          'classes': list(classes)}


def check(stored: dict, present: dict, folder):
  """Raises ValueError when a field that changes the result differs.

  A field that is younger than the run has its default.
  """
  began = dataclasses.asdict(config_lib.typed(stored['config']))
  # Pre-training has no head, and labels for its probes alone.
  of_task = ((r'labels\..*', r'model\.classifier\..*')
             if began['task'] == 'pretrain' else ())
  changed = [
      (name, old, new) for name, old, new in
      config_lib.differences(began, present['config'])
      if not any(re.fullmatch(free, name) for free in FREE + of_task)]
  changed += [
      (f'the data ({name})', old, new) for name, old, new in
      config_lib.differences(stored['data'], present['data'])]
  if changed:
    lines = '\n'.join(f'  {name}: was {old!r}, is {new!r}'
                      for name, old, new in changed)
    raise ValueError(
        f'The run in {folder.parent} was started with other settings:\n'
        f'{lines}\nSet them back to go on with it, or choose another '
        '--config.workdir to start anew.')
