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
    ['embedding'], ['embedding', '--runtime=onnx'], ['front_end'],
    ['decoders', '--only'],
    ['gpu', '--device=cpu', '--batch_size=8', '--seconds=900', '--parts',
     *gpu.ALL]])
def test_every_comparison_runs(command, tmp_path):
  name, *flags = command
  if name in ('train_step', 'embedding', 'front_end'):
    pytest.importorskip('torch')
  if '--runtime=onnx' in flags:
    pytest.importorskip('onnxruntime')
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
    parts = {name: result[name] for name in gpu.ALL}
    parts.pop('attention')  # has forms that need a GPU
    assert all(gpu.whole(part) for part in parts.values()), parts
    assert {'WAV', 'records'} < set(result['input'])
    assert not gpu.failed(result['attention']['xla'])
  else:
    assert all(x['wall_s'] > 0 for side in result['rounds'].values()
               for x in side)
