"""Weights in and out: every tensor of every layout comes back."""

import dataclasses
import itertools
import pathlib
import pickle
import re
import shlex
import shutil
import sys

import exchange
import goldens
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import reference
import tiny

from audio_mae_jax import config as config_lib
from audio_mae_jax import losses
from audio_mae_jax import masking
from audio_mae_jax import patches
from audio_mae_jax import weights as weights_lib
from audio_mae_jax.convert import __main__ as command
from audio_mae_jax.convert import exporter
from audio_mae_jax.convert import files
from audio_mae_jax.convert import importer
from audio_mae_jax.convert import names
from audio_mae_jax.models import mae

B = {}  # ViT-B, as released
FULL_SIZE = {  # table of golden/ -> the settings that it is of
    'pretrain_keys': {'patch.positions': 'released'},
    'pretrain_global_keys': {
        'model.decoder.name': 'global', 'model.decoder.depth': 8},
    'pretrain_overlap_keys': {
        'patch.stride': (10, 10), 'model.decoder.window': (6, 6)},
    'finetune_keys': {
        'task': 'classify', 'model.classifier.num_classes': 527},
}


@pytest.mark.parametrize('table', FULL_SIZE)
def test_every_released_tensor_has_its_name_and_shape(table):
  config = tiny.config({}, FULL_SIZE[table])
  shapes = {name: leaf.shape
            for name, leaf in weights_lib.shapes(config).items()}
  theirs, homeless = names.expected(names.RELEASED, shapes, config.patch)
  assert not homeless
  gt, gf = weights_lib.grid_of(config)
  for name, part in names.RELEASED.positions.items():
    if names.TOKENS[part] in shapes:
      theirs[name] = (1, 1 + gt * gf, *shapes[names.TOKENS[part]])
  want = {name: tuple(map(int, shape.split('x')))
          for name, shape, *_ in goldens.table(table)}
  assert len(want) == {
      'pretrain_keys': 430, 'pretrain_global_keys': 254,
      'pretrain_overlap_keys': 430, 'finetune_keys': 152}[table]
  assert theirs == want


def test_names_are_those_of_an_independent_mapping():
  ours = {reference.rename(name): name for name in exchange.released()}
  del ours[None]  # positions
  for name, theirs in ours.items():
    assert names.RELEASED.find(name)[0] == (theirs,)
    assert names.RELEASED.name_here(theirs) == name


def reconstruction_losses(weights, golden):
  """Both losses of the golden 'random80' by a model of these weights."""
  config = weights.config
  model = mae.make(config)
  spectrograms = jnp.asarray(goldens.read('local')['spectrograms'])
  grid = patches.grid_of(spectrograms.shape[1:], config.patch)
  pixels = patches.patchify(spectrograms, config.patch)
  mask = masking.from_scores(jnp.asarray(golden['noise']), 102)
  params = reference.nest(weights.params)
  prediction = jax.jit(lambda params: model.apply(
      {'params': params}, pixels, grid, mask).prediction)(params)
  return [float(losses.masked_mse(prediction, target, mask.removed).mean())
          for target in (losses.normalize_patches(pixels), pixels)]


def legacy(path, tensors):
  """Writes the format that torch had before 1.6: a stream of pickles."""
  stored = {name: ('storage', _Global('torch', 'FloatStorage'), str(i), 'cpu',
                   x.size, None) for i, (name, x) in enumerate(tensors.items())}
  rebuild = _Global('torch._utils', '_rebuild_tensor_v2')
  state = {}
  for name, x in tensors.items():
    strides = tuple(s // x.itemsize for s in np.ascontiguousarray(x).strides)
    state[name] = _Call(rebuild, (
        _Stored(stored[name]), 0, x.shape, strides, False, {}))
  with open(path, 'wb') as file:
    for thing in (0x1950a86a20f9469cfc6c, 1001, {'little_endian': True}):
      pickle.dump(thing, file, protocol=2)
    _Pickler(file, protocol=2).dump({'model': state})
    pickle.dump([key[2] for key in stored.values()], file, protocol=2)
    for x in tensors.values():
      file.write(np.int64(x.size).tobytes() + np.float32(x).tobytes())
  return path


class _Global:
  """Pickled as the name of a function of torch."""

  def __init__(self, module, name):
    self.module, self.name = module, name


class _Call:

  def __init__(self, function, arguments):
    self.function, self.arguments = function, arguments


class _Stored:

  def __init__(self, key):
    self.key = key


class _Pickler(pickle._Pickler):  # the one in Python can be taught opcodes

  def persistent_id(self, thing):
    return thing.key if isinstance(thing, _Stored) else None

  def save(self, thing, save_persistent_id=True):
    if isinstance(thing, _Global):
      self.write(b'c' + f'{thing.module}\n{thing.name}\n'.encode())
    elif isinstance(thing, _Call):
      self.save(thing.function)
      self.save(thing.arguments)
      self.write(b'R')
    else:
      super().save(thing, save_persistent_id)


@pytest.mark.parametrize('kind', ['zip', 'legacy', 'safetensors'])
def test_a_released_checkpoint_gives_the_released_loss(kind, tmp_path):
  path = {'zip': lambda: exchange.TINY,
          'legacy': lambda: legacy(tmp_path / 'old.pth', exchange.released()),
          'safetensors': lambda: exchange.write(
              tmp_path / 'x.safetensors', exchange.released()),
          }[kind]()
  weights = importer.import_weights(path, given=exchange.HEADS)
  golden = goldens.under(goldens.read('local'), 'random80/')
  np.testing.assert_allclose(
      reconstruction_losses(weights, golden),
      [golden['loss_normpix'], golden['loss_pix']], rtol=1e-6)
  assert weights.config.patch.positions == 'released'
  assert weights.config.patch.positions_grid == (64, 8)
  assert weights.config.model.decoder == config_lib.Decoder(width=32)


def test_parameters_are_those_of_an_independent_mapping():
  weights = importer.import_weights(exchange.TINY, given=exchange.HEADS)
  golden = goldens.under(
      goldens.read('local_params_0', 'local_params_1'), 'param/')
  exchange.assert_same_bits(weights.params, golden)


def test_the_legacy_recording_has_an_encoder(tmp_path):
  # golden/README.md: its model lacks the decoder's blocks.
  path = goldens.FOLDER / 'ckpt_pretrain_tiny_legacy.pth'
  with pytest.raises(ValueError, match='a decoder without blocks. Take the '
                     'encoder alone, with --part encoder'):
    importer.import_weights(path, given=exchange.HEADS)
  got = importer.import_weights(path, given=exchange.HEADS, part='encoder')
  want = importer.import_weights(
      exchange.TINY, given=exchange.HEADS, part='encoder')
  exchange.assert_same_bits(got.params, want.params)


def there_and_back(tensors, format, tmp_path, given=exchange.HEADS):
  """Tensors as exported after they were imported, saved and loaded."""
  path = exchange.write(tmp_path / 'theirs.safetensors', tensors)
  weights = importer.import_weights(path, given=given)
  weights_lib.save(tmp_path / 'ours', weights)
  weights = weights_lib.load(tmp_path / 'ours')
  output = tmp_path / 'back.safetensors'
  exporter.export_weights(weights, format, output)
  return files.read(output)[0]


def drawn(table, scale, blocks=(2, 3)):
  """Random tensors by the names of golden/TABLE, every width / `scale`.

  `blocks` are kept of encoder and decoder.
  """
  rng = np.random.default_rng(0)
  blocks = dict(zip(('blocks', 'decoder_blocks'), blocks))
  tensors = {}
  for name, shape, *_ in goldens.table(table):
    stack, _, rest = name.partition('.')
    if stack in blocks and int(rest.split('.')[0]) >= blocks[stack]:
      continue
    shape = [int(n) for n in shape.split('x')]
    keep = {384, 2, 16, 1, 513, 1213, 256, 527}  # no widths
    shape = [n if n in keep else n // scale for n in shape]
    tensors[name] = rng.normal(size=shape).astype(np.float32)
  return tensors


@pytest.mark.parametrize('table, given', [
    ('pretrain_keys', {}), ('pretrain_global_keys', {'model.decoder.heads': 4}),
    ('pretrain_overlap_keys', {}), ('finetune_keys', {})])
def test_official_to_ours_to_official_is_bit_exact(table, given, tmp_path):
  tensors = drawn(table, 8)
  for name, width in (('pos_embed', 96), ('decoder_pos_embed', 64)):
    if name in tensors:
      grid, layout = (((101, 12), 'time_freq') if 'overlap' in table else
                      ((64, 8), 'released'))
      tensors[name] = patches.position_table(
          grid, width, config_lib.Patch(positions=layout))[None]
      # As another library's sines may round.
      tensors[name] = np.nextafter(tensors[name], 1, dtype=np.float32)
  back = there_and_back(
      tensors, 'official', tmp_path, {'model.encoder.heads': 12} | given)
  exchange.assert_same_bits(back, tensors)


@pytest.mark.parametrize('positions', ['released', 'learnt'])
@pytest.mark.parametrize('head', ['norm', 'norm, head', 'fc_norm',
                                  'fc_norm, head'])
def test_timm_to_ours_to_timm_is_bit_exact(head, positions, tmp_path):
  tensors = {name: x for name, x in drawn('pretrain_keys', 8).items()
             if name.startswith(('cls', 'pos', 'patch', 'blocks', 'norm'))}
  if positions == 'released':
    tensors['pos_embed'] = patches.position_table(
        (64, 8), 96, config_lib.Patch(positions='released'))[None]
  if 'fc_norm' in head:
    for x in ('weight', 'bias'):
      tensors[f'fc_norm.{x}'] = tensors.pop(f'norm.{x}')
  if 'head' in head:
    rng = np.random.default_rng(1)
    tensors['head.weight'] = rng.normal(size=(7, 96)).astype(np.float32)
    tensors['head.bias'] = rng.normal(size=7).astype(np.float32)
  back = there_and_back(
      tensors, 'timm', tmp_path, {'model.encoder.heads': 12})
  exchange.assert_same_bits(back, tensors)


@pytest.mark.slow
@pytest.mark.parametrize('table', [
    'pretrain_keys', 'pretrain_global_keys', 'pretrain_overlap_keys',
    'finetune_keys'])
def test_the_released_size_comes_back_bit_by_bit(table, tmp_path):
  tensors = drawn(table, 1, (99, 99))
  assert len(tensors) == len(goldens.table(table))
  back = there_and_back(tensors, 'official', tmp_path, {})
  exchange.assert_same_bits(back, tensors)


MOVED = {  # what the weights were trained on -> what they are used on
    'half as long': ({}, {'frontend.num_frames': 128}),
    'longer': ({}, {'frontend.num_frames': 384}),
    'another stride': ({}, {'patch.stride': (8, 16)}),
    'overlapping': ({}, {'patch.stride': (10, 10)}),
    'an odd length': ({'patch.stride': (10, 10), 'frontend.num_frames': 200},
                      {}),
    'half the bins': ({}, {'frontend.num_mel_bins': 64}),
    'many bins': ({'frontend.num_frames': 64, 'frontend.num_mel_bins': 256},
                  {}),
}


# A table has no codes for more; Hugging Face has no overlapping patches.
MOVES = [
    pytest.param(case, format, positions, marks=() if (
        format == 'official' or positions == 'table') else pytest.mark.slow)
    for case, format, positions in itertools.product(
        MOVED, ('official', 'timm', 'huggingface'),
        ('time_freq', 'released', 'table'))
    if (case, positions) != ('longer', 'table') and not (
        format == 'huggingface' and 'patch.stride' in
        MOVED[case][0] | MOVED[case][1])]


@pytest.mark.parametrize('case, format, positions', MOVES)
def test_a_moved_model_leaves_and_comes_back(case, format, positions, tmp_path):
  trained, used = MOVED[case]
  weights = exchange.random_weights(
      trained | {'patch.positions': positions, 'model.decoder.heads': 4})
  config = weights.config
  # As a run that starts from them would have it.
  nested = dataclasses.asdict(config)
  for name, value in used.items():
    group, field = name.split('.')
    nested[group][field] = value
  config = config_lib.typed(nested)
  weights = dataclasses.replace(weights, config=config)
  grid = weights_lib.grid_of(config)
  if positions == 'table':
    want = np.asarray(patches.look_up(
        weights.params['encoder/positions'], grid, config.patch))
  else:
    want = patches.position_table(grid, 48, config.patch)
  suffix = '' if format == 'huggingface' else '.safetensors'
  first, second = tmp_path / f'a{suffix}', tmp_path / f'b{suffix}'
  exporter.export_weights(weights, format, first)
  back = importer.import_weights(first)
  exporter.export_weights(back, format, second)
  tensors = files.read(first)[0]
  exchange.assert_same_bits(files.read(second)[0], tensors)
  table = next(x for name, x in tensors.items()
               if name in ('pos_embed', 'vit.embeddings.position_embeddings',
                           'embeddings.position_embeddings'))
  np.testing.assert_array_equal(table[0], want)
  assert weights_lib.grid_of(back.config) == grid
  assert back.config.frontend == config.frontend
  assert back.config.model.encoder == config.model.encoder
  assert back.config.patch.stride == config.patch.stride
  assert back.config.patch.positions == positions
  params = {name: x for name, x in back.params.items()
            if not name.endswith('positions')}
  part = 'encoder' if format == 'timm' else 'all'
  exchange.assert_same_bits(params, {
      name: x for name, x in weights.part(part).params.items()
      if not name.endswith('positions')})


def test_a_table_that_was_read_does_not_leave_with_a_moved_model(tmp_path):
  # For half of the clip that the file's own table is kept for.
  weights = importer.import_weights(
      exchange.TINY, given=exchange.HEADS | {'frontend.num_frames': 128})
  assert weights.tables['encoder'].shape == (513, 48)
  tensors = exporter.tensors_of(weights, names.RELEASED)
  for name in ('pos_embed', 'decoder_pos_embed'):
    np.testing.assert_array_equal(
        tensors[name], exchange.released()[name][:, :257])


@pytest.mark.parametrize('ending', ['safetensors', 'pth'])
def test_what_tensors_do_not_show_is_noted(ending, tmp_path, caplog):
  if ending == 'pth':
    pytest.importorskip('torch')
  weights = exchange.random_weights({
      'model.encoder.heads': 6, 'model.decoder.name': 'local',
      'model.decoder.depth': 3, 'model.decoder.window': (2, 2),
      'model.decoder.shift': (1, 1), 'frontend.mean': -3.0,
      'objective.normalize_patches': False})
  exporter.export_weights(weights, 'official', tmp_path / f'x.{ending}')
  assert 'it computes something else' in caplog.text
  back = importer.import_weights(tmp_path / f'x.{ending}')
  assert back.config.model == weights.config.model
  assert back.config.frontend == weights.config.frontend
  assert not back.config.objective.normalize_patches
  exchange.assert_same_bits(back.params, weights.params)


def test_released_overlapping_patches_are_1024_x_128_in_windows_of_6(tmp_path):
  tensors = drawn('pretrain_overlap_keys', 8)
  for name, width in (('pos_embed', 96), ('decoder_pos_embed', 64)):
    tensors[name] = patches.position_table(
        (101, 12), width, config_lib.Patch())[None]
  config = importer.import_weights(
      exchange.write(tmp_path / 'x.safetensors', tensors),
      given={'model.encoder.heads': 12}).config
  assert (config.frontend.num_frames, config.frontend.num_mel_bins) == (
      1024, 128)
  assert config.patch.stride == (10, 10)
  assert config.model.decoder.window == (6, 6)
  assert config.model.decoder.shift == (2, 0)


@pytest.mark.parametrize('prefix', ['module.', '_orig_mod.module.', 'model.'])
def test_prefixes_of_wrappers_come_off(prefix, tmp_path):
  path = exchange.write(tmp_path / 'x.safetensors', {
      prefix + name: x for name, x in exchange.released().items()})
  got = importer.import_weights(path, given=exchange.HEADS)
  want = importer.import_weights(exchange.TINY, given=exchange.HEADS)
  exchange.assert_same_bits(got.params, want.params)


def test_a_run_can_leave_as_official_and_come_back(tmp_path):
  config = tiny.config(tiny.GLOBAL, {'patch.positions': 'time_freq',
                                     'frontend.num_frames': 256})
  rng = np.random.default_rng(0)
  params = {name: rng.normal(size=leaf.shape).astype(np.float32)
            for name, leaf in weights_lib.shapes(config).items()}
  weights = weights_lib.Weights(
      params, weights_lib.with_positions(config), {})
  exporter.export_weights(weights, 'official', tmp_path / 'a.safetensors')
  back = importer.import_weights(tmp_path / 'a.safetensors')  # heads are noted
  exchange.assert_same_bits(back.params, params)
  assert back.config.model.encoder.heads == 3
  assert back.config.model.decoder.heads == 4
  assert back.config.patch.positions == 'time_freq'
  assert back.config.patch.positions_grid == (16, 8)


def test_the_command_imports_and_exports(tmp_path, capsys):
  command.main(['import', '--input', str(exchange.TINY), '--output',
                str(tmp_path / 'ours'), '--set', 'model.encoder.heads=3'])
  told = capsys.readouterr().out
  assert '380,208 parameters in 308 arrays (decoder, encoder, pred)' in told
  assert "positions 'released', made for 64 x 8 patches at stride 4x4" in told
  output = tmp_path / 'back.safetensors'
  command.main(['export', '--to', 'official', '--input', str(tmp_path / 'ours'),
                '--output', str(output)])
  exchange.assert_same_bits(files.read(output)[0], exchange.released())
  command.main(['export', '--to', 'weights', '--input', str(tmp_path / 'ours'),
                '--output', str(tmp_path / 'compact'), '--part', 'encoder',
                '--dtype', 'bfloat16'])
  compact = weights_lib.load(tmp_path / 'compact')
  assert {name.split('/')[0] for name in compact.params} == {'encoder'}
  assert all(x.dtype == ml_dtypes.bfloat16 for x in compact.params.values())


def test_others_can_read_what_is_written(tmp_path):
  (tmp_path / 'new').touch()
  weights = exchange.random_weights()
  exporter.export_weights(weights, 'official', tmp_path / 'x.safetensors')
  exporter.export_weights(weights, 'weights', tmp_path / 'w')
  for path in ('x.safetensors', 'w/model.safetensors', 'w/config.json'):
    assert (tmp_path / path).stat().st_mode == (tmp_path / 'new').stat().st_mode


@pytest.mark.parametrize('output, message', [
    ('x.onnx', 'must end in .safetensors or .pth'),
    ('exists.safetensors', 'exists already; choose another place'),
])
def test_a_wrong_output_is_refused(output, message, tmp_path):
  (tmp_path / 'exists.safetensors').touch()
  with pytest.raises(ValueError, match=re.escape(message)):
    exporter.export_weights(
        exchange.random_weights(), 'official', tmp_path / output)


def test_a_setting_must_have_a_value(capsys):
  with pytest.raises(SystemExit):
    command.main(['import', '--input', 'x', '--output', 'y', '--set', 'heads'])
  assert "'heads' is not KEY=VALUE" in capsys.readouterr().err


def test_pth_needs_torch(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)
  with pytest.raises(ValueError, match='a .safetensors file does not'):
    exporter.export_weights(
        exchange.random_weights(), 'official', tmp_path / 'x.pth')
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_pth_is_what_torch_reads(dtype, tmp_path):
  torch = pytest.importorskip('torch')
  weights = exchange.random_weights()
  exporter.export_weights(
      weights, 'official', tmp_path / 'x.pth', dtype=dtype)
  exporter.export_weights(
      weights, 'official', tmp_path / 'x.safetensors', dtype=dtype)
  want, _ = files.read(tmp_path / 'x.safetensors')
  read = torch.load(tmp_path / 'x.pth', weights_only=True)['model']
  assert read.keys() == want.keys()
  for name, x in read.items():
    np.testing.assert_array_equal(
        x.float().numpy(), want[name].astype(np.float32))
  exchange.assert_same_bits(files.read(tmp_path / 'x.pth')[0], want)


ROOT = pathlib.Path(__file__).parents[1]


def documented():
  """Every command line of this command in the documentation."""
  for page in (ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md')),
               ROOT / 'audio_mae_jax' / 'convert' / '__main__.py'):
    text = page.read_text().replace('\\\n', ' ')
    for line in re.findall(r'^\s*python -m audio_mae_jax\.convert (.*)$', text,
                           re.M):
      yield page.name, line


@pytest.mark.parametrize('page, line', list(documented()))
def test_a_documented_command_is_one(page, line):
  if '|' not in line:  # the usage
    assert command.parser().parse_args(shlex.split(line)).action


def test_the_documentation_has_commands():
  assert {'README.md', 'weights.md'} <= {page for page, _ in documented()}


def test_what_the_documentation_shows_in_python_works(tmp_path, monkeypatch):
  page = (ROOT / 'docs' / 'weights.md').read_text()
  code, = (block for block in re.findall(r'```python\n(.*?)```', page, re.S)
           if 'import_weights' in block)
  shutil.copyfile(exchange.TINY, tmp_path / 'pretrained.pth')
  monkeypatch.chdir(tmp_path)
  heads = "'pretrained.pth', given={'model.encoder.heads': 3}"
  exec(code.replace("'pretrained.pth'", heads))
  exchange.assert_same_bits(
      files.read(tmp_path / 'again.safetensors')[0], exchange.released())
