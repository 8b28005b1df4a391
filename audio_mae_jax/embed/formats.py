"""Embeddings on disk: .npz, .parquet, or a folder in the Zarr format.

All hold the same columns, a row for each clip:

  names       text [n]: the file; of a part PATH@STARTs+DURATIONs
  labels      text [n]: where the inputs name them
  versions    text [n]: tells a changed file from the one that was embedded
  seconds     float64 [n]: of audio
  embeddings  float32 [n, D]

and, where frames were asked for, those of all clips one after another:

  frames      float32 [m, D]
  times_s     float64 [m]: their centres, from the start of each clip
  counts      int64 [n]: how many belong to each clip

In .parquet, frames and times_s are lists, one for each row. `settings` (JSON)
say what made them. Files are written and read in blocks of rows, in constant
memory.
"""

from collections.abc import Callable, Iterator
import contextlib
import json
import pathlib
import zipfile

import numpy as np

COLUMNS = ('names', 'labels', 'versions', 'seconds', 'embeddings')
FRAMES = ('frames', 'times_s', 'counts')
_OF_FRAMES = ('frames', 'times_s')  # a row for each frame
_SETTINGS = 'settings'
_ZARR_ROWS = 1024  # of a chunk
_BLOCK_ROWS, _BLOCK_FRAMES = 256, 2**16  # at most, of what is read at once

Rows = dict[str, np.ndarray]  # columns of some rows
# Blocks of rows, from the first each time that it is called; of the columns
# that are named.
Blocks = Callable[[tuple[str, ...]], Iterator[Rows]]


def of(path) -> str:
  """The format that a path stands for: a key of FORMATS.

  Raises:
    ValueError: its suffix is another one.
  """
  suffix = pathlib.Path(path).suffix.lower()
  if suffix not in FORMATS:
    raise ValueError(
        f'{path} has the suffix {suffix}. Embeddings are written as .npz, '
        '.parquet, or to a folder in the Zarr format: .zarr, or no suffix.')
  return suffix


def write(path, blocks: Blocks, columns: tuple[str, ...], settings: dict):
  """Writes `path` in the format of its suffix; it must not exist.

  Raises:
    ImportError: the library for .parquet is not installed.
  """
  FORMATS[of(path)][0](path, blocks, columns, settings)


def read(path, columns: tuple[str, ...] = COLUMNS) -> Rows:
  """These columns of all rows; those that the file has not are left out.

  Raises:
    ValueError: it is no file of embeddings.
  """
  parts = list(read_blocks(path, columns))
  return {name: np.concatenate([rows[name] for rows in parts])
          for name in parts[0]}


def read_blocks(path, columns: tuple[str, ...]) -> Iterator[Rows]:
  """What `read` gives, some rows at a time."""
  return FORMATS[of(path)][1](path, columns)


def read_settings(path) -> dict:
  """What made the embeddings in `path`.

  Raises:
    ValueError: it is no file of embeddings.
  """
  try:
    return json.loads(FORMATS[of(path)][2](path))
  except (EOFError, KeyError, OSError, TypeError, ValueError,
          zipfile.BadZipFile) as error:
    raise ValueError(
        f'{path} is no file of embeddings ({type(error).__name__}: {error}). '
        'They are made by `python -m audio_mae_jax.embed`.') from error


def check(path):
  """Now rather than after hours: raises ImportError for a missing library."""
  if of(path) == '.parquet':
    _pyarrow()


def _lengths(blocks, columns):
  """For each column the shape and type of all its rows together."""
  found = {}
  for rows in blocks(columns):
    for name in columns:
      x = rows[name]
      (count, *_), dtype = found.get(name, ((0,), x.dtype))
      found[name] = ((count + len(x), *x.shape[1:]),
                     np.promote_types(dtype, x.dtype))
  return found


def _write_npz(path, blocks, columns, settings):
  shapes = _lengths(blocks, columns)
  with zipfile.ZipFile(path, 'w') as archive:
    for name, (shape, dtype) in shapes.items():
      with archive.open(f'{name}.npy', 'w', force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(
            file, {'descr': np.lib.format.dtype_to_descr(dtype),
                   'fortran_order': False, 'shape': shape})
        for rows in blocks((name,)):
          file.write(np.ascontiguousarray(rows[name], dtype).tobytes())
    with archive.open(f'{_SETTINGS}.npy', 'w') as file:
      np.lib.format.write_array(file, np.array(json.dumps(settings)))


def _read_npz(path, columns):
  with zipfile.ZipFile(path) as archive, contextlib.ExitStack() as stack:
    there = set(archive.namelist())
    yield from _arrays_in_blocks({
        name: _npy(stack.enter_context(archive.open(f'{name}.npy')))
        for name in dict.fromkeys((*columns, 'counts'))
        if f'{name}.npy' in there}, columns)


def _npy(file):
  """(length, function of (start, stop) -> rows) of an array in a stream; the
  next rows are to be asked for each time."""
  header = {(1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0}
  shape, in_columns, dtype = header[np.lib.format.read_magic(file)](file)
  if in_columns:  # as NumPy saves what was transposed; all of it, then
    whole = np.frombuffer(file.read(), dtype).reshape(shape[::-1]).T
    return shape[0], lambda start, stop: whole[start:stop]
  num_bytes = dtype.itemsize * int(np.prod(shape[1:]))
  return shape[0], lambda start, stop: np.frombuffer(
      file.read((stop - start) * num_bytes), dtype).reshape(-1, *shape[1:])


def _arrays_in_blocks(arrays, columns):
  """Blocks of `arrays`: {name: (length, function of (start, stop) -> rows)}."""
  columns = [name for name in columns if name in arrays]
  counts = None
  if 'counts' in arrays:
    length, read_counts = arrays['counts']
    counts = read_counts(0, length)
    arrays = arrays | {'counts': (length, lambda *at: counts[slice(*at)])}
  total = len(counts) if counts is not None else arrays[columns[0]][0]
  ends = np.zeros(total, int) if counts is None else np.cumsum(counts)
  row = frame = 0
  while row < total:
    # Few rows, and few frames unless one row has more.
    last = int(np.searchsorted(ends, frame + _BLOCK_FRAMES, 'right'))
    last = max(min(row + _BLOCK_ROWS, last), row + 1)
    stop = int(ends[last - 1])
    yield {name: arrays[name][1](*((frame, stop) if name in _OF_FRAMES
                                   else (row, last))) for name in columns}
    row, frame = last, stop


def _settings_of_npz(path):
  with np.load(path) as file:
    return str(file[_SETTINGS])


def _pyarrow():
  try:
    import pyarrow
    import pyarrow.parquet
  except ImportError as error:
    raise ImportError(
        "An output .parquet needs pyarrow: pip install 'audio_mae_jax[embed]'; "
        'or give a name that ends in .npz, or of a folder.') from error
  return pyarrow


def _write_parquet(path, blocks, columns, settings):
  arrow = _pyarrow()
  writer = None
  try:
    for rows in blocks(columns):
      table = arrow.table({
          name: _arrow_column(arrow, rows, name)
          for name in columns if name != 'counts'})
      table = table.replace_schema_metadata({_SETTINGS: json.dumps(settings)})
      writer = writer or arrow.parquet.ParquetWriter(path, table.schema)
      writer.write_table(table)
  finally:
    if writer:
      writer.close()


def _arrow_column(arrow, rows, name):
  x = rows[name]
  if x.ndim == 2:
    flat = arrow.array(np.ascontiguousarray(x).ravel())
    column = arrow.FixedSizeListArray.from_arrays(flat, x.shape[1])
  else:
    column = arrow.array(x.tolist() if x.dtype.kind == 'U' else x)
  if name in FRAMES:
    offsets = np.concatenate([[0], np.cumsum(rows['counts'])])
    column = arrow.ListArray.from_arrays(
        arrow.array(offsets.astype(np.int32)), column)
  return column


def _read_parquet(path, columns):
  with _pyarrow().parquet.ParquetFile(path) as file:
    there = set(file.schema_arrow.names)
    wanted = [name for name in columns if name in there]
    if 'counts' in columns and there.issuperset(_OF_FRAMES):
      wanted = list(dict.fromkeys((*wanted, 'times_s')))
    for i in range(file.num_row_groups):
      found = _columns_of(file.read_row_group(i, wanted))
      yield {name: found[name] for name in columns if name in found}


def _columns_of(table):
  found = {}
  for name in table.column_names:
    column = table[name].combine_chunks()
    if name in _OF_FRAMES:
      found['counts'] = column.value_lengths().to_numpy().astype(np.int64)
      column = column.flatten()
    if hasattr(column.type, 'list_size'):
      found[name] = column.flatten().to_numpy().reshape(
          -1, column.type.list_size)
    else:
      found[name] = column.to_numpy(zero_copy_only=False)
      if found[name].dtype == object:
        found[name] = found[name].astype(str)
  return found


def _settings_of_parquet(path):
  schema = _pyarrow().parquet.read_schema(path)
  return schema.metadata[_SETTINGS.encode()]


def _write_zarr(path, blocks, columns, settings):
  folder = pathlib.Path(path)
  folder.mkdir()
  for name, (shape, dtype) in _lengths(blocks, columns).items():
    _write_zarr_array(folder / name, shape, dtype,
                      (rows[name] for rows in blocks((name,))))
  (folder / '.zattrs').write_text(json.dumps({_SETTINGS: settings}))
  (folder / '.zgroup').write_text(json.dumps({'zarr_format': 2}))


def _write_zarr_array(folder, shape, dtype, parts):
  """An array of Zarr's version 2: its chunks are files of plain bytes."""
  folder.mkdir()
  fill = '' if dtype.kind == 'U' else 0
  chunk = (_ZARR_ROWS, *shape[1:])
  (folder / '.zarray').write_text(json.dumps({
      'zarr_format': 2, 'shape': shape, 'chunks': chunk, 'dtype': dtype.str,
      'compressor': None, 'filters': None, 'fill_value': fill, 'order': 'C'}))
  held, number = np.zeros((0, *shape[1:]), dtype), 0
  last = '.0' * (len(shape) - 1)
  for part in parts:
    held = np.concatenate([held, part.astype(dtype)])
    while len(held) >= _ZARR_ROWS:
      held[:_ZARR_ROWS].tofile(folder / f'{number}{last}')
      held, number = held[_ZARR_ROWS:], number + 1
  if len(held):  # chunks are whole, the last one as well
    full = np.zeros(chunk, dtype)
    full[:len(held)] = held
    full.tofile(folder / f'{number}{last}')


def _read_zarr(path, columns):
  folders = {name: pathlib.Path(path) / name
             for name in dict.fromkeys((*columns, 'counts'))}
  yield from _arrays_in_blocks({
      name: _zarr_array(folder) for name, folder in folders.items()
      if folder.is_dir()}, columns)


def _zarr_array(folder):
  """(length, function of (start, stop) -> rows)."""
  array = json.loads((folder / '.zarray').read_text())
  dtype, (size, *shape) = np.dtype(array['dtype']), array['chunks']
  last, width = '.0' * len(shape), int(np.prod(shape))

  def read(start, stop):
    parts = [np.zeros(0, dtype)]
    while start < stop:
      chunk, skipped = divmod(start, size)
      count = min(stop - start, size - skipped)
      parts.append(np.fromfile(
          folder / f'{chunk}{last}', dtype, count * width,
          offset=skipped * width * dtype.itemsize))
      start += count
    return np.concatenate(parts).reshape(-1, *shape)

  return array['shape'][0], read


def _settings_of_zarr(path):
  attributes = (pathlib.Path(path) / '.zattrs').read_text()
  return json.dumps(json.loads(attributes)[_SETTINGS])


# By suffix: functions that write, read blocks, and read the settings.
FORMATS = {
    '.npz': (_write_npz, _read_npz, _settings_of_npz),
    '.parquet': (_write_parquet, _read_parquet, _settings_of_parquet),
    '.zarr': (_write_zarr, _read_zarr, _settings_of_zarr),
    '': (_write_zarr, _read_zarr, _settings_of_zarr),
}
