"""Every recipe for fine-tuning trains, evaluates, goes on and tells its metric.

On stand-ins: manifests with the splits, folds and class lists that the recipe
asks for, and an encoder of one small block.
"""

import csv
import dataclasses
import json
import shutil

import exchange
import jax
import numpy as np
import pytest
import recipes
import soundfile

from audio_mae_jax import checkpoint
from audio_mae_jax import config as config_lib
from audio_mae_jax import modes
from audio_mae_jax import train
from audio_mae_jax import trees
from audio_mae_jax import weights as weights_lib

pytestmark = pytest.mark.usefixtures('compile_once')

ENCODER = {'model.encoder.width': 16, 'model.encoder.depth': 1,
           'model.encoder.heads': 2}
CLASSES = ('bark', 'rain', 'speech')
RECIPES = sorted(path.stem for path in recipes.CONFIGS.glob('finetune_*.py'))


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory):
  """An encoder for patches of 16 x 16, with a decoder that is not used."""
  folder = tmp_path_factory.mktemp('pretrained') / 'weights'
  weights_lib.save(folder, exchange.random_weights(base=ENCODER | {
      'model.decoder.width': 16, 'model.decoder.depth': 1,
      'model.decoder.heads': 2}))
  return folder


def stand_in(root, settings, multilabel, folds):
  """Writes the manifest and class list that a source of a recipe names."""
  path = root / settings.path
  path.parent.mkdir(parents=True, exist_ok=True)
  clip = path.parent / 'clip'
  rows = list(csv.reader(path.open())) if path.exists() else [
      ('path', 'labels' if multilabel else 'label', 'split', 'fold')]
  rng = np.random.default_rng(len(rows))
  for split in settings.split.split('+'):
    for fold in folds or ['']:
      for i, label in enumerate(CLASSES):
        name = f'{clip.name}{len(rows)}.wav'
        soundfile.write(
            path.parent / name, rng.normal(0, 0.1 * (i + 1), 8000), 16000)
        labels = f'{label};{CLASSES[0]}' if multilabel and i else label
        rows.append((name, labels, split, fold))
  with open(path, 'w', newline='') as file:
    csv.writer(file).writerows(rows)
  if settings.labels_csv:
    with open(root / settings.labels_csv, 'w', newline='') as file:
      csv.writer(file).writerows([
          ('index', 'mid', 'display_name'),
          *((i, name, name) for i, name in enumerate(CLASSES))])


def small(recipe, root, pretrained):
  """The recipe with a small model, for three steps on stand-in data."""
  config = recipes.load(recipe)
  config.update_from_flattened_dict(ENCODER | {
      'data.root': str(root), 'init_from': str(pretrained),
      'workdir': str(root / 'run'), 'data.num_threads': 1,
      'train.batch_size': 2, 'train.steps': 3, 'optimizer.warmup_epochs': 0.0,
      'checkpoint.every_steps': 1, 'log.progress': False,
      'log.tensorboard': False, 'log.eval_every_steps': -1})
  if config.data.epoch_clips:
    config.data.epoch_clips = 4
  config.folds = config.folds[:2]
  typed = config_lib.typed(config)
  seen = set()
  for source in (typed.data.train, typed.data.valid, typed.data.test):
    if source.name and (source.path, source.split) not in seen:
      seen.add((source.path, source.split))
      stand_in(root, source, typed.labels.multilabel, typed.folds)
  return typed


# Those of as2m, own and esc50 differ from them in numbers.
LIKE_OTHERS = ('finetune_as20k', 'finetune_fsd50k', 'finetune_own',
               'finetune_small', 'finetune_spc1', 'finetune_spc2',
               'finetune_voxceleb1')


@pytest.mark.parametrize('recipe', [
    pytest.param(recipe, marks=[pytest.mark.slow] * (recipe in LIKE_OTHERS))
    for recipe in RECIPES])
def test_a_recipe_runs_to_its_metric_and_goes_on_exactly(
    recipe, pretrained, tmp_path, monkeypatch):
  one = jax.devices()[:1]
  monkeypatch.setattr(jax, 'devices', lambda *_: one)
  config = small(recipe, tmp_path, pretrained)
  modes.run(config)
  runs = [tmp_path / 'run' / f'fold_{fold}' for fold in config.folds] or [
      tmp_path / 'run']
  metric = 'mAP' if config.labels.multilabel else 'accuracy'
  assert (tmp_path / 'run/folds.json').exists() == bool(config.folds)
  splits = ['valid'] + (['test'] if config.data.test.name else [])
  for run in runs:
    for split in splits:
      found = json.loads(
          (run / 'evaluation' / split / 'metrics.json').read_text())
      assert 0 <= found['metrics'][metric] <= 1
      assert found['num_clips'] == 3 and found['step'] == 3
  # The same command goes on from where it was, to the same bits.
  run = runs[-1]
  want, _ = checkpoint.read_params(run)
  shutil.rmtree(run / 'checkpoints' / '3')
  shutil.rmtree(run / 'evaluation')
  modes.run(config)
  exchange.assert_same_bits(checkpoint.read_params(run)[0], want)
  assert (run / 'evaluation/valid/metrics.json').exists()


def test_the_encoder_is_the_pre_trained_one(pretrained, tmp_path):
  """With a rate of 0 all that was pre-trained stays, whatever the length."""
  config = small('finetune_spc2', tmp_path, pretrained)
  config = dataclasses.replace(
      config, optimizer=dataclasses.replace(
          config.optimizer, base_lr=0.0, min_lr=0.0))
  state = train.train(config, jax.devices()[:1])
  want = weights_lib.load(pretrained).params
  for name, x in trees.flatten(state.params['encoder']).items():
    np.testing.assert_array_equal(x, want[f'encoder/{name}'])
