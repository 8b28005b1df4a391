"""Pre-trains ViT-H with the local decoder on AudioSet-2M, its state split.

  python -m audio_mae_jax.main --config=configs/pretrain_as2m_h.py \
      --config.data.root=DIR

As pretrain_as2m.py, with a larger encoder: parameters, moments and the
gradients of all devices are split over all of them (FSDP), and layers are one
loop. It keeps 204 MB a clip for the way back, 10 GiB on each of 16 chips; for
less memory a chip, config.model.remat=full keeps 15. The paper goes up to
ViT-L; numbers are its table 3. Memory a chip and what travels between chips:
docs/scaling.md.
"""

from audio_mae_jax import config as config_lib


def get_config():
  config = config_lib.default()
  config.model.encoder.variant = 'H'
  config.model.decoder.name = 'local'
  config.model.decoder.depth = 16
  config.model.decoder.width = 512
  config.model.dtype = 'bfloat16'
  config.model.scan_layers = True
  config.mesh.data = 1
  config.mesh.fsdp = -1
  config.mask.name = 'unstructured'
  config.mask.ratio = 0.8
  config.frontend.num_frames = 1024
  config.frontend.mean = -4.2677393
  config.frontend.std = 4.5689974
  config.augment.roll = True
  config.augment.gain_concentration = 10.0  # released code; paper: up to 6 dB
  config.data.train.name = 'manifest'
  config.data.train.path = 'audioset/train_all.json'
  config.data.train.labels_csv = 'audioset/class_labels_indices.csv'
  config.data.clip_s = 10.0
  config.data.crop = 'start'  # and shorter clips are padded
  config.optimizer.base_lr = 2e-4
  config.optimizer.min_lr = 1e-6
  config.optimizer.warmup_epochs = 3.0
  config.optimizer.weight_decay = 1e-4
  config.optimizer.b1 = 0.9
  config.optimizer.b2 = 0.95
  config.train.batch_size = 512
  config.train.epochs = 32.0
  return config
