"""What runs on the devices: the state of training and the compiled functions.

`build` turns a configuration into a `Program`, for any task and mesh. One train
step does it all -- augmentation, front end, masks, model, loss, gradients,
update -- so that only waveforms travel to the devices.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from audio_mae_jax import config as config_lib
from audio_mae_jax import optim
from audio_mae_jax import sharding
from audio_mae_jax import tasks
from audio_mae_jax import trees

PICTURED = 4  # clips of a reconstruction picture


@flax.struct.dataclass
class TrainState:
  step: jax.Array  # int32, updates done
  params: Any
  opt_state: Any
  ema: Any  # averaged copy of params, or None

  @property
  def best_params(self):
    """The average if there is one: what evaluation uses."""
    return self.params if self.ema is None else self.ema


@dataclasses.dataclass(frozen=True)
class Program:
  """Compiled functions of one run, and what they were compiled for."""
  task: tasks.Task
  mesh: jax.sharding.Mesh
  steps_per_epoch: int
  total_steps: int
  learning_rate: optax.Schedule
  shapes: TrainState  # of ShapeDtypeStruct with shardings: a restore's target
  init: Callable  # (parameters by name = {}) -> TrainState; others are fresh
  train_step: Callable  # (state, batch) -> (state, metrics); donates the state
  # (params, batch, number) -> sums over valid clips, their number, and outputs
  eval_step: Callable
  # (params, batch) -> arrays of the first PICTURED clips, or None
  picture: Callable | None

  @property
  def batch_sharding(self):
    return sharding.batch(self.mesh)


def total_steps(train: config_lib.Train, steps_per_epoch: int) -> int:
  steps = train.steps or round(train.epochs * steps_per_epoch)
  if steps < 1:
    raise ValueError(
        f'train.epochs={train.epochs} of {steps_per_epoch} steps are no step; '
        'set train.epochs or train.steps to train at least one.')
  return steps


def build(config: config_lib.Config, steps_per_epoch: int,
          devices=None, task: tasks.Task | None = None) -> Program:
  """The program of `config`; nothing is compiled before it is called.

  Args:
    config: of the run.
    steps_per_epoch: of the data; the schedule needs it.
    devices: of the mesh, all by default.
    task: instead of the one that `config.task` names.
  """
  accumulate = config.optimizer.accumulate
  if accumulate < 1:
    raise ValueError(
        f'optimizer.accumulate={accumulate} must be 1 (no accumulation) or '
        'more micro-batches.')
  mesh = sharding.make_mesh(config.mesh, config.train.batch_size, devices)
  if config.train.batch_size % (mesh.size * accumulate):
    raise ValueError(
        f'optimizer.accumulate={accumulate} does not divide the '
        f'{config.train.batch_size // mesh.size} clips of each device '
        f'(train.batch_size={config.train.batch_size} over {mesh.size}).')
  task = task or tasks.make(config)
  steps = total_steps(config.train, steps_per_epoch)
  learning_rate = optim.schedule(
      config.optimizer, config.train.batch_size, steps_per_epoch, steps)
  tx = optim.make(config.optimizer, learning_rate)

  def init():
    params = task.init(jax.random.fold_in(jax.random.key(config.train.seed), 0))
    ema = params if config.optimizer.ema_decay else None
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), ema)

  # Known already here: what cannot run on these devices stops before data.
  init = sharding.known(mesh, init)
  shapes = jax.eval_shape(init)
  placed = sharding.state(mesh, shapes)
  rows, whole = sharding.batch(mesh), sharding.replicated(mesh)
  jit = functools.partial(sharding.jit, mesh)
  return Program(
      task=task, mesh=mesh, steps_per_epoch=steps_per_epoch, total_steps=steps,
      learning_rate=learning_rate,
      shapes=jax.tree.map(
          lambda leaf, place: jax.ShapeDtypeStruct(
              leaf.shape, leaf.dtype, sharding=place), shapes, placed),
      init=_from(jax.jit(init, out_shardings=placed)),
      train_step=jit(
          _train_step(config, task, tx, learning_rate),
          in_shardings=(placed, rows), out_shardings=(placed, whole),
          donate_argnums=0),
      eval_step=jit(
          _eval_step(config, task),
          in_shardings=(placed.params, rows, None), out_shardings=whole),
      picture=task.picture and jit(
          _picture(config, task),
          in_shardings=(placed.params, rows), out_shardings=whole))


def place(arrays: dict, like):
  """Parameters by name (float32 NumPy arrays), placed as those of `like` are.

  A leaf of `like` that is not among them stays as it is.
  """

  def placed(name, leaf):
    if name not in arrays:
      return leaf
    return jax.make_array_from_callback(
        leaf.shape, leaf.sharding, lambda index: arrays[name][index])

  return trees.map_named(placed, like)


def _from(init):
  """`init()`, with given parameters (float32 NumPy arrays) in their places."""

  def start(arrays: dict | None = None) -> TrainState:
    state = init()
    return state.replace(params=place(arrays or {}, state.params),
                         ema=place(arrays or {}, state.ema))

  return start


def _train_step(config, task, tx, learning_rate):
  """One update. Draws come from the seed and the step alone."""
  settings = config.optimizer

  def step(state, batch):
    key = jax.random.fold_in(jax.random.key(config.train.seed), 1)
    rng_inputs, rng_loss = jax.random.split(
        jax.random.fold_in(key, state.step))
    # Profiles show these names; breakdown.py tells parts by them.
    with jax.named_scope('prepare'):
      inputs = task.prepare(batch, rng_inputs, train=True)
    grads, values = _gradients(
        task, state.params, inputs, rng_loss, settings.accumulate)
    ema = state.ema
    with jax.named_scope('update'):
      updates, opt_state = tx.update(grads, state.opt_state, state.params)
      params = optax.apply_updates(state.params, updates)
      if ema is not None:
        ema = optax.incremental_update(params, ema, 1 - settings.ema_decay)
      grad_norm = optax.tree.norm(grads)
    metrics = {
        'scalars': {
            **{name: value.mean() for name, value in values.items()},
            'grad_norm': grad_norm,
            'learning_rate': learning_rate(state.step),
        },
        # To name the clips when a loss is not finite.
        'clip_loss': values['loss'],
        'clip_index': batch['index'],
    }
    return TrainState(state.step + 1, params, opt_state, ema), metrics

  return step


def _gradients(task, params, inputs, rng, accumulate):
  """Mean gradient over the batch, and each clip's values, [B] each.

  Micro-batch a is every `accumulate`-th row from a on: so each device works on
  its own rows and nothing moves between them.
  """

  def mean_loss(params, inputs, rng):
    with jax.named_scope('loss'):
      values = task.losses(params, inputs, rng)
      return values['loss'].mean(), values

  gradient = jax.grad(mean_loss, has_aux=True)
  if accumulate == 1:
    return gradient(params, inputs, rng)

  def micro_batch(total, xs):
    inputs, rng = xs
    grads, values = gradient(params, inputs, rng)
    with jax.named_scope('update'):
      return jax.tree.map(jnp.add, total, grads), values

  split = lambda x: jnp.moveaxis(
      x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:]), 1, 0)
  total, values = jax.lax.scan(
      micro_batch, jax.tree.map(jnp.zeros_like, params),
      (jax.tree.map(split, inputs), jax.random.split(rng, accumulate)))
  join = lambda x: jnp.moveaxis(x, 0, 1).reshape(-1)
  with jax.named_scope('update'):
    return (jax.tree.map(lambda g: g / accumulate, total),
            jax.tree.map(join, values))


def _eval_rng(config, number):
  """The same masks at each evaluation, so that curves are comparable."""
  key = jax.random.fold_in(jax.random.key(config.train.seed), 2)
  return jax.random.fold_in(key, number)


def _eval_step(config, task):

  def step(params, batch, number):
    inputs = task.prepare(batch, _eval_rng(config, number), train=False)
    values, outputs = task.evaluate(params, inputs)
    valid = batch['valid']
    # A padding row's value may be anything; 0 * nan would be nan.
    sums = {name: jnp.where(valid > 0, value, 0).sum()
            for name, value in values.items()}
    # Of all rows, on every host: each computes the metrics of the whole split.
    outputs |= {'index': batch['index'], 'valid': batch['valid']}
    return sums, valid.sum(), outputs

  return step


def _picture(config, task):

  def picture(params, batch):
    inputs = task.prepare(batch, _eval_rng(config, 0), train=False)
    inputs = jax.tree.map(lambda x: x[:PICTURED], inputs)
    return task.picture(params, inputs)

  return picture
