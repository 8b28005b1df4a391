"""What a command is to embed: files, folders and manifests, as clips."""

import dataclasses
import os

from audio_mae_jax import storage
from audio_mae_jax.data import files
from audio_mae_jax.data import manifests

_LEFT_OUT = 'not a suffix of audio that is read: ' + ', '.join(files.SUFFIXES)


@dataclasses.dataclass(frozen=True)
class Clip:
  """A file, or the part of one that a manifest lists."""
  name: str  # as the result calls it: the path, and which part of it
  path: str
  label: str = ''  # the manifest's, several joined by ';'; or the folder's name
  start_s: float = 0.0
  duration_s: float | None = None  # None: to the end

  @property
  def item(self) -> dict:
    """As an element of a source, for `audio_io`."""
    return {'audio': self.path, 'id': self.name, 'start_s': self.start_s,
            'duration_s': self.duration_s}

  @property
  def version(self) -> str:
    """Another one if the file or the part of it is another; '' if missing."""
    found = storage.version(self.path)
    return found and f'{found} {_exact(self.start_s)} {self.duration_s}'


def find(inputs: list[str]) -> tuple[list[Clip], dict[str, str], int]:
  """Clips of all `inputs`, each once, in their order.

  An input is an audio file, a folder, or a manifest (by its suffix); here or at
  an address.

  Returns:
    The clips; files of folders that are no audio, with the reason; and how many
    clips were named more than once. Of those the labels of the first input
    count, and of one manifest all of its labels.

  Raises:
    FileNotFoundError: there is no such input, or nothing in one.
  """
  clips, others, repeated = {}, {}, 0
  for place in inputs:
    place = os.path.expanduser(place)
    if storage.is_dir(place):
      found = _folder(place, others)
    elif not storage.exists(place):
      raise FileNotFoundError(
          f'There is no {place}. Give audio files, folders of them, or '
          f'manifests ({", ".join(manifests.FORMATS)}).')
    elif os.path.splitext(place)[1].lower() in manifests.FORMATS:
      found, again = _manifest(place)
      repeated += again
    else:
      found = [Clip(place, place, _parent(place))]
    for clip in found:
      repeated += clip.name in clips
      clips.setdefault(clip.name, clip)
  if not clips:
    raise FileNotFoundError(
        f'No audio files in {", ".join(inputs)}. Looked for '
        f'{", ".join(files.SUFFIXES)}, in all folders below as well.')
  return list(clips.values()), others, repeated


def _folder(place, others):
  found = files.walk(place)
  if not storage.is_remote(place):
    listed = {os.path.relpath(os.path.join(parent, name), place)
              for parent, _, names in os.walk(place) for name in names}
    others.update((os.path.join(place, name), _LEFT_OUT)
                  for name in sorted(listed - set(found)))
  paths = [storage.join(place, name) for name in found]
  return [Clip(path, path, _parent(path)) for path in paths]


def _manifest(place):
  rows = manifests.read(place)
  base = manifests.base_of(rows, place, [os.path.dirname(place)])
  parts, labels = {}, {}
  for row in rows:
    path = storage.join(base, row.path)
    name = path
    if row.start_s or row.duration_s is not None:
      name += f'@{_exact(row.start_s)}s'
    if row.duration_s is not None:
      name += f'+{_exact(row.duration_s)}s'
    parts[name] = Clip(name, path, '', row.start_s, row.duration_s)
    labels.setdefault(name, {}).update(dict.fromkeys(row.labels))
  found = [dataclasses.replace(clip, label=';'.join(labels[name]))
           for name, clip in parts.items()]
  return found, len(rows) - len(found)


def _exact(seconds):
  """Digits that no other number has."""
  return repr(float(seconds)).removesuffix('.0')


def _parent(path):
  """The name of the folder that a file lies in."""
  return os.path.basename(os.path.dirname(
      path if storage.is_remote(path) else os.path.abspath(path)))
