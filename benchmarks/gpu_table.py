"""The measurements of gpu.py as one table, and what follows from them."""

GIB = 2**30


def table(result: dict) -> str:
  """Markdown; a part that failed says why."""
  machine = ', '.join(
      f'{name} {value}' for name, value in result['machine'].items())
  rows = []
  for name, part in result.items():
    if name in ROWS:
      rows += ROWS[name](name, part)
      if 'error' in part:
        rows.append((name, '', part['error']))
  lines = [f'| {" | ".join(row)} |' for row in rows]
  return '\n'.join(
      [machine, '', '| what | goal | measured |', '|---|---|---|', *lines])


def _step(name, part):
  x = part.get('step')
  if not x:
    return []
  work, start = x['work'], x['start']
  peak = '' if work['of_peak'] is None else (
      f'; {work["of_peak"]:.1%} of the data sheet\'s')
  return [
      (f'{name}, batch {x["setup"]["batch_size"]}', '50 %', (
          f'{work["of_dense"]:.1%} of the dense rate of '
          f'{work["dense_tflops"]:.4g} TFLOP/s{peak}; '
          f'{x["throughput"]["clips_per_s"]:.5g} clips/s, '
          f'{1e3 * x["throughput"]["step_s"]:.4g} ms a step')),
      (f'{name}: front end, augmentation, masks', 'under 3 %',
       f'{x["prepare"]["of_step"]:.2%} of the step'),
      (f'{name}: compiling', 'under 60 s', (
          f'{start["compile_s"]:.3g} s after {start["lower_s"]:.3g} s of '
          f'tracing; {start["to_first_step_s"]:.3g} s to the first step')),
      *_again(name, part.get('again')),
      (f'{name}: memory', 'under 80 GB', (
          f'{_gib(x["compiler"]["temp_bytes_per_device"])} temporary, '
          f'{_gib(x["compiler"]["argument_bytes_per_device"])} arguments; '
          f'{_gib(x["memory_peak"]["device_bytes"])} at the peak'))]


def _again(name, start):
  return [] if not start else [(
      f'{name}: compiling, cached', '', start.get('error') or (
          f'{start["compile_s"]:.3g} s after {start["lower_s"]:.3g} s of '
          'tracing'))]


def _torch(name, part):
  rows = []
  for way, x in part.items():
    if way in ('error', 'took_s'):
      continue
    if 'error' in x:
      rows.append((f'{name}, {way}', '1.3', x['error']))
    for pair, kinds in x.get('ratios', {}).items():
      wall = kinds['wall_s']
      rows.append((f'{name}, {way}: {pair}', '1.3', (
          f'{wall["median"]:.2f} ({wall["min"]:.2f} to {wall["max"]:.2f})')))
  return rows


def _attention(name, part):
  rows = []
  for choice, x in part.items():
    if choice in ('error', 'took_s'):
      continue
    rows.append((f'{name} {choice!r}, few blocks', '', x.get('error') or (
        f'{1e3 * x["throughput"]["step_s"]:.4g} ms a step, '
        f'{x["work"]["of_dense"]:.1%} of the dense rate, '
        f'{_gib(x["compiler"]["temp_bytes_per_device"])} temporary')))
  return rows


def _breakdown(name, part):
  x = part.get('breakdown')
  if not x:
    return []
  idle = x['step_s'] - x['busy_s']
  return [
      *((f'{name}: {what}', '', (
          f'{1e3 * y["time_s"]:.3g} ms, {y["time_s"] / x["step_s"]:.1%} of the '
          f'step; {y["flops"] / 1e12:.3g} TFLOP, {y["bytes"] / 1e9:.3g} GB'))
        for what, y in x['parts'].items()),
      (f'{name}: nothing at work', '',
       f'{1e3 * idle:.3g} ms, {idle / x["step_s"]:.1%} of the step')]


def _memory(name, part):
  rows = []
  for model, x in part.items():
    if model in ('error', 'took_s'):
      continue
    rows.append((f'{name}: {model}', '', x.get('error') or (
        'too much' if 'total_bytes' not in x.get('memory', {}) else
        f'{_gib(x["memory"]["total_bytes"])} by the compiler')))
  return rows


def _input(name, part):
  rows = []
  for kind in ('WAV', 'records'):
    x = part.get(kind)
    if x and 'error' in x:
      rows.append((f'{name}: {kind}', '', x['error']))
    elif x:
      rows += [
          (f'{name}: {kind}, pipeline alone', '', (
              f'{x["input"]["clips_per_s"]:.5g} clips/s with '
              f'{x["setup"]["cores"]} cores')),
          (f'{name}: {kind}, waiting for it', 'under 3 %', (
              f'{x["fed"]["waiting"]:.2%}, '
              f'{x["fed"]["clips_per_s"]:.5g} clips/s'))]
  return rows


def _gib(number):
  return '-' if number is None else f'{number / GIB:.2f} GiB'


ROWS = {
    'pretrain': _step, 'finetune': _step, 'input': _input,
    'breakdown': _breakdown, 'breakdown finetune': _breakdown,
    'attention': _attention, 'memory': _memory, 'torch pretrain': _torch,
    'torch finetune': _torch}
