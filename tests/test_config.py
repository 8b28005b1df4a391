"""Settings: what is accepted, what is refused, and in which words."""

import dataclasses
import re

import ml_collections
import pytest

from audio_mae_jax import config
from audio_mae_jax import registry


def changed(name, value):
  """The default settings with one field, given by its dotted name, changed."""
  values = config.default().to_dict()
  *path, last = name.split('.')
  group = values
  for part in path:
    group = group[part]
  group[last] = value
  return values


def test_default_settings_become_the_default_dataclass():
  assert config.typed(config.default()) == config.Config()


def test_what_is_left_out_keeps_its_default():
  typed = config.typed({'mask': {'ratio': 0.5}})
  assert typed == dataclasses.replace(
      config.Config(), mask=config.Mask(ratio=0.5))


def test_the_typed_form_is_hashable_and_frozen():
  typed = config.typed(config.default())
  assert hash(typed) == hash(config.Config())
  with pytest.raises(dataclasses.FrozenInstanceError):
    typed.mask.ratio = 0.5


@pytest.mark.parametrize('name, given, want', [
    ('patch.size', [8, 16], (8, 16)),
    ('optimizer.decay_excluded', [], ()),
    ('optimizer.decay_excluded', ['a', 'b', 'c', 'd'], ('a', 'b', 'c', 'd')),
    ('train.epochs', 3, 3.0),
    ('mask.ratio', 1, 1.0),
])
def test_a_widening_is_accepted(name, given, want):
  value = config.typed(changed(name, given))
  for part in name.split('.'):
    value = getattr(value, part)
  assert value == want
  assert type(value) is type(want)


def test_references_between_fields_are_resolved():
  settings = config.default()
  frames = ml_collections.FieldReference(208)
  settings.frontend.num_frames = frames
  settings.train.batch_size = frames
  frames.set(96)
  typed = config.typed(settings)
  assert (typed.frontend.num_frames, typed.train.batch_size) == (96, 96)


@pytest.mark.parametrize('name, value, message', [
    ('model.decoder.widht', 64,
     "config.model.decoder.widht is not a setting. Did you mean 'width'? "
     'Known: name, width, depth,'),
    ('maks', {}, "config.maks is not a setting. Did you mean 'mask'?"),
    ('mask.zzz', 1, 'config.mask.zzz is not a setting. Known: name, ratio,'),
    ('mask', 0.8, 'config.mask takes a group of settings, not 0.8.'),
    ('patch.size', 16, 'config.patch.size takes a tuple, got 16.'),
    ('patch.size', (16,), 'config.patch.size takes 2 values, got (16,).'),
    ('patch.size', (16, 1.5), 'config.patch.size takes int, got 1.5 (float).'),
    ('optimizer.decay_excluded', ('a', 1),
     'config.optimizer.decay_excluded takes str, got 1 (int).'),
    ('train.epochs', '3', "config.train.epochs takes float, got '3' (str)."),
    ('train.seed', 0.0, 'config.train.seed takes int, got 0.0 (float).'),
    ('train.seed', True, 'config.train.seed takes int, got True (bool).'),
    ('mask.ratio', True, 'config.mask.ratio takes float, got True (bool).'),
    ('augment.roll', 1, 'config.augment.roll takes bool, got 1 (int).'),
    ('task', None, 'config.task takes str, got None (NoneType).'),
])
def test_a_wrong_setting_is_named_with_its_remedy(name, value, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    config.typed(changed(name, value))


def test_every_field_of_every_group_has_a_default_and_is_typed():
  def check(cls):
    for field in dataclasses.fields(cls):
      assert field.default is not dataclasses.MISSING, (cls, field.name)
      if dataclasses.is_dataclass(field.default):
        check(type(field.default))
  check(config.Config)


def test_lookup_suggests_what_is_near_and_lists_what_is_known():
  table = {'local': 1, 'global': 2}
  assert registry.lookup(table, 'local', 'x') == 1
  with pytest.raises(ValueError, match=re.escape(
      "model.name='locl' is not known. Did you mean 'local'? "
      'Known: local, global.')):
    registry.lookup(table, 'locl', 'model.name')


@dataclasses.dataclass(frozen=True)
class Settings:
  name: str = 'sine'
  hz: float = 440.0
  width: int = 3


def sine(t, *, hz):
  del t, hz


def click(t):
  del t


PARTS = {'sine': sine, 'click': click}


def test_select_hands_a_part_the_settings_that_it_takes():
  assert registry.select(PARTS, Settings(hz=220.0), 'wave') == (
      sine, {'hz': 220.0})
  assert registry.select(PARTS, Settings('click'), 'wave') == (click, {})


@pytest.mark.parametrize('settings, message', [
    (Settings('sin'), "wave.name='sin' is not known. Did you mean 'sine'?"),
    (Settings(width=4), "wave.width=4 has no effect with wave.name='sine', "
     'which takes hz. Leave it at 3.'),
    (Settings('click', hz=1.0), "wave.hz=1.0 has no effect with wave.name="
     "'click', which takes no settings. Leave it at 440.0."),
])
def test_a_setting_without_effect_is_refused(settings, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    registry.select(PARTS, settings, 'wave')


def test_differences_name_every_leaf_that_differs():
  old = dataclasses.asdict(config.Config())
  # As read back from JSON, where a tuple is a list.
  new = dataclasses.asdict(config.Config(mask=config.Mask(ratio=0.7)))
  new['patch']['size'] = [16, 16]
  new['train']['extra'] = 1
  del new['log']['progress']
  assert config.differences(old, new) == [
      ('log.progress', True, None), ('mask.ratio', 0.8, 0.7),
      ('train.extra', None, 1)]
  assert config.differences(old, old) == []
