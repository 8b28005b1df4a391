"""The script that compares formats runs, and prints what it promises."""

import pathlib
import runpy
import sys

SCRIPT = pathlib.Path(__file__).parents[1] / 'benchmarks/input_formats.py'


def test_the_table_has_a_row_for_each_format(monkeypatch, capsys):
  monkeypatch.setattr(sys, 'argv', [
      str(SCRIPT), '--clips=2', '--rounds=2', '--batches=1', '--batch_size=2',
      '--seconds=1', '--device', '--formats', 'flac', 'records pcm16'])
  runpy.run_path(str(SCRIPT), run_name='__main__')
  head, _, *rows = capsys.readouterr().out.splitlines()
  assert head.startswith('| format | processor ms a clip of 1 s | ratio to wav')
  cells = [[cell.strip() for cell in row.strip('|').split('|')] for row in rows]
  assert [name for name, *_ in cells] == ['wav', 'flac', 'records pcm16']
  assert cells[0][2] == '1.00 (1.00 to 1.00)'
  for _, cost, _, rate in cells:
    assert float(cost.split()[0]) > 0 and int(rate.replace(',', '')) > 0
