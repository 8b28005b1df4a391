"""From weights to a folder that others use, checked."""

import importlib
import importlib.metadata
import json

from audio_mae_jax import registry
from audio_mae_jax import weights as weights_lib
from audio_mae_jax.export import program as program_lib
from audio_mae_jax.export import report

REPORT = 'export.json'
KIND, VERSION = 'audio_mae_jax.export', 1

# Each format: its module, the extra that it needs, and libraries to name.
FORMATS = {
    'stablehlo': ('stablehlo', '', ()),
    'onnx': ('onnx_file', 'onnx', ('onnx', 'onnxruntime')),
    'savedmodel': ('saved_model', 'tensorflow', ('tensorflow-cpu',)),
    'litert': ('litert', 'tensorflow', ('tensorflow-cpu', 'ai-edge-litert')),
}


def write(weights: weights_lib.Weights, format: str, output, *,
          max_s: float = 0.0, lengths_s=(), audio=()) -> dict:
  """Exports `weights` to the new folder `output`, whole or not at all.

  Args:
    weights: from `weights.load`: a pre-trained model, an encoder, a classifier.
    format: a key of FORMATS.
    output: a folder that does not exist.
    max_s: the longest clip; 0 for as long as the model was trained on.
    lengths_s: that are compared with the model, and the only ones that litert
      has; by default the longest, a half and a quarter of it.
    audio: files to compare on; by default recordings of the package.

  Returns:
    The report, which also lies in the folder: 'facts' for consumers, 'parity'
    for each length, 'latency', 'bytes', 'versions'.

  Raises:
    ValueError: the export disagrees with the model by more than 1e-4, or an
      argument is not what it must be.
    ImportError: the format needs a library that is not there.
  """
  module = _module(format)
  weights_lib.check_absent(output)
  program = program_lib.make(weights, max_s)
  if format != 'onnx' and program.num_bytes > program_lib.ONE_FILE_BYTES:
    raise ValueError(
        f'The parameters take {program.num_bytes / 1e9:.1f} GB, and a file of '
        f"{format} ends at 2 GiB. Use format 'onnx', which has two files then.")
  lengths, facts = _lengths(program, lengths_s), program.facts()
  with weights_lib.writing(output) as place:
    place.mkdir()
    module.write(program, place, facts, lengths)
    run = module.reader(place, program)
    found = {
        'kind': KIND, 'version': VERSION, 'format': format,
        'source': weights.source, 'facts': facts,
        'parity': report.compare(program, run, lengths, audio),
        'latency': report.latency(program, run, lengths[0], audio),
        'bytes': report.size(place), 'versions': _versions(format)}
    (place / REPORT).write_text(json.dumps(found, indent=1) + '\n')
  return found


def _module(format):
  """What writes and reads `format`."""
  name, extra, _ = registry.lookup(FORMATS, format, 'format')
  try:
    return importlib.import_module(f'audio_mae_jax.export.{name}')
  except ImportError as error:
    raise ImportError(
        f'Format {format!r} needs more libraries ({error}): pip install '
        f"'audio_mae_jax[{extra}]'.") from error


def _lengths(program, lengths_s):
  """Numbers of samples, the longest first."""
  rate = program.config.frontend.sample_rate_hz
  least, most = program.min_samples, program.max_samples
  if not lengths_s:
    return sorted({max(least, most // part) for part in (1, 2, 4)},
                  reverse=True)
  found = sorted({int(length * rate) for length in lengths_s}, reverse=True)
  if found[-1] < least or found[0] > most:
    raise ValueError(
        f'lengths_s={tuple(lengths_s)} are not all between {least / rate:.4g} '
        f'and {most / rate:.4g} s, what this export takes; max_s allows for '
        'longer ones.')
  return found


def _versions(format):
  """Of the libraries that wrote it."""
  names = ('jax', *FORMATS[format][2])
  return {name: importlib.metadata.version(name) for name in names
          if any(importlib.metadata.distributions(name=name))}
