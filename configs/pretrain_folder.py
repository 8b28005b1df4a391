"""Pre-train on a folder of your own audio (wav, flac, ogg, opus, mp3, aiff).

  python -m audio_mae_jax.main --config=configs/pretrain_folder.py \
      --config.data.train.path=DIR

ViT-S with the paper's local decoder on one GPU; long recordings are cut into
10-s clips. Small sets want more epochs, a small GPU a smaller batch.
"""

from audio_mae_jax import config as config_lib


def get_config():
  config = config_lib.default()
  config.data.train.update(name='folder', segment_s=10.0)
  config.data.crop = 'cyclic'

  config.model.encoder.variant = 'S'
  config.model.dtype = 'bfloat16'

  config.optimizer.base_lr = 2e-4
  config.optimizer.warmup_epochs = 10.0
  config.train.batch_size = 128
  config.train.epochs = 200.0
  return config
