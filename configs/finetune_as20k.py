"""Fine-tunes on AudioSet-20K, the balanced split: 527 classes, several a clip.

  python -m audio_mae_jax.main --config=configs/finetune_as20k.py \
      --config.data.root=DIR --config.init_from=WEIGHTS

The data as in docs/data.md. The paper took 4 V100 and reached an mAP of 37.0;
there is no validation split, so `valid` is the evaluation set.

Numbers are the AS-20K column of the paper's table 3.
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
  config.data.train.update(source, split='balanced')
  config.data.valid.update(source, split='eval')
  config.data.clip_s = 10.0
  config.data.crop = 'start'  # clips have this length; the roll moves them
  config.frontend.num_frames = 1024
  config.frontend.mean = -4.2677393
  config.frontend.std = 4.5689974

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

  config.optimizer.base_lr = 1e-3  # 2e-3 for ViT-S
  config.optimizer.min_lr = 1e-6
  config.optimizer.warmup_epochs = 4.0
  config.optimizer.weight_decay = 1e-4  # 5e-4 in the released script
  config.optimizer.b1 = 0.9
  config.optimizer.b2 = 0.95  # 0.999 in the released script
  config.optimizer.layer_decay = 0.75  # released; the paper does not say
  config.train.batch_size = 32
  config.train.epochs = 60.0
  return config
