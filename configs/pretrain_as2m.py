"""Pre-trains ViT-B with the local decoder on AudioSet-2M, as the paper does.

  python -m audio_mae_jax.main --config=configs/pretrain_as2m.py \
      --config.data.root=DIR

DIR/audioset holds train_all.json (AST's format, 2 M clips of 10 s) and
class_labels_indices.csv. 13.4 EFLOP: the paper took 36 h on 64 V100; at half
the rate of an H200 it is about 9.4 h. Fine-tuned, the paper's model reaches an
mAP of 47.3 on AudioSet-2M and 37.1 on AudioSet-20K.

Numbers are the pre-training column of the paper's table 3. Lighter ones, of
its table 1 but for the last two, by name, as
--config=configs/pretrain_as2m.py:local8; docs/performance.md has their costs.
"""

from audio_mae_jax import config as config_lib

PRESETS = {
    'default': {},
    'local8': {'model.decoder.depth': 8},
    'local2': {'model.decoder.depth': 2},
    'narrow': {'model.decoder.width': 256},
    'hybrid': {'model.decoder.name': 'hybrid', 'model.decoder.depth': 8},
    'global8': {'model.decoder.name': 'global', 'model.decoder.depth': 8},
    'small': {'model.encoder.variant': 'S'},
    # Half of each clip, drawn anew each time.
    'crop5': {'data.clip_s': 5.0, 'data.crop': 'random',
              'frontend.num_frames': 512},
    'small_local2_crop5': {
        'model.encoder.variant': 'S', 'model.decoder.depth': 2,
        'data.clip_s': 5.0, 'data.crop': 'random',
        'frontend.num_frames': 512},
}


def get_config(preset='default'):
  if preset not in PRESETS:
    raise ValueError(
        f'pretrain_as2m has no preset {preset!r}; it has {", ".join(PRESETS)}.')
  config = config_lib.default()
  if preset != 'default':  # each has a work directory of its own
    config.name = f'pretrain_as2m_{preset}'
  config.model.encoder.variant = 'B'
  config.model.decoder.name = 'local'
  config.model.decoder.depth = 16
  config.model.decoder.width = 512
  config.model.dtype = 'bfloat16'  # the released code: float16 autocast
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
  config.optimizer.min_lr = 1e-6  # 0 in the released script
  config.optimizer.warmup_epochs = 3.0
  config.optimizer.weight_decay = 1e-4
  config.optimizer.b1 = 0.9
  config.optimizer.b2 = 0.95
  config.train.batch_size = 512
  config.train.epochs = 32.0  # 33 in the released script
  config.update_from_flattened_dict(PRESETS[preset])
  return config
