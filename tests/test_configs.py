"""Every recipe loads, is typed, and its train step has the right shapes."""

import ast
import dataclasses
import functools
import importlib.util
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest
import shared_steps

from audio_mae_jax import bookkeeping
from audio_mae_jax import checkpoint
from audio_mae_jax import config as config_lib
from audio_mae_jax import step
from audio_mae_jax import tasks
from audio_mae_jax.data import labels
from audio_mae_jax.data import pipeline

ROOT = pathlib.Path(__file__).parents[1]
RECIPES = sorted(path.stem for path in (ROOT / 'configs').glob('*.py'))
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md')),
         *sorted((ROOT / 'configs').glob('*.py'))]


def load(recipe):
  spec = importlib.util.spec_from_file_location(
      recipe, ROOT / 'configs' / f'{recipe}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def commands():
  """(page, recipe, overrides) of every command line in the documentation."""
  found = set()
  for page in PAGES:
    tuning = False
    text = page.read_text().replace('\\\n', ' ')
    for line in text.splitlines():
      recipe = re.search(r'--config=configs/(\w+)\.py', line)
      if recipe:
        overrides = re.findall(r"--config\.([\w.]+)=('[^']*'|\S+)", line)
        if overrides:  # recipes alone are traced anyway
          found.add((page.name, recipe[1], tuple(overrides)))
    # Overrides in a table are applied to a recipe of the paper.
    for row in re.findall(r'^\|.*\|$', text, re.M):
      if row.startswith('| you want') or row.startswith('| here'):
        tuning = 'fine-tuning' in row
      for cell in re.findall(r'`((?:--config\.[^`]+))`', row):
        overrides = re.findall(r"--config\.([\w.]+)=('[^']*'|\S+)", cell)
        found.add((page.name, 'finetune_esc50' if tuning else 'pretrain_as2m',
                   tuple(overrides)))
  return sorted(found)


def overridden(recipe, overrides):
  """The recipe with flags applied, as the command line would."""
  config = load(recipe).get_config()
  for name, text in overrides:
    *path, field = name.split('.')
    node = config
    for part in path:
      node = node[part]
    old, text = node[field], text.strip("'")
    if isinstance(old, bool):
      value = {'True': True, 'False': False}[text]
    elif isinstance(old, tuple):
      value = ast.literal_eval(text)
    else:
      value = type(old)(text)
    node[field] = value
  return config_lib.typed(config)


def complete(config):
  """With classes, which the data would give; shapes are the same with
  `scan_layers`, and each block is traced once."""
  config = dataclasses.replace(
      config, model=dataclasses.replace(config.model, scan_layers=True))
  if tasks.is_labelled(config) and config.model.classifier.num_classes < 0:
    config = labels.with_classes(config, list('abcdefg'), 'the data')
  return config


def shallow(config):
  """Two layers of each kind; further ones are traced alike."""
  config = complete(config)
  model = config.model
  return dataclasses.replace(config, model=dataclasses.replace(
      model,
      encoder=dataclasses.replace(model.encoder, depth=2),
      decoder=dataclasses.replace(model.decoder, depth=2)))


def check_step(config, devices):
  """Traces a whole train step; nothing is computed."""
  program = step.build(config, steps_per_epoch=1000, devices=devices)
  b = config.train.batch_size
  batch = {
      'audio': jax.ShapeDtypeStruct((b, pipeline.clip_samples(config)),
                                    jnp.float32),
      'num_samples': jax.ShapeDtypeStruct((b,), jnp.int32),
      'index': jax.ShapeDtypeStruct((b,), jnp.int32),
      'valid': jax.ShapeDtypeStruct((b,), jnp.float32)}
  if tasks.is_labelled(config):
    batch['labels'] = jax.ShapeDtypeStruct(
        (b, config.model.classifier.num_classes), jnp.float32)
  state, metrics = jax.eval_shape(program.train_step, program.shapes, batch)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
      lambda x: (x.shape, x.dtype), program.shapes)
  assert metrics['scalars']['loss'].shape == ()
  assert metrics['scalars']['loss'].dtype == jnp.float32
  assert metrics['clip_loss'].shape == (b,)


@pytest.mark.parametrize('recipe', RECIPES)
def test_a_recipe_traces_and_says_how_to_run_it(recipe):
  module = load(recipe)
  assert f'--config=configs/{recipe}.py' in module.__doc__
  check_step(shallow(config_lib.typed(module.get_config())),
             jax.devices()[:1])


def test_the_documentation_has_commands():
  assert {'README.md', 'pretrain_folder.py'} <= {
      page for page, _, _ in commands()}


@functools.cache
def check_same_step(config, num_devices):
  """Commands that differ in nothing that a step is traced from share one."""
  check_step(config, jax.devices()[:num_devices])


documented = pytest.mark.parametrize(
    'page, recipe, overrides', commands(),
    ids=lambda x: x if isinstance(x, str) else ','.join(map('='.join, x)))


def num_devices_for(overrides):
  return 8 if any(name.startswith('mesh.') for name, _ in overrides) else 1


@functools.cache
def built(config, num_devices):
  return step.build(config, 1000, jax.devices()[:num_devices])


@documented
def test_the_settings_of_a_documented_command_fit(page, recipe, overrides):
  config = shallow(overridden(recipe, overrides))
  pipeline.check(config)
  checkpoint.check(config.checkpoint)
  bookkeeping.check(config.log)
  num_devices = num_devices_for(overrides)
  program = built(shared_steps.traced_from(config), num_devices)
  assert program.mesh.size == num_devices


@pytest.mark.slow
@documented
def test_a_documented_command_traces(page, recipe, overrides):
  config = shared_steps.traced_from(shallow(overridden(recipe, overrides)))
  check_same_step(dataclasses.replace(
      config, train=config_lib.Train(
          batch_size=64 * config.optimizer.accumulate)),
      num_devices_for(overrides))


@pytest.mark.parametrize('page', ['README.md', *(
    f'docs/{path.name}' for path in sorted((ROOT / 'docs').glob('*.md')))])
def test_links_between_pages_lead_somewhere(page):
  links = re.findall(r'\]\(([^)#]+)', (ROOT / page).read_text())
  local = [link for link in links if '://' not in link]
  assert local or page != 'README.md'
  for link in local:
    assert ((ROOT / page).parent / link).exists(), link


def test_the_papers_recipe_has_the_papers_numbers():
  """Table 3, pre-training column, and section 4.2."""
  c = config_lib.typed(load('pretrain_as2m').get_config())
  o = c.optimizer
  assert (o.b1, o.b2, o.weight_decay, o.base_lr, o.min_lr) == (
      0.9, 0.95, 1e-4, 2e-4, 1e-6)
  assert (o.warmup_epochs, c.train.epochs, c.train.batch_size) == (3, 32, 512)
  assert (o.clip_norm, o.ema_decay) == (0, 0)
  assert (c.frontend.mean, c.frontend.std) == (-4.2677393, 4.5689974)
  assert c.augment.roll
  assert (c.data.clip_s, c.data.crop) == (10, 'start')
  assert (c.mask.name, c.mask.ratio) == ('unstructured', 0.8)
  assert (c.patch.size, c.frontend.num_frames) == ((16, 16), 1024)
  d = c.model.decoder
  assert (d.name, d.depth, d.width, d.heads) == ('local', 16, 512, 16)
  program = step.build(c, 1000, jax.devices()[:1])
  assert sum(x.size for x in jax.tree.leaves(program.shapes.params)
             ) == 136_336_128
