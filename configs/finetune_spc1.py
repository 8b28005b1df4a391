"""Fine-tunes on Speech Commands 1: ten keywords, unknown words, silence.

  python -m audio_mae_jax.main --config=configs/finetune_spc1.py \
      --config.data.root=DIR --config.init_from=WEIGHTS

The data as in docs/data.md: the split of SUPERB, in a manifest that repeats
clips until each class has half as many as the unknown words (footnote to table
3). The paper took 4 V100 and reached a test accuracy of 96.9 %.

Numbers are the SPC-1 column of the paper's table 3; the released code comes
without a script for it.
"""

from audio_mae_jax import config as config_lib


def get_config():
  config = config_lib.default('classify')
  config.model.encoder.variant = 'B'
  config.model.encoder.drop_path = 0.1
  config.model.dtype = 'bfloat16'  # the released code: float16 autocast

  source = dict(
      name='manifest', path='speech_commands_v1/manifest.csv',
      labels_csv='speech_commands_v1/classes.csv')
  config.data.train.update(source, split='train')
  config.data.valid.update(source, split='valid')
  config.data.test.update(source, split='test')
  config.data.clip_s = 1.0
  config.data.crop = 'start'  # clips have this length; the roll moves them
  config.frontend.num_frames = 128
  config.frontend.mean = -6.702
  config.frontend.std = 5.448

  config.augment.roll = True
  config.augment.gain_concentration = 10.0  # released; paper: up to 6 dB
  config.augment.time_mask = 48
  config.augment.freq_mask = 48
  config.augment.mixup = 0.5
  config.augment.noise = 0.1  # released, switched off; paper: SNR of 20 dB
  config.augment.noise_shift = 10  # idem
  config.mask.name = 'time_freq'
  config.mask.time_ratio = 0.3
  config.mask.freq_ratio = 0.3

  config.labels.multilabel = False
  config.labels.loss = 'bce'

  config.optimizer.base_lr = 1e-3
  config.optimizer.min_lr = 1e-6
  config.optimizer.warmup_epochs = 1.0
  config.optimizer.weight_decay = 1e-4
  config.optimizer.b1 = 0.9
  config.optimizer.b2 = 0.95
  config.optimizer.layer_decay = 0.75  # released; the paper does not say
  config.train.batch_size = 256
  config.train.epochs = 10.0
  return config
