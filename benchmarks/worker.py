"""The measured side of a comparison: runs steps when it is told to.

A worker says what it is in a first line of JSON, reads numbers of steps from
its standard input, and answers each with a line: seconds and processor seconds
of a step, and the most memory so far.
"""

from collections.abc import Callable
import json
import os
import sys
import time

from audio_mae_jax import memory

WARMUP = 1  # steps before those that are timed, in each round


def limit(threads: int):
  """Tells XLA how many threads compute; before a device is first used."""
  os.environ['NPROC'] = str(threads)


def serve(setup: dict, step: Callable[[], object],
          wait: Callable[[], object],
          device_bytes: Callable[[], int | None] = lambda: None):
  """Answers until its input ends.

  Args:
    setup: what this worker is: library versions, device, settings.
    step: starts one step; it need not be done when this returns.
    wait: returns when all steps are done.
    device_bytes: the most memory that was in use on the device.
  """
  # Libraries write to standard output too: the answers have one of their own.
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  tell = lambda message: print(json.dumps(message), file=answers, flush=True)
  begin = time.perf_counter()
  step()
  wait()
  tell(setup | {'first_step_s': time.perf_counter() - begin})
  for line in sys.stdin:
    tell(_round(int(line), step, wait) | {
        'process_bytes': memory.process_peak(),
        'device_bytes': device_bytes()})


def _round(steps, step, wait):
  for _ in range(WARMUP):
    step()
  wait()
  wall, cpu = time.perf_counter(), time.process_time()
  for _ in range(steps):
    step()
  wait()
  return {'steps': steps, 'wall_s': (time.perf_counter() - wall) / steps,
          'cpu_s': (time.process_time() - cpu) / steps}
