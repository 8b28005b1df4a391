"""Command line: python -m audio_mae_jax.main --config=configs/pretrain_as2m.py

Any field of the configuration can be set: --config.train.batch_size=64. The
same command again goes on where the run stopped.
"""

from absl import flags

from audio_mae_jax import cli
from audio_mae_jax import modes

_STOPPED_STATUS = flags.DEFINE_integer(
    'stopped_status', 0, 'Exit status of a run that a signal has stopped: all '
    'is saved, and there is more to do. A launcher that is to start it again '
    'may want another than 0, the status of a run that has come to its end.')


flags.adopt_module_key_flags(cli)  # --help names them


def run():
  """Entry point of the console script."""
  cli.run(_run)


def _run(config):
  return 0 if modes.run(config) else _STOPPED_STATUS.value


if __name__ == '__main__':
  run()
