"""Audio-MAE in JAX: masked autoencoders that listen (arXiv 2207.06405).

Shape letters, everywhere in this package:
  B clips   S samples   T frames   F mel bins
  N patches of a clip   K patches that the encoder sees   P pixels of a patch
  D width   H heads     C classes
"""

__version__ = '0.1.0'
