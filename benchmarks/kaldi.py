"""A worker that runs Kaldi's filter bank in C++ (kaldi-native-fbank, in the
extra [test]), one clip after the other on one thread."""

import argparse
import importlib.metadata
import sys

import kaldi_native_fbank
import numpy as np

from audio_mae_jax import config as config_lib
from audio_mae_jax.data import pipeline
from benchmarks import work
from benchmarks import worker


def main(argv):
  parser = argparse.ArgumentParser(description=__doc__)
  work.add_flags(parser)
  args = parser.parse_args(argv)
  args.task = 'front_end'
  worker.limit(args.threads)
  config = work.config(args)
  rng = np.random.default_rng(0)
  clips = 0.1 * rng.standard_normal(
      (args.batch_size, pipeline.clip_samples(config)), np.float32)

  def step():
    for clip in clips:
      features(clip, config.frontend)

  worker.serve(
      {'kaldi-native-fbank': importlib.metadata.version('kaldi-native-fbank'),
       'device': 'cpu'}, step, lambda: None)


def options_of(spec: config_lib.Frontend):
  options = kaldi_native_fbank.FbankOptions()
  frame, mel = options.frame_opts, options.mel_opts
  frame.dither = 0.0
  frame.samp_freq = spec.sample_rate_hz
  frame.window_type = 'hanning' if spec.window == 'hann' else spec.window
  frame.frame_length_ms = spec.window_ms
  frame.frame_shift_ms = spec.hop_ms
  frame.preemph_coeff = spec.preemphasis
  frame.remove_dc_offset = spec.remove_dc_offset
  mel.num_bins = spec.num_mel_bins
  mel.low_freq, mel.high_freq = spec.low_hz, spec.high_hz
  options.use_energy = False
  return options


def features(clip: np.ndarray, spec: config_lib.Frontend) -> np.ndarray:
  """[S] -> [T, F]: normalised, and padded or cut to `spec.num_frames`."""
  extractor = kaldi_native_fbank.OnlineFbank(options_of(spec))
  extractor.accept_waveform(spec.sample_rate_hz, clip - clip.mean())
  extractor.input_finished()
  out = np.zeros((spec.num_frames, spec.num_mel_bins), np.float32)
  for i in range(min(spec.num_frames, extractor.num_frames_ready)):
    out[i] = extractor.get_frame(i)
  return (out - spec.mean) / (2 * spec.std)


if __name__ == '__main__':
  main(sys.argv[1:])
