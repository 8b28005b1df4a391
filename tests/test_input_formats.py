"""The comparison of formats runs, and compares what it says."""

import numpy as np
import pytest

from benchmarks import input_formats


def test_the_table_has_a_row_for_each_format(capsys):
  input_formats.main([
      '--clips=2', '--rounds=2', '--batches=1', '--batch_size=2',
      '--seconds=1', '--device', '--formats', 'flac', 'records pcm16'])
  head, _, *rows = capsys.readouterr().out.splitlines()
  assert head.startswith('| format | processor ms a clip of 1 s | ratio to wav')
  cells = [[cell.strip() for cell in row.strip('|').split('|')] for row in rows]
  assert [name for name, *_ in cells] == ['wav', 'flac', 'records pcm16']
  assert cells[0][2] == '1.00 (1.00 to 1.00)'
  for _, cost, _, rate in cells:
    assert float(cost.split()[0]) > 0 and int(rate.replace(',', '')) > 0


@pytest.mark.parametrize('name', input_formats.FORMATS)
def test_formats_hold_the_same_clips_and_travel_as_in_training(name, tmp_path):
  if name == 'tfds':
    pytest.importorskip('tensorflow_datasets')
  clips = [input_formats.recording(i, 1) for i in range(3)]
  make, what = input_formats.FORMATS[name]
  source = make(str(tmp_path), clips, what)
  options = input_formats.parser().parse_args(
      ['--batch_size=8', '--seconds=1', '--crop=start'])
  stream = input_formats.batches(source, options)
  audio = next(stream)['audio']
  stream.close()
  assert audio.dtype == np.int16
  assert {tuple(row) for row in audio.astype(int)} <= {
      tuple(clip.astype(int)) for clip in clips}
  assert len(source) == input_formats.ROWS and source.num_files == 3
  assert source.name_of(4)
