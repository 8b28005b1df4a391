"""Batches on their way to the devices."""

import subprocess
import sys

import batching
import jax
import numpy as np
import pytest

from audio_mae_jax import config
from audio_mae_jax.data import pipeline
from audio_mae_jax.data import placement
from audio_mae_jax.data import report
from audio_mae_jax.data import sources


def test_batches_on_devices_are_whole_and_in_order(settings):
  source = sources.make(
      config.Source(name='synthetic', num_clips=9), config.Data(clip_s=0.1))
  cfg = settings(8)
  mesh = jax.make_mesh(
      (len(jax.devices()),), ('data',),
      axis_types=(jax.sharding.AxisType.Auto,))
  sharding = jax.NamedSharding(mesh, jax.P('data'))
  expected = batching.train(source, cfg, 5)
  for ahead in (0, 2, 9):
    bad = report.BadFiles(source.num_files, cfg.data)
    batches = placement.to_device(
        pipeline.train_batches(source, cfg, report=bad), sharding, ahead)
    arrays = batching.take(batches, 5)
    assert arrays[0]['audio'].sharding == sharding
    batching.assert_equal(expected, [
        {name: np.asarray(value) for name, value in batch.items()}
        for batch in arrays])
    passed = list(placement.to_device(
        pipeline.eval_batches(source, cfg, report=bad), sharding, ahead))
    assert len(passed) == 2


def test_to_device_closes_its_input():
  closed = []

  def endless():
    try:
      while True:
        yield {'x': np.zeros((8, 1))}
    finally:
      closed.append(True)

  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  batches = placement.to_device(endless(), device, 2)
  next(batches)
  batches.close()
  assert closed == [True]


def test_a_process_that_leaves_a_pipeline_open_ends_quietly():
  program = '''
import jax
from audio_mae_jax import config
from audio_mae_jax.data import pipeline, placement, report, sources
cfg = config.Config(data=config.Data(clip_s=1.0, num_threads=2),
                    train=config.Train(batch_size=8))
source = sources.make(config.Source(name='synthetic'), cfg.data)
batches = placement.to_device(
    pipeline.train_batches(source, cfg, report=report.BadFiles(9, cfg.data)),
    jax.sharding.SingleDeviceSharding(jax.devices()[0]), 2)
print(next(batches)['audio'].shape)
'''
  done = subprocess.run(
      [sys.executable, '-c', program], capture_output=True, text=True,
      timeout=100)
  assert (done.returncode, done.stdout, done.stderr) == (0, '(8, 16000)\n', '')


@pytest.mark.parametrize('dtype', [np.int16, np.float32])
def test_each_device_gets_its_rows_as_floats(dtype):
  mesh = jax.make_mesh((4, 2), ('data', 'fsdp'))
  sharding = jax.sharding.NamedSharding(
      mesh, jax.sharding.PartitionSpec(('data', 'fsdp')))
  audio = np.arange(16 * 5, dtype=np.int16).reshape(16, 5) - 40

  def batches():
    for i in range(3):
      yield {'audio': (audio + i).astype(dtype)}

  got = list(placement.to_device(batches(), sharding, 1))
  scale = 2.0**-15 if dtype == np.int16 else 1
  for i, batch in enumerate(got):
    assert batch['audio'].sharding == sharding
    assert batch['audio'].dtype == np.float32
    np.testing.assert_array_equal(batch['audio'], (audio + i) * scale)
  assert len(got) == 3
