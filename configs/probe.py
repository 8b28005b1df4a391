"""Probes a frozen encoder on labelled clips: what does it know already?

  python -m audio_mae_jax.main --config=configs/probe.py \
      --config.data.root=DIR --config.init_from=WEIGHTS

WEIGHTS is a run, one of its checkpoints, or imported weights; encoder, patches
and front end are theirs. DIR/own/manifest.csv lists clips with path, label and
split (docs/data.md). The result is a table, of the trained encoder and of the
same with random weights, in runs/NAME/probe.json; docs/probes.md explains it.

ESC-50, over its five folds: --config=configs/probe.py:esc50. The recordings
that come with the package, for the quickstart: --config=configs/probe.py:demo
--config.init_from=runs/quickstart. For several labels a clip add
--config.labels.multilabel=True.
"""

from audio_mae_jax import config as config_lib


def get_config(clips='own'):
  config = config_lib.default()
  config.mode = 'probe'
  config.name = f'probe_{clips}'
  config.labels.multilabel = False
  config.data.crop = 'start'
  config.train.batch_size = 32  # clips encoded at a time

  if clips == 'own':
    source = dict(name='manifest', path='own/manifest.csv')
    config.probe.train.update(source, split='train')
    config.probe.test.update(source, split='valid')
  elif clips == 'esc50':
    config.probe.train.update(
        name='manifest', path='esc50/manifest.csv',
        labels_csv='esc50/classes.csv')
    config.folds = ('1', '2', '3', '4', '5')  # each once to test on
    config.data.clip_s = 5.0
  elif clips == 'demo':
    source = dict(name='demo', segment_s=2.0, classes=(
        'italian', 'mandarin', 'russian', 'guitar', 'electronic', 'ringtone',
        'ambience', 'machine', 'impact'))
    config.probe.train.update(source, split='train')
    config.probe.test.update(source, split='valid')
    config.data.clip_s = 2.0
  else:
    raise ValueError(
        f'configs/probe.py:{clips}: there are own, esc50 and demo.')
  return config
