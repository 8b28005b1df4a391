"""The recipes for fine-tuning have the numbers of the paper's table 3."""

import pytest
import recipes

from audio_mae_jax import config as config_lib

# What is in no column is the same in all; see below.
FIELDS = ('optimizer.base_lr', 'optimizer.warmup_epochs', 'train.epochs',
          'train.batch_size', 'augment.time_mask', 'augment.freq_mask',
          'augment.mixup', 'augment.noise', 'labels.multilabel', 'labels.loss',
          'frontend.mean', 'frontend.std', 'frontend.num_frames',
          'data.clip_s')
TABLE_3 = {
    'as2m': (2e-4, 20, 100, 512, 192, 48, 0.5, 0, True, 'bce',
             -4.268, 4.569, 1024, 10),
    'as20k': (1e-3, 4, 60, 32, 192, 48, 0.5, 0, True, 'bce',
              -4.268, 4.569, 1024, 10),
    'esc50': (1e-3, 4, 60, 64, 96, 24, 0, 0, False, 'ce',
              -6.627, 5.359, 512, 5),
    'spc2': (1e-3, 4, 60, 256, 48, 48, 0.5, 0.1, False, 'bce',
             -6.846, 5.565, 128, 1),
    'spc1': (1e-3, 1, 10, 256, 48, 48, 0.5, 0.1, False, 'bce',
             -6.702, 5.448, 128, 1),
    'voxceleb1': (1e-3, 4, 60, 64, 192, 48, 0, 0.1, False, 'ce',
                  -6.370, 3.074, 1024, 10),
}
# The paper has no such data: numbers of AS-20K, and of ESC on longer clips.
TABLE_3['fsd50k'] = TABLE_3['as20k']
TABLE_3['own'] = TABLE_3['esc50'][:-4] + (-4.268, 4.569, 1024, 10)


def recipe(name, *arguments):
  return config_lib.typed(recipes.load(f'finetune_{name}', *arguments))


def field(config, name):
  for part in name.split('.'):
    config = getattr(config, part)
  return config


def test_every_recipe_is_in_the_table():
  small = {'finetune_small'}  # of docs/results.md, with numbers of its own
  assert {path.stem for path in recipes.CONFIGS.glob('finetune_*.py')} == {
      f'finetune_{name}' for name in TABLE_3} | small


@pytest.mark.parametrize('name', TABLE_3)
def test_a_recipe_has_its_column(name):
  config = recipe(name)
  for what, expected in zip(FIELDS, TABLE_3[name], strict=True):
    value = field(config, what)
    if what in ('frontend.mean', 'frontend.std'):  # rounded in the paper
      expected = pytest.approx(expected, abs=1e-3)
    assert value == expected, what


@pytest.mark.parametrize('name', TABLE_3)
def test_what_all_columns_share(name):
  config = recipe(name)
  o = config.optimizer
  assert (o.b1, o.b2, o.weight_decay, o.min_lr, o.clip_norm) == (
      0.9, 0.95, 1e-4, 1e-6, 0)
  assert o.layer_decay == 0.75  # util/lr_decay.py; not in the paper
  assert config.task == 'classify'
  assert config.model.encoder.drop_path == 0.1
  assert config.model.encoder.variant == 'B'
  assert config.labels.smoothing == 0
  assert config.augment.roll and config.augment.gain_concentration == 10
  mask = config.mask  # section 4.2
  assert (mask.name, mask.time_ratio, mask.freq_ratio) == (
      'time_freq', 0.3, 0.3)
  assert config.augment.noise_shift == (10 if config.augment.noise else 0)


def test_only_audioset_2m_is_balanced():
  """200,000 clips an epoch, without replacement (appendix B)."""
  for name in TABLE_3:
    data = recipe(name).data
    assert (data.sampling, data.epoch_clips, data.replacement) == (
        ('balanced', 200_000, False) if name == 'as2m'
        else ('shuffle', 0, False))


@pytest.mark.parametrize('name, splits', [
    ('as2m', ('balanced+unbalanced', 'eval', '')),
    ('as20k', ('balanced', 'eval', '')), ('esc50', ('', '', '')),
    ('own', ('train', 'valid', '')),
    *((name, ('train', 'valid', 'test'))
      for name in ('spc1', 'spc2', 'voxceleb1', 'fsd50k'))])
def test_a_recipe_holds_out_what_its_data_set_says(name, splits):
  data = recipe(name).data
  parts = data.train, data.valid, data.test
  assert tuple(part.split for part in parts) == splits
  used = {(part.path, part.labels_csv) for part in parts if part.name}
  assert len(used) == 1  # one manifest, one class list


def test_esc50_is_cross_validated_and_has_a_small_brother():
  config = recipe('esc50')
  assert config.folds == ('1', '2', '3', '4', '5')
  assert not config.data.valid.name  # each fold in turn
  small = recipe('esc50', 'esc10').data.train
  assert (small.path, small.labels_csv) == (
      'esc10/manifest.csv', 'esc10/classes.csv')
