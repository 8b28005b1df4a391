"""What a report shows: each hiding of a clip, filled in several ways, measured.

Each way gives a spectrogram and, through the same inverse, a sound; distances
are between sounds. 'silence' and 'interpolation' need no model; 'truth' has the
original's mel energies, and so says what the inverse alone loses.
"""

from collections.abc import Callable
import dataclasses
from typing import NamedTuple

import numpy as np

from audio_mae_jax import losses
from audio_mae_jax import patches as patches_lib
from audio_mae_jax.reconstruct import clip as clip_lib
from audio_mae_jax.reconstruct import filling
from audio_mae_jax.reconstruct import hiding
from audio_mae_jax.reconstruct import model as model_lib
from audio_mae_jax.reconstruct import sound

SILENCE, INTERPOLATION, MODEL, LEAKED, TRUTH = (
    'silence', 'interpolation', 'model', 'leaked', 'truth')


@dataclasses.dataclass(frozen=True)
class Settings:
  masks: tuple[str, ...] = hiding.NAMES  # what to show, of hiding.NAMES
  ratios: tuple[float, ...] = (0.8,)  # of strategies; the first is shown
  gaps_ms: tuple[float, ...] = (20.0, 80.0, 320.0)
  cutoffs_hz: tuple[float, ...] = (4000.0,)
  draws: int = 5  # of each mask; the first is shown
  layer: int = 0  # whose attention is shown; 0: the last
  seed: int = 0
  iterations: int = 60  # of Griffin-Lim


class Fill(NamedTuple):
  """One way to fill what is hidden, of the first draw."""
  key: str
  spectrogram: np.ndarray  # float [T, F], in units of the model
  sound: np.ndarray  # float [S]


class View(NamedTuple):
  """One kind of hiding."""
  hidden: hiding.Hidden
  fills: list[Fill]  # silence first
  distances: dict[str, np.ndarray]  # by Fill.key: dB of each draw
  attention: np.ndarray  # see `Model.attention`


class Error(NamedTuple):
  """Of a strategy at a ratio; without values it does not fit the clip."""
  name: str
  ratio: float
  share: float = 0.0  # of patches that are in truth removed
  values: np.ndarray | None = None  # masked mean squared error of each draw
  flat: float = 0.0  # the same of a patch without any content
  reason: str = ''


class Study(NamedTuple):
  settings: Settings
  views: list[View]
  errors: list[Error]
  left_out: list[str]  # why views that were asked for are not there
  attention: np.ndarray  # with nothing hidden
  original: np.ndarray  # float [S], what the players have as the original


def run(model: model_lib.Model, clip: clip_lib.Clip, settings: Settings,
        tell: Callable[[str], None] = lambda line: None) -> Study:
  """All of a report; `tell` hears what is being done.

  Raises:
    ValueError: a setting is out of its range, or does not fit the clip.
  """
  settings = dataclasses.replace(settings, layer=settings.layer or model.depth)
  _check(settings)
  transform = sound.Transform(clip.spec, clip.spec.num_frames)
  kinds, left_out = _kinds(model, clip, settings)
  for reason in left_out:
    tell(f'Left out: {reason}')
  nothing = np.zeros(np.prod(model.grid(clip.spectrogram.shape)), bool)
  attention = model.attention(clip.spectrogram, nothing, settings.layer)
  views = []
  for hidden in kinds:
    tell(f'{hidden.title} ...')
    views.append(_view(model, clip, transform, hidden, settings))
  errors = []
  for ratio in settings.ratios:
    tell(f'Errors at ratio {ratio:g} ...')
    errors += [_error(model, clip, name, ratio, settings)
               for name in hiding.STRATEGIES]
  return Study(
      settings, views, errors, left_out, attention, clip.waveform)


def _check(settings):
  """Raises ValueError for what no clip could be shown with."""
  for name in ('draws', 'iterations'):
    if getattr(settings, name) < 1:
      raise ValueError(
          f'{name}={getattr(settings, name)} must be 1 or more.')
  if not settings.ratios or not all(0 < x < 1 for x in settings.ratios):
    raise ValueError(
        f'ratio={settings.ratios}: give shares of patches, above 0 and below '
        '1.')
  for name in ('gaps_ms', 'cutoffs_hz'):
    if not all(x > 0 for x in getattr(settings, name)):
      raise ValueError(
          f'{name}={getattr(settings, name)}: all must be above 0.')


def _kinds(model, clip, settings):
  """All that is to be hidden, and why what does not fit the clip is not."""
  patch, draws, seed = model.config.patch, settings.draws, settings.seed
  asked = []
  for name in settings.masks:
    if name == hiding.GAPS:
      asked += [(hiding.gaps, gap_ms, clip, patch, draws, seed)
                for gap_ms in settings.gaps_ms]
    elif name == hiding.BANDS:
      asked += [(hiding.bands, cutoff_hz, clip, patch)
                for cutoff_hz in settings.cutoffs_hz]
    else:
      asked.append((hiding.strategy, name, settings.ratios[0], clip, patch,
                    draws, seed))
  found, left_out = [], []
  for make, *arguments in asked:
    try:
      found.append(make(*arguments))
    except ValueError as error:
      left_out.append(str(error))
  if not found:
    raise ValueError('Nothing can be hidden. ' + ' '.join(left_out))
  return found, left_out


def _view(model, clip, transform, hidden, settings):
  first, distances = None, {}
  for i in range(len(hidden.removed)):
    lost = None if hidden.lost is None else hidden.lost[i]
    filled = fills(model, clip, hidden.removed[i], hidden.hidden[i])
    sounds = render(
        transform, clip, filled, hidden.hidden[i], lost,
        iterations=settings.iterations, seed=settings.seed + i)
    for key, value in _distances(
        transform, clip, sounds, hidden.hidden[i], lost).items():
      distances.setdefault(key, []).append(value)
    if first is None:
      silent = np.where(hidden.hidden[i], np.nan, clip.spectrogram)
      first = [Fill(key, filled.get(key, silent), sounds[key])
               for key in sounds]
  return View(
      hidden, first, {key: np.array(x) for key, x in distances.items()},
      model.attention(clip.spectrogram, hidden.removed[0], settings.layer))


def fills(model, clip, removed, hidden) -> dict[str, np.ndarray]:
  """Spectrograms [T, F] with the `hidden` cells filled, by Fill.key.

  The model's are no louder than the loudest cell that is visible: an error of
  a level is otherwise an exponent of loudness. Where it has no patch, its
  spectrogram is interpolated.
  """
  patch, x = model.config.patch, clip.spectrogram
  patches = np.asarray(patches_lib.patchify(x[None], patch))[0]
  prediction = model.predict(x, removed)
  drawn = {MODEL: prediction}
  if model.config.objective.normalize_patches:
    drawn = {
        MODEL: filling.from_visible(
            prediction, patches, removed, model.grid(x.shape)),
        LEAKED: filling.from_original(prediction, patches)}
  drawn = {key: filling.draw(y, x.shape, patch) for key, y in drawn.items()}
  drawn[MODEL] = filling.join(
      drawn[MODEL], x, hiding.pixels(removed[None], x.shape, patch)[0], hidden)
  # Overlapping patches may leave bins at the top that lie under none of them.
  under = hiding.pixels(np.ones_like(removed)[None], x.shape, patch)[0]
  drawn = {key: filling.interpolate(np.where(hidden, y, x), under | ~hidden)
           for key, y in drawn.items()}
  loudest = x[~hidden].max()
  return {
      INTERPOLATION: filling.interpolate(x, ~hidden),
      **{key: np.where(hidden, np.minimum(y, loudest), x)
         for key, y in drawn.items()},
      TRUTH: x.astype(np.float64)}


def render(transform, clip, filled, hidden, lost=None, *, iterations=60,
           seed=0) -> dict[str, np.ndarray]:
  """Sounds [S] of `filled` spectrograms, and that of silence, by Fill.key."""
  cells = sound.bins_of(hidden, clip.spec)
  known = np.abs(transform(clip.waveform)[transform.frames])
  magnitude = np.stack([
      sound.magnitudes(clip_lib.log_mel(x, clip.spec), known, cells, clip.spec)
      for x in filled.values()])
  sounds = sound.griffin_lim(
      transform, clip.waveform, magnitude,
      np.broadcast_to(cells, magnitude.shape), lost=lost,
      iterations=iterations, seed=seed)
  silent = sound.without(transform, clip.waveform, cells, lost)
  return {SILENCE: silent, **dict(zip(filled, sounds))}


def _distances(transform, clip, sounds, hidden, lost):
  """dB, by key: in hidden cells or, of gaps, in frames whose middle is lost.

  A gap that is shorter than a hop may have no such frame; then in all that it
  touches.
  """
  cells = sound.bins_of(hidden, clip.spec)
  if lost is not None:
    middle = len(transform.window) // 2 + transform.hop * np.arange(
        transform.num_frames)
    inside = cells & lost[middle][:, None]
    cells = inside if inside.any() else cells
  power = lambda x: np.square(np.abs(transform(x)[transform.frames]))
  reference = power(clip.waveform)
  return {key: float(sound.log_spectral_distance(reference, power(x), cells))
          for key, x in sounds.items()}


def _error(model, clip, name, ratio, settings):
  try:
    hidden = hiding.strategy(
        name, ratio, clip, model.config.patch, settings.draws, settings.seed)
  except ValueError as error:  # too few patches; the others may have enough
    return Error(name, ratio, reason=str(error))
  target = patches_lib.patchify(clip.spectrogram[None], model.config.patch)
  if model.config.objective.normalize_patches:
    target = losses.normalize_patches(target)
  measure = lambda prediction, removed: float(losses.masked_mse(
      prediction, target, removed[None])[0])
  return Error(
      name, ratio, float(hidden.removed.mean()),
      np.array([measure(model.predict(clip.spectrogram, x)[None], x)
                for x in hidden.removed]),
      float(np.mean([measure(np.zeros(target.shape, np.float32), x)
                     for x in hidden.removed])))
