"""A small masked autoencoder on the bundled recordings, in minutes on a CPU.

  python -m audio_mae_jax.main --config=configs/quickstart.py

52 minutes of speech, music and effects in 2-second clips; an encoder and a
local decoder of 4 layers each. In 12 epochs the loss of held-out clips falls
from 1 to 0.67, and of nine kinds of sound the frozen encoder comes to know 63 %
instead of 49 %. It leaves runs/quickstart.
"""

from audio_mae_jax import config as config_lib


def get_config():
  config = config_lib.default()

  config.data.train.update(name='demo', split='train', segment_s=2.0)
  config.data.valid.update(name='demo', split='valid', segment_s=2.0)
  config.data.clip_s = 2.0
  config.data.cache_gb = 1.0  # all of it: decoding Opus costs as much as a step
  config.frontend.num_frames = 192  # of the 198 in 2 s: 12 patches of 16
  config.frontend.mean = -6.5829  # of the train split
  config.frontend.std = 4.7089

  config.model.encoder.update(width=128, depth=4, heads=4)
  config.model.decoder.update(width=128, depth=4, heads=4, shift=(2, 2))
  # What has it learnt? Nine kinds of sound, told apart by the nearest clips in
  # the frozen encoder's space: nothing is fitted to them.
  kinds = dict(name='demo', segment_s=2.0, classes=(
      'italian', 'mandarin', 'russian', 'guitar', 'electronic', 'ringtone',
      'ambience', 'machine', 'impact'))
  config.probe.train.update(kinds, split='train')
  config.probe.test.update(kinds, split='valid')
  config.probe.online = ('knn',)
  # Half of the clips are speech: each kind counts the same.
  config.labels.update(multilabel=False, metric='balanced_accuracy')

  config.optimizer.base_lr = 0.05
  config.optimizer.warmup_epochs = 1.0
  config.train.batch_size = 16
  config.train.epochs = 12.0
  config.log.every_steps = 20
  return config
