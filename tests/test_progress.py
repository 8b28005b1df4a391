"""Speed, utilisation and time left, by a clock that the test turns."""

import io

import pytest

from audio_mae_jax import progress


class Clock:
  def __init__(self):
    self.now = 1000.0

  def __call__(self):
    return self.now


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture
def clock():
  return Clock()


def make(clock, total=100, stream=None, **kwargs):
  stream = stream or io.StringIO()
  settings = {'batch_size': 8, 'clock': clock, 'stream': stream} | kwargs
  return progress.Progress(total, **settings), stream


def run(bar, clock, steps, seconds, log_every=1):
  for step in steps:
    clock.now += seconds
    bar.update(step, 1 / step if step % log_every == 0 else None)


def test_first_step_does_not_count_into_the_speed(clock):
  bar, _ = make(clock)
  clock.now += 60  # compilation
  bar.update(1, 0.5)
  assert bar.clips_per_second is None and bar.metrics() == {}
  run(bar, clock, range(2, 5), seconds=0.5)
  assert bar.clips_per_second == pytest.approx(16)


def test_speed_is_taken_between_steps_whose_loss_was_read(clock):
  bar, _ = make(clock)
  bar.update(1, 0.5)
  for step in range(2, 11):  # dispatched at once ...
    bar.update(step)
  assert bar.clips_per_second is None
  clock.now += 4.5
  bar.update(11, 0.4)  # ... and done when the next loss is there
  assert bar.clips_per_second == pytest.approx(8 * 10 / 4.5)


def test_speed_forgets_what_is_longer_ago_than_half_a_minute(clock):
  bar, _ = make(clock, total=1000)
  run(bar, clock, range(1, 21), seconds=10)
  assert bar.clips_per_second == pytest.approx(0.8)
  run(bar, clock, range(21, 61), seconds=1)
  assert bar.clips_per_second == pytest.approx(8)
  assert len(bar._intervals) == 30


def test_pauses_do_not_count_even_when_nested(clock):
  bar, _ = make(clock)
  run(bar, clock, range(1, 4), seconds=1)
  with bar.pause():
    clock.now += 100
    with bar.pause():
      clock.now += 50
  run(bar, clock, range(4, 8), seconds=1)
  assert bar.clips_per_second == pytest.approx(8)


def test_pause_ends_also_when_the_evaluation_fails(clock):
  bar, _ = make(clock)
  run(bar, clock, range(1, 4), seconds=1)
  with pytest.raises(KeyError):
    with bar.pause():
      clock.now += 100
      raise KeyError
  run(bar, clock, [4], seconds=1)
  assert bar.clips_per_second == pytest.approx(8)


def test_steps_that_finish_inside_a_pause_are_not_timed(clock):
  bar, _ = make(clock)
  run(bar, clock, range(1, 4), seconds=1)
  for step in range(4, 9):  # dispatched, not waited for
    bar.update(step)
  with bar.pause():
    clock.now += 5
  bar.update(10, 0.1)  # as if 7 steps had taken no time
  assert bar.clips_per_second == pytest.approx(8)
  run(bar, clock, [11], seconds=1)
  assert bar.clips_per_second == pytest.approx(8)


def test_utilisation_is_model_flops_over_peak(clock):
  bar, stream = make(clock, flops_per_clip=2e12, peak_flops=64e12)
  run(bar, clock, range(1, 4), seconds=0.5)
  assert bar.flops_per_second == pytest.approx(32e12)
  assert bar.utilisation == pytest.approx(0.5)
  assert bar.metrics() == pytest.approx({
      'clips_per_second': 16, 'flops_per_second': 32e12, 'utilisation': 0.5})
  clock.now += 10
  bar.update(4, 0.1)
  assert 'MFU ' in stream.getvalue().splitlines()[-1]


def test_unknown_peak_shows_what_is_achieved(clock):
  bar, stream = make(clock, flops_per_clip=0.12e12 / 8)
  run(bar, clock, range(1, 13), seconds=1)
  assert bar.utilisation is None
  assert '8.0 clips/s, 0.12 TFLOP/s, ETA 1:29' in stream.getvalue()
  assert 'MFU' not in stream.getvalue()


def test_lines_in_a_log_file_come_every_ten_seconds_and_at_the_end(clock):
  bar, stream = make(clock, total=35)
  run(bar, clock, range(1, 36), seconds=1)
  text = stream.getvalue()
  assert '\r' not in text
  assert [line.split()[1] for line in text.splitlines()] == [
      '1/35', '11/35', '21/35', '31/35', '35/35']
  assert text.splitlines()[0] == (
      'step 1/35 (3%), loss 1.0000, measuring speed')
  assert text.splitlines()[1] == (
      'step 11/35 (31%), loss 0.0909, 8.0 clips/s, ETA 0:24')


def test_resumed_run_counts_on_from_its_step(clock):
  bar, stream = make(clock, total=100, start_step=90)
  run(bar, clock, range(91, 96), seconds=1)
  assert stream.getvalue().startswith('step 91/100 (91%)')
  assert bar.eta_s == pytest.approx(5)


def test_bar_on_a_terminal_shows_loss_speed_and_time_left(clock):
  bar, stream = make(clock, stream=Terminal(), peak_flops=16e12,
                     flops_per_clip=1e12, start_step=10)
  run(bar, clock, range(11, 21), seconds=1)
  bar.close()
  last = stream.getvalue().split('\r')[-1]
  assert '20%|' in last and '20/100' in last
  assert 'loss 0.0500, 8.0 clips/s, MFU 50%, ETA 1:20' in last


def test_disabled_shows_nothing_and_still_measures(clock):
  bar, stream = make(clock, stream=Terminal(), enabled=False)
  run(bar, clock, range(1, 20), seconds=1)
  bar.close()
  assert stream.getvalue() == ''
  assert bar.clips_per_second == pytest.approx(8)


def test_a_clock_that_stands_still_is_no_speed(clock):
  bar, _ = make(clock)
  run(bar, clock, range(1, 5), seconds=0)
  assert bar.clips_per_second is None and bar.eta_s is None


@pytest.mark.parametrize('seconds, text', [
    (0, '0:00'), (59.6, '1:00'), (184, '3:04'), (7384, '2:03:04'),
    (93784, '1d 2:03:04')])
def test_durations_are_read_at_a_glance(seconds, text):
  assert progress._duration(seconds) == text


@pytest.mark.parametrize('terminal', [True, False])
def test_clips_are_counted_on_a_terminal_and_seldom_in_a_log(
    terminal, monkeypatch):
  stream = io.StringIO()
  monkeypatch.setattr(stream, 'isatty', lambda: terminal, raising=False)
  monkeypatch.setattr('sys.stderr', stream)
  shown = lambda: stream.getvalue().count('%|')
  with progress.clips(100) as bar:
    assert shown() == terminal
    bar.update(10)
    for minute in (1, 2):
      bar.start_t -= 61
      bar.last_print_t -= 61
      bar.update(20)
      assert shown() == minute + terminal
      bar.update(1)  # too soon to be shown
      assert shown() == minute + terminal
  assert ' 30/100 ' in stream.getvalue()
  assert ' 51/100 ' in stream.getvalue()
