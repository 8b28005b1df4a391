"""Embeddings of audio files by an exported encoder, without JAX.

  pip install numpy onnxruntime soundfile soxr
  python embed.py FILES... --output embeddings.npz

The archive holds `files`, `embeddings` [files, D] and, of each file i, the
embeddings of its time steps `frames_i` [T', D] with the seconds of their
middles, `times_i`. Of a classifier, `scores` [files, C] as well.

Audio that is longer than the model takes is cut into windows, one after the
other; a file's embedding and scores are means over them, weighted by their time
steps. Import `Encoder` to do the same from a program.
"""

import argparse
import json
import pathlib
import sys

import numpy as np
import onnxruntime
import soundfile
import soxr


class Encoder:
  """What the file at `path` computes, for audio of any length and rate."""

  def __init__(self, path):
    self._session = onnxruntime.InferenceSession(
        path, providers=onnxruntime.get_available_providers())
    facts = self._session.get_modelmeta().custom_metadata_map
    self.facts = {name: json.loads(text) for name, text in facts.items()}

  def embed(self, audio, sample_rate_hz: int) -> dict[str, np.ndarray]:
    """[n] or [n, channels], full scale 1 -> arrays by name.

    'embedding' [D], 'frames' [T', D], 'times' [T'] in seconds, and, of a
    classifier, 'scores' [C].
    """
    facts, rate = self.facts, self.facts['sample_rate_hz']
    audio = np.asarray(audio, np.float32)
    if audio.ndim == 2:
      audio = audio[:, 0] if facts['channels'] == 'first' else audio.mean(1)
    if audio.ndim != 1 or not audio.size or not np.isfinite(audio).all():
      raise ValueError(
          f'Audio is samples [n] or [n, channels], at least one, all finite; '
          f'this is {list(audio.shape)}.')
    if sample_rate_hz != rate:
      if not facts['resample']:
        raise ValueError(
            f'It is sampled at {sample_rate_hz} Hz, and this model was trained '
            f'on files at {rate} Hz alone: convert it first.')
      audio = soxr.resample(
          audio, sample_rate_hz, rate, quality=facts['resample'])
    audio = np.pad(audio, (0, max(0, facts['min_samples'] - len(audio))))
    names = facts['outputs']
    parts = [dict(zip(names, self._session.run(names, {'waveform': x[None]})))
             for x in _windows(audio, facts)]
    frames = np.concatenate([part['frames'][0] for part in parts])
    shares = [part['frames'].shape[1] / len(frames) for part in parts]
    found = {name: np.float32(sum(
        share * part[name][0] for share, part in zip(shares, parts)))
             for name in names if name != 'frames'}
    start = facts['step_samples'] * np.arange(len(frames))
    stop = np.minimum(start + facts['span_samples'], len(audio))
    return found | {'frames': frames, 'times': (start + stop) / 2 / rate}


def _windows(audio, facts):
  """Stretches of whole time steps; the last one is what is left."""
  step = facts['max_steps'] * facts['step_samples']
  size = step - facts['step_samples'] + facts['span_samples']
  while len(audio) > facts['max_samples']:
    yield audio[:size]
    audio = audio[step:]
  yield audio


def main():
  parser = argparse.ArgumentParser(
      description='Embeddings of audio files, without JAX.')
  parser.add_argument('files', nargs='+', metavar='FILES')
  parser.add_argument('--output', default='embeddings.npz', metavar='FILE.npz')
  parser.add_argument(
      '--model', metavar='FILE.onnx',
      default=pathlib.Path(__file__).with_name('model.onnx'))
  options = parser.parse_args()
  encoder, found, failed = Encoder(options.model), {}, 0
  for path in options.files:
    try:
      found[path] = encoder.embed(*soundfile.read(path, dtype='float32'))
    except (OSError, RuntimeError, ValueError) as error:
      failed += 1
      print(f'{path}: left out: {error}', file=sys.stderr)
      continue
    print(path, *_best(found[path], encoder.facts['classes']))
  if found:
    arrays = {f'{name}_{i}': one[name] for i, one in enumerate(found.values())
              for name in ('frames', 'times')}
    for name, plural in (('embedding', 'embeddings'), ('scores', 'scores')):
      if name in encoder.facts['outputs']:
        arrays[plural] = np.stack([one[name] for one in found.values()])
    np.savez(options.output, files=list(found), **arrays)
  print(f'{len(found)} of {len(options.files)} files embedded.')
  return 1 if failed else 0


def _best(found, classes, count=3):
  """The highest scores, if there are any, by names or numbers of classes."""
  if 'scores' not in found:
    return []
  order = np.argsort(-found['scores'])[:count]
  return [f'{classes[i] if classes else i}={found["scores"][i]:.3f}'
          for i in order]


if __name__ == '__main__':
  sys.exit(main())
