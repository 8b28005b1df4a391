"""Fine-tunes the model of pretrain_small.py on small public sets, on a CPU.

  python -m audio_mae_jax.main --config=configs/finetune_small.py:esc10 \
      --config.data.root=DIR --config.init_from=runs/pretrain_small

Sets: esc10 (5 folds), fsdd (spoken digits; 6 folds, each one speaker) and
mandarin_final (30 rimes of spoken syllables; 5 folds). DIR/SET/manifest.csv has
path, label and fold. docs/results.md says where they come from and what came
out. Without init_from, with layer_decay=1, it trains from scratch.
"""

from audio_mae_jax import config as config_lib

SETS = {  # seconds, frames, mean, std of log-mel, folds, epochs
    'esc10': (5.0, 496, -6.55, 5.78, ('1', '2', '3', '4', '5'), 20.0),
    'fsdd': (0.5, 48, -9.39, 5.14, (
        'george', 'jackson', 'lucas', 'nicolas', 'theo', 'yweweler'), 10.0),
    'mandarin_final': (0.35, 32, -6.31, 4.08, ('0', '1', '2', '3', '4'), 20.0),
}


def get_config(name='esc10'):
  clip_s, frames, mean, std, folds, epochs = SETS[name]
  config = config_lib.default('classify')
  config.name = f'finetune_small_{name}'
  config.folds = folds
  config.data.train.update(name='manifest', path=f'{name}/manifest.csv')
  config.data.clip_s = clip_s
  config.data.crop = 'start'
  config.data.cache_gb = 1.0
  config.frontend.update(num_frames=frames, mean=mean, std=std)

  config.model.encoder.update(width=192, depth=6, heads=3)
  config.augment.update(time_mask=frames // 6, freq_mask=24)
  if name == 'esc10':
    config.augment.mixup = 0.5
    config.mask.update(name='time_freq', time_ratio=0.5, freq_ratio=0.3)
  else:  # speech is an order of sounds: it is not rolled
    config.augment.roll = False
  config.labels.update(multilabel=False, loss='ce')
  config.log.eval_every_steps = -1  # at the end alone

  config.optimizer.update(
      base_lr=1.6e-2, warmup_epochs=2.0, layer_decay=0.75)
  config.train.batch_size = 16
  config.train.epochs = epochs
  return config
