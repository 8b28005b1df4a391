"""Numbers and words of a report."""

from html import escape

import numpy as np

from audio_mae_jax.reconstruct import hiding
from audio_mae_jax.reconstruct import study as study_lib

_COLUMNS = {
    study_lib.SILENCE: 'Silence',
    study_lib.INTERPOLATION: 'Interpolation',
    study_lib.MODEL: 'Model',
    study_lib.LEAKED: 'Model, original’s levels',
    study_lib.TRUTH: 'Original’s mel bands',
}
# These know only what is visible.
_FAIR = (study_lib.SILENCE, study_lib.INTERPOLATION, study_lib.MODEL)


def errors(rows: list[study_lib.Error], normalised: bool) -> str:
  """HTML: what training minimises, by strategy and ratio."""
  most = max([max(row.values.mean(), row.flat) for row in rows
              if row.values is not None], default=1)
  lines = []
  for row in rows:
    name = f'<th scope="row">{hiding.STRATEGIES[row.name]}</th>'
    ratio = f'<td>{row.ratio:g}</td>'
    if row.values is None:
      lines.append(f'{name}<td colspan="3">does not fit this clip</td>{ratio}'
                   '<td class="bar"></td>')
      continue
    width = 100 * row.values.mean() / most
    lines.append(
        f'{name}<td>{_spread(row.values, 3)}</td><td>{row.flat:.3f}</td>'
        f'<td>{row.share:.0%}</td>{ratio}<td class="bar">'
        f'<div style="width:{width:.1f}%"></div></td>')
  return (
      _table(['Strategy', 'Error', 'Of flat patches', 'Patches removed',
              'Ratio asked for', ''], lines)
      + '<p class="caption">Mean squared error in removed patches'
      + (', each in units of its own deviation: what training minimises. A '
         'patch without any content has the error in the third column.'
         if normalised else ', in units of the model’s input.')
      + f' Mean ± standard deviation of {_draws(rows)} masks.</p>')


def distances(views: list[study_lib.View], normalised: bool) -> str:
  """HTML: log-spectral distances, the best of those without knowledge bold."""
  keys = [key for key in _COLUMNS if normalised or key != study_lib.LEAKED]
  lines = []
  for view in views:
    best = min(_FAIR, key=lambda key: view.distances[key].mean())
    cells = ''.join(
        f'<td{" class=best" if key == best else ""}>'
        f'{_spread(view.distances[key], 1)}</td>' for key in keys)
    lines.append(
        f'<th scope="row">{escape(view.hidden.title)}</th>{cells}')
  return (
      _table(['Hidden', *(_COLUMNS[key] for key in keys)], lines)
      + '<p class="caption">dB; 0 is the original. In what was hidden alone: '
      'bins of the short-time spectrum or, of gaps, frames whose middle is '
      'lost. Mean ± standard deviation over masks, where they are drawn. The '
      'best of the '
      'first three, which know only what is visible, is set off.</p>')


def left_out(reasons: list[str]) -> str:
  """HTML: what was asked for and is not on the page."""
  return ''.join(
      f'<p class="caption">Left out: {escape(reason)}</p>'
      for reason in reasons)


def notes(normalised: bool) -> str:
  """HTML: what the words of the page mean, and what is not fair."""
  levels = (
      'This model is trained on patches that are normalised one by one: it says'
      ' what a patch looks like, not how loud it is or how strong its contrast.'
      ' “Model” takes both from the visible patches around, by interpolation. '
      '“Model, original’s levels” takes them from the hidden original, as '
      'pictures of masked autoencoders usually do. The model did not have that '
      'information: do not compare it with the baselines.'
      if normalised else
      'This model predicts patches as they are; their levels are its own.')
  words = {
      'Levels': levels,
      'Sound': 'Where nothing is hidden, the spectrum is the original’s, '
      'magnitudes and phases. Elsewhere magnitudes come from mel energies, and '
      'phases from Griffin and Lim’s algorithm, which fits them to those '
      'around. In gaps all other samples are the original’s. All players '
      'share one gain. “Original’s mel bands” is what this way back loses '
      'by itself.',
      'Gaps': 'Packet-loss concealment: one gap a second. The encoder works on '
      'whole patches, so it misses more than the gap; only the gap is filled. '
      'How far “Model” is off beside the gap, where that is known, is '
      'interpolated over it and taken away.',
      'Above a cutoff': 'Bandwidth extension: what a telephone would not pass.',
      'Distance': 'For each frame the root of the mean squared difference of '
      'levels in dB; then the mean over frames. Levels more than 80 dB below '
      'the loudest bin of the clip count as that.',
  }
  return '<dl>' + ''.join(
      f'<dt>{escape(word)}</dt><dd>{escape(text)}</dd>'
      for word, text in words.items()) + '</dl>'


def numbers(study: study_lib.Study) -> dict:
  """The same numbers for programs, as JSON has them."""
  return {
      'errors': [
          {'strategy': row.name, 'ratio': row.ratio, 'removed': row.share,
           'mse': row.values.tolist(), 'mse_flat': row.flat}
          if row.values is not None else
          {'strategy': row.name, 'ratio': row.ratio, 'reason': row.reason}
          for row in study.errors],
      'log_spectral_distance_db': {
          view.hidden.key: {key: x.tolist()
                            for key, x in view.distances.items()}
          for view in study.views},
  }


def _draws(rows):
  return max((len(row.values) for row in rows if row.values is not None),
             default=0)


def _spread(values, digits):
  text = f'{np.mean(values):.{digits}f}'
  if len(values) > 1:
    text += f' <span class="spread">± {np.std(values):.{digits}f}</span>'
  return text


def _table(head, lines):
  return (
      '<div class="scroll" tabindex="0" role="group"><table><thead><tr>'
      + ''.join(f'<th scope="col">{escape(x)}</th>' for x in head)
      + '</tr></thead><tbody>'
      + ''.join(f'<tr>{line}</tr>' for line in lines)
      + '</tbody></table></div>')
