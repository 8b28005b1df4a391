"""Fine-tunes on AudioSet-2M: 527 classes, several a clip.

  python -m audio_mae_jax.main --config=configs/finetune_as2m.py \
      --config.data.root=DIR --config.init_from=WEIGHTS

The data as in docs/data.md. Clips are drawn by how rare their labels are,
200,000 an epoch. The paper took 64 V100 for about 12 h and reached an mAP of
47.3; there is no validation split, so `valid` is the evaluation set.

Numbers are the AS-2M column of the paper's table 3.
"""

from audio_mae_jax import config as config_lib


def get_config():
  config = config_lib.default('classify')
  config.model.encoder.variant = 'B'
  config.model.encoder.drop_path = 0.1
  config.model.dtype = 'bfloat16'  # the released code: float16 autocast

  source = dict(
      name='manifest', path='audioset/manifest.csv',
      labels_csv='audioset/classes.csv')
  config.data.train.update(source, split='balanced+unbalanced')
  config.data.valid.update(source, split='eval')
  config.data.clip_s = 10.0
  config.data.crop = 'start'  # clips have this length; the roll moves them
  config.frontend.num_frames = 1024
  config.frontend.mean = -4.2677393
  config.frontend.std = 4.5689974

  config.data.sampling = 'balanced'
  config.data.epoch_clips = 200_000
  config.data.replacement = False  # in effect True in the released script

  config.augment.roll = True
  config.augment.gain_concentration = 10.0  # released; paper: up to 6 dB
  config.augment.time_mask = 192
  config.augment.freq_mask = 48
  config.augment.mixup = 0.5
  config.mask.name = 'time_freq'
  config.mask.time_ratio = 0.3  # 0.2 in the released script
  config.mask.freq_ratio = 0.3  # idem

  config.labels.multilabel = True
  config.labels.loss = 'bce'

  config.optimizer.base_lr = 2e-4  # 5e-4 for ViT-S
  config.optimizer.min_lr = 1e-6
  config.optimizer.warmup_epochs = 20.0  # 10 in the released script
  config.optimizer.weight_decay = 1e-4  # 5e-4 in the released script
  config.optimizer.b1 = 0.9
  config.optimizer.b2 = 0.95  # 0.999 in the released script
  config.optimizer.layer_decay = 0.75  # released; the paper does not say
  config.train.batch_size = 512  # 256 in the released script
  config.train.epochs = 100.0
  return config
