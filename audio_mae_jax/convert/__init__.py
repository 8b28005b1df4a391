"""Weights from other projects, and to them.

`import_weights(path)` reads what other projects wrote, `export_weights(weights,
format, output)` writes it; `python -m audio_mae_jax.convert` does the same from
the command line. Neither needs torch, and nothing in a file is executed.
"""

from audio_mae_jax.convert.exporter import export_weights
from audio_mae_jax.convert.importer import import_weights

__all__ = ['export_weights', 'import_weights']
