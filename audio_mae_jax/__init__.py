"""Audio-MAE in JAX: masked autoencoders that listen (arXiv 2207.06405).

Shape letters, everywhere in this package:
  B clips   S samples   T frames   F mel bins
  N patches of a clip   K patches that the encoder sees   P pixels of a patch
  D width   H heads     C classes
"""

__version__ = '0.1.0'


def __getattr__(name):
  # Importing the package takes no JAX; `load` does.
  if name == 'load':
    from audio_mae_jax.embed import model
    return model.load
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
