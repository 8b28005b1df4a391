"""What the importer makes of other models, and what it refuses."""

import io
import json
import pickle
import re
import zipfile

import exchange
import goldens
import ml_dtypes
import numpy as np
import pytest

from audio_mae_jax import config as config_lib
from audio_mae_jax import patches
from audio_mae_jax import weights as weights_lib
from audio_mae_jax.convert import __main__ as command
from audio_mae_jax.convert import exporter
from audio_mae_jax.convert import files
from audio_mae_jax.convert import importer
from audio_mae_jax.convert import names
from audio_mae_jax.convert import positions


def image_mae(pixels=4, width=48, side=14):
  """Tensors of a small facebookresearch/mae checkpoint, three colours."""
  rng = np.random.default_rng(0)
  source = exchange.random_weights({'patch.size': (4, 4)})
  tensors = exporter.tensors_of(source, names.RELEASED)
  tensors['patch_embed.proj.weight'] = rng.normal(
      size=(width, 3, pixels, pixels)).astype(np.float32)
  tensors['decoder_pred.weight'] = rng.normal(
      size=(3 * pixels ** 2, 32)).astype(np.float32)
  tensors['decoder_pred.bias'] = rng.normal(
      size=3 * pixels ** 2).astype(np.float32)
  for name, dim in (('pos_embed', width), ('decoder_pos_embed', 32)):
    tensors[name] = patches.position_table(
        (side, side), dim, config_lib.Patch())[None]
  return tensors, source


def test_an_image_mae_becomes_an_encoder_for_spectrograms(tmp_path):
  tensors, source = image_mae()
  weights = importer.import_weights(
      exchange.write(tmp_path / 'mae.safetensors', tensors),
      given=exchange.HEADS | {
          'frontend.num_frames': 256, 'frontend.num_mel_bins': 32})
  config = weights.config
  assert config.patch.positions == 'table'
  assert config.patch.positions_grid == (64, 8) == weights_lib.grid_of(config)
  want = {name: x for name, x in source.part('encoder').params.items()
          if 'patch_embed/kernel' not in name}
  got = dict(weights.params)
  table, kernel = got.pop('encoder/positions'), got.pop(
      'encoder/patch_embed/kernel')
  exchange.assert_same_bits(got, want)
  # A grey image gives what the three colours gave.
  rng = np.random.default_rng(1)
  grey = rng.normal(size=(4, 4)).astype(np.float32)
  np.testing.assert_allclose(
      grey.reshape(-1) @ kernel,
      np.einsum('dcij,ij->d', tensors['patch_embed.proj.weight'], grey),
      rtol=0, atol=1e-5)
  # Time and frequency go on to be what height and width were.
  codes = table[1:].reshape(64, 8, 48)
  np.testing.assert_allclose(codes[..., :24], np.broadcast_to(
      codes[:1, :, :24], (64, 8, 24)), atol=1e-6)
  np.testing.assert_allclose(codes[..., 24:], np.broadcast_to(
      codes[:, :1, 24:], (64, 8, 24)), atol=1e-6)


def test_colours_and_positions_are_folded_as_released(tmp_path):
  golden = goldens.read('adapt')
  kernel = importer._grey(names.RELEASED, golden['patch_w_rgb'])
  np.testing.assert_allclose(
      kernel['patch_embed.proj.weight'], golden['patch_w_mono'], rtol=0,
      atol=5e-7)
  # The released code resizes to (frequency, time): another order of tokens.
  patch, tables = importer._image_positions(
      golden['src_14x14'][0], (16, 16), {'patch.positions': 'released'})
  np.testing.assert_allclose(
      tables['encoder'], golden['bicubic_8x64'][0], rtol=0, atol=2e-6)
  assert patch.positions_grid == (64, 8)
  given = {}
  _, tables = importer._image_positions(golden['src_14x14'][0], (16, 16), given)
  square = golden['src_14x14'][0, 1:].reshape(14, 14, 8)
  turned = np.concatenate([
      golden['src_14x14'][0, :1], square.transpose(1, 0, 2).reshape(-1, 8)])
  _, other = importer._image_positions(
      turned, (16, 16), {'patch.positions': 'released'})
  np.testing.assert_allclose(
      tables['encoder'][1:].reshape(64, 8, 8),
      other['encoder'][1:].reshape(8, 64, 8).transpose(1, 0, 2), atol=1e-6)


def test_an_image_mae_of_hugging_face_is_read(tmp_path):
  tensors, _ = image_mae()
  spelt = {}
  for name, x in tensors.items():
    ours = names.RELEASED.name_here(name)
    if ours is None:
      part = names.RELEASED.positions[name]
      found, = (theirs for theirs, p in names.HUGGINGFACE.positions.items()
                if p == part)
      spelt[found] = x
    else:
      theirs, transform = names.HUGGINGFACE.find(ours)
      parts = np.split(x, 3) if len(theirs) == 3 else [x]
      spelt |= dict(zip(theirs, parts))
  folder = tmp_path / 'hf'
  folder.mkdir()
  exchange.write(folder / 'model.safetensors', spelt)
  (folder / 'config.json').write_text(json.dumps({'num_attention_heads': 3}))
  sizes = {'frontend.num_frames': 256, 'frontend.num_mel_bins': 32}
  got = importer.import_weights(folder, given=sizes)
  want = importer.import_weights(
      exchange.write(tmp_path / 'mae.safetensors', tensors),
      given=exchange.HEADS | sizes)
  assert got.source['format'] == 'huggingface'
  assert want.source['format'] == 'image_mae'
  exchange.assert_same_bits(got.params, want.params)


def changed(**changes):
  """A released checkpoint with tensors replaced, or left out (None)."""
  tensors = exchange.released() | changes
  return {name: x for name, x in tensors.items() if x is not None}


WRONG = {
    'a missing tensor': (
        {'blocks.1.norm2.bias': None}, {},
        '  1 missing: blocks.1.norm2.bias [48]'),
    'a missing block': (
        {name: None for name in exchange.released()
         if name.startswith('blocks.0.')}, {},
        '  12 missing: blocks.0.'),
    'an unexpected tensor': (
        {'blocks.0.ls1.gamma': np.ones(48, np.float32)}, {},
        '  1 unexpected: blocks.0.ls1.gamma [48]'),
    'another shape': (
        {'norm.weight': np.ones(49, np.float32)}, {},
        '  1 of another shape: norm.weight is [49], should be [48]'),
    'a table of another width': (
        {'pos_embed': np.zeros((1, 513, 52), np.float32)}, {},
        'pos_embed is [1, 513, 52], should be [1, 513, 48]'),
    'the wrong decoder': (
        {}, {'model.decoder.name': 'global'},
        'these are 16 local-decoder blocks; set model.decoder.name=local and '
        'model.decoder.depth=16'),
    'another depth': (
        {}, {'model.decoder.depth': 8},
        'it has 16 decoder blocks, not 8; set model.decoder.depth=16'),
    'float64': (
        {'norm.weight': np.ones(48)}, {},
        '1 tensors are of another type than float32, float16 or bfloat16: '
        'norm.weight (F64)'),
    'integers': (
        {'norm.weight': np.ones(48, np.int32)}, {}, 'norm.weight (I32)'),
    'a number that is none': (
        {'norm.weight': np.full(48, np.nan, np.float32)}, {},
        '1 tensors hold NaN or infinity, e.g. norm.weight'),
    'no heads': (
        {}, {'model.encoder.heads': 0},
        'a width of 48 is none of a known encoder: give it, with --set '
        'model.encoder.heads=H'),
    'no class token': (
        {'cls_token': None}, {}, 'no patch embedding, class token and '
        'positions of a vision transformer'),
    'a table that is none': (
        {'pos_embed': np.zeros((513, 48), np.float32)}, {},
        'pos_embed is [513, 48], and a table of positions is'),
    'a setting that is none': (
        {}, {'model.encoder.head': 3}, "Did you mean 'heads'?"),
    'another grid': (
        {}, {'frontend.num_mel_bins': 64},
        'These are the positions of 64 x 8 patches (time x mel) at stride (4, '
        '4), over 32 mel bins; given were frontend.num_mel_bins=64'),
    'other positions': (
        {}, {'patch.positions': 'time_freq'},
        "These positions are 'released', and given was patch.positions="
        "'time_freq'"),
    'a block far off': (
        {'blocks.2000.norm1.bias': np.ones(48, np.float32)}, {},
        '  1 unexpected: blocks.2000.norm1.bias [48]'),
    'no numbers': (
        {'norm.weight': np.ones((0,), np.float32)}, {},
        '1 tensors have no axis or no numbers, e.g. norm.weight [0]'),
    'negative heads': (
        {}, {'model.encoder.heads': -1}, 'heads=-1'),
    'a group for a setting': (
        {}, {'patch.stride.x': 3}, 'patch.stride.x is not a setting'),
    'text for a pair': (
        {}, {'patch.stride': 'abc'}, "config.patch.stride takes a tuple"),
    'a decoder of unknown width': (
        {}, {'model.decoder.name': 'global', 'model.decoder.heads': 0},
        'a width of 32 is none of a known decoder'),
    'a grid that cannot be': (
        {}, {'frontend.num_mel_bins': 36},
        '512 positions are no grid of patches of 4 frames x 4 bins over 36 '
        'mel bins'),
}


@pytest.mark.parametrize('case', WRONG)
def test_what_is_wrong_is_listed(case, tmp_path):
  changes, given, message = WRONG[case]
  path = exchange.write(tmp_path / 'x.safetensors', changed(**changes))
  with pytest.raises(ValueError, match=re.escape(message)):
    importer.import_weights(path, given=exchange.HEADS | given)


def test_a_long_list_is_cut(tmp_path):
  path = exchange.write(tmp_path / 'x.safetensors', exchange.released())
  with pytest.raises(ValueError, match='80 unexpected: .*; and 72 more'):
    importer.import_weights(
        path, given=exchange.HEADS | {'model.decoder.name': 'global'})


def test_timm_has_no_decoder(tmp_path):
  with pytest.raises(ValueError, match='280 unexpected(.|\n)*as --from '
                     'official reads'):
    importer.import_weights(
        exchange.write(tmp_path / 'x.safetensors', exchange.released()),
        'timm', exchange.HEADS)


@pytest.mark.parametrize('format, message', [
    ('image_mae', 'is no model of images: its patches have one channel'),
    ('oficial', "Did you mean 'official'?"),
    ('huggingface', "in the layout 'huggingface'. Known: official, timm"),
])
def test_a_wrong_format_is_refused(format, message, tmp_path):
  with pytest.raises(ValueError, match=re.escape(message)):
    importer.import_weights(
        exchange.write(tmp_path / 'x.safetensors', exchange.released()),
        format, exchange.HEADS)


def test_learnt_positions_need_a_grid():
  tables = {'encoder': np.random.default_rng(0).normal(size=(513, 48))}
  with pytest.raises(ValueError, match='may be any grid of patches; set '
                     'frontend.num_mel_bins'):
    positions.recognize(tables, (6, 6))
  patch = positions.recognize(tables, (6, 6), bins=48)
  assert patch.positions == 'table' and patch.positions_grid == (64, 8)


def test_learnt_positions_are_kept_as_a_table(tmp_path):
  rng = np.random.default_rng(0)
  tensors = changed(pos_embed=rng.normal(size=(1, 513, 48)).astype(np.float32))
  path = exchange.write(tmp_path / 'x.safetensors', tensors)
  weights = importer.import_weights(path, given=exchange.HEADS)
  assert weights.config.patch.positions == 'table'
  assert weights.config.patch.positions_grid == (64, 8)  # the decoder's
  np.testing.assert_array_equal(
      weights.params['encoder/positions'], tensors['pos_embed'][0])
  # The decoder's are kept as they are, too.
  np.testing.assert_array_equal(
      weights.params['decoder/tokens/positions'],
      tensors['decoder_pos_embed'][0])


def test_positions_are_recognised_from_half_precision():
  for layout, grid, stride in (('time_freq', (101, 12), (10, 10)),
                               ('released', (64, 8), (16, 16)),
                               ('released', (32, 8), (16, 16)),
                               ('time_freq', (8, 8), (16, 16))):
    table = patches.position_table(grid, 96, config_lib.Patch(positions=layout))
    for kind in (np.float32, np.float16, ml_dtypes.bfloat16):
      patch = positions.recognize({'encoder': table.astype(kind)}, (16, 16))
      assert patch.positions == layout
      assert patch.positions_grid == grid
      assert patch.positions_stride == stride


def test_positions_that_were_trained_further_are_a_table():
  table = patches.position_table(
      (64, 8), 96, config_lib.Patch(positions='released'))
  noise = np.random.default_rng(0).normal(0, 1e-3, table.shape)
  patch = positions.recognize(
      {'encoder': (table + noise).astype(np.float32)}, (16, 16))
  assert patch.positions == 'table'
  assert patch.positions_grid == (64, 8)


def not_a_file(tmp_path):
  return tmp_path / 'nothing.pth', 'There is no file'


def a_web_page(tmp_path):
  path = tmp_path / 'page.pth'
  path.write_text('<!DOCTYPE html><html>quota exceeded</html>')
  return path, 'is neither a .safetensors file nor one that torch.save wrote'


def an_empty_file(tmp_path):
  path = tmp_path / 'empty.safetensors'
  path.touch()
  return path, 'is neither'


def a_truncated_safetensors(tmp_path):
  path = exchange.write(tmp_path / 'x.safetensors', exchange.released())
  path.write_bytes(path.read_bytes()[:-1000])
  return path, 'is a damaged .safetensors file'


def a_corrupt_safetensors(tmp_path):
  path = exchange.write(tmp_path / 'x.safetensors', exchange.released())
  data = bytearray(path.read_bytes())
  data[40:60] = b'#' * 20
  path.write_bytes(data)
  return path, 'is a damaged .safetensors file'


def a_truncated_checkpoint(tmp_path):
  path = tmp_path / 'x.pth'
  path.write_bytes(exchange.TINY.read_bytes()[:-1000])
  return path, ''


def a_corrupt_checkpoint(tmp_path):
  path = tmp_path / 'x.pth'
  data = bytearray(exchange.TINY.read_bytes())
  data[len(data) // 2] ^= 64
  path.write_bytes(data)
  return path, ''


def no_tensors(tmp_path):
  path = tmp_path / 'x.pth'
  archive(path, pickle.dumps({'model': {'epoch': 3}}, protocol=2))
  return path, 'holds no tensors by name, but a dict of epoch'


def hostile(tmp_path):
  """Calls a function of the operating system when it is unpickled."""
  path = tmp_path / 'x.pth'
  mark = tmp_path / 'executed'
  text = f'touch {mark}'.encode()
  call = (b'\x80\x02cos\nsystem\n(X' + len(text).to_bytes(4, 'little') + text
          + b'tR.')
  archive(path, call)
  return path, 'os.system'


def archive(path, pickled):
  with zipfile.ZipFile(path, 'w') as file:
    file.writestr('archive/data.pkl', pickled)
    file.writestr('archive/version', '3\n')


def a_float8(tmp_path):
  path = tmp_path / 'x.safetensors'
  header = json.dumps({'norm.weight': {
      'dtype': 'F8_E4M3', 'shape': [4], 'data_offsets': [0, 4]}}).encode()
  path.write_bytes(len(header).to_bytes(8, 'little') + header + b'1234')
  return path, 'norm.weight (F8_E4M3)'


def another_model(tmp_path):
  return exchange.write(tmp_path / 'x.safetensors', {
      f'backbone.{name}': x for name, x in exchange.released().items()}), (
          "All begin with 'backbone.'")


def folder_with(config, tmp_path, **names):
  path = tmp_path / 'folder'
  path.mkdir()
  (path / 'config.json').write_text(config)
  for name in names.values():
    exchange.write(path / name, exchange.released())
  return path


def a_config_that_is_none(tmp_path):
  return folder_with('{', tmp_path, a='model.safetensors'), 'is no JSON'


def a_list_for_a_config(tmp_path):
  return (folder_with('[]', tmp_path, a='model.safetensors'),
          'should be a dict of settings, not []')


def a_sharded_folder(tmp_path):
  path = folder_with('{}', tmp_path, a='model-00001-of-00002.safetensors')
  (path / 'model.safetensors.index.json').write_text('{}')
  return path, 'save_pretrained(..., max_shard_size='


def another_activation(tmp_path):
  return folder_with('{"hidden_act": "relu"}', tmp_path,
                     a='model.safetensors'), "activation is 'relu'"


def an_empty_folder(tmp_path):
  path = tmp_path / 'folder'
  path.mkdir()
  return path, 'holds neither model.safetensors nor pytorch_model.bin'


def our_weights(tmp_path):
  weights_lib.save(tmp_path / 'ours', exchange.random_weights())
  return tmp_path / 'ours', 'holds weights of this project already'


@pytest.mark.parametrize('make', [
    not_a_file, a_web_page, an_empty_file, a_truncated_safetensors,
    a_corrupt_safetensors, a_truncated_checkpoint, a_corrupt_checkpoint,
    no_tensors, hostile, an_empty_folder, our_weights, a_float8, another_model,
    a_config_that_is_none, a_list_for_a_config, a_sharded_folder,
    another_activation])
def test_a_bad_file_is_told_of_and_leaves_nothing(make, tmp_path, capsys):
  path, message = make(tmp_path)
  before = sorted(tmp_path.rglob('*'))
  with pytest.raises(SystemExit) as stopped:
    command.main(['import', '--input', str(path), '--output',
                  str(tmp_path / 'out')])
  assert stopped.value.code == 1
  told = capsys.readouterr().err
  assert told.startswith('\nerror: ') and message in told
  assert path.name in told
  assert sorted(tmp_path.rglob('*')) == before  # nor was anything executed


def test_the_hostile_file_would_have_acted(tmp_path):
  path, _ = hostile(tmp_path)
  with zipfile.ZipFile(path) as file:
    pickle.load(io.BytesIO(file.read('archive/data.pkl')))
  assert (tmp_path / 'executed').exists()


def test_an_output_that_cannot_be_is_told_of(tmp_path, capsys):
  (tmp_path / 'file').touch()
  with pytest.raises(SystemExit):
    command.main(['import', '--input', str(exchange.TINY), '--output',
                  str(tmp_path / 'file' / 'out'), '--set',
                  'model.encoder.heads=3'])
  assert capsys.readouterr().err.startswith('\nerror: ')


@pytest.mark.parametrize('what', [KeyboardInterrupt, SystemExit])
def test_an_import_that_is_stopped_leaves_nothing(what, tmp_path, monkeypatch):
  def stop(*_, **__):
    raise what

  weights = importer.import_weights(exchange.TINY, given=exchange.HEADS)
  monkeypatch.setattr('json.dumps', stop)
  with pytest.raises(what):
    weights_lib.save(tmp_path / 'out', weights)
  assert not list(tmp_path.iterdir())


def test_codes_can_be_taken_as_they_are():
  weights = importer.import_weights(
      exchange.TINY, given=exchange.HEADS | {'patch.positions': 'table'})
  assert weights.config.patch.positions == 'table'
  assert weights.config.patch.positions_grid == (64, 8)
  np.testing.assert_array_equal(
      weights.params['encoder/positions'],
      exchange.released()['pos_embed'][0])


def test_a_typo_in_positions_of_images_is_refused(tmp_path):
  tensors, _ = image_mae()
  with pytest.raises(ValueError, match="Did you mean 'released'?"):
    importer.import_weights(
        exchange.write(tmp_path / 'mae.safetensors', tensors),
        given=exchange.HEADS | {'patch.positions': 'relesed'})


@pytest.mark.parametrize('images', [False, True])
def test_a_fine_tuned_encoder_is_taken_without_its_norm(images, tmp_path):
  tensors = goldens.under(goldens.read('finetune'), 'param/')
  if images:
    tensors = dict(tensors, **{
        'patch_embed.proj.weight': np.ones((48, 3, 4, 4), np.float32),
        'pos_embed': np.zeros((1, 197, 48), np.float32)})
  weights = importer.import_weights(
      exchange.write(tmp_path / 'x.safetensors', tensors), part='encoder',
      given=exchange.HEADS)
  assert {name.split('/')[0] for name in weights.params} == {'encoder'}
  assert not any('encoder/norm/' in name for name in weights.params)
  # Others could not use it: their encoders end with a norm.
  with pytest.raises(ValueError, match='This encoder has no last norm'):
    exporter.export_weights(weights, 'timm', tmp_path / 'y.safetensors')


def test_raw_targets_of_hugging_face_are_read(tmp_path):
  weights = exchange.random_weights()
  exporter.export_weights(weights, 'huggingface', tmp_path / 'hf')
  config = json.loads((tmp_path / 'hf' / 'config.json').read_text())
  (tmp_path / 'hf' / 'config.json').write_text(
      json.dumps(config | {'norm_pix_loss': False}))
  tensors, _ = files.read(tmp_path / 'hf')
  exchange.write(tmp_path / 'hf' / 'model.safetensors', tensors)  # no note
  back = importer.import_weights(tmp_path / 'hf')
  assert not back.config.objective.normalize_patches
  assert back.config.model.encoder.heads == 3
