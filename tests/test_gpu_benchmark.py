"""The measurement of one GPU: what is measured when, and what is kept."""

import importlib
import json
import subprocess
import sys

import pytest

from benchmarks import gpu
from benchmarks import gpu_table
from benchmarks import work


def test_a_part_that_hangs_or_fails_keeps_what_it_had_found():
  # Of a shell, which has printed at once on a busy machine too.
  run = lambda code, limit_s: gpu.run(['sh', '-c', code], limit_s, None)
  assert run('echo \'{"a": 1}\'', 60) == {'a': 1}
  assert run('echo \'{"a": 1}\'; sleep 60', 5) == {
      'a': 1, 'error': 'not done after 5 s'}
  assert run('echo \'{"a": 1}\'; printf \'{"b\'; exit 4', 60) == {
      'a': 1, 'error': 'ended with status 4'}


@pytest.fixture
def measured(tmp_path, monkeypatch):
  """Runs gpu.py on a file without measuring: (run, path, parts asked for)."""
  asked = []
  monkeypatch.setattr(
      gpu, 'measure', lambda name, *_: asked.append(name) or {'xla': {'ms': 2}})
  monkeypatch.setattr(gpu, 'gpus', lambda: {'gpus': ['H200']})
  monkeypatch.setattr(gpu_table, 'table', str)
  path = tmp_path / 'gpu.json'
  run = lambda *argv: gpu.main([f'--output={path}', *argv])
  return run, path, asked


def change(path, part):
  path.write_text(json.dumps(json.loads(path.read_text()) | part))


def test_parts_that_a_file_has_are_not_measured_again(measured, capsys):
  run, path, asked = measured
  run('--parts', 'memory', 'pretrain')
  assert asked == ['pretrain', 'memory']  # always in the same order
  run()
  assert asked[2:] == ['finetune', 'input', 'torch pretrain']
  asked.clear()
  assert 'Nothing was measured' not in capsys.readouterr().out
  run()
  assert not asked
  assert 'Nothing was measured' in capsys.readouterr().out
  assert set(json.loads(path.read_text())) == {
      'identity', 'machine', 'memory', *gpu.PARTS}


def test_what_went_wrong_is_measured_again_and_the_rest_kept(measured):
  run, path, asked = measured
  run('--parts', 'attention', 'pretrain', 'input')
  asked.clear()
  failed, good = {'error': 'out of memory'}, {'ms': 1}
  change(path, {
      'input': {'error': 'left out', 'WAV': good, 'took_s': 3},
      'attention': {'xla': failed, 'cudnn': good, 'pallas': failed}})
  run('--parts', 'attention', 'pretrain', 'input')
  assert asked == ['input', 'attention']
  found = json.loads(path.read_text())
  assert found['input'] == {'xla': {'ms': 2}, 'WAV': good}
  assert found['attention'] == {'xla': {'ms': 2}, 'cudnn': good}


def test_nothing_good_is_lost_to_a_new_failure():
  assert gpu.merged({'a': {'ms': 1}}, {'a': {'error': 'x'}, 'error': 'y'}) == {
      'a': {'ms': 1}, 'error': 'y'}


@pytest.mark.parametrize('argv, patched, differs', [
    (['--tiny', '--device=cpu'], {}, 'flags'),
    (['--batch_size=64'], {}, 'flags'),
    (['--dtype=float32'], {}, 'flags'),
    (['--set=model.remat=full'], {}, 'flags'),
    ([], {'code': lambda: 'changed'}, 'code'),
    ([], {'gpus': lambda: {'gpus': ['H100']}}, 'machine')])
def test_another_measurement_is_not_mixed_in(
    argv, patched, differs, measured, monkeypatch):
  run, path, asked = measured
  run('--parts', 'pretrain')
  before = path.read_bytes()
  for name, value in patched.items():
    monkeypatch.setattr(gpu, name, value)
  with pytest.raises(SystemExit, match=(
      rf'(?s)other {differs}:.*name another --output')):
    run(*argv)
  assert path.read_bytes() == before and asked == ['pretrain']


def test_torch_may_come_later(measured, monkeypatch):
  run, path, asked = measured
  machine = {'load': 0.0, 'jax': '1'}
  monkeypatch.setattr(gpu.alternate, 'machine', lambda: dict(machine))
  run('--parts', 'pretrain')
  change(path, {'torch pretrain': {'ratios': {
      'error': 'torch is not installed'}}})
  machine['torch'] = '2'
  run('--parts', 'pretrain', 'torch pretrain')
  assert asked == ['pretrain', 'torch pretrain']
  machine['torch'] = '3'
  with pytest.raises(SystemExit, match='other machine'):
    run()


@pytest.mark.parametrize('text', ['', '[]', '{"pretrain": {}}'])
def test_a_file_of_something_else_is_left_alone(text, measured):
  run, path, asked = measured
  path.write_text(text)
  with pytest.raises(SystemExit, match='no measurement of this command'):
    run()
  assert path.read_text() == text and not asked


def test_a_rehearsal_has_a_file_of_its_own():
  assert gpu.flags([]).output == 'gpu.json'
  assert gpu.flags(['--tiny']).output == 'gpu_tiny.json'


def test_the_checksum_of_the_code_follows_the_code(tmp_path, monkeypatch):
  monkeypatch.setattr(work, 'ROOT', tmp_path)
  (tmp_path / 'configs').mkdir()
  found = []
  for name, text in (('a.py', '1'), ('a.py', '2'), ('b.py', ''),
                     ('c.txt', '')):
    (tmp_path / 'configs' / name).write_text(text)
    found.append(gpu.code())
  assert len(set(found)) == 3 and found[2] == found[3]


def test_limits_of_all_parts_add_up_to_the_whole(tmp_path, monkeypatch):
  assert sum(part.limit_s for part in gpu.PARTS.values()) <= gpu.SECONDS < 480
  clock, limits = [0.0], {}
  monkeypatch.setattr(gpu.time, 'monotonic', lambda: clock[0])

  def measure(name, args, cache, limit):
    limits[name] = limit
    clock[0] += 50 if name == 'pretrain' else limit
    return {'error': 'not done'}

  monkeypatch.setattr(gpu, 'measure', measure)
  gpu.main([f'--output={tmp_path / "gpu.json"}'])
  whole = sum(part.limit_s for part in gpu.PARTS.values())
  assert limits['pretrain'] == pytest.approx(
      gpu.SECONDS * gpu.PARTS['pretrain'].limit_s / whole)
  # What it left, the others share.
  assert limits['finetune'] > gpu.PARTS['finetune'].limit_s
  assert clock[0] == pytest.approx(gpu.SECONDS)


def test_no_part_is_started_that_has_no_time():
  assert 'no time' in gpu.measure('pretrain', None, '', 10)['error']


def test_parts_are_told_what_is_measured(monkeypatch):
  args = gpu.flags(['--preset=local8', '--batch_size=64'])
  told = lambda name: gpu.arguments(gpu.ALL[name], args)
  assert told('pretrain')[:3] == ['step', '--again', '--batch_size=64']
  assert '--preset=local8' in told('pretrain')
  assert '--preset=' in told('finetune')  # its recipe has none
  assert '--batch_size=16' in told('torch pretrain')
  # A folder of the user's would make the cold compilation a warm one.
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', 'warm')
  monkeypatch.setenv('XLA_PYTHON_CLIENT_MEM_FRACTION', '.5')
  told = gpu.environment('pretrain', 'new')
  assert told['JAX_COMPILATION_CACHE_DIR'] == 'new'
  assert told['XLA_PYTHON_CLIENT_MEM_FRACTION'] == '.5'


def test_the_table_has_all_that_was_measured():
  step = {
      'setup': {'batch_size': 512, 'cores': 16},
      'work': {'of_peak': None, 'of_dense': 0.5, 'dense_tflops': 700},
      'start': {'compile_s': 70, 'lower_s': 3, 'to_first_step_s': 80},
      'throughput': {'clips_per_s': 1900, 'step_s': 0.27},
      'prepare': {'of_step': 0.02},
      'compiler': {'temp_bytes_per_device': 64 * gpu_table.GIB,
                   'argument_bytes_per_device': gpu_table.GIB},
      'memory_peak': {'device_bytes': None},
      'input': {'clips_per_s': 5000},
      'fed': {'waiting': 0.01, 'clips_per_s': 1890}}
  lines = gpu_table.table({
      'machine': {'gpus': ['H200']}, 'identity': {},
      'pretrain': {'step': step, 'again': {'compile_s': 4, 'lower_s': 3}},
      'input': {'WAV': step, 'records': {'error': 'no disk'}},
      'breakdown': {'breakdown': {'step_s': 0.5, 'busy_s': 0.4, 'parts': {
          'optimizer': {'time_s': 0.4, 'flops': 2e12, 'bytes': 5e9}}}},
      'finetune': {'error': 'not done after 60 s'}}).splitlines()
  assert set(lines) >= {
      '| pretrain: compiling, cached |  | 4 s after 3 s of tracing |',
      '| input: WAV, waiting for it | under 3 % | 1.00%, 1890 clips/s |',
      '| input: records |  | no disk |',
      ('| breakdown: optimizer |  | 400 ms, 80.0% of the step; 2 TFLOP, 5 GB '
       '|'),
      '| breakdown: nothing at work |  | 100 ms, 20.0% of the step |',
      '| finetune |  | not done after 60 s |'}


def test_without_torch_the_rest_is_measured():
  code = ("import sys; sys.modules['torch'] = None\n"
          'from benchmarks import gpu_parts')
  subprocess.run([sys.executable, '-c', code], cwd=work.ROOT, check=True)


@pytest.mark.parametrize('module', ['train_step', 'embedding', 'front_end'])
def test_what_compares_with_torch_says_that_it_is_missing(module, monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)
  with pytest.raises(SystemExit, match=r'torch.*pip install'):
    importlib.import_module(f'benchmarks.{module}').main([])
