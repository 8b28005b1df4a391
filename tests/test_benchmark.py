"""FLOPs of a clip, and the benchmark from its command line to its file."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest
import tiny

from audio_mae_jax import benchmark
from audio_mae_jax import benchmark_table
from audio_mae_jax import config as config_lib
from audio_mae_jax import measure
from audio_mae_jax import step
from audio_mae_jax import tasks
from audio_mae_jax.data import pipeline

# GFLOP of a clip in the released PyTorch code, counted by torch's own counter;
# embedding is of all 512 patches there, and of the kept ones here.
BASELINE = {
    ('B', 'local', 16): dict(
        embed=0.2013, encoder=17.4965, attention=0.3911, to_decoder=0.0810,
        decoder=51.5396, decoder_attention=0.2684, prediction=0.1342,
        forward=70.112, step=210.135),
    ('B', 'global', 8): dict(
        embed=0.2013, encoder=17.4965, attention=0.3911, to_decoder=0.0810,
        decoder=25.8201, decoder_attention=4.3118, prediction=0.1345,
        forward=48.436, step=145.108),
    ('B', 'global', 16): dict(
        embed=0.2013, encoder=17.4965, attention=0.3911, to_decoder=0.0810,
        decoder=51.6403, decoder_attention=8.6235, prediction=0.1345,
        forward=78.568, step=235.503),
    ('S', 'local', 16): dict(
        embed=0.1007, encoder=4.3741, attention=0.1955, to_decoder=0.0405,
        decoder=51.5396, decoder_attention=0.2684, prediction=0.1342,
        forward=56.653, step=169.859),
    ('L', 'local', 16): dict(
        embed=0.2684, encoder=62.2099, attention=1.0429, to_decoder=0.1080,
        decoder=51.5396, decoder_attention=0.2684, prediction=0.1342,
        forward=115.572, step=346.446),
}
NAMES = {
    'encoder': 'encoder linear', 'attention': 'encoder attention',
    'to_decoder': 'decoder embedding', 'decoder': 'decoder linear',
    'decoder_attention': 'decoder attention', 'prediction': 'prediction'}

RECIPE = '''
from audio_mae_jax import config as config_lib

def get_config():
  config = config_lib.default()
  config.frontend.num_frames = 32
  config.frontend.num_mel_bins = 32
  config.augment.gain_concentration = 0.0  # a second of compilation
  config.data.clip_s = 0.35
  config.mask.ratio = 0.5
  config.model.encoder.update(width=32, depth=1, heads=2)
  config.model.decoder.update(name='global', width=32, depth=1, heads=2)
  config.train.batch_size = 8
  return config
'''


@pytest.mark.parametrize('variant, decoder, depth', BASELINE)
def test_flops_agree_with_the_released_code(variant, decoder, depth):
  expected = BASELINE[variant, decoder, depth]
  config = tiny.config({
      'model.encoder.variant': variant, 'model.decoder.name': decoder,
      'model.decoder.depth': depth})
  counted = tasks.make(config).flops()
  for theirs, ours in NAMES.items():
    # Theirs have four digits; and their global decoder predicts the class
    # token's pixels too, one in 513.
    assert counted[ours] / 1e9 == pytest.approx(
        expected[theirs], rel=2.5e-3, abs=6e-5), ours
  # Removed patches cost nothing forward and nothing backward.
  missing = expected['embed'] - counted['patch embedding'] / 1e9
  kept = int(512 * 0.2)
  assert missing / expected['embed'] == pytest.approx(1 - kept / 512, abs=1e-3)
  for total, times in (('forward', 1), ('step', 2)):
    ours = counted[total] / 1e9
    assert ours + times * missing == pytest.approx(expected[total], rel=1e-4)
  assert ours == pytest.approx(expected['step'], rel=3e-3)


@pytest.mark.parametrize('decoder', ['local', 'global'])
def test_flops_agree_with_what_xla_counts(decoder):
  """XLA also counts what is no product of matrices, 2 to 7 % at this width."""
  config = tiny.config({
      'model.encoder.width': 256, 'model.encoder.depth': 2,
      'model.encoder.heads': 4, 'model.decoder.name': decoder,
      'model.decoder.width': 256, 'model.decoder.depth': 2,
      'model.decoder.heads': 4, 'frontend.num_frames': 512,
      'data.clip_s': 5.2, 'train.batch_size': 2,
      # By head is a loop, whose body XLA counts once.
      'model.attention': 'xla'})
  program = step.build(config, 100, jax.devices()[:1])
  counted = program.task.flops()
  batch = {
      'audio': jax.ShapeDtypeStruct(
          (2, pipeline.clip_samples(config)), jnp.float32),
      'num_samples': jax.ShapeDtypeStruct((2,), jnp.int32),
      'index': jax.ShapeDtypeStruct((2,), jnp.int32)}
  inputs = jax.eval_shape(
      lambda batch: program.task.prepare(
          batch, jax.random.key(0), train=False), batch)
  forward = jax.jit(program.task.losses).lower(program.shapes.params, inputs)
  step_only = jax.jit(jax.grad(
      lambda params, inputs: program.task.losses(params, inputs)['loss'].mean()
      )).lower(program.shapes.params, inputs)
  for name, lowered in (('forward', forward), ('step', step_only)):
    flops = lowered.cost_analysis()['flops'] / 2
    assert 1.0 < flops / counted[name] < 1.07, name


def run(folder, *args):
  """The benchmark on one CPU device, whatever the tests themselves run on."""
  process = start(folder, *args)
  out, err = process.communicate()
  return subprocess.CompletedProcess(
      process.args, process.returncode, out, err)


def start(folder, *args):
  (folder / 'tiny.py').write_text(RECIPE)
  root = pathlib.Path(__file__).parents[1]
  return subprocess.Popen(
      [sys.executable, '-m', 'audio_mae_jax.benchmark', '--config=tiny.py',
       *args], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
      text=True, env=os.environ | {
          'PYTHONPATH': os.pathsep.join(
              [str(root), os.environ.get('PYTHONPATH', '')]),
          'JAX_PLATFORMS': 'cpu',
          # Code that is not optimised compiles in half the time.
          'XLA_FLAGS': '--xla_backend_optimization_level=0'})


@pytest.mark.slow
@pytest.mark.parametrize('after_s', [12, 20])  # compiling, or in steps
def test_an_interrupt_ends_it_in_a_line(after_s, tmp_path):
  process = start(tmp_path, '--part=step', '--steps=1000000')
  time.sleep(after_s)
  process.send_signal(signal.SIGINT)
  out, err = process.communicate(timeout=60)
  assert (process.returncode, out) == (130, '')
  assert err.endswith('\nInterrupted.\n') and 'Traceback' not in err


def test_the_peak_of_memory_is_of_this_process_alone():
  """Linux hands the peak of who starts a process on to it, for `getrusage`."""
  large = bytearray(b'x') * 800_000_000
  told = subprocess.run(
      [sys.executable, '-c', (
          'import jax\n'
          'from audio_mae_jax import memory\n'
          'print(memory.peak(jax.devices())["process_bytes"])')],
      capture_output=True, text=True, check=True)
  assert 5e7 < int(told.stdout) < len(large)


def strict(text):
  def refuse(constant):
    raise AssertionError(f'{constant} is not JSON')
  return json.loads(text, parse_constant=refuse)


def test_the_command_measures_everything_and_writes_nothing_else(tmp_path):
  done = run(tmp_path, '--steps=4', '--warmup=1')
  assert done.returncode == 0, done.stderr
  assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == [
      'benchmark_tiny.json', 'tiny.py']
  assert not (tmp_path / 'runs').exists()
  assert str(tmp_path / 'benchmark_tiny.json') in done.stdout
  assert 'clips/s' in done.stdout and 'GFLOP' in done.stdout

  x = strict((tmp_path / 'benchmark_tiny.json').read_text())
  assert set(x) == {
      'recipe', 'task', 'options', 'setup', 'flops_per_clip', 'start', 'step',
      'throughput', 'work', 'compiler', 'prepare', 'input', 'fed',
      'memory_peak'}
  assert x['recipe'] == 'tiny' and x['task'] == 'pretrain'
  assert x['options'] == {
      'steps': 4, 'warmup': 1, 'input': 'synthetic', 'part': 'all'}
  setup, per_clip = x['setup'], x['flops_per_clip']
  assert setup['jax'] == jax.__version__ and setup['platform'] == 'cpu'
  assert setup['devices'] == 1 and setup['mesh'] == {'data': 1, 'fsdp': 1}
  assert setup['batch_size'] == 8 and setup['dtype'] == 'float32'
  assert setup['bad_files'] == 0

  start, timed, rate = x['start'], x['step'], x['throughput']
  assert start['to_first_step_s'] == pytest.approx(
      sum(start[f'{part}_s'] for part in (
          'lower', 'compile', 'init', 'first_step')))
  assert not start['compiled_before']  # no cache is set here
  assert 0 < timed['min_s'] <= timed['p10_s'] <= timed['median_s']
  assert timed['median_s'] <= timed['p90_s'] and timed['cpu_s'] > 0
  assert rate['clips_per_s'] == pytest.approx(8 / rate['step_s'])
  # Steps that do not wait for each other are at most as slow, but for noise.
  assert rate['clips_per_s'] > 0.2 * 8 / timed['p90_s']
  work = x['work']
  assert work['model_tflops'] == pytest.approx(
      rate['clips_per_s'] * per_clip['step'] / 1e12)
  assert work['peak_tflops'] is None and work['of_peak'] is None
  assert work['of_dense'] == pytest.approx(
      work['model_tflops'] / work['dense_tflops'])
  assert x['compiler']['flops_per_clip'] > per_clip['step']
  assert x['compiler']['temp_bytes_per_device'] > 0
  # The state is updated in place.
  assert x['compiler']['alias_bytes_per_device'] > 4e5
  assert x['memory_peak']['process_bytes'] > 1e8
  assert x['memory_peak']['device_bytes'] is None
  assert x['prepare']['of_step'] == pytest.approx(
      x['prepare']['median_s'] / timed['median_s'])
  assert x['input']['clips_per_s'] > 0 and x['input']['cpu_s_per_clip'] > 0
  assert x['fed']['clips_per_s'] == pytest.approx(8 / x['fed']['step_s'])
  assert 0 <= x['fed']['waiting'] < 1


def test_an_error_of_the_users_is_one_message(tmp_path):
  done = run(tmp_path, '--part=input', '--input=resident')
  assert done.returncode == 1
  assert 'error: --part=input --input=resident measures nothing' in done.stderr
  assert 'Traceback' not in done.stderr
  done = run(tmp_path, '--part=step', '--compile_for=host')
  assert done.returncode == 1
  assert '--part=step runs on devices' in done.stderr


def test_a_part_has_a_file_of_its_own(tmp_path):
  done = run(tmp_path, '--part=input', '--steps=1', '--warmup=1')
  assert not done.returncode, done.stderr
  assert set(strict((tmp_path / 'benchmark_tiny_input.json').read_text())) > {
      'input'}


def small(**data):
  config = tiny.config(tiny.MODEL, {
      'data.clip_s': 0.7, 'train.batch_size': jax.device_count()})
  return dataclasses.replace(
      config, data=dataclasses.replace(config.data, **data))


def test_the_pipeline_alone_is_measured_on_real_clips():
  """And what the work directory would be is never touched."""
  config = small(train=config_lib.Source(name='demo', split='valid'))
  x = measure.measure(
      dataclasses.replace(config, workdir='/proc/no/such/folder'),
      measure.Options(steps=2, warmup=1, input='real', part='input'))
  assert 'demo' in x['setup']['source'] and x['input']['clips_per_s'] > 0
  assert not {'step', 'start', 'throughput', 'fed'} & set(x)
  assert 'input alone' in benchmark_table.table(x)


@pytest.mark.parametrize('options, message', [
    (dict(steps=0), '--steps=0 --warmup=2: at least one step'),
    (dict(warmup=0), '--steps=20 --warmup=0: at least one step'),
    (dict(input='reel'), "--input='reel' is not known. Did you mean 'real'?"),
    (dict(part='steps'), "--part='steps' is not known. Did you mean 'step'?"),
    (dict(part='input', input='resident'), 'measures nothing'),
    (dict(part='embed', input='real'), 'reads no data'),
    (dict(part='breakdown', input='real'), 'reads no data'),
])
def test_options_that_measure_nothing_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    measure.Options(**options)


def test_real_input_needs_a_source():
  with pytest.raises(ValueError, match='--input=real reads config.data.train'):
    measure.measure(small(), measure.Options(input='real'))


def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path):
  with pytest.raises(ValueError, match=r'Cannot write .*--output=FILE\.json'):
    benchmark.check_output(tmp_path / 'missing' / 'out.json')
  with pytest.raises(ValueError, match='it is a folder'):
    benchmark.check_output(tmp_path)
  benchmark.check_output(tmp_path / 'out.json')
