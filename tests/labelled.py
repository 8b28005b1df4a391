"""A small labelled corpus, and a run of a classifier on it, for tests."""

import csv

import exchange
import numpy as np
import soundfile
import tiny


def corpus(folder, clips=18):
  """Three kinds of sound that a small model can tell apart, in three folds."""
  draw = np.random.default_rng(0)
  rows = []
  time = np.arange(8000) / 16000
  for i in range(clips):
    kind = ('high', 'low', 'noise')[i % 3]
    sound = {'high': np.sin(2 * np.pi * 3000 * time),
             'low': np.sin(2 * np.pi * 150 * time),
             'noise': draw.uniform(-1, 1, len(time))}[kind]
    soundfile.write(
        folder / f'{i}.wav', 0.3 * sound + draw.normal(0, 1e-3, len(time)),
        16000)
    rows.append((f'{i}.wav', kind, i // 3 % 3))
  with open(folder / 'manifest.csv', 'w', newline='') as file:
    csv.writer(file).writerows([('path', 'label', 'fold'), *rows])


RUN = tiny.MODEL | exchange.RUN | {
    'data.train.num_clips': 1024,
    'task': 'classify', 'mask.name': '', 'model.encoder.depth': 1,
    'frontend.num_frames': 48, 'data.clip_s': 0.5, 'data.crop': 'start',
    'data.train.name': 'manifest', 'data.train.path': 'manifest.csv',
    'data.valid.name': 'manifest', 'data.valid.path': 'manifest.csv',
    'data.train.folds': '!0', 'data.valid.folds': '0',
    'labels.multilabel': False, 'labels.loss': 'ce',
    'optimizer.layer_decay': 0.75, 'optimizer.ema_decay': 0.5,
    'augment.mixup': 0.3,
    'train.batch_size': 4, 'train.epochs': 14.0, 'train.steps': 0,
    'optimizer.warmup_epochs': 1.0, 'optimizer.base_lr': 0.3}
