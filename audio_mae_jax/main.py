"""Command line: python -m audio_mae_jax.main --config=configs/pretrain_as2m.py

Any field of the configuration can be set: --config.train.batch_size=64. The
same command again goes on where the run stopped.
"""

from audio_mae_jax import cli
from audio_mae_jax import modes


def run():
  """Entry point of the console script."""
  cli.run(modes.run)


if __name__ == '__main__':
  run()
