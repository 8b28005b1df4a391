"""An encoder for X-ARES (github.com/jimbozhang/xares): torch in and out.

  from audio_mae_jax.xares_encoder import AudioMAEEncoder
  encoder = AudioMAEEncoder('runs/NAME')

X-ARES takes a file that defines such a class without arguments; then the
environment variable AUDIO_MAE_CHECKPOINT says where the weights are. The model
runs in JAX; no gradient flows through it.
"""

import os

import numpy as np
import torch

from audio_mae_jax import frontend
from audio_mae_jax.embed import model as model_lib

VARIABLE = 'AUDIO_MAE_CHECKPOINT'


class AudioMAEEncoder(torch.nn.Module):
  """[B, S] at `sampling_rate` -> [B, T', D], a frame each `hop_size_in_ms`."""

  def __init__(self, checkpoint: str = ''):
    super().__init__()
    checkpoint = checkpoint or os.environ.get(VARIABLE, '')
    if not checkpoint:
      raise ValueError(
          'There are no default weights: give a run (runs/NAME) or a folder of '
          f'imported weights, or set the environment variable {VARIABLE}.')
    self.model = model_lib.load(checkpoint)
    self.output_dim = self.model.width
    self.sampling_rate = self.model.sample_rate_hz
    self.hop_size_in_ms = 1000 * self.model.grid.frame_s

  def forward(self, audio: torch.Tensor) -> torch.Tensor:
    """Clips [B, S] -> float32 [B, T', D]; [S] counts as one clip."""
    audio = torch.atleast_2d(audio)
    lacking = (frontend.min_samples(self.model.config.frontend)
               - audio.shape[1])
    clips = torch.nn.functional.pad(audio, (0, max(lacking, 0)))
    found = self.model.embed_frames(
        list(clips.detach().cpu().float().numpy()), self.sampling_rate)
    frames = np.stack([frames.embeddings for frames in found])
    return torch.from_numpy(frames).to(audio.device)
