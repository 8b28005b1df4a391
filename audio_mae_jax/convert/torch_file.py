"""PyTorch checkpoints without PyTorch, and without running what is in them.

`torch.save` writes a pickle, in which names of functions stand for tensors, and
the bytes of the tensors beside it: as records of a zip archive, or before torch
1.6 one after another in one stream. `inert_pickle` reads the pickle, and
`torch_objects` says which names it may have.
"""

import functools
import io
import mmap
import os
import re
import struct
import zipfile
import zlib

import numpy as np

from audio_mae_jax.convert import inert_pickle
from audio_mae_jax.convert import torch_objects

_ZIP = b'PK\3\4'
_PICKLE = re.compile('[^/]+/data[.]pkl')
_TAR = b'ustar'  # at byte 257
_LEGACY_MAGIC = 0x1950a86a20f9469cfc6c
_LEGACY_VERSION = 1001


class UnsafeFile(ValueError):
  """The file asks for more than data; nothing that it asked for was done."""


class DamagedFile(ValueError):
  """The file is no checkpoint of PyTorch, or not a whole one."""


def is_torch_file(path) -> bool:
  """Whether `path` looks as `torch.save` writes a file, if maybe not whole."""
  if not os.path.isfile(path):
    return False
  with open(path, 'rb') as file:
    head = file.read(512)
  if head.startswith(_ZIP):
    # torch puts the pickle first, and so it is found in half a file, too.
    return b'/data.pkl' in head or _has_pickle(path)
  return head[:1] == b'\x80' and _LEGACY_MAGIC.to_bytes(10, 'little') in head


def _has_pickle(path):
  try:
    with zipfile.ZipFile(path) as archive:
      return any(map(_PICKLE.fullmatch, archive.namelist()))
  except MemoryError:
    raise
  except Exception:  # pylint: disable=broad-except
    return False


def read(path):
  """What was saved in `path`, with arrays for tensors.

  Containers are dict, list, tuple, set and frozenset; an argparse.Namespace is
  the dict of its attributes, a path, device or dtype is text. Arrays are
  read-only and mostly views of the file, which is mapped into memory: what is
  not used costs none. The file must stay as it is while they are in use.

  Raises:
    UnsafeFile: it names what is not in `torch_objects.NAMES`.
    DamagedFile: it cannot be read.
  """
  try:
    return _read(path)
  except inert_pickle.Refused as error:
    raise UnsafeFile(
        f'{path} {error}, which is not among the data that is read from '
        'checkpoints: dense tensors, numbers, text, bytes, lists, tuples, '
        'dicts, sets, argparse.Namespace, paths and NumPy scalars. Nothing of '
        'the file was executed. If you trust it, save only the tensors again '
        "where torch is installed, with torch.save(checkpoint['model'], "
        "'model.pth') or as safetensors.") from error
  except (MemoryError, FileNotFoundError, PermissionError):
    raise
  except Exception as error:  # pylint: disable=broad-except
    # A damaged file can fail anywhere in four libraries.
    text = ' '.join(str(error).split())[:300].rstrip('.')
    if type(error) is not ValueError:
      text = f'{type(error).__name__}: {text}'
    raise DamagedFile(
        f'{path} cannot be read as a PyTorch checkpoint: {text}. Give a file '
        'written by torch.save; if it is one, it is damaged or cut short: copy '
        'or download it again.') from error


def _read(path):
  if os.path.isdir(path):
    raise ValueError('it is a folder')
  if not os.path.getsize(path):
    raise ValueError('it is empty')
  with open(path, 'rb') as file:
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if mapped[:4] == _ZIP:
      return _read_zip(file, np.frombuffer(mapped, np.uint8))
  if mapped[257:262] == _TAR:
    raise ValueError(
        'it has the tar format of torch 0.1; load it with a later torch and '
        'save it again')
  if mapped[:1] != b'\x80':
    raise ValueError(f'it begins with {mapped[:16]!r}')
  return _read_stream(mapped)


def _read_zip(file, data):
  """Of an archive: FOLDER/data.pkl, FOLDER/data/KEY, and some small ones."""
  entries = _entries(file)

  def record(name):
    if name not in entries:
      raise ValueError(f'it has no record {name!r}')
    return _record(data, entries[name])

  order = 'little'
  if 'byteorder' in entries:
    order = record('byteorder').tobytes().decode('latin-1')
  if order not in ('little', 'big'):
    raise ValueError(f"its byte order is {order!r}, not 'little' or 'big'")

  @functools.cache
  def storage(dtype, key, num_elements):
    held = record(f'data/{key}')
    # What is left of a last element is no part of the storage.
    if len(held) // dtype.itemsize != num_elements:
      raise ValueError(
          f'storage {key!r} has {len(held)} bytes, not {num_elements} elements '
          f'of type {dtype}')
    return torch_objects.Storage.of_bytes(held, dtype, swapped=order == 'big')

  tree, _ = inert_pickle.parse(
      io.BytesIO(record('data.pkl')), torch_objects.NAMES)
  return inert_pickle.build(
      tree, torch_objects.NAMES,
      lambda *saved_id: storage(*torch_objects.storage_id(saved_id, 5)))


def _entries(file) -> dict[str, zipfile.ZipInfo]:
  """The entries of an archive, by their names in its only folder."""
  with zipfile.ZipFile(file) as archive:
    found = archive.infolist()
  folders = [info.filename[:-len('/data.pkl')] for info in found
             if _PICKLE.fullmatch(info.filename)]
  if len(folders) != 1:
    raise ValueError(f'it is an archive with {len(folders)} data.pkl, not one')
  entries = {}
  for info in found:
    folder, _, name = info.filename.partition('/')
    if folder != folders[0] or '..' in name.split('/'):
      raise ValueError(f'its record {info.filename!r} is not in {folders[0]!r}')
    if name in entries:
      raise ValueError(f'it has two records {name!r}')
    if name == 'constants.pkl' or name.startswith('code/'):
      raise inert_pickle.Refused(f'has a TorchScript program, {name}')
    # `torch.save` never compresses; a small file could swell to any size.
    if (info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1
        or info.file_size != info.compress_size):
      raise ValueError(
          f'its record {name!r} is compressed or encrypted; pack the archive '
          'again without')
    entries[name] = info
  return entries


def _record(data, info):
  """The bytes of a record, as a view."""
  start = info.header_offset
  header = data[start:start + 30].tobytes()
  if not header.startswith(_ZIP):
    raise ValueError(f'record {info.filename!r} has no header')
  # In front of the bytes, of which `info` does not know the length.
  start += 30 + sum(struct.unpack('<26xHH', header))
  held = data[start:start + info.file_size]
  if len(held) != info.file_size:
    raise ValueError(f'record {info.filename!r} ends after the file')
  # torch writes 0 where told not to spend the time.
  if info.CRC and zlib.crc32(held) != info.CRC:
    raise ValueError(f'record {info.filename!r} differs from its checksum')
  return held


def _read_stream(mapped):
  """Of a file from before torch 1.6: five pickles, then the storages."""
  magic, version, _ = (
      inert_pickle.build(inert_pickle.parse(mapped)[0]) for _ in range(3))
  if magic != _LEGACY_MAGIC or version != _LEGACY_VERSION:
    raise ValueError(
        f'it is a pickle, but begins with {ascii(magic)[:50]}, version '
        f'{ascii(version)[:50]}')
  tree, saved_ids = inert_pickle.parse(mapped, torch_objects.NAMES)
  keys = inert_pickle.build(inert_pickle.parse(mapped)[0])
  storages = _storages(mapped, keys, _sizes(saved_ids))

  def storage(*saved_id):
    _, key, _ = torch_objects.storage_id(saved_id, 6)
    if key not in storages:
      raise ValueError(f'it has no storage {key!r}')
    view = saved_id[-1]
    return storages[key] if view is None else storages[key].part(*view)

  return inert_pickle.build(tree, torch_objects.NAMES, storage)


def _sizes(saved_ids):
  """Of each key the type and number of elements, which its bytes follow."""
  sizes = {}

  def note(*saved_id):
    dtype, key, num_elements = torch_objects.storage_id(saved_id, 6)
    size = dtype, num_elements
    if sizes.setdefault(key, size) != size:
      raise ValueError(f'storage {key!r} has two sizes or types')

  for saved_id in saved_ids:
    inert_pickle.build(saved_id, torch_objects.NAMES, note)
  return sizes


def _storages(mapped, keys, sizes):
  """From where `mapped` was read to: of each key a count and the elements."""
  data, start, storages = np.frombuffer(mapped, np.uint8), mapped.tell(), {}
  for key in keys:
    if key not in sizes:
      raise ValueError(f'storage {key!r} belongs to no tensor')
    dtype, num_elements = sizes[key]
    stop = start + 8 + num_elements * dtype.itemsize
    if stop > len(data):
      raise ValueError(f'it ends in storage {key!r}')
    if mapped[start:start + 8] != struct.pack('<q', num_elements):
      raise ValueError(f'storage {key!r} does not have {num_elements} elements')
    # Little-endian, whatever machine wrote it.
    storages[key] = torch_objects.Storage.of_bytes(
        data[start + 8:stop], dtype)
    start = stop
  return storages
