"""`audio_mae_jax.main`, for processes of a run but the first.

JAX leaves compiled programs for the next start in the first process alone. On
CPUs each process has programs of its own, so the others would compile them anew
in every start: two thirds of the processor time of tests that start many.
"""

from unittest import mock

from jax._src import compiler
from jax._src import distributed

from audio_mae_jax import main

_write = compiler._cache_write


def _written_by_all(*args):
  with mock.patch.object(distributed.global_state, 'process_id', 0):
    _write(*args)


if __name__ == '__main__':
  compiler._cache_write = _written_by_all
  main.run()
