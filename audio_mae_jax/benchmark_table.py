"""What `benchmark` measured, for people; docs/performance.md explains it."""


def table(result: dict) -> str:
  """The measurements, a line for each."""
  lines = (_setup_to_embed if 'embed' in result else _setup)(result)
  for name, describe in _LINES.items():
    if name in result:
      lines += describe(result[name])
  return '\n'.join(f'{label:16} {text}' for label, text in lines)


def _setup(result):
  x = result['setup']
  cores = f', {x["cores"]} cores' if 'cores' in x else ''
  lines = [
      ('recipe', f'{result["recipe"]}, task {result["task"]}'),
      ('devices', (
          f'{x["devices"]} x {x["device"]} as mesh {x["mesh"]}, '
          f'{x["processes"]} process(es){cores}, jax {x["jax"]}')),
      ('batch', (
          f'{x["batch_size"]} clips of {x["clip_s"]:g} s, {x["dtype"]}, '
          f'remat {x["remat"]}, scan_layers {x["scan_layers"]}')),
      ('work', _flops(result['flops_per_clip']['step']) + ' a clip and step')]
  if 'source' in x:
    bad = f', {x["bad_files"]} bad files' if x['bad_files'] else ''
    lines.append(('clips', x['source'] + bad))
  return lines


def _setup_to_embed(result):
  x = result['setup']
  return [
      ('recipe', f'{result["recipe"]}, its encoder, random weights'),
      ('devices', (
          f'{x["devices"]} x {x["device"]}, {x["cores"]} cores, '
          f'jax {x["jax"]}')),
      ('at once', (
          f'{x["windows"]} clips of {x["clip_s"]:g} s, {x["dtype"]}, to '
          f'embeddings of width {x["width"]}')),
      ('work', _flops(result['flops_per_clip']['encoder']) + ' a clip')]


def _embed(x):
  return [
      ('throughput', (
          f'{x["clips_per_s"]:.4g} clips/s, {x["real_time"]:.4g} times real '
          f'time, {x["tflops"]:.4g} TFLOP/s')),
      ('one clip', (
          f'{_time(x["clip_median_s"])} median, {_time(x["clip_p90_s"])} p90; '
          f'{_time(x["first_clip_s"])} the first, which compiles')),
      ('long audio', (
          f'{x["long_real_time"]:.4g} times real time, {x["long_s"]:.4g} s in '
          'overlapping windows')),
      ('programs', (
          f'{x["programs"]} compiled; {x["new_lengths"]} lengths of one bucket '
          'compiled none'))]


def _start(x):
  if 'first_step_s' not in x:
    return [('to compile', (
        f'{_time(x["lower_s"])} of lowering, {_time(x["compile_s"])}'))]
  compiling = 'compiled before' if x['compiled_before'] else 'compiling'
  return [('to first step', (
      f'{_time(x["to_first_step_s"])}: lowering {_time(x["lower_s"])}, '
      f'{compiling} {_time(x["compile_s"])}, parameters {_time(x["init_s"])}, '
      f'step {_time(x["first_step_s"])}'))]


def _step(x):
  return [('step', (
      f'{_time(x["median_s"])} median, {_time(x["p10_s"])} to '
      f'{_time(x["p90_s"])} (p10 to p90), {_time(x["min_s"])} least; '
      f'{_time(x["cpu_s"])} of CPU'))]


def _throughput(x):
  return [('throughput', (
      f'{x["clips_per_s"]:.4g} clips/s, {_time(x["step_s"])} a step without '
      'waiting for each'))]


def _work(x):
  peak = ('the data sheet of this device is not in flops.py'
          if x['peak_tflops'] is None else
          f'{x["of_peak"]:.1%} of the bfloat16 peak of {x["peak_tflops"]:g}')
  return [('model TFLOP/s', (
      f'{x["model_tflops"]:.4g}; {peak}; {x["of_dense"]:.1%} of a square '
      f'product\'s {x["dense_tflops"]:.4g}'))]


def _breakdown(x):
  share = lambda seconds: f'{seconds / x["step_s"]:.1%}'
  lines = [
      ('profiled', (
          f'{_time(x["step_s"])} a step, without the profiler '
          f'{_time(x["unseen_s"])}')),
      ('by part', _row('', 'time', 'share', 'products', 'GFLOP', 'GB',
                       'GFLOP/s', 'GB/s'))]
  for name, y in x['parts'].items():
    rate = lambda key, y=y: (
        f'{y[key] / y["time_s"] / 1e9:.4g}' if y['time_s'] else '')
    lines.append(('', _row(
        name, _time(y['time_s']), share(y['time_s']), share(y['products_s']),
        f'{y["flops"] / 1e9:.4g}', f'{y["bytes"] / 1e9:.3g}', rate('flops'),
        rate('bytes'))))
  idle = x['step_s'] - x['busy_s']
  return lines + [('', _row('nothing at work', _time(idle), share(idle)))]


def _row(name, *cells):
  return f'{name:31}' + ''.join(f' {cell:>9}' for cell in cells)


def _compiler(x):
  temp, arguments, output, alias = (
      _bytes(x[f'{name}_bytes_per_device'])
      for name in ('temp', 'argument', 'output', 'alias'))
  return [
      ('XLA counts', (
          f'{_flops(x["flops_per_clip"])} and {_bytes(x["bytes_per_clip"])} '
          'moved a clip (loops once)')),
      ('device memory', (
          f'{temp} temporary, {arguments} arguments, {output} results of which '
          f'{alias} in place'))]


def _prepare(x):
  return [('prepare alone', (
      f'{_time(x["median_s"])}, {x["of_step"]:.1%} of the step'))]


def _input(x):
  return [('input alone', (
      f'{x["clips_per_s"]:.4g} clips/s, {_time(x["cpu_s_per_clip"])} of CPU a '
      'clip'))]


def _fed(x):
  return [('step with input', (
      f'{x["clips_per_s"]:.4g} clips/s, {_time(x["step_s"])} a step, '
      f'{x["waiting"]:.1%} of it waiting'))]


def _memory(x):
  return [('peak memory', (
      f'{_bytes(x["device_bytes"])} on the device, '
      f'{_bytes(x["process_bytes"])} of the process'))]


_SMALLER = (
    'Try --config.model.scan_layers=True --config.model.remat=dots (or full), '
    '--config.mesh.fsdp=N to split parameters, more devices, or a smaller '
    '--config.train.batch_size.')


def _device_memory(x):
  had = x['device_bytes']
  total = _gib(x['total_bytes']) + (f' of {_gib(had)}' if had else '')
  if 'message' in x:
    return [('memory a device',
             f'DOES NOT FIT: {total}. {_SMALLER} ({x["message"]})')]
  if had and x['total_bytes'] > had:
    total = f'DOES NOT FIT: {total}. {_SMALLER} It is'
  return [('memory a device', (
      f'{total}: {_gib(x["temp_bytes"])} temporary, '
      f'{_gib(x["argument_bytes"])} arguments, {_gib(x["output_bytes"])} '
      f'results of which {_gib(x["alias_bytes"])} in place, '
      f'{_gib(x["code_bytes"])} code'))]


def _collectives(x):
  if not x:
    return [('collectives', 'none')]
  return [(kind, f'{y["count"]:g} a step, {_bytes(y["bytes"])}')
          for kind, y in sorted(x.items())]


def _compiled(x):
  unknown = f', {x["unknown_loops"]} loop(s) once' if x['unknown_loops'] else ''
  cycles = f'; {x["cycles"]:.4g} cycles a device' if x['cycles'] else ''
  return [('XLA counts', (
      f'{_flops(x["flops_per_device"])} and {_bytes(x["bytes_per_device"])} '
      f'moved a device (loops once){cycles}{unknown}'))]


def _projection(x):
  at = (f'{x["clips_per_s_at_utilisation"]:.4g} clips/s at '
        f'{x["utilisation"]:.0%} of the peak')
  if x['step_s'] is None:
    return [('projected', at)]
  return [('projected', (
      f'{x["clips_per_s"]:.4g} clips/s, {x["of_peak"]:.1%} of the peak: '
      f'{_time(x["compute_s"])} by the compiler and '
      f'{_time(x["collectives_s"])} of collectives a step; {at}. An estimate: '
      'nothing was run'))]


def _gib(number):
  return '-' if number is None else f'{number / 2**30:.2f} GiB'


def _time(seconds):
  return f'{seconds:.3g} s' if seconds >= 1 else f'{1e3 * seconds:.3g} ms'


def _flops(number):
  return '-' if number is None else f'{number / 1e9:.4g} GFLOP'


def _bytes(number):
  return '-' if number is None else f'{number / 1e9:.3g} GB'


_LINES = {
    'start': _start, 'step': _step, 'throughput': _throughput, 'work': _work,
    'compiler': _compiler, 'breakdown': _breakdown, 'prepare': _prepare,
    'input': _input, 'fed': _fed,
    'embed': _embed, 'memory_peak': _memory, 'memory': _device_memory,
    'collectives': _collectives, 'compiled': _compiled,
    'projection': _projection}
