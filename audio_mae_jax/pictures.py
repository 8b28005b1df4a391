"""Pictures of a run: what the model saw and drew, and how its loss fell.

matplotlib's object-oriented interface only: no display, no global state.
"""

import os
import pathlib

import numpy as np

from audio_mae_jax import config
from audio_mae_jax import record

GREY = (205, 205, 205)  # of removed patches; the colour map has no grey
MAX_CLIPS = 4
_MOST_LABELS = 10  # that have a colour, of a map of clips
_TICKS_HZ = (500, 1000, 2000, 4000, 8000, 16000)
_DPI = 150
_STYLE = {
    'font.size': 9.0, 'axes.titlesize': 9.0, 'axes.labelsize': 9.0,
    'xtick.labelsize': 8.0, 'ytick.labelsize': 8.0, 'legend.fontsize': 8.0,
    'axes.linewidth': 0.6, 'xtick.major.width': 0.6, 'ytick.major.width': 0.6,
    'xtick.major.size': 2.5, 'ytick.major.size': 2.5, 'figure.dpi': _DPI,
    'axes.spines.top': False, 'axes.spines.right': False,
}


def reconstruction(original, removed, reconstruction, path: str | os.PathLike,
                   *, frontend: config.Frontend,
                   titles: list[str] | None = None,
                   step: int | None = None) -> np.ndarray:
  """Three [B, T, F] -> uint8 [height, width, 3], and a PNG at `path`.

  A column per clip, at most `MAX_CLIPS`; rows: the original, what the encoder
  saw of it, and the visible patches with the model's `reconstruction` in the
  `removed` ones. All three rows of a clip share one colour scale. The zero
  padding after a short clip stays white.
  """
  arrays = [np.asarray(x) for x in (original, removed, reconstruction)]
  shapes = [x.shape for x in arrays]
  if len(set(shapes)) != 1 or arrays[0].ndim != 3 or not arrays[0].size:
    raise ValueError(
        f'A reconstruction picture takes original, removed and reconstruction '
        f'of one shape [B, T, F], got {shapes}. Unpatchify all three.')
  original, removed, reconstruction = (x[:MAX_CLIPS] for x in arrays)
  num_clips = len(original)
  num_valid = [_num_valid(x, frontend) for x in original]
  import matplotlib
  from matplotlib import figure
  with matplotlib.rc_context(_STYLE):
    fig = figure.Figure(
        figsize=(0.7 + 3.1 * num_clips, 5.0), layout='constrained')
    axes = fig.subplots(3, num_clips, sharex=True, sharey=True, squeeze=False)
    for column in range(num_clips):
      clip = slice(num_valid[column])
      x, gone = original[column, clip].T, removed[column, clip].T.astype(bool)
      merged = np.where(gone, reconstruction[column, clip].T, x)
      scale = scale_of(x)
      seen = np.where(gone[..., None], np.uint8(GREY), colours(x, scale))
      rows = (colours(x, scale), seen, colours(merged, scale))
      for row, pixels in enumerate(rows):
        _spectrogram(axes[row, column], pixels, frontend)
      axes[0, column].set_xlim(0, max(num_valid) * frontend.hop_ms / 1000)
      if titles:
        axes[0, column].set_title(_shorten(titles[column]))
      axes[2, column].set_xlabel('time (s)')
    names = (r'$\bf{original}$', rf'$\bf{{visible}}$ {1 - removed.mean():.0%}',
             r'$\bf{reconstruction}$')
    for row, name in enumerate(names):
      axes[row, 0].set_ylabel(f'{name}\nkHz (mel scale)')
    if step is not None:
      fig.suptitle(f'step {step:,}', fontsize=9.0)
    return _save(fig, path)


def loss_curve(metrics_jsonl: str | os.PathLike,
               path: str | os.PathLike) -> np.ndarray:
  """Draws train/loss, valid/loss and lr of a record against its steps.

  Also returns the picture, uint8 [height, width, 3]. An 'epoch' in the record
  gives a second scale on top.
  """
  records = record.read(metrics_jsonl)
  steps, losses = _column(records, 'train/loss')
  if not len(steps):
    raise ValueError(
        f'No train/loss in {os.fspath(metrics_jsonl)!r}, {len(records)} '
        f'line(s). Train to the first log step (log.every_steps) to draw it.')
  lr_steps, lrs = _column(records, 'lr')
  import matplotlib
  from matplotlib import figure
  with matplotlib.rc_context(_STYLE):
    fig = figure.Figure(figsize=(6.4, 4.2), layout='constrained')
    if len(lrs):
      top, bottom = fig.subplots(2, 1, sharex=True, height_ratios=(3, 1))
      bottom.plot(lr_steps, lrs, color='0.35', linewidth=1.2)
      bottom.set_ylabel('learning rate')
      bottom.ticklabel_format(axis='y', scilimits=(0, 0))
      bottom.set_ylim(bottom=0)
    else:
      top = bottom = fig.subplots()
    top.plot(steps, losses, color='tab:blue', alpha=0.3, linewidth=0.8)
    top.plot(steps, _smooth(losses), color='tab:blue', linewidth=1.8,
             label='train')
    valid_steps, valid = _column(records, 'valid/loss')
    if len(valid):
      top.plot(valid_steps, valid, color='tab:orange', linewidth=1.2,
               marker='o', markersize=3, label='valid')
    top.set_ylabel('loss')
    top.grid(alpha=0.25, linewidth=0.5)
    top.legend(frameon=False)
    bottom.set_xlabel('step')
    bottom.xaxis.set_major_formatter(lambda step, _: f'{step:,.0f}')
    epoch_steps, epochs = _column(records, 'epoch')
    if len(epochs) and epoch_steps[-1] > 0 and epochs[-1] > 0:
      per_step = epochs[-1] / epoch_steps[-1]
      scale = top.secondary_xaxis('top', functions=(
          lambda step: step * per_step, lambda epoch: epoch / per_step))
      scale.set_xlabel('epoch')
    return _save(fig, path)


def scatter(points, labels, path: str | os.PathLike, *,
            title: str = '') -> np.ndarray:
  """[n, 2], a label each -> uint8 [height, width, 3], and a PNG at `path`.

  The most frequent labels have a colour and a place in the legend; their names
  stand at the middle of their points as well. Other labels, and '', are grey.
  """
  points, labels = np.asarray(points), np.asarray(labels)
  names, counts = np.unique(labels[labels != ''], return_counts=True)
  # Named by how often they occur; in the order of their names.
  named = sorted(names[np.argsort(-counts, kind='stable')[:_MOST_LABELS]])
  import matplotlib
  from matplotlib import figure
  from matplotlib import patheffects
  with matplotlib.rc_context(_STYLE):
    wide, high = np.ptp(points, axis=0)
    fig = figure.Figure(
        figsize=(6.4, np.clip(0.4 + 5 * high / max(wide, 1e-9), 2.8, 6.4)),
        layout='constrained')
    axis = fig.subplots()
    others = ~np.isin(labels, named)
    if others.any():
      axis.scatter(*points[others].T, s=9, color='0.75', linewidths=0,
                   label='other' if named else None)
    for name, colour in zip(named, matplotlib.colormaps['tab10'].colors):
      those = points[labels == name]
      axis.scatter(*those.T, s=11, color=colour, linewidths=0,
                   label=_shorten(name))
      axis.annotate(
          _shorten(name), np.median(those, 0), ha='center', va='center',
          fontsize=8.0, color=[0.6 * c for c in colour], path_effects=[
              patheffects.withStroke(linewidth=2.5, foreground='white')])
    if named:
      axis.legend(frameon=False, loc='center left', bbox_to_anchor=(1, 0.5),
                  markerscale=1.6, handletextpad=0.2)
    axis.set_title(title)
    # Distances mean something, coordinates do not.
    axis.set_aspect('equal')
    axis.set_axis_off()
    return _save(fig, path)


def ticks(frontend: config.Frontend, num_bins: int) -> list[tuple[int, float]]:
  """Round frequencies in Hz, and their places among the mel bins."""
  nyquist = frontend.sample_rate_hz / 2
  high_hz = frontend.high_hz + (nyquist if frontend.high_hz <= 0 else 0)
  low, high = _mel(frontend.low_hz), _mel(high_hz)
  # Filter i peaks at i + 1 of F + 1 equal parts of the band.
  places = [(hz, (_mel(hz) - low) / (high - low) * (num_bins + 1) - 1)
            for hz in _TICKS_HZ]
  return [(hz, min(place, num_bins - 0.5)) for hz, place in places
          if -0.5 <= place <= num_bins]


def _spectrogram(axis, pixels, frontend):
  """Draws uint8 [F, T, 3], low frequencies at the bottom."""
  num_bins, num_frames = pixels.shape[:2]
  seconds = num_frames * frontend.hop_ms / 1000
  axis.imshow(pixels, origin='lower', aspect='auto',
              extent=(0, seconds, -0.5, num_bins - 0.5))
  places = ticks(frontend, num_bins)
  axis.set_yticks([place for _, place in places],
                  [f'{hz / 1000:g}' for hz, _ in places])
  axis.set_ylim(-0.5, num_bins - 0.5)
  for spine in axis.spines.values():
    spine.set_visible(False)


def _mel(hz):
  return 1127 * np.log1p(np.asarray(hz) / 700)  # as Kaldi


def _num_valid(x, frontend):
  """Frames of one clip [T, F] before its padding; all, if there is none."""
  padding = -frontend.mean / (2 * frontend.std)  # what normalising makes of 0
  valid = np.flatnonzero(np.abs(x - padding).max(axis=1) > 1e-4)
  return valid[-1] + 1 if len(valid) else len(x)


def scale_of(x) -> tuple[float, float]:
  """Ends of the colour scale of a clip: without its outliers, never equal."""
  low, high = np.percentile(x, (1, 99.8))
  return low, max(high, low + 1e-3)


def colours(x, scale) -> np.ndarray:
  """[...] -> uint8 [..., 3], from one end of `scale` to the other."""
  import matplotlib
  low, high = scale
  scaled = np.clip((x - low) / (high - low), 0, 1)
  return matplotlib.colormaps['magma'](scaled, bytes=True)[..., :3]


def _shorten(title, most=34):
  """Keeps the end: names of recordings differ there."""
  title = str(title).replace('$', r'\$')  # which would start a formula
  return title if len(title) <= most else '…' + title[1 - most:]


def _column(records, name):
  """Steps and values of the lines that have `name`, two 1-d arrays."""
  rows = [(r['step'], r[name]) for r in records if name in r]
  return np.array(rows, float).reshape(-1, 2).T


def _smooth(values):
  """Mean over a centred window of a 20th of the curve, shorter at its ends."""
  half = len(values) // 40
  return np.array([
      np.mean(values[i - reach:i + reach + 1]) for i in range(len(values))
      for reach in [min(half, i, len(values) - 1 - i)]])


def _save(fig, path):
  """Writes the PNG, whole or not at all, and returns its pixels."""
  from matplotlib.backends import backend_agg
  canvas = backend_agg.FigureCanvasAgg(fig)
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(path.name + '.tmp')
  canvas.print_png(temporary)
  os.replace(temporary, path)
  return np.array(canvas.buffer_rgba())[..., :3].copy()
