"""Comparisons of benchmarks/: who is measured when, and what is made of it."""

import argparse
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from audio_mae_jax import frontend
from benchmarks import alternate
from benchmarks import decoders
from benchmarks import gpu
from benchmarks import gpu_table
from benchmarks import work

# A worker that measures nothing: it answers with its name and how often.
FAKE = '''
import json, os, sys
print(json.dumps({
    "pid": os.getpid(),
    "preallocate": os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE")}),
    flush=True)
for i, steps in enumerate(sys.stdin):
  if "fails" in sys.argv: sys.exit(3)
  print(json.dumps({
      "wall_s": float(sys.argv[1]) * (i + 1), "cpu_s": 1.0,
      "steps": int(steps), "process_bytes": 10**9, "device_bytes": None}),
      flush=True)
'''


def fake(name, *argv):
  return alternate.Side(name, ('-c', FAKE, *argv))


def preallocate(result):
  return {x['preallocate'] for side in result['rounds'].values() for x in side}


def test_sides_take_turns_and_each_round_gives_a_ratio(monkeypatch):
  monkeypatch.delenv('XLA_PYTHON_CLIENT_PREALLOCATE', raising=False)
  result = alternate.run([fake('a', '2'), fake('b', '3')], rounds=3, steps=5)
  seconds = {name: [x['wall_s'] for x in measured]
             for name, measured in result['rounds'].items()}
  # They live on from round to round: the second answer is the second.
  assert seconds == {'a': [2, 4, 6], 'b': [3, 6, 9]}
  assert result['ratios']['b / a'] == {
      'wall_s': {'median': 1.5, 'min': 1.5, 'max': 1.5, 'all': [1.5] * 3},
      'cpu_s': {'median': 1.0, 'min': 1.0, 'max': 1.0, 'all': [1.0] * 3}}
  table = alternate.table(result)
  assert '| b / a | 1.50 (1.50 to 1.50) | 1.00 (1.00 to 1.00) |' in table
  assert '| a | 4 (2 to 6) | 1 (1 to 1) | 1.00 GB | - |' in table
  assert result['machine']['cores'] >= 1 and 'jax' in result['machine']
  assert preallocate(result) == {'false'}  # they share a GPU's memory


def test_one_at_a_time_is_a_new_process_in_each_round(monkeypatch):
  monkeypatch.delenv('XLA_PYTHON_CLIENT_PREALLOCATE', raising=False)
  result = alternate.run(
      [fake('a', '2'), fake('b', '3')], rounds=2, steps=1, together=False)
  assert [x['wall_s'] for x in result['rounds']['a']] == [2, 2]
  assert len({x['pid'] for side in result['rounds'].values()
              for x in side}) == 4
  assert preallocate(result) == {None}


def test_a_worker_that_ends_is_told_of():
  with pytest.raises(alternate.Failed, match='b ended with status 3'):
    alternate.run([fake('a', '1'), fake('b', '1', 'fails')], 1, 1)


def test_a_part_that_hangs_or_fails_keeps_what_it_had_found():
  # Of a shell, which has printed at once on a busy machine too.
  run = lambda code, limit_s: gpu.run(['sh', '-c', code], limit_s, None)
  assert run('echo \'{"a": 1}\'', 60) == {'a': 1}
  assert run('echo \'{"a": 1}\'; sleep 60', 5) == {
      'a': 1, 'error': 'not done after 5 s'}
  assert run('echo \'{"a": 1}\'; printf \'{"b\'; exit 4', 60) == {
      'a': 1, 'error': 'ended with status 4'}


def test_parts_that_a_file_has_are_not_measured_again(tmp_path, monkeypatch):
  asked = []
  monkeypatch.setattr(gpu, 'measure', lambda name, *_: asked.append(name) or {})
  path = tmp_path / 'gpu.json'
  path.write_text(json.dumps({
      'attention': {'xla': {'error': 'this choice alone'}},
      'input': {'error': 'left out'}}))
  gpu.main([f'--output={path}', '--parts', 'attention', 'input', 'memory'])
  assert asked == ['input', 'memory']
  assert set(json.loads(path.read_text())) == {
      'attention', 'input', 'memory', 'machine'}


def test_no_part_is_started_that_has_no_time():
  args = argparse.Namespace(batch_size=4, tiny=False)
  assert 'no time' in gpu.measure('pretrain', args, {}, '', 0)['error']


def test_the_largest_batch_is_what_memory_allows():
  step = {'setup': {'batch_size': 512},
          'compiler': {'argument_bytes_per_device': 2e9,
                       'temp_bytes_per_device': 512 * 1e8},
          'memory_peak': {'limit_bytes': 76e9}}
  # (0.97 * 76 - 2) / 0.1 = 717 clips, in steps of 64.
  assert gpu_table.largest_batch(step) == 704
  assert gpu_table.largest_batch(None) is None


def chosen(task, *argv):
  """Flags of a comparison, parsed."""
  parser = argparse.ArgumentParser()
  work.add_flags(parser)
  args = parser.parse_args(argv)
  args.task = task
  return args


def test_decoders_compares_the_presets_that_users_can_choose(monkeypatch):
  sides = []
  monkeypatch.setattr(alternate, 'compare',
                      lambda some, _: sides.extend(some) or {})
  work_of = decoders.main(['--only', 'local8', 'crop5'])['flops']
  assert list(work_of) == ['default', 'local8', 'crop5']
  assert work_of['default'] / 1e9 == pytest.approx(209.8, abs=0.1)
  assert work_of['crop5'] < work_of['local8'] < work_of['default']
  # Each worker is told which one it is.
  assert [[word for word in side.command if 'preset' in word]
          for side in sides] == [
              [f'--preset={name}'] for name in work_of]


def test_a_preset_of_a_recipe_without_them_is_refused():
  with pytest.raises(ValueError, match='finetune_as2m has no presets'):
    work.config(chosen('finetune', '--preset=local8'))


def test_settings_are_handed_on_as_they_are():
  parser = argparse.ArgumentParser()
  work.add_flags(parser)
  args = parser.parse_args([
      '--tiny', '--threads=2', '--preset=local8',
      '--set=model.encoder.variant=S',
      '--set=model.decoder.shift=[2, 2]', '--set=optimizer.base_lr=1'])
  assert args.set == [('model.encoder.variant', 'S'),
                      ('model.decoder.shift', (2, 2)), ('optimizer.base_lr', 1)]
  assert vars(parser.parse_args(work.flags(args))) == vars(args)


def test_kaldi_computes_the_same_features():
  pytest.importorskip('kaldi_native_fbank')
  from benchmarks import kaldi
  spec = work.config(chosen('front_end', '--batch_size=1', '--tiny')).frontend
  clip = 0.1 * np.random.default_rng(0).standard_normal(16_000, np.float32)
  features = jax.jit(lambda x: frontend.features(x, np.array([16_000]), spec))
  want = features(clip[None])[0]
  np.testing.assert_allclose(kaldi.features(clip, spec), want, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize('command', [
    ['train_step', '--task=pretrain'], ['train_step', '--task=finetune'],
    ['embedding'], ['front_end'], ['decoders', '--only'],
    ['gpu', '--device=cpu', '--batch_size=8', '--seconds=900']])
def test_every_comparison_runs(command, tmp_path):
  name, *flags = command
  if name in ('train_step', 'embedding', 'front_end'):
    pytest.importorskip('torch')
  output = tmp_path / 'result.json'
  if name != 'gpu':
    flags += ['--rounds=1', '--steps=1']
  done = subprocess.run(
      [sys.executable, '-m', f'benchmarks.{name}', *flags, '--tiny',
       '--threads=1', f'--output={output}'], cwd=work.ROOT, check=True,
      capture_output=True, text=True, timeout=1200)
  result = json.loads(output.read_text())
  assert '|---|' in done.stdout
  if name == 'gpu':
    assert {name for name, part in result.items() if 'error' in part} == {
        'largest'}  # a processor says no limit of its memory
  else:
    assert all(x['wall_s'] > 0 for side in result['rounds'].values()
               for x in side)
