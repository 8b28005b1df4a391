"""A model as a file that others run: waveform in, embeddings out.

`write(weights, format, output)` does what `python -m audio_mae_jax.export` does
from the command line. What it wrote is run, compared with the model on real
audio and timed; what disagrees is not left. (Parameters alone, in other
projects' layouts, are `convert`'s.)
"""

from audio_mae_jax.export.writing import FORMATS
from audio_mae_jax.export.writing import write

__all__ = ['FORMATS', 'write']
