"""Fine-tunes on VoxCeleb1: which of 1,251 people speaks.

  python -m audio_mae_jax.main --config=configs/finetune_voxceleb1.py \
      --config.data.root=DIR --config.init_from=WEIGHTS

The data as in docs/data.md. The paper took 4 V100 and reached a test accuracy
of 94.8 %.

Numbers are the SID column of the paper's table 3; the released code comes
without a script for it.
"""

from audio_mae_jax import config as config_lib


def get_config():
  config = config_lib.default('classify')
  config.model.encoder.variant = 'B'
  config.model.encoder.drop_path = 0.1
  config.model.dtype = 'bfloat16'  # the released code: float16 autocast

  source = dict(name='manifest', path='voxceleb1/manifest.csv')
  config.data.train.update(source, split='train')
  config.data.valid.update(source, split='valid')
  config.data.test.update(source, split='test')
  config.data.clip_s = 10.0
  # 10 s from anywhere in longer clips; shorter ones end in silence, as they do
  # in evaluation, which takes the first 10 s.
  config.data.crop = 'random'
  config.frontend.num_frames = 1024
  config.frontend.mean = -6.370
  config.frontend.std = 3.074

  config.augment.roll = True
  config.augment.gain_concentration = 10.0  # released; paper: up to 6 dB
  config.augment.time_mask = 192
  config.augment.freq_mask = 48
  config.augment.noise = 0.1  # released, switched off; paper: SNR of 20 dB
  config.augment.noise_shift = 10  # idem
  config.mask.name = 'time_freq'
  config.mask.time_ratio = 0.3
  config.mask.freq_ratio = 0.3

  config.labels.multilabel = False
  config.labels.loss = 'ce'

  config.optimizer.base_lr = 1e-3
  config.optimizer.min_lr = 1e-6
  config.optimizer.warmup_epochs = 4.0
  config.optimizer.weight_decay = 1e-4
  config.optimizer.b1 = 0.9
  config.optimizer.b2 = 0.95
  config.optimizer.layer_decay = 0.75  # released; the paper does not say
  config.train.batch_size = 64
  config.train.epochs = 60.0
  return config
