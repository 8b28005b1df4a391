"""What the names in a PyTorch checkpoint stand for: arrays, text and dicts."""

import math
import pathlib
import re

import ml_dtypes
import numpy as np

from audio_mae_jax.convert import inert_pickle


class _Kind(inert_pickle.Part):
  """A class of storages."""
  __slots__ = ('dtype',)

  def __init__(self, dtype):
    self.dtype = np.dtype(dtype)


def storage_id(saved_id, length) -> tuple[np.dtype, str, int]:
  """Element type, key and number of elements of a storage's persistent id.

  The id is `('storage', class, key, device, number of elements)`, with a view
  after it before torch 1.6.
  """
  tag = saved_id[0] if saved_id else None
  if tag != 'storage' or len(saved_id) != length:
    raise inert_pickle.Refused(
        f'has a persistent id {ascii(tag)[:50]} of {len(saved_id)} parts')
  _, kind, key, _, num_elements = saved_id[:5]
  if not isinstance(kind, _Kind) or not isinstance(key, str):
    raise ValueError(
        f'the persistent id of a storage has {ascii(kind)[:50]} for a class '
        f'and {ascii(key)[:50]} for a key')
  _check_counts((num_elements,))
  return kind.dtype, key, num_elements


class Storage(inert_pickle.Part):
  """Elements in a row, of which tensors are views."""
  __slots__ = ('_elements',)

  def __init__(self, elements):
    self._elements = elements

  @classmethod
  def of_bytes(cls, data, dtype, *, swapped=False):
    """Of uint8 [n]; swapped when a machine of the other byte order wrote it.

    Copies here and never for a tensor, of which a small file may have many.
    """
    elements = data[:len(data) // dtype.itemsize * dtype.itemsize].view(dtype)
    if dtype.kind == 'b':
      # A damaged byte of 2 would be neither true nor false.
      elements = data != 0
    elif swapped:
      elements = elements.byteswap()
    elif not elements.flags.aligned:
      elements = elements.copy()
    elements.flags.writeable = False
    return cls(elements)

  def part(self, key, start, num_elements):
    """The elements that are a storage of their own to a tensor of torch 0.3."""
    del key
    _check_counts((start, num_elements))
    if start + num_elements > len(self._elements):
      raise ValueError(
          f'a part of a storage, {start} to {start + num_elements}, is not in '
          f'its {len(self._elements)} elements')
    return Storage(self._elements[start:start + num_elements])

  def tensor(self, offset, shape, strides):
    """A read-only array of the elements at `offset` + indices x `strides`."""
    _check_counts((offset, *shape, *strides))
    num, held = math.prod(shape), len(self._elements)
    stop = 1 + offset + sum(
        (n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    # An expanded tensor has more elements than its storage, but not so many
    # that whoever copies it has no memory for them.
    if num and stop > held or num > max(held, inert_pickle.MAX_ENTRIES):
      raise ValueError(
          f'a tensor of shape {shape[:9]}, strides {strides[:9]} and offset '
          f'{offset} does not fit its storage of {held} elements')
    dtype = self._elements.dtype
    if not num:
      return np.empty(shape, dtype)
    return np.ndarray(shape, dtype, self._elements, offset * dtype.itemsize,
                      [stride * dtype.itemsize for stride in strides])


def _check_counts(counts):
  for count in counts:
    if type(count) is not int or not 0 <= count < 2**60:
      raise ValueError(f'{ascii(count)[:50]} is given as a number of elements')


def _tensor(storage, offset, shape, strides, *rest):
  """Of these `rest` are requires_grad, hooks and metadata."""
  if not isinstance(storage, Storage):
    raise ValueError('a tensor has no storage')
  if len(rest) > 2 and rest[2]:
    raise inert_pickle.Refused('has a tensor that is conjugated or negated')
  return storage.tensor(offset, shape, strides)


def _bytes(text, encoding):
  """As Python 3 writes bytes for Python 2."""
  if encoding not in ('latin1', 'latin-1'):
    raise ValueError(f'bytes are encoded by {ascii(encoding)[:50]}')
  return text.encode('latin-1')


def _numpy_dtype(code, *_):
  if not re.fullmatch('b1|[iu][1248]|f[248]|c(8|16)', code):
    raise inert_pickle.Refused(f'has a NumPy dtype {ascii(code)[:50]}')
  return np.dtype(code)


def _numpy_scalar(dtype, data):
  # A str is how Python 2 wrote bytes.
  data = data.encode('latin-1') if isinstance(data, str) else data
  if len(data) != dtype.itemsize:
    raise ValueError(f'a number of type {dtype} has {len(data)} bytes')
  return np.frombuffer(data, dtype)[0].item()


_KINDS = {
    'DoubleStorage': 'f8', 'FloatStorage': 'f4', 'HalfStorage': 'f2',
    'BFloat16Storage': ml_dtypes.bfloat16, 'LongStorage': 'i8',
    'IntStorage': 'i4', 'ShortStorage': 'i2', 'CharStorage': 'i1',
    'ByteStorage': 'u1', 'BoolStorage': 'b1', 'UntypedStorage': 'u1',
    'ComplexFloatStorage': 'c8', 'ComplexDoubleStorage': 'c16'}
_DTYPES = (
    'float64', 'float32', 'float16', 'bfloat16', 'int64', 'int32', 'int16',
    'int8', 'uint8', 'bool', 'complex64', 'complex128')

_VALUES = {
    # torch.cuda of tensors that were saved on a GPU, before torch 1.10.
    f'{module}.{name}': _Kind(dtype)
    for name, dtype in _KINDS.items()
    for module in ('torch', 'torch.cuda', 'torch.storage')}
_VALUES.update({f'torch.{name}': f'torch.{name}' for name in _DTYPES})

_CALLS = {
    'torch._utils._rebuild_tensor': _tensor,
    'torch._utils._rebuild_tensor_v2': _tensor,
    'torch._utils._rebuild_parameter': lambda tensor, *_: tensor,
    'torch._utils._rebuild_parameter_with_state': lambda tensor, *_: tensor,
    'torch.Size': tuple,
    'torch.device': lambda *parts: ':'.join(map(str, parts)),  # 'cuda', 0
    'collections.OrderedDict': dict,
    'collections.Counter': dict,
    'collections.defaultdict': lambda *factory: {},
    'argparse.Namespace': dict,
    '_codecs.encode': _bytes,
    'numpy.dtype': _numpy_dtype,
    'numpy.core.multiarray.scalar': _numpy_scalar,
    'numpy._core.multiarray.scalar': _numpy_scalar,
}
# Of Python 3 and 2.
for _module in ('builtins', '__builtin__'):
  _CALLS.update({
      f'{_module}.set': set, f'{_module}.frozenset': frozenset,
      f'{_module}.dict': dict, f'{_module}.list': list,
      f'{_module}.complex': complex,
      f'{_module}.bytes': lambda: b''})  # others come by _codecs.encode
for _module in ('pathlib', 'pathlib._local'):
  for _name in ('Path', 'PosixPath', 'PurePosixPath'):
    _CALLS[f'{_module}.{_name}'] = (
        lambda *parts: str(pathlib.PurePosixPath(*parts)))
  for _name in ('WindowsPath', 'PureWindowsPath'):
    _CALLS[f'{_module}.{_name}'] = (
        lambda *parts: str(pathlib.PureWindowsPath(*parts)))

NAMES = inert_pickle.Names(_VALUES, _CALLS, {
    'argparse.Namespace': lambda namespace, state: {**namespace, **state},
    # Attributes of a dict that are no entries, e.g. `_metadata` of modules.
    'collections.OrderedDict': lambda mapping, state: mapping,
    # A version, then '<' or '>'.
    'numpy.dtype': lambda dtype, state: dtype.newbyteorder(state[1]),
})
