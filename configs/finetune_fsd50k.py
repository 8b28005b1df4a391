"""Fine-tunes on FSD50K: 200 classes, several a clip.

  python -m audio_mae_jax.main --config=configs/finetune_fsd50k.py \
      --config.data.root=DIR --config.init_from=WEIGHTS

The data as in docs/data.md. The paper has no such result: numbers are those of
its AS-20K column (table 3), the data set that is most like it. Clips have 0.3
to 30 s, and evaluation hears the first 10.
"""

from audio_mae_jax import config as config_lib


def get_config():
  config = config_lib.default('classify')
  config.model.encoder.variant = 'B'
  config.model.encoder.drop_path = 0.1
  config.model.dtype = 'bfloat16'  # the released code: float16 autocast

  source = dict(
      name='manifest', path='fsd50k/manifest.csv',
      labels_csv='fsd50k/classes.csv')
  config.data.train.update(source, split='train')
  config.data.valid.update(source, split='valid')
  config.data.test.update(source, split='test')
  config.data.clip_s = 10.0
  # 10 s from anywhere in longer clips; shorter ones end in silence, as they do
  # in evaluation.
  config.data.crop = 'random'
  config.frontend.num_frames = 1024
  config.frontend.mean = -4.2677393  # AudioSet's
  config.frontend.std = 4.5689974

  config.augment.roll = True
  config.augment.gain_concentration = 10.0  # released; paper: up to 6 dB
  config.augment.time_mask = 192
  config.augment.freq_mask = 48
  config.augment.mixup = 0.5
  config.mask.name = 'time_freq'
  config.mask.time_ratio = 0.3
  config.mask.freq_ratio = 0.3

  config.labels.multilabel = True
  config.labels.loss = 'bce'

  config.optimizer.base_lr = 1e-3
  config.optimizer.min_lr = 1e-6
  config.optimizer.warmup_epochs = 4.0
  config.optimizer.weight_decay = 1e-4
  config.optimizer.b1 = 0.9
  config.optimizer.b2 = 0.95
  config.optimizer.layer_decay = 0.75  # released; the paper does not say
  config.train.batch_size = 32
  config.train.epochs = 60.0
  return config
