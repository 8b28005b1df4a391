"""The most memory that was in use."""

import pathlib
import re
import resource
import sys


def peak(devices) -> dict:
  """Bytes: of the first device where its backend counts, of this process."""
  stats = devices[0].memory_stats() or {}
  return {'device_bytes': stats.get('peak_bytes_in_use'),
          'process_bytes': process_peak()}


def process_peak() -> int:
  """Bytes of this process, which may have taken no JAX."""
  try:  # `getrusage` has that of whoever started the process, if it was larger
    status = pathlib.Path('/proc/self/status').read_text()
    return 1024 * int(re.search(r'VmHWM:\s+(\d+) kB', status)[1])
  except (OSError, TypeError):
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == 'darwin' else 1024)
