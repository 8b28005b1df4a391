"""Several real processes train as one: same losses, one record, any mesh."""

import json
import re

import jax
import numpy as np
import processes
import pytest
import tiny

from audio_mae_jax import train

LAST = processes.PRETRAIN['train.steps']
# Sums over devices come in another order: float32 reassociates. Over 20 steps
# what was seen is 2e-7.
RTOL = 2e-6


def recipe(folder, settings):
  folder.mkdir(exist_ok=True)
  return processes.write_recipe(folder / 'recipe.py', settings)


@pytest.fixture(scope='module', params=['pretrain', 'finetune'])
def alone(request, cache, tmp_path_factory):
  """A task's recipe, and the losses of its run in one process."""
  folder = tmp_path_factory.mktemp(request.param)
  settings = {'pretrain': processes.PRETRAIN,
              'finetune': processes.FINETUNE}[request.param]
  file = recipe(folder, settings)
  with processes.Run(file, folder / 'one', cache=cache) as run:
    run.finish()
  return file, processes.losses(folder / 'one')


def assert_same_losses(found, expected):
  assert found.keys() == expected.keys()
  for step in expected:
    np.testing.assert_allclose(found[step], expected[step], rtol=RTOL)


def test_two_processes_train_as_one(cache, tmp_path):
  """The one that every run of the tests has: FSDP, evaluation, a checkpoint."""
  settings = processes.PRETRAIN | {
      'model.decoder.name': 'global', 'model.decoder.depth': 1,
      'train.steps': 4, 'log.eval_every_steps': 4, 'checkpoint.every_steps': 4}
  train.train(
      tiny.config(settings, {'workdir': str(tmp_path / 'one')}),
      devices=jax.devices()[:1])
  file = recipe(tmp_path / 'recipe', settings)
  with processes.Run(file, tmp_path / 'two', '--config.mesh.fsdp=2',
                     cache=cache, count=2) as run:
    run.finish()
    assert 'Devices: 2 x cpu' in run.told(0)
    assert 'Devices' not in run.told(1)  # the first one talks
  assert_same_losses(processes.losses(tmp_path / 'two'),
                     processes.losses(tmp_path / 'one'))


@pytest.mark.faults
@pytest.mark.parametrize('count, fsdp', [
    (2, 1), (2, 2), (4, 1), (4, 2), (4, 4)])
def test_losses_do_not_depend_on_processes_and_mesh(
    alone, cache, tmp_path, count, fsdp):
  file, expected = alone
  with processes.Run(file, tmp_path / 'run', f'--config.mesh.fsdp={fsdp}',
                     count=count, cache=cache) as run:
    run.finish()
  assert_same_losses(processes.losses(tmp_path / 'run'), expected)


@pytest.mark.faults
def test_a_run_goes_on_with_other_processes_and_another_mesh(
    alone, cache, tmp_path):
  """1 process, then 4 (FSDP), then 2 (data parallel), then 2 x 2."""
  file, expected = alone
  stages = [(1, 1, 4), (4, 4, 8), (2, 1, 12), (4, 2, LAST)]
  for count, fsdp, stop in stages:
    with processes.Run(
        file, tmp_path / 'run', f'--config.mesh.fsdp={fsdp}',
        '--config.checkpoint.every_steps=4', count=count, cache=cache) as run:
      if stop < LAST:
        # The end of the schedule must not move: the stage is cut by force.
        assert run.until(lambda run=run, stop=stop: (
            run.workdir / 'checkpoints' / str(stop)).exists())
        for process in run.processes:
          process.kill()
        run.wait()
      else:
        run.finish()
        begun, = re.findall(r'Going on from step (\d+)', run.told(0))
        assert 12 <= int(begun) < LAST
  assert_same_losses(processes.losses(tmp_path / 'run'), expected)


@pytest.mark.faults
def test_probing_and_evaluation_share_the_work(cache, tmp_path):
  """Two processes give what one gives, and each clip counts once."""
  labelled = processes.FINETUNE | {
      'probe.train.name': 'synthetic', 'probe.test.name': 'synthetic'}
  file = recipe(tmp_path / 'recipe', labelled)
  weights = tmp_path / 'weights'
  with processes.Run(file, weights, cache=cache) as run:
    run.finish()
  told = {}
  for count in (1, 2):
    for mode in ('evaluate', 'probe'):
      with processes.Run(
          file, tmp_path / f'{mode}_{count}', f'--config.mode={mode}',
          f'--config.init_from={weights}', "--config.probe.kinds=('knn',)",
          '--stopped_status=75', count=count, cache=cache) as run:
        run.finish()
    told[count] = [
        np.load(tmp_path / f'evaluate_{count}/evaluation/valid/predictions.npz')
        [name] for name in ('ids', 'logits', 'targets')]
    told[count].append(json.loads(
        (tmp_path / f'probe_{count}/probe.json').read_text())['results'])
  assert list(told[1][0]) == list(told[2][0])
  assert len(set(told[2][0])) == labelled['data.valid.num_clips']
  np.testing.assert_allclose(told[2][1], told[1][1], atol=1e-5)
  np.testing.assert_array_equal(told[2][2], told[1][2])
  assert set(told[1][3]) == {'trained', 'untrained'}
  assert told[2][3] == told[1][3]
