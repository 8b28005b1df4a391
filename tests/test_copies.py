"""Checkpoints that are copied to and from an address."""

import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

from audio_mae_jax import config
from audio_mae_jax import copies
from audio_mae_jax import storage

KEEP = config.Checkpoint(keep=2, keep_every_steps=10)
STEPS = (5, 10, 15, 20, 25)


@pytest.fixture
def local(tmp_path):
  for step in STEPS:
    folder = tmp_path / str(step)
    (folder / 'state').mkdir(parents=True)
    (folder / 'state' / 'array').write_text(f'array {step}')
    (folder / copies.COMMITTED).write_text('whole')
  return tmp_path


def test_those_are_kept_that_orbax_keeps(bucket, local, tmp_path):
  store = copies.Copies(local, f'{bucket}/run', KEEP)
  for step in STEPS:
    store.put(step)
  store.close()
  assert store.all_steps() == [10, 20, 25]
  with ocp.CheckpointManager(
      tmp_path / 'orbax', options=ocp.CheckpointManagerOptions(
          max_to_keep=KEEP.keep, keep_period=KEEP.keep_every_steps)) as manager:
    for step in STEPS:
      manager.save(step, args=ocp.args.StandardSave({'x': jnp.zeros(2)}))
    manager.wait_until_finished()
    assert sorted(manager.all_steps()) == store.all_steps()


def test_what_is_half_copied_is_none_and_goes(bucket, local, monkeypatch):
  store = copies.Copies(local, f'{bucket}/run', KEEP)
  store.put(5)
  store.wait()
  copy_out = storage.copy_out

  def breaks(folder, path, names):
    if copies.COMMITTED in names:
      raise storage.Unreachable('the store is gone')
    copy_out(folder, path, names)

  with monkeypatch.context() as patch:
    patch.setattr(storage, 'copy_out', breaks)
    store.put(10)
    with pytest.raises(storage.Unreachable, match='the store is gone'):
      store.wait()
  assert storage.below(f'{bucket}/run') == [
      '10/state/array', '5/commit_success.txt', '5/state/array']
  assert store.all_steps() == [5]
  store = copies.Copies(local / 'other', f'{bucket}/run', KEEP)
  assert storage.below(f'{bucket}/run') == [
      '5/commit_success.txt', '5/state/array']
  store.fetch(5)
  assert (local / 'other' / '5' / 'state' / 'array').read_text() == 'array 5'
