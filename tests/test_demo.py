"""The bundled demonstration set: complete, readable, free, split honestly."""

import concurrent.futures
import csv
import importlib
import pathlib

import numpy as np
import pytest
import soundfile

DEMO = pathlib.Path(__file__).parents[1] / 'audio_mae_jax' / 'data' / 'demo'
LICENCES = {'CC0-1.0', 'CC-BY-3.0', 'CC-BY-4.0'}
COPYRIGHT = '''Format: https://www.debian.org/doc/packaging-manuals/

Files: *
Copyright: 2001 Someone
License: GPL-2+

Files: sounds/bell.ogg
       sounds/horn?.ogg
Copyright: 2012, Anna Bell <anna@example.org>
License: CC0

Files: sounds/gong.ogg
Copyright: 2013, G. Ong
License: CC-BY-SA-3.0
'''


@pytest.fixture(scope='module')
def rows():
  with open(DEMO / 'manifest.csv', newline='', encoding='utf-8') as f:
    return list(csv.DictReader(f))


@pytest.fixture(scope='module')
def demo_sources():
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(DEMO)
    yield importlib.import_module('demo_sources')


@pytest.fixture
def package(tmp_path):
  path = tmp_path / 'usr/share/doc/bells/copyright'
  path.parent.mkdir(parents=True)
  path.write_text(COPYRIGHT)
  return tmp_path


def group_of(row):
  """Recordings of one origin share the file name's part before '--'."""
  return pathlib.Path(row['path']).name.split('--')[0]


def test_every_row_is_whole_and_every_file_has_a_row(rows):
  assert all(value for row in rows for value in row.values())
  paths = [row['path'] for row in rows]
  assert len(set(paths)) == len(paths)
  files = {str(path.relative_to(DEMO)) for path in DEMO.glob('audio/*')}
  assert files == set(paths)


@pytest.mark.parametrize('step', [
    8, pytest.param(1, marks=pytest.mark.slow, id='every')])
def test_files_are_16_khz_mono_of_the_stated_length_and_audible(rows, step):
  def problems(row):
    audio, rate_hz = soundfile.read(DEMO / row['path'], dtype='float32')
    checks = {
        'rate': rate_hz == 16000,
        'channels': audio.ndim == 1,
        'length': abs(len(audio) / 16000 - float(row['duration_s'])) < 0.02,
        'finite': np.isfinite(audio).all(),
        'range': np.abs(audio).max() <= 1.01,  # decoders differ a little
        'audible': np.sqrt(np.mean(audio**2)) > 1e-3,
    }
    return [(row['path'], name) for name, good in checks.items() if not good]

  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    assert not [p for found in pool.map(problems, rows[::step])
                for p in found]


def test_at_most_12_mb_hold_at_least_half_an_hour(rows):
  assert sum(p.stat().st_size for p in DEMO.rglob('*') if p.is_file()) <= 12e6
  assert sum(float(row['duration_s']) for row in rows) >= 30 * 60


def test_only_cc0_and_cc_by(rows):
  assert {row['licence'] for row in rows} <= LICENCES


def test_both_splits_have_every_kind_and_no_group_is_in_both(rows):
  parts = {split: [row for row in rows if row['split'] == split]
           for split in ('train', 'valid')}
  assert sum(map(len, parts.values())) == len(rows)
  kinds = {s: {row['kind'] for row in part} for s, part in parts.items()}
  assert kinds['train'] == kinds['valid']
  groups = {s: {group_of(row) for row in part} for s, part in parts.items()}
  assert not groups['train'] & groups['valid']
  assert 0.08 <= sum(float(r['duration_s']) for r in parts['valid']) / sum(
      float(r['duration_s']) for r in rows) <= 0.12


def test_attribution_names_every_source_author_and_licence(rows):
  text = (DEMO / 'ATTRIBUTION.md').read_text('utf-8')
  for row in rows:
    assert f'## {row["source"]}\n' in text
    assert f'| {row["author"]} | {row["licence"]} | ' in text
    assert f'`{group_of(row)}--*`' in text
    assert f'[{row["licence"]}](https://creativecommons.org/' in text


def test_the_licence_of_a_file_comes_from_its_own_stanza(demo_sources, package):
  licence_of = demo_sources.licence_of
  free = 'Anna Bell', 'CC0-1.0'
  assert licence_of(package, 'bells', 'sounds/bell.ogg') == free
  assert licence_of(package, 'bells', 'sounds/horn2.ogg') == free
  assert licence_of(package, 'bells', 'sounds/gong.ogg') is None
  assert licence_of(package, 'bells', 'sounds/other.ogg') is None


def test_changed_terms_stop_the_making(demo_sources, package):
  with pytest.raises(ValueError, match='grants None for sounds/gong.ogg'):
    demo_sources.require(package, 'bells', 'sounds/gong.ogg', 'CC-BY-3.0')
  path = package / 'usr/share/doc/bells/copyright'
  with pytest.raises(ValueError, match="no longer says 'CC-BY 3.0'"):
    demo_sources.require_note(path, 'CC-BY 3.0')
