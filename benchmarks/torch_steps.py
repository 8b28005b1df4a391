"""A worker that runs PyTorch: `python -m benchmarks.torch_steps pretrain`."""

import argparse
import contextlib
import sys

import torch
from torch.nn import functional

from audio_mae_jax import config as config_lib
from audio_mae_jax import optim
from audio_mae_jax import patches as patches_lib
from audio_mae_jax.data import pipeline
from benchmarks import alternate
from benchmarks import torch_audio_mae
from benchmarks import torch_inputs
from benchmarks import work
from benchmarks import worker


def main(argv):
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('task', choices=TASKS)
  add_flags(parser)
  work.add_flags(parser)
  args = parser.parse_args(argv)
  worker.limit(args.threads)
  torch.set_num_threads(args.threads)
  gpu = args.device == 'gpu'
  device = torch.device('cuda' if gpu else 'cpu')
  step = TASKS[args.task](work.config(args), args, device)
  worker.serve(
      {'torch': torch.__version__,
       'device': torch.cuda.get_device_name() if gpu else 'cpu'},
      step, torch.cuda.synchronize if gpu else lambda: None,
      torch.cuda.max_memory_allocated if gpu else lambda: None)


def add_flags(parser: argparse.ArgumentParser, **several):
  """What can be chosen of the PyTorch side alone."""
  parser.add_argument(
      '--compile', default='none', help='mode of torch.compile, e.g. default; '
      'blocks: each kind of block once, and nothing else, which takes a '
      'fraction of the time',
      choices=['none', 'blocks', 'default', 'reduce-overhead', 'max-autotune',
               'max-autotune-no-cudagraphs'])
  parser.add_argument(
      '--windows', default=['products'] if several else 'products',
      choices=torch_audio_mae.WINDOWS, help='attention in windows', **several)
  parser.add_argument(
      '--torch_transform', default='fft', choices=['fft', 'matmul'],
      help='Fourier transform of the front end')


def sides(args) -> list[alternate.Side]:
  """What to compare with: a worker for each of `args.windows`."""
  if args.task != 'pretrain':
    args.windows = args.windows[:1]  # there are none
  return [
      alternate.Side(f'PyTorch, {windows}' if args.windows[1:] else 'PyTorch', (
          '-m', 'benchmarks.torch_steps', args.task, *work.flags(args),
          f'--compile={args.compile}', f'--windows={windows}',
          f'--torch_transform={args.torch_transform}'))
      for windows in args.windows]


def compiled(fn, args, model=None):
  """`fn`, which may run `model`, as the flags say."""
  if args.compile == 'none':
    return fn
  if args.compile != 'blocks':
    return torch.compile(fn, mode=args.compile)
  for block in model.modules() if model else ():
    if isinstance(block, torch_audio_mae.BLOCKS):
      block.compile()
  return fn


def autocast(config, device):
  """Products in the dtype of `config`."""
  if config.model.dtype == 'float32':
    return contextlib.nullcontext()
  return torch.autocast(device.type, torch.bfloat16)


def audio(config, device):
  """[B, S] of noise and [B]: all of it valid."""
  batch, samples = config.train.batch_size, pipeline.clip_samples(config)
  return (0.1 * torch.randn(batch, samples, device=device),
          torch.full((batch,), samples, device=device))


def grid_of(config):
  front = config.frontend
  return patches_lib.grid_of(
      (front.num_frames, front.num_mel_bins), config.patch)


def adamw(model, settings: config_lib.Optimizer) -> torch.optim.Optimizer:
  """With the weight decay and share of the learning rate that optim.py has."""
  parameters = torch_audio_mae.ours(model)
  decayed = optim.decayed(settings, parameters)
  scales = optim.layer_scales(settings.layer_decay, parameters)
  by_kind = {}
  for name, parameter in parameters.items():
    by_kind.setdefault((decayed[name], scales[name]), []).append(parameter)
  groups = [{'params': members, 'scale': scale,
             'weight_decay': settings.weight_decay * decays}
            for (decays, scale), members in by_kind.items()]
  return torch.optim.AdamW(
      groups, betas=(settings.b1, settings.b2), eps=settings.eps, fused=True)


def set_rate(optimizer, rate: float):
  for group in optimizer.param_groups:
    group['lr'] = group['scale'] * rate


def model_of(config, windows='products'):
  grid = grid_of(config)
  if config.task == 'classify':
    return torch_audio_mae.Classifier(config, grid)
  return torch_audio_mae.AudioMAE(config, grid, windows == 'products')


def pretrain(config, args, device):
  model, grid = model_of(config, args.windows).to(device), grid_of(config)
  inputs = Inputs(config, args, device)
  waveform, num_samples = audio(config, device)

  def loss():
    patches, _ = inputs(waveform, num_samples)
    order, num_keep = torch_inputs.draw_order(
        len(patches), grid, config.mask, device)
    with autocast(config, device):
      return model(patches, order, num_keep)

  return train_step(model, compiled(loss, args, model), config)


def finetune(config, args, device):
  model, grid = model_of(config).to(device), grid_of(config)
  inputs = Inputs(config, args, device)
  waveform, num_samples = audio(config, device)
  classes = torch.eye(
      len(waveform), config.model.classifier.num_classes, device=device)

  def loss():
    patches, labels = inputs(waveform, num_samples, classes)
    order, num_keep = torch_inputs.draw_order(
        len(patches), grid, config.mask, device)
    with autocast(config, device):
      logits = model(patches, order[:, :num_keep])
    return functional.binary_cross_entropy_with_logits(logits, labels)

  return train_step(model, compiled(loss, args, model), config)


class Inputs:
  """Augmented waveforms -> augmented patches, and labels, all in float32."""

  def __init__(self, config, args, device):
    self.config = config
    self.features = torch_inputs.Features(
        config.frontend, args.torch_transform).to(device)

  @torch.no_grad()
  def __call__(self, waveform, num_samples, labels=None):
    settings, spec = self.config.augment, self.config.frontend
    waveform, labels = torch_inputs.augment(
        waveform, num_samples, labels, settings)
    features = torch_inputs.spec_augment(
        self.features(waveform, num_samples), spec, settings)
    return torch_inputs.patchify(features, self.config.patch), labels


def train_step(model, loss, config):
  """Forward, backward, norm of the gradient, AdamW on a warm-up."""
  settings = config.optimizer
  optimizer = adamw(model, settings)
  peak = settings.base_lr * config.train.batch_size / 256
  parameters = list(model.parameters())
  done = 0
  model.train()

  def step():
    nonlocal done
    set_rate(optimizer, peak * min(1, done / 1000))
    loss().backward()
    torch.nn.utils.get_total_norm([p.grad for p in parameters])
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    done += 1

  return step


def embedding(config, args, device):
  """Waveforms -> the mean over the tokens of each clip, nothing hidden."""
  model = model_of(config).to(device).eval()
  features = torch_inputs.Features(
      config.frontend, args.torch_transform).to(device)
  clips = audio(config, device)

  def forward():
    patches = torch_inputs.patchify(features(*clips), config.patch)
    with autocast(config, device):
      return model(patches)

  return torch.inference_mode()(compiled(forward, args, model))


def front_end(config, args, device):
  """Waveforms -> log-mel."""
  features = torch_inputs.Features(
      config.frontend, args.torch_transform).to(device)
  clips = audio(config, device)
  return torch.inference_mode()(compiled(lambda: features(*clips), args))


TASKS = {'pretrain': pretrain, 'finetune': finetune, 'embedding': embedding,
         'front_end': front_end}

if __name__ == '__main__':
  main(sys.argv[1:])
