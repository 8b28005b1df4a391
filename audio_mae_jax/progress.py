"""How far the run is, how fast, and how much of the hardware it uses."""

import collections
import contextlib
import sys
import time

_WINDOW_S = 30.0  # of training that the shown speed is the mean of
_LINE_S = 10.0  # between lines where no bar can be drawn


class Progress:
  """A bar on a terminal; elsewhere (a log file) a line every ten seconds.

  Steps run ahead of the host: only a step whose loss has been read is known to
  be done. So speed is taken between calls of `update` that bring a loss; what
  lies before the first of them, compilation, does not count.

  `flops_per_clip` are the model's, forward and backward; `peak_flops` is the
  sum over the devices, per second; 0 is unknown. Not `enabled`, it shows
  nothing and still measures.
  """

  def __init__(self, total_steps: int, start_step: int = 0,
               enabled: bool = True, *, batch_size: int,
               flops_per_clip: float = 0.0, peak_flops: float = 0.0,
               clock=time.monotonic, stream=None):
    self._total, self._step = total_steps, start_step
    self._batch_size = batch_size
    self._flops_per_clip, self._peak_flops = flops_per_clip, peak_flops
    self._clock, self._stream = clock, stream or sys.stderr
    self._enabled = enabled
    self._loss = None
    self._since = None  # (step, time) at which the last loss was read
    self._intervals = collections.deque()  # (steps, seconds) between losses
    self._steps, self._seconds = 0, 0.0  # their sums
    self._paused_s = 0.0
    self._line_time = None  # when the last line was printed
    self._bar = None
    if enabled and self._stream.isatty():
      self._bar = _bar(total_steps, start_step, self._stream)

  def update(self, step: int, loss: float | None = None) -> None:
    """`step` steps are dispatched; with a `loss` that was read, also done."""
    if loss is not None:
      self._loss = float(loss)
      self._measure(step)
    advance, self._step = step - self._step, step
    if self._bar is not None:
      self._bar.set_postfix_str(', '.join(self._parts()), refresh=False)
      self._bar.update(advance)
    elif self._enabled and self._line_is_due(loss):
      self._line_time = self._clock()
      share = step / self._total if self._total else 1.0
      self._print(', '.join(
          [f'step {step}/{self._total} ({share:.0%})'] + self._parts()))

  @contextlib.contextmanager
  def pause(self):
    """The time inside, an evaluation or a save, is not the steps' time."""
    start = self._now()
    try:
      yield
    finally:
      self._paused_s += self._now() - start
      if self._since is not None and self._since[0] != self._step:
        # Steps not waited for ran on inside: how long they took is not known.
        self._since = None

  @property
  def clips_per_second(self) -> float | None:
    """Over all devices; None until two losses were read."""
    if not self._intervals or self._seconds <= 0:
      return None
    return self._steps * self._batch_size / self._seconds

  @property
  def flops_per_second(self) -> float | None:
    """Of the model; None while the speed or `flops_per_clip` is unknown."""
    speed = self.clips_per_second
    if speed is None or not self._flops_per_clip:
      return None
    return speed * self._flops_per_clip

  @property
  def utilisation(self) -> float | None:
    """Share of the peak that the model's FLOPs take; None while unknown."""
    flops = self.flops_per_second
    if flops is None or not self._peak_flops:
      return None
    return flops / self._peak_flops

  @property
  def eta_s(self) -> float | None:
    """Seconds of training left at the present speed."""
    speed = self.clips_per_second
    if speed is None:
      return None
    return (self._total - self._step) * self._batch_size / speed

  def metrics(self) -> dict[str, float]:
    """What is known of the speed, for the record."""
    values = {'clips_per_second': self.clips_per_second,
              'flops_per_second': self.flops_per_second,
              'utilisation': self.utilisation}
    return {name: x for name, x in values.items() if x is not None}

  def close(self) -> None:
    if self._bar is not None:
      self._bar.close()
      self._bar = None
    self._enabled = False

  def _now(self):
    return self._clock() - self._paused_s

  def _measure(self, step):
    now = self._now()
    if self._since is not None and step > self._since[0]:
      interval = (step - self._since[0], now - self._since[1])
      self._intervals.append(interval)
      self._steps += interval[0]
      self._seconds += interval[1]
      while self._seconds - self._intervals[0][1] >= _WINDOW_S:
        steps, seconds = self._intervals.popleft()
        self._steps -= steps
        self._seconds -= seconds
    self._since = (step, now)

  def _line_is_due(self, loss):
    if self._line_time is None or self._step >= self._total:
      return loss is not None or self._step >= self._total
    return self._clock() - self._line_time >= _LINE_S

  def _parts(self):
    parts = [] if self._loss is None else [f'loss {self._loss:.4f}']
    speed = self.clips_per_second
    if speed is None:
      return parts + ['measuring speed']
    parts.append(f'{speed:.{1 if speed < 10 else 0}f} clips/s')
    if self.utilisation is not None:
      parts.append(f'MFU {self.utilisation:.0%}')
    elif self.flops_per_second is not None:
      parts.append(f'{self.flops_per_second / 1e12:.2g} TFLOP/s')
    return parts + [f'ETA {_duration(self.eta_s)}']

  def _print(self, text):
    print(text, file=self._stream, flush=True)


def _bar(total, initial, stream):
  import tqdm
  # Its own ETA would count compilation and evaluations as steps.
  return tqdm.tqdm(
      total=total, initial=initial, file=stream, dynamic_ncols=True,
      bar_format='{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} '
                 '[{elapsed}{postfix}]')


def clips(total: int):
  """A bar that counts clips on stderr; in a log, a state a minute."""
  import tqdm
  seldom = {} if sys.stderr.isatty() else dict(
      delay=60, mininterval=60, ascii=True)
  return tqdm.tqdm(total=total, unit='clip', miniters=1, **seldom)


def _duration(seconds):
  """93784 -> '1d 2:03:04'; 184 -> '3:04'."""
  minutes, seconds = divmod(int(seconds + 0.5), 60)
  hours, minutes = divmod(minutes, 60)
  days, hours = divmod(hours, 24)
  if days:
    return f'{days}d {hours}:{minutes:02}:{seconds:02}'
  if hours:
    return f'{hours}:{minutes:02}:{seconds:02}'
  return f'{minutes}:{seconds:02}'
