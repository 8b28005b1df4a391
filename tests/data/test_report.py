"""Counting bad files, and when there are too many."""

import json
import threading

import pytest

from audio_mae_jax import config
from audio_mae_jax.data import report


def make(num_files, **data):
  return report.BadFiles(num_files, config.Data(**data))


def test_each_bad_file_counts_once_and_keeps_its_first_reason(tmp_path):
  bad = make(1000)
  bad.add('b.wav', 'empty')
  bad.add('a.wav', 'truncated')
  bad.add('b.wav', 'NaN')
  assert bad.count == 2
  bad.write(tmp_path / 'bad.json')
  assert json.loads((tmp_path / 'bad.json').read_text()) == {
      'num_files': 1000, 'num_bad': 2,
      'bad': {'a.wav': 'truncated', 'b.wav': 'empty'}}
  assert [path.name for path in tmp_path.iterdir()] == ['bad.json']


@pytest.mark.parametrize('num_files,fraction,tolerated', [
    (1000, 0.02, 20), (10, 0.02, 1), (10, 0.0, 0), (10, 0.55, 5), (2, 0.1, 1)])
def test_the_limit_is_a_share_but_one_is_tolerated(
    num_files, fraction, tolerated):
  bad = make(num_files, max_bad_fraction=fraction)
  bad.saw_good()
  for i in range(tolerated):
    bad.add(f'{i}', 'empty')
  with pytest.raises(report.TooManyBadFiles, match=(
      f'{tolerated + 1} of {num_files} files are bad, more than '
      f'config.data.max_bad_fraction={fraction} allows. Repair')):
    bad.add('one more', 'empty')


def test_all_files_bad_is_never_tolerated():
  bad = make(1, max_bad_fraction=1.0)
  with pytest.raises(report.TooManyBadFiles, match=(
      r'No readable file: all 1 tried so far \(of 1\) are bad(.|\n)*x: empty')):
    bad.add('x', 'empty')


def test_a_message_lists_twenty_files():
  bad = make(1000, max_bad_fraction=0.024)
  bad.saw_good()
  with pytest.raises(report.TooManyBadFiles) as error:
    for i in range(25):
      bad.add(f'{i:02d}.wav', f'reason {i}')
  lines = str(error.value).splitlines()
  assert lines[1] == '  00.wav: reason 0' and lines[20] == '  19.wav: reason 19'
  assert lines[21] == '  and 5 more' and len(lines) == 22


def test_the_first_bad_file_can_stop_the_run():
  with pytest.raises(report.TooManyBadFiles, match=(
      r"Bad audio file: a.wav \(empty\). .*on_bad='skip'")):
    make(1000, on_bad='stop').add('a.wav', 'empty')


def test_unknown_settings_are_errors():
  with pytest.raises(ValueError, match="on_bad='ignore' is not known"):
    make(9, on_bad='ignore')
  with pytest.raises(ValueError, match='share of the files, 0 to 1; got 2.0'):
    make(9, max_bad_fraction=2.0)


def test_threads_may_add_at_once():
  bad = make(10**6)
  threads = [
      threading.Thread(target=lambda k=k: [
          bad.add(f'{i}', 'empty') for i in range(k, 2000, 2)])
      for k in (0, 1, 0, 1)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert bad.count == 2000
