"""Pre-trains a small model on a CPU, in about an hour (docs/results.md).

  python -m audio_mae_jax.main --config=configs/pretrain_small.py \
      --config.data.root=DIR

ViT of 6 layers, 192 wide, and 2 layers of local decoder, on 5-s clips of all
files that DIR/manifest.csv lists. Eight epochs of 13.8 h took 75 minutes on one
core of a shared machine; the loss fell to 0.66.
"""

from audio_mae_jax import config as config_lib


def get_config():
  config = config_lib.default()
  config.data.train.update(name='manifest', path='manifest.csv', segment_s=5.0)
  config.data.clip_s = 5.0
  config.data.cache_gb = 4.0
  config.frontend.num_frames = 496  # of the 498 in 5 s: 31 patches of 16
  config.frontend.mean = -6.6
  config.frontend.std = 4.7

  config.model.encoder.update(width=192, depth=6, heads=3)
  config.model.decoder.update(width=128, depth=2, heads=4, shift=(2, 2))

  config.optimizer.base_lr = 8e-3
  config.optimizer.warmup_epochs = 0.5
  config.train.batch_size = 64
  config.train.epochs = 8.0
  config.log.every_steps = 20
  return config
