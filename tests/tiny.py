"""Small configurations for tests."""

from audio_mae_jax import config as config_lib

MODEL = {  # a few thousand parameters; gain would take a second to compile
    'augment.gain_concentration': 0.0,
    'frontend.num_frames': 64,
    'patch.size': (8, 16),
    'model.encoder.width': 16, 'model.encoder.depth': 1,
    'model.encoder.heads': 2,
    'model.decoder.width': 16, 'model.decoder.depth': 2,
    'model.decoder.heads': 2,
}
RELEASED = {  # the small models of golden/
    'patch.positions': 'released',
    'model.encoder.width': 48, 'model.encoder.depth': 2,
    'model.encoder.heads': 3,
    'model.decoder.width': 32,
}
LOCAL = RELEASED | {'patch.size': (4, 4)}
GLOBAL = RELEASED | {
    'model.decoder.name': 'global', 'model.decoder.depth': 4,
    'model.decoder.heads': 4}


def config(base: dict, overrides: dict | None = None) -> config_lib.Config:
  """The defaults, with `base` and then `overrides` by dotted name."""
  settings = config_lib.default()
  settings.update_from_flattened_dict(base | (overrides or {}))
  return config_lib.typed(settings)
