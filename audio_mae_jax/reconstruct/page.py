"""The report as one file of HTML, which needs nothing besides itself."""

from html import escape
import importlib.resources
import string

import numpy as np

from audio_mae_jax import config as config_lib
from audio_mae_jax import pictures
from audio_mae_jax.reconstruct import clip as clip_lib
from audio_mae_jax.reconstruct import hiding
from audio_mae_jax.reconstruct import media
from audio_mae_jax.reconstruct import study as study_lib
from audio_mae_jax.reconstruct import tables

# Label and caption of what the player of a reconstruction can be set to.
_FILLS = {
    study_lib.MODEL: (
        'Model', 'The model fills what is hidden; loudness and contrast of each'
        ' patch are estimated from what is visible.'),
    study_lib.LEAKED: (
        'Model, original’s levels', 'The model fills what is hidden; '
        'loudness and contrast of each patch are the original’s, which '
        'the model cannot know.'),
    study_lib.INTERPOLATION: (
        'Interpolation', 'No model: straight lines between what is visible.'),
    study_lib.TRUTH: (
        'Original’s mel bands', 'No model: the original’s own mel '
        'energies through the same way back to sound. More no model can give.'),
}
_RAW = 'The model fills what is hidden; it predicts levels as they are.'
_SEEN = 'All that the encoder gets. Hatched patches are removed.'


def write(study: study_lib.Study, clip: clip_lib.Clip, *,
          patch: config_lib.Patch, normalised: bool, title: str,
          facts: list[str], command: str) -> str:
  """HTML of the whole page.

  Args:
    study: what is shown.
    clip: that it is of.
    patch: how the model cuts it.
    normalised: whether the model's targets are normalised patch by patch.
    title: the name of the file, for people.
    facts: about the clip and the model, short.
    command: that makes this page again.
  """
  part = _Parts(study, clip, patch, normalised)
  here = importlib.resources.files(__package__)
  read = lambda name: (here / name).read_text(encoding='utf-8').strip()
  return string.Template(read('page.html')).substitute(
      css=read('page.css'), js=read('page.js'), title=escape(title),
      lead=escape(' · '.join(facts)), command=escape(command),
      original=part.original(), colourbar=part.colour_bar(),
      left_out=tables.left_out(study.left_out),
      tabs='\n'.join(part.tab(i) for i in range(len(study.views))),
      panels='\n'.join(map(part.panel, study.views)),
      errors=tables.errors(study.errors, normalised),
      distances=tables.distances(study.views, normalised),
      attention=part.heads(study.attention, 'nothing hidden'),
      notes=tables.notes(normalised))


class _Parts:
  """Fragments of the page; all share one colour scale and one gain."""

  def __init__(self, study, clip, patch, normalised):
    self._study, self._clip = study, clip
    self._patch, self._normalised = patch, normalised
    self._scale = pictures.scale_of(clip.spectrogram)
    sounds = [fill.sound for view in study.views for fill in view.fills]
    peak = max(np.abs(x).max() for x in [study.original, *sounds])
    # Turned down together, if at all: levels are there to be compared.
    self._gain = min(1, 0.99 / peak)

  def original(self):
    return self._figure(
        'original', 'Original', self._image(self._clip.spectrogram),
        self._wav(self._study.original), 'Spectrogram of the original', '')

  def colour_bar(self):
    spec = self._clip.spec
    low, high = (10 / np.log(10) * (x * 2 * spec.std + spec.mean)
                 for x in self._scale)
    return (f'<div class="colourbar"><span>{low:.0f} dB</span><img alt="Colour '
            f'scale, dark to light" src="{media.colour_bar()}"><span>{high:.0f}'
            ' dB</span><span>power in a mel band, all spectrograms alike'
            '</span></div>')

  def tab(self, i):
    hidden, chosen = self._study.views[i].hidden, str(i == 0).lower()
    return (f'<button role="tab" type="button" id="tab-{hidden.key}" '
            f'aria-controls="panel-{hidden.key}" aria-selected="{chosen}">'
            f'{escape(hidden.title)}</button>')

  def panel(self, view):
    hidden = view.hidden
    x = self._clip.spectrogram
    seen = np.where(
        hiding.pixels(hidden.removed[:1], x.shape, self._patch)[0], np.nan, x)
    silence = view.fills[0]
    share = hidden.removed[0].mean()
    caption = _SEEN if hidden.lost is None else (
        _SEEN + ' A gap spoils every patch that it touches; the player has all '
        'but the gaps.')
    return '\n'.join([
        f'<div role="tabpanel" id="panel-{hidden.key}" '
        f'aria-labelledby="tab-{hidden.key}">',
        f'<h3>{escape(hidden.title)}: {share:.0%} of the patches removed</h3>',
        self._figure(
            f'{hidden.key}-masked', 'Masked', self._image(seen),
            self._wav(silence.sound), 'What the encoder sees', caption),
        '<h3>Reconstruction</h3>', self._reconstruction(view),
        '<h3>Attention to the visible patches</h3>',
        self.heads(view.attention, hidden.title), '</div>'])

  def _reconstruction(self, view):
    fills = {fill.key: fill for fill in view.fills}
    figure, choices = f'{view.hidden.key}-filled', []
    for key in (key for key in _FILLS if key in fills):
      label, caption = _FILLS[key]
      if key == study_lib.MODEL and not self._normalised:
        caption = _RAW
      distance = view.distances[key][0]
      image, audio = (self._image(fills[key].spectrogram),
                      self._wav(fills[key].sound))
      alt = f'{label}: spectrogram with hidden parts filled'
      if key == study_lib.MODEL:
        first = self._figure(figure, 'Reconstruction', image, audio, alt,
                             caption)
      checked = ' checked' if key == study_lib.MODEL else ''
      choices.append(
          f'<label><input type="radio" name="{figure}"{checked} '
          f'data-figure="{figure}" data-alt="{escape(alt)}" '
          f'data-caption="{escape(caption)}" data-image="{image}" '
          f'data-audio="{audio}"><span>{escape(label)}'
          f'<b>{distance:.1f} dB</b></span></label>')
    return ('<fieldset class="choices"><legend>Filled by, and how far the sound'
            ' is off in what was hidden (0 dB: not at all)</legend>'
            + ''.join(choices) + '</fieldset>' + first)

  def _figure(self, name, label, image, audio, alt, caption):
    spec, seconds = self._clip.spec, self._clip.seconds
    places = pictures.ticks(spec, spec.num_mel_bins)
    y = ''.join(
        f'<span style="bottom:{100 * (at + 0.5) / spec.num_mel_bins:.1f}%">'
        f'{hz / 1000:g} kHz</span>' for hz, at in places
        if at < spec.num_mel_bins - 2 or hz == places[-1][0])
    x = ''.join(
        f'<span style="left:{100 * at / seconds:.2f}%">{at:g} s</span>'
        for at in _round_steps(seconds))
    return (
        f'<div class="sounding" id="{name}"><div class="plot">'
        f'<div class="y" aria-hidden="true">{y}</div><div class="pixels">'
        f'<img alt="{escape(alt)}" src="{image}"><div class="playhead"></div>'
        f'</div><div class="x" aria-hidden="true">{x}</div></div>'
        f'<audio controls preload="metadata" aria-label="{escape(label)}" '
        f'src="{audio}"></audio><p class="caption">{escape(caption)}</p></div>')

  def heads(self, attention, what):
    """[2, H, gt, gf] -> pictures: of the class token, and the mean."""
    visible = (~np.isnan(attention[0, 0])).sum()
    scaled = attention * visible
    most = max(float(np.nanmax(scaled)), 1e-6)
    rows = []
    for query, maps in zip(('Class token', 'Mean of the patches'), scaled):
      rows.append(f'<h4>{query}</h4><div class="heads">' + ''.join(
          f'<figure><img alt="{query}, head {i + 1}, {escape(what)}" '
          f'src="{media.spectrogram(np.sqrt(x), (0, most ** 0.5))}">'
          f'<figcaption>head {i + 1}</figcaption></figure>'
          for i, x in enumerate(maps)) + '</div>')
    return ''.join(rows) + (
        f'<p class="caption">Layer {self._study.settings.layer}. Black: none. '
        f'Lightest: {most:.1f} times as much as if the {visible} visible '
        'patches shared all of it evenly; between them by the square root. '
        'Time runs to the right, frequency up.</p>')

  def _image(self, x):
    return media.spectrogram(x, self._scale)

  def _wav(self, samples):
    return media.wav(samples * self._gain, self._clip.spec.sample_rate_hz)


def _round_steps(seconds):
  """Some six round times from 0 to the end of the clip."""
  step = next((s for s in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
               if seconds / s <= 7), 20)
  return [round(i * step, 2) for i in range(int(seconds / step) + 1)]
