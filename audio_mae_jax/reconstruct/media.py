"""Pictures and sounds as addresses that hold their own content (data:)."""

import base64
import io

import numpy as np
import soundfile

from audio_mae_jax import pictures


def png(pixels: np.ndarray) -> str:
  """uint8 [height, width, 3 or 4], the top row first."""
  from matplotlib import image
  file = io.BytesIO()
  image.imsave(file, np.ascontiguousarray(pixels), format='png')
  return _address('image/png', file)


def spectrogram(x: np.ndarray, scale: tuple[float, float]) -> str:
  """float [T, F], low frequencies at the bottom; NaN is transparent."""
  missing = np.isnan(x)
  pixels = pictures.colours(np.where(missing, scale[0], x), scale)
  alpha = np.where(missing, 0, 255).astype(np.uint8)[..., None]
  return png(np.concatenate([pixels, alpha], -1).swapaxes(0, 1)[::-1])


def colour_bar() -> str:
  return png(pictures.colours(np.linspace(0, 1, 128)[None], (0, 1)))


def wav(samples: np.ndarray, sample_rate_hz: int) -> str:
  """float [S], where full scale is 1, in 16 bits."""
  file = io.BytesIO()
  soundfile.write(
      file, samples, sample_rate_hz, format='WAV', subtype='PCM_16')
  return _address('audio/wav', file)


def _address(kind, file):
  content = base64.b64encode(file.getvalue()).decode()
  return f'data:{kind};base64,{content}'
