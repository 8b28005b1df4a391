"""Exports compute what the model does, on real audio, without its libraries."""

import dataclasses
import functools
import importlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import exchange
import jax
import numpy as np
import pytest
import reference
import soundfile
import tiny

from audio_mae_jax import export
from audio_mae_jax import frontend
from audio_mae_jax import patches
from audio_mae_jax import weights as weights_lib
from audio_mae_jax.data import audio_io
from audio_mae_jax.export import __main__ as command
from audio_mae_jax.export import program as program_lib
from audio_mae_jax.export import report
from audio_mae_jax.export import writing
from audio_mae_jax.models import classifier
from audio_mae_jax.models import encoder

CLASSIFIER = {'task': 'classify', 'model.classifier.num_classes': 3}
# What is exported differs in each of them.
MODELS = {
    'pretrained': {},
    'classifier': CLASSIFIER | {'labels.multilabel': False},
    'class token, bare front end': CLASSIFIER | {
        'model.classifier.pool': 'class_token', 'patch.positions': 'released',
        'frontend.preemphasis': 0.0, 'frontend.remove_dc_offset': False,
        'frontend.window': 'rectangular', 'model.dtype': 'bfloat16',
        'model.scan_layers': True, 'model.encoder.depth': 2},
    'overlapping patches, table, another front end': {
        'patch.stride': (5, 10), 'patch.positions': 'table',
        'frontend.window': 'hamming', 'frontend.transform': 'fft',
        'frontend.hop_ms': 12.5, 'frontend.num_mel_bins': 64},
}


@functools.cache
def weights_of(name):
  """Random ones, at a scale at which activations stay of order one."""
  return _weights(MODELS[name])


def _weights(overrides):
  weights = exchange.random_weights(overrides, tiny.MODEL)
  params = {name: x * np.float32(0.3) + np.float32(name.endswith('scale'))
            for name, x in weights.params.items()}
  classes = ('one', 'two', 'three') if 'head/bias' in params else ()
  return weights_lib.Weights(
      params, weights.config, weights.source, classes=classes)


@functools.cache
def recordings():
  return report.clips(program_of('pretrained'), 20_000)


def real_audio(samples):
  """float32 [3, S] of the recordings that come with the package."""
  return recordings()[:, :samples].copy()


@functools.cache
def program_of(name):
  return program_lib.make(weights_of(name))


@functools.cache
def wanted(name, samples):
  """What JAX makes of three recordings; compiling takes longest."""
  found = jax.jit(program_of(name))(real_audio(samples))
  return {output: np.asarray(x) for output, x in found.items()}


def exported(format, program, folder, lengths=()):
  """`program` written in a format and read again."""
  pytest.importorskip({'onnx': 'onnxruntime', 'savedmodel': 'tensorflow',
                       'litert': 'ai_edge_litert'}.get(format, 'jax'))
  module = importlib.import_module(
      f'audio_mae_jax.export.{writing.FORMATS[format][0]}')
  module.write(program, folder, program.facts(), lengths)
  return module.reader(folder, program)


@pytest.mark.parametrize(
    'name', ['pretrained', 'classifier', 'class token, bare front end'])
def test_the_program_is_the_model_on_a_clip_as_long_as_those_of_training(name):
  weights = _weights(MODELS[name] | {'model.dtype': 'float32'})
  config, params = weights.config, reference.nest(weights.params)
  program = program_lib.make(weights)
  audio = real_audio(frontend.covered(
      config.frontend.num_frames, config.frontend))
  pixels = jax.jit(lambda: patches.patchify(frontend.features(
      audio, np.full(len(audio), audio.shape[1]), config.frontend),
                                            config.patch))()
  grid = weights_lib.grid_of(config)
  got = jax.jit(program)(audio)
  np.testing.assert_allclose(
      got['frames'].mean(1) if name != 'classifier' else got['embedding'],
      got['embedding'], rtol=0, atol=2e-6)
  if name == 'pretrained':
    tokens = jax.jit(lambda: encoder.make(config).apply(
        {'params': params['encoder']}, pixels, grid))()[:, 1:]
    np.testing.assert_allclose(
        got['embedding'], tokens.mean(1), rtol=0, atol=2e-5)
    assert list(got) == ['embedding', 'frames']
    return
  logits = jax.jit(lambda: classifier.make(config).apply(
      {'params': params}, pixels, grid))()
  scores = (jax.nn.softmax if name == 'classifier' else jax.nn.sigmoid)(logits)
  np.testing.assert_allclose(got['scores'], scores, rtol=0, atol=1e-5)


def test_a_clip_has_as_many_steps_as_it_fills_by_half():
  program = program_of('pretrained')  # steps of 8 frames
  assert program.grid == (8, 8)
  steps = lambda samples: jax.eval_shape(program, jax.ShapeDtypeStruct(
      (1, samples), np.float32))['frames'].shape[1]
  of = lambda frames: frontend.covered(frames, program.config.frontend)
  assert [steps(of(n)) for n in (1, 11, 12, 64)] == [1, 1, 2, 8]
  assert steps(program.max_samples) == 8
  assert program.max_samples == of(68) - 1  # 68 would fill half of the ninth
  assert program_lib.make(weights_of('pretrained'), 2.0).grid[0] == 25


@pytest.mark.parametrize('name', [
    'classifier', 'overlapping patches, table, another front end'])
def test_every_product_asks_for_all_of_float32(name):
  text = jax.jit(program_of(name)).lower(jax.ShapeDtypeStruct(
      (1, 5003), np.float32)).as_text()
  products = re.findall(r'stablehlo\.(?:dot_general|convolution).*', text)
  assert len(products) > 5
  assert [line for line in products if line.count('HIGHEST') != 2] == []


def test_a_callers_array_is_left_as_it_is():
  audio = real_audio(400)[:1] + np.float32(0.25)
  before = audio.copy()
  program_of('pretrained')(audio)  # not compiled: NumPy comes as it is
  np.testing.assert_array_equal(audio, before)


@pytest.mark.parametrize('name', MODELS)
def test_onnx_computes_what_the_model_does(name, tmp_path):
  program = program_of(name)
  run = exported('onnx', program, tmp_path)
  for samples in (program.max_samples, 5003):
    want, got = wanted(name, samples), run(real_audio(samples))
    assert list(got) == list(program.outputs)
    for output in got:
      np.testing.assert_allclose(
          got[output], want[output], rtol=0, atol=1e-4, err_msg=output)


def test_no_clip_depends_on_its_batch_and_silence_is_finite(tmp_path):
  run = exported('onnx', program_of('pretrained'), tmp_path)
  audio = real_audio(400)  # the shortest
  audio[1] = 0
  together = run(audio)['embedding']
  assert np.isfinite(together).all()
  for i in range(3):
    np.testing.assert_allclose(
        run(audio[i:i + 1])['embedding'][0], together[i], rtol=0, atol=1e-5)


@pytest.mark.parametrize('samples', [399, 20_000])
def test_onnx_takes_no_length_that_the_model_has_not(samples, tmp_path):
  program = program_of('pretrained')
  assert not program.min_samples <= samples <= program.max_samples
  run = exported('onnx', program, tmp_path)
  with pytest.raises(Exception, match='Invalid input shape|broadcast'):
    run(np.zeros((1, samples), np.float32))


def test_large_parameters_of_onnx_get_a_file_of_their_own(
    tmp_path, monkeypatch):
  program = program_of('pretrained')
  monkeypatch.setattr(program_lib, 'ONE_FILE_BYTES', 1000)
  run = exported('onnx', program, tmp_path)
  assert (tmp_path / 'model.onnx.data').stat().st_size > 10_000
  np.testing.assert_allclose(
      run(real_audio(5003))['embedding'],
      wanted('pretrained', 5003)['embedding'], rtol=0, atol=1e-4)
  with pytest.raises(ValueError, match="ends at 2 GiB. Use format 'onnx'"):
    export.write(weights_of('pretrained'), 'stablehlo', tmp_path / 'out')


def test_stablehlo_needs_jax_alone_and_takes_any_batch_and_length(tmp_path):
  program = program_of('classifier')
  exported('stablehlo', program, tmp_path)
  lengths = (program.max_samples, 5003)
  np.savez(tmp_path / 'audio.npz', *(
      real_audio(samples)[:2 + i] for i, samples in enumerate(lengths)))
  code = '''
import sys, jax, jax.export, numpy as np
with open('model.stablehlo', 'rb') as file:
  exported = jax.export.deserialize(bytearray(file.read()))
found = {}
for name, x in np.load('audio.npz').items():
  for output, y in exported.call(x).items():
    found[f'{name}/{output}'] = y
np.savez('found.npz', **found)
assert exported.platforms == ('cpu', 'cuda', 'rocm', 'tpu')
assert not {'audio_mae_jax', 'flax'} & set(sys.modules)
'''
  subprocess.run([sys.executable, '-c', code], check=True, timeout=120,
                 cwd=tmp_path)
  found = np.load(tmp_path / 'found.npz')
  for i, samples in enumerate(lengths):
    for output, want in wanted('classifier', samples).items():
      np.testing.assert_allclose(
          found[f'arr_{i}/{output}'], want[:2 + i], rtol=0, atol=1e-4)


@pytest.fixture(scope='module')
def onnx_folder(tmp_path_factory):
  """What the command leaves, with the checkpoint that it was made from."""
  pytest.importorskip('onnxruntime')
  folder = tmp_path_factory.mktemp('onnx')
  weights_lib.save(folder / 'weights', weights_of('classifier'))
  command.main(['--checkpoint', str(folder / 'weights'), '--format', 'onnx',
                '--output', str(folder / 'out')])
  return folder


def test_the_command_reports_parity_and_latency(onnx_folder, capsys):
  found = json.loads((onnx_folder / 'out' / 'export.json').read_text())
  assert [row['samples'] for row in found['parity']] == [11119, 5559, 2779]
  assert all(gap < 1e-4 for row in found['parity']
             for gap in row['gaps'].values())
  assert found['latency']['export_ms'][1] > 0 and found['bytes'] > 10_000
  assert set(found['versions']) == {'jax', 'onnx', 'onnxruntime'}
  assert found['facts']['classes'] == ['one', 'two', 'three']
  assert re.search(r'0\.695 s  largest difference from JAX: embedding .*'
                   r'one clip: .* ms', report.table(found), re.DOTALL)


def test_the_consumer_embeds_files_where_jax_cannot_be_imported(onnx_folder):
  folder = onnx_folder / 'consumer'
  folder.mkdir()
  for name in ('jax', 'flax', 'audio_mae_jax', 'tensorflow', 'torch'):
    (folder / f'{name}.py').write_text('raise ImportError("not here")')
  audio = np.concatenate(list(real_audio(9000)))[:25_000]
  soundfile.write(folder / 'long.wav', audio, 16000, 'FLOAT')
  soundfile.write(folder / 'short.wav', audio[:5003], 16000, 'FLOAT')
  soundfile.write(folder / 'stereo.wav', np.stack([audio, audio], 1), 48000)
  soundfile.write(folder / 'one.wav', audio[:1], 16000)
  (folder / 'none.wav').write_text('no audio')
  names = ['long.wav', 'short.wav', 'stereo.wav', 'one.wav', 'none.wav']
  done = subprocess.run(
      [sys.executable, onnx_folder / 'out' / 'embed.py', *names], cwd=folder,
      env={**os.environ, 'PYTHONPATH': str(folder)}, capture_output=True,
      text=True, timeout=120, check=False)
  assert done.returncode == 1 and 'none.wav: left out' in done.stderr
  assert '4 of 5 files embedded.' in done.stdout
  assert re.search(r'long\.wav (one|two|three)=0\.\d+', done.stdout)
  found = np.load(folder / 'embeddings.npz')
  assert list(found['files']) == names[:-1]
  assert found['embeddings'].shape == (4, 16)
  for output, plural in (('embedding', 'embeddings'), ('scores', 'scores')):
    np.testing.assert_allclose(
        found[plural][1], wanted('classifier', 5003)[output][0], rtol=0,
        atol=1e-4)
  _check_long(found, audio)


def test_the_consumer_makes_waveforms_as_training_did(tmp_path):
  pytest.importorskip('onnxruntime')
  from audio_mae_jax.export import onnx_consumer
  weights = weights_of('classifier')
  data = weights.config.data
  stereo = np.stack([real_audio(9000)[0], real_audio(9000)[1]], 1)
  heard = lambda encoder: encoder.embed(stereo, 32_000)['embedding']
  for i, (channels, resample) in enumerate((
      ('mean', 'soxr_hq'), ('first', 'soxr_vhq'), ('first', 'error'))):
    program = program_lib.make(dataclasses.replace(
        weights, classes=(), config=dataclasses.replace(
            weights.config, data=dataclasses.replace(
                data, channels=channels, resample=resample))))
    (tmp_path / str(i)).mkdir()
    run = exported('onnx', program, tmp_path / str(i))
    encoder = onnx_consumer.Encoder(tmp_path / str(i) / 'model.onnx')
    if resample == 'error':
      with pytest.raises(ValueError, match='sampled at 32000 Hz'):
        heard(encoder)
      break
    waveform = audio_io.load(
        {'audio': stereo, 'sample_rate_hz': 32_000, 'id': 'a', 'start_s': 0.0,
         'duration_s': None}, sample_rate_hz=16_000, num_samples=4500,
        crop='start', rng=np.random.default_rng(0), resample=resample,
        channels=channels)
    np.testing.assert_allclose(
        heard(encoder), run(waveform[None])['embedding'][0], rtol=0, atol=1e-5)
  best = onnx_consumer._best(
      encoder.embed(stereo, 16_000), encoder.facts['classes'])  # has no names
  assert len(best) == 3
  assert all(re.fullmatch(r'[012]=0\.\d{3}', x) for x in best)


def _check_long(found, audio):
  """25,000 samples: windows of 8 steps of 1,280, of 10,480 samples each."""
  compiled = jax.jit(program_of('classifier'))
  parts = [compiled(audio[None, a:b]) for a, b in (
      (0, 10_480), (10_240, 20_720), (20_480, 25_000))]
  frames = np.concatenate([part['frames'][0] for part in parts])
  assert len(frames) == 19  # 154 frames: 19 steps of 8, and two left over
  np.testing.assert_allclose(found['frames_0'], frames, rtol=0, atol=1e-4)
  scores = np.average([part['scores'][0] for part in parts], axis=0,
                      weights=[8, 8, 3])
  np.testing.assert_allclose(found['scores'][0], scores, rtol=0, atol=1e-4)
  np.testing.assert_allclose(
      found['times_0'][:3], (760 + 1280 * np.arange(3)) / 16000)
  assert found['times_0'][-1] < len(audio) / 16000


def test_what_disagrees_is_not_left(tmp_path, monkeypatch):
  pytest.importorskip('onnxruntime')
  from audio_mae_jax.export import onnx_graph
  monkeypatch.setattr(onnx_graph, '_mlp', lambda graph, own, x: x)
  with pytest.raises(ValueError, match=r'disagrees with the model: embedding '
                     r'of 11119 samples by .*, and 0.0001 is allowed'):
    export.write(weights_of('pretrained'), 'onnx', tmp_path / 'out')
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('arguments, message', [
    ({'format': 'onxx'}, "format='onxx' is not known. Did you mean 'onnx'"),
    ({'max_s': -1.0}, 'max_s=-1.0 is not a length'),
    ({'max_s': float('nan')}, 'max_s=nan is not a length'),
    ({'max_s': 0.01}, 'shorter than one window'),
    ({'lengths_s': [0.5, 3.0]}, 'are not all between 0.025 and 0.6949 s'),
    ({'audio': ['missing.wav']}, 'no audio to compare with: missing.wav'),
    ({'weights': weights_of('classifier').part('encoder')},
     'the encoder of a classifier without the norm'),
    ({'weights': weights_lib.Weights({}, tiny.config(tiny.MODEL), {})},
     'hold no encoder'),
])
def test_what_cannot_be_exported_is_an_error(arguments, message, tmp_path):
  arguments = dict(arguments)
  weights = arguments.pop('weights', weights_of('pretrained'))
  format = arguments.pop('format', 'stablehlo')
  with pytest.raises(ValueError, match=re.escape(message)):
    export.write(weights, format, tmp_path / 'out', **arguments)
  assert not list(tmp_path.iterdir())


def test_positions_that_end_limit_the_length(tmp_path):
  weights = weights_of('overlapping patches, table, another front end')
  with pytest.raises(ValueError, match='have no code for place'):
    export.write(weights, 'stablehlo', tmp_path / 'out', max_s=2.0)


def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'onnxruntime', None)
  monkeypatch.delitem(
      sys.modules, 'audio_mae_jax.export.onnx_file', raising=False)
  with pytest.raises(ImportError, match=re.escape(
      "needs more libraries (import of onnxruntime halted; None in sys.modules)"
      ": pip install 'audio_mae_jax[onnx]'")):
    export.write(weights_of('pretrained'), 'onnx', tmp_path / 'out')


def test_nothing_is_overwritten(tmp_path):
  with pytest.raises(ValueError, match='exists already'):
    export.write(weights_of('pretrained'), 'stablehlo', tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('format', ['savedmodel', 'litert'])
@pytest.mark.parametrize('name', ['pretrained', 'classifier'])
def test_tensorflow_computes_what_the_model_does(format, name, tmp_path):
  program = program_of(name)
  lengths = (program.max_samples, 5003, 1200)
  run = exported(format, program, tmp_path, lengths)
  for samples in lengths:
    got = run(real_audio(samples))
    for output, want in wanted(name, samples).items():
      np.testing.assert_allclose(
          got[output], want, rtol=0, atol=1e-4, err_msg=output)


ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize('page', ['README.md', 'docs/export.md'])
def test_documented_commands_are_ones(page):
  text = (ROOT / page).read_text()
  lines = re.findall(r'^python -m audio_mae_jax\.export (.*)$', text, re.M)
  assert lines
  for line in lines:
    assert command.parser().parse_args(shlex.split(line)).format == 'onnx'


def test_documented_facts_are_there():
  text = (ROOT / 'docs' / 'export.md').read_text()
  facts = program_of('classifier').facts()
  for name in ('sample_rate_hz', 'min_samples', 'max_samples', 'span_samples',
               'step_samples', 'max_steps', 'channels', 'resample', 'classes'):
    assert name in facts and (name in text or name == 'classes')
