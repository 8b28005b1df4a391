"""Makes the demonstration set from Debian packages: audio, manifest, credits.

  apt-get update
  pip install numpy soundfile soxr G722
  python make_demo.py --out=. --downloads=packages

Packages are fetched with `apt-get download` and unpacked with `dpkg-deb -x`;
nothing is installed. Each recording's licence is read from its package and only
CC0 and CC-BY pass. The output has no random part: the same package versions
(ATTRIBUTION.md names them), soundfile and soxr give the same bytes.
Everything is mixed down to mono, resampled to 16 kHz, freed of silent ends, cut
into pieces of at most 20 s or, where single sounds are short, joined with gaps
of 0.1 s, and encoded as Ogg-Opus.
"""

import argparse
import collections
import csv
import hashlib
import pathlib
import shutil
import struct
import subprocess
import zlib

import demo_sources
import numpy as np
import soundfile

MIN_S = 0.5  # shorter files are left out
MIN_RMS = 10 ** (-50 / 20)  # nor is what one can hardly hear
VALID_MIN, VALID_MAX = 0.06, 0.2  # of each label's seconds; whole groups
SPLIT_SEED = 2  # each kind has 7-14% of its seconds in valid
# libsndfile maps this to 6 + (1 - level) * 250 kbit/s: here about 27 kbit/s.
OPUS_LEVEL = 0.92
COLUMNS = ('path', 'label', 'kind', 'split', 'source', 'author', 'licence',
           'duration_s')


def unpack(package, downloads):
  """Folder with the package's files, and its version."""
  folder = downloads / package
  if not folder.exists():
    subprocess.run(['apt-get', 'download', package], cwd=downloads, check=True)
    archive = next(downloads.glob(f'{package}_*.deb'))
    subprocess.run(['dpkg-deb', '-x', archive, folder], check=True)
  archive = next(downloads.glob(f'{package}_*.deb'))
  version = subprocess.run(['dpkg-deb', '-f', archive, 'Version'], check=True,
                           capture_output=True, text=True).stdout.strip()
  return folder, version



def pieces(recording):
  """Yields (file stem, float32 [S]); `group--name` with a number if cut."""
  audio = recording.audio
  rate_hz = demo_sources.SAMPLE_RATE_HZ
  num = max(1, int(np.ceil(len(audio) / (demo_sources.PIECE_S * rate_hz))))
  for k, piece in enumerate(np.array_split(audio, num)):
    stem = f'{recording.group}--{demo_sources.slug(recording.name)}'
    yield (f'{stem}-part-{k}' if num > 1 else stem), piece


def ogg_crc_table():
  table = np.arange(256, dtype=np.uint32) << 24
  for _ in range(8):
    table = (table << 1) ^ np.where(table >> 31, np.uint32(0x04C11DB7), 0)
  return [int(entry) for entry in table.astype(np.uint32)]


CRC_TABLE = ogg_crc_table()


def set_serial(path, serial):
  """Replaces the random stream number that libsndfile writes in every page."""
  data = bytearray(path.read_bytes())
  start = 0
  while start < len(data):
    num_segments = data[start + 26]
    end = start + 27 + num_segments
    end += sum(data[start + 27:end])
    data[start + 14:start + 18] = struct.pack('<I', serial)
    data[start + 22:start + 26] = bytes(4)
    crc = 0
    for byte in data[start:end]:
      crc = (crc << 8) & 0xFFFFFFFF ^ CRC_TABLE[crc >> 24 ^ byte]
    data[start + 22:start + 26] = struct.pack('<I', crc)
    start = end
  path.write_bytes(data)


def encode(path, audio):
  """Writes Opus; quieter if its decoded peak would exceed full scale."""
  gain = 1.0
  while True:
    soundfile.write(path, gain * audio, demo_sources.SAMPLE_RATE_HZ,
                    format='OGG', subtype='OPUS',
                    compression_level=OPUS_LEVEL)
    peak = np.abs(soundfile.read(path)[0]).max()
    if peak <= 1.0:
      break
    gain *= 0.95 / peak
  set_serial(path, zlib.crc32(path.stem.encode()))


def valid_groups(seconds):
  """{(label, group): s} -> groups held out, some of each label if they fit."""
  total = collections.Counter()
  for (label, _), length in seconds.items():
    total[label] += length
  chosen = set()
  for label in sorted(total):
    groups = {key[1]: s for key, s in seconds.items() if key[0] == label}
    held = sum(s for group, s in groups.items() if group in chosen)
    for group in sorted(groups, key=lambda name: hashlib.md5(
        f'{SPLIT_SEED}{name}'.encode()).hexdigest()):
      if held >= VALID_MIN * total[label]:
        break
      if (group not in chosen
          and held + groups[group] <= VALID_MAX * total[label]):
        chosen.add(group)
        held += groups[group]
  return chosen


ATTRIBUTION = '''# Where the demonstration recordings come from

All audio in `audio/` is cut or joined from the Debian packages below. Each part
was mixed down to mono, resampled to 16 kHz, freed of silent ends, cut into
pieces of at most 20 s or joined with gaps of 0.1 s, and encoded as Ogg-Opus,
some at a lower level so that the peaks stay below full scale; nothing else was
changed. The authors do not endorse this project. `manifest.csv` names the
author and the licence of every file. `make_demo.py` made the set.

Licences: {licences}.

| package | version | title | minutes | files | licence |
|---|---|---|---|---|---|
{packages}
{authors}'''


def attribution(rows, works, versions):
  """Markdown: packages, then per package author, licence, files, titles."""
  packages, authors = [], []
  for package, version in versions.items():
    mine = [row for row in rows if row['source'] == package]
    licences = sorted({row['licence'] for row in mine})
    minutes = sum(float(row['duration_s']) for row in mine) / 60
    title, address = demo_sources.TITLES[package]
    packages.append(f'| {package} | {version} | [{title}]({address}) | '
                    f'{minutes:.1f} | {len(mine)} | {", ".join(licences)} |')
    authors.append(f'\n## {package}\n\n| author | licence | files | '
                   'original works or files |\n|---|---|---|---|')
    for author, licence in sorted({(r['author'], r['licence']) for r in mine}):
      stems = [pathlib.Path(r['path']).stem for r in mine
               if (r['author'], r['licence']) == (author, licence)]
      groups = sorted({stem.split('--')[0] for stem in stems})
      titles = sorted({work for stem in stems for work in works[stem]})
      authors.append(f'| {author} | {licence} | '
                     f'{", ".join(f"`{group}--*`" for group in groups)} | '
                     f'{", ".join(titles)} |')
  licences = ', '.join(f'[{name}]({demo_sources.URLS[name]})' for name in
                       sorted({row['licence'] for row in rows}))
  return ATTRIBUTION.format(licences=licences, packages='\n'.join(packages),
                            authors='\n'.join(authors) + '\n')


def row_of(recording, stem, length_s):
  return dict(path=f'audio/{stem}.opus', label=recording.label,
              kind=recording.kind, source=recording.source,
              author=recording.author, licence=recording.licence,
              duration_s=f'{length_s:.3f}')


def main():
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--downloads', type=pathlib.Path, required=True)
  args = parser.parse_args()
  args.downloads.mkdir(parents=True, exist_ok=True)
  audio_dir = args.out / 'audio'
  shutil.rmtree(audio_dir, ignore_errors=True)
  audio_dir.mkdir(parents=True)

  rows, works, versions = [], {}, {}
  seconds = collections.Counter()
  for package, reader in demo_sources.PACKAGES.items():
    folder, versions[package] = unpack(package, args.downloads)
    for recording in reader(package, folder):
      for stem, audio in pieces(recording):
        length = len(audio) / demo_sources.SAMPLE_RATE_HZ
        if length < MIN_S or np.sqrt(np.mean(audio**2)) < MIN_RMS:
          continue
        assert stem not in works, stem
        encode(audio_dir / f'{stem}.opus', audio)
        works[stem] = recording.works
        seconds[recording.label, recording.group] += length
        rows.append(row_of(recording, stem, length))
  held_out = valid_groups(seconds)
  for row in rows:
    group = pathlib.Path(row['path']).name.split('--')[0]
    row['split'] = 'valid' if group in held_out else 'train'
  rows.sort(key=lambda row: row['path'])
  with open(args.out / 'manifest.csv', 'w', newline='') as f:
    writer = csv.DictWriter(f, COLUMNS, lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
  (args.out / 'ATTRIBUTION.md').write_text(attribution(rows, works, versions))


if __name__ == '__main__':
  main()
