"""The HEAR interface (hearbenchmark.com/hear-api.html): torch in and out.

  hear-validator audio_mae_jax.hear --model runs/NAME

The model runs in JAX, on JAX's devices; no gradient flows through it.
"""

import torch

from audio_mae_jax import frontend
from audio_mae_jax.embed import model as model_lib

_HOP_S = 0.05  # between timestamps, at most; what HEAR asks for


class Model(torch.nn.Module):
  """What HEAR's tools hold: sizes, and the model itself, `model.model`."""

  def __init__(self, model: model_lib.Model):
    super().__init__()
    self.model = model
    self.sample_rate = model.sample_rate_hz
    self.scene_embedding_size = model.width
    self.timestamp_embedding_size = model.width
    # Encodings of the audio that together have frames as close as that.
    self.shifts = next(
        (n for n in range(1, model.grid.step + 1) if model.grid.step % n == 0
         and model.grid.frame_s / n <= _HOP_S), model.grid.step)

  def forward(self, audio: torch.Tensor) -> torch.Tensor:
    """[B, S] -> scene embeddings [B, D]."""
    return get_scene_embeddings(audio, self)


def load_model(model_file_path: str = '') -> Model:
  """The model in a run, a checkpoint, or a folder of weights.

  Raises:
    ValueError: there is none.
  """
  if not model_file_path:
    raise ValueError(
        'There are no default weights: give a run (runs/NAME), one of its '
        'checkpoints, or a folder of imported weights, as in `hear-validator '
        'audio_mae_jax.hear --model runs/NAME`.')
  return Model(model_lib.load(model_file_path))


def get_scene_embeddings(audio: torch.Tensor, model: Model) -> torch.Tensor:
  """[B, S] in -1 to 1 at `model.sample_rate` -> float32 [B, D]."""
  found = model.model.embed(_clips(audio, model), model.sample_rate)
  return torch.from_numpy(found).to(audio.device)


def get_timestamp_embeddings(
    audio: torch.Tensor, model: Model) -> tuple[torch.Tensor, torch.Tensor]:
  """[B, S] in -1 to 1 -> float32 [B, T', D], and times in ms, [B, T']."""
  found = model.model.embed_frames(
      _clips(audio, model), model.sample_rate, shifts=model.shifts)
  stacked = lambda parts: torch.stack(
      [torch.from_numpy(x) for x in parts]).to(audio.device)
  times_ms = stacked([frames.times_s * 1000 for frames in found])
  return stacked([frames.embeddings for frames in found]), times_ms.float()


def _clips(audio, model):
  """A list of clips, each as long as the front end needs."""
  if audio.ndim != 2:
    raise ValueError(
        f'audio has the shape {tuple(audio.shape)}; HEAR gives [sounds, '
        'samples].')
  lacking = frontend.min_samples(model.model.config.frontend) - audio.shape[1]
  audio = torch.nn.functional.pad(audio, (0, max(lacking, 0)))
  return list(audio.detach().cpu().float().numpy())
