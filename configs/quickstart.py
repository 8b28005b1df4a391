"""A small masked autoencoder on the bundled recordings, in minutes on a CPU.

  python -m audio_mae_jax.main --config=configs/quickstart.py
"""

from audio_mae_jax import config as config_lib


def get_config():
  config = config_lib.default()
  config.frontend.num_frames = 192  # 2 s are 198 frames; 12 patches of 16
  config.frontend.mean = -7.0
  config.frontend.std = 4.5
  config.data.train = dict(name='demo', split='train')
  config.data.valid = dict(name='demo', split='valid')
  config.data.clip_s = 2.0
  return config
