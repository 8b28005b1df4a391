"""Readers of the demonstration set's packages: one function per package.

Each yields `Recording`s with the author and the licence that the package itself
states; what is neither CC0 nor CC-BY is passed over, and a package whose terms
have changed stops the run.
"""

import collections
import dataclasses
import fnmatch
import re
import unicodedata

import clonk_sounds
import numpy as np
import soundfile
import soxr

SAMPLE_RATE_HZ = 16000
PIECE_S = 20.0
GAP_S = 0.1
SILENCE = 1e-3
LICENCES = {  # name in a package -> (SPDX name, address)
    'CC0': ('CC0-1.0', 'https://creativecommons.org/publicdomain/zero/1.0/'),
    'CC-BY-3': ('CC-BY-3.0', 'https://creativecommons.org/licenses/by/3.0/'),
    'CC-BY-4.0': ('CC-BY-4.0', 'https://creativecommons.org/licenses/by/4.0/'),
}
LICENCES['CC0-1.0'] = LICENCES['CC0']
LICENCES['CC-BY-3.0'] = LICENCES['CC-BY-3']
URLS = dict(LICENCES.values())


@dataclasses.dataclass(frozen=True)
class Recording:
  """One file of the set, or several if it is longer than a piece."""
  group: str  # never split between train and valid
  name: str
  label: str
  kind: str  # speech, music, instrument, drum, sfx
  source: str  # package
  author: str
  licence: str
  works: tuple[str, ...]  # titles, or names of the original files
  audio: np.ndarray  # float32 [S]


def slug(text):
  ascii_text = unicodedata.normalize('NFKD', text).encode('ascii', 'ignore')
  return re.sub('[^a-z0-9]+', '-', ascii_text.decode().lower()).strip('-')


def stanzas(folder, package):
  """Yields (file patterns, copyright, licence name) of debian/copyright."""
  path = folder / 'usr/share/doc' / package / 'copyright'
  for block in re.split(r'\n\s*\n', path.read_text('utf-8')):
    fields = {m[1]: ' '.join(m[2].split()) for m in re.finditer(
        r'^(Files|Copyright|License):((?:.*)(?:\n[ \t].*)*)', block, re.M)}
    if fields.keys() >= {'Files', 'License'}:
      yield (fields['Files'].split(), fields.get('Copyright', ''),
             fields['License'])


def licence_of(folder, package, name):
  """(author, SPDX name) of file `name`; None unless it is CC0 or CC-BY."""
  found = None
  for patterns, author, licence in stanzas(folder, package):
    if any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
      found = re.sub(r'^[\d, -]+|\s*(<.*|https?:.*)$', '', author), licence
  if found is None or found[1] not in LICENCES:
    return None
  return found[0].strip('" '), LICENCES[found[1]][0]


def require(folder, package, name, licence):
  """Returns `licence`; stops if the package does not grant it for `name`."""
  found = licence_of(folder, package, name)
  if found is None or found[1] != licence:
    raise ValueError(
        f'{package} grants {found} for {name}, not {licence}; its terms have '
        'changed: leave it out or update this file.')
  return licence


def require_note(path, note):
  """Stops if the credits file beside the audio no longer says `note`."""
  if note not in path.read_text('utf-8'):
    raise ValueError(
        f'{path} no longer says {note!r}; its terms have changed: leave it out '
        'or update this file.')


def read(path):
  """float32 [S] at 16 kHz, channels averaged, silent ends cut off."""
  if path.suffix == '.g722':
    import G722
    pcm = G722.G722(SAMPLE_RATE_HZ, 64000).decode(path.read_bytes())
    audio = np.asarray(pcm, np.float32) / 32768
  else:
    audio, rate_hz = soundfile.read(path, dtype='float32', always_2d=True)
    audio = soxr.resample(audio.mean(1), rate_hz, SAMPLE_RATE_HZ)
  audible = np.flatnonzero(np.abs(audio) >= SILENCE)
  if not audible.size:
    return np.zeros(0, np.float32)
  return audio[audible[0]:audible[-1] + 1].astype(np.float32)


def join(paths):
  """Packs the sounds of [(work, path)] into [(works, audio)] of <= 20 s."""
  gap = np.zeros(int(GAP_S * SAMPLE_RATE_HZ), np.float32)
  packs, seconds = [], PIECE_S
  for work, path in paths:
    audio = read(path)
    length = (len(audio) + len(gap)) / SAMPLE_RATE_HZ
    if seconds + length > PIECE_S:
      packs, seconds = packs + [([], [])], 0.0
    packs[-1][0].append(work)
    packs[-1][1].extend([audio, gap])
    seconds += length
  return [(tuple(works), np.concatenate(parts[:-1])) for works, parts in packs]


def asterisk(package, folder):
  """Telephone prompts of 3.5-15 s, one voice per language."""
  language, author = {
      'asterisk-core-sounds-it-g722': ('it', 'Carlo Flora'),
      'asterisk-core-sounds-ru-g722': ('ru', 'Maxim Topal, ivrvoice.ru'),
  }[package]
  licence = require(folder, package, f'{language}-prompt', 'CC-BY-3.0')
  for path in sorted(folder.rglob('*.g722')):
    if 'silence' in path.parts or not 28000 <= path.stat().st_size <= 120000:
      continue
    # Prompts on one subject share phrases, in both languages.
    subject = re.match('[a-z]+', path.stem)[0].replace('confbridge', 'conf')
    yield Recording(
        f'prompt-{subject}', f'{language}-{path.stem}',
        {'it': 'italian', 'ru': 'russian'}[language], 'speech', package, author,
        licence, (path.stem,), read(path))


def gcin(package, folder):
  """Mandarin syllables, joined by their initial; one voice."""
  licence = require(folder, package, 'ogg/x/5.ogg', 'CC-BY-3.0')
  author = 'Chu Lo (voice) and the ChionMeilin recording group'
  initials = collections.defaultdict(list)
  for path in sorted(folder.rglob('5.ogg')):
    initials[path.parent.name[0]].append((path.parent.name, path))
  for letter, paths in initials.items():
    # BOPOMOFO LETTER ZH -> zh
    name = slug(unicodedata.name(letter).split()[-1])
    works, audio = join(paths)[0]
    yield Recording(f'syllable-{name}', 'zh', 'mandarin', 'speech', package,
                    author, licence, works, audio)


def clonk_music(folder):
  """Six pieces of 20 s, spread over each track that authors.txt credits."""
  music = folder / 'usr/share/games/openclonk/Music.ocg'
  credits = music / 'authors.txt'
  require_note(credits, 'creativecommons.org/licenses/by/3.0')
  for path in sorted(music.glob('*.ogg')):
    title = path.stem.strip('@')
    if title not in credits.read_text('utf-8'):
      continue
    audio, num = read(path), int(PIECE_S * SAMPLE_RATE_HZ)
    for k, start in enumerate(np.linspace(0, len(audio) - num, 6).astype(int)):
      yield Recording(f'k-pone-{slug(title)}', f'piece-{k}', 'electronic',
                      'music', 'openclonk-data', 'K-Pone', 'CC-BY-3.0',
                      (title,), audio[start:start + num])


def openclonk(package, folder):
  yield from clonk_music(folder)
  sounds = folder / 'sounds'
  if not sounds.exists():
    clonk_sounds.extract(
        folder / 'usr/share/games/openclonk/Sound.ocg', sounds)
  require_note(sounds / 'authors.txt', 'creativecommons.org/licenses/by/3.0')
  for label, author, licence, patterns in clonk_sounds.CREDITED:
    paths = sorted({p for pattern in patterns for p in sounds.glob(pattern)})
    paths = [(str(p.relative_to(sounds).with_suffix('')).replace('.ocg', ''), p)
             for p in paths]
    for k, (works, audio) in enumerate(join(paths)):
      yield Recording(f'by-{slug(author)}', f'{label}-{slug(works[0])}-{k}',
                      label, 'sfx', package, author, licence, works, audio)


SONIC_PI = {  # prefix of the file name -> label, kind
    'ambi': ('ambience', 'sfx'), 'vinyl': ('vinyl', 'sfx'),
    'bass': ('bass', 'instrument'), 'guit': ('guitar', 'instrument'),
    'loop': ('loop', 'music'),
    'bd': ('kit', 'drum'), 'sn': ('kit', 'drum'), 'drum': ('kit', 'drum'),
    'elec': ('electric', 'drum'), 'perc': ('kit', 'drum'),
    'tabla': ('tabla', 'drum'),
}
# Left out although CC0 is claimed: drum breaks that may come from records.
SONIC_PI_REFUSED = ('loop_amen', 'loop_breakbeat')


def sonic_pi(package, folder):
  """Studio one-shots and loops, joined by author and label."""
  sounds = collections.defaultdict(list)
  for path in sorted(folder.rglob('*.flac')):
    found = licence_of(folder, package, f'etc/samples/{path.name}')
    prefix = path.stem.split('_')[0]
    if (found and found[1] == 'CC0-1.0' and prefix in SONIC_PI
        and not path.stem.startswith(SONIC_PI_REFUSED)):
      label, kind = SONIC_PI[prefix]
      sounds[found[0], label, kind].append((path.stem, path))
  for (author, label, kind), paths in sounds.items():
    for k, (works, audio) in enumerate(join(paths)):
      yield Recording(f'by-{slug(author)}', f'{label}-{k}', label, kind,
                      package, author, 'CC0-1.0', works, audio)


def guitar(package, folder):
  """Up and down strums of one acoustic guitar, a file per chord."""
  kit = next(folder.rglob('belofilms_GuitarStrums'))
  licence = require(folder, package, f'drumkits/{kit.name}.h2drumkit',
                    'CC-BY-3.0')
  require_note(kit / 'drumkit.xml', '<license>CC-BY 3.0')
  chords = collections.defaultdict(list)
  for path in sorted(kit.glob('*.flac')):
    match = re.match('(.+)_(up|down)_', path.stem, re.I)
    if match:
      chords[match[1]].append((path.stem, path))
  for chord, paths in chords.items():
    works, audio = join(paths)[0]
    yield Recording(f'guitar-{slug(chord)}', 'strum', 'guitar', 'instrument',
                    package, 'Gabriel Verdugo Soto', licence, works, audio)


def lomiri(package, folder):
  """Ring tones and notifications; the stanza of each file decides."""
  root = folder / 'usr'
  for path in sorted(root.rglob('*.ogg')):
    found = licence_of(folder, package, str(path.relative_to(root)))
    if found is None or found[0] == 'Anonymous':
      continue
    camera = 'camera' in path.parts
    yield Recording(f'by-{slug(found[0])}', slug(path.stem),
                    'click' if camera else 'ringtone',
                    'sfx' if camera else 'music', package, *found,
                    (path.stem,), read(path))


PACKAGES = {
    'asterisk-core-sounds-it-g722': asterisk,
    'asterisk-core-sounds-ru-g722': asterisk,
    'gcin-voice': gcin,
    'openclonk-data': openclonk,
    'sonic-pi-samples': sonic_pi,
    'hydrogen-drumkits-effects': guitar,
    'lomiri-sounds': lomiri,
}

TITLES = {  # package -> upstream title, address
    'asterisk-core-sounds-it-g722': (
        'Asterisk core sounds, Italian; translated by Silvia Petrin',
        'https://downloads.asterisk.org/pub/telephony/sounds/'),
    'asterisk-core-sounds-ru-g722': (
        'Asterisk core sounds, Russian',
        'https://downloads.asterisk.org/pub/telephony/sounds/'),
    'gcin-voice': ('gcin-voice, the 5.ogg of each syllable',
                   'http://hyperrate.com/thread.php?tid=30325'),
    'openclonk-data': (
        'OpenClonk: Music.ocg and Sound.ocg; addresses of the sounds in their '
        'authors.txt',
        'https://github.com/openclonk/openclonk/tree/master/planet'),
    'sonic-pi-samples': ('Sonic Pi samples',
                         'https://github.com/samaaron/sonic-pi'),
    'hydrogen-drumkits-effects': (
        'Hydrogen drum kit belofilms_GuitarStrums',
        'http://www.hydrogen-music.org/feeds/drumkit_list.php'),
    'lomiri-sounds': ('Lomiri sounds',
                      'https://gitlab.com/ubports/core/lomiri-sounds'),
}
