"""Checkpoints of torch without torch: what was saved, and nothing else."""

import argparse
import collections
import copyreg
import io
import os
import pathlib
import pickle
import re
import struct
import sys
import tarfile
import tracemalloc
import types
import zipfile

import goldens
import ml_dtypes
import numpy as np
import pytest
import reference

from audio_mae_jax.convert import inert_pickle
from audio_mae_jax.convert import torch_file
from audio_mae_jax.convert import torch_objects

ZIP = goldens.FOLDER / 'ckpt_pretrain_tiny.pth'
LEGACY = goldens.FOLDER / 'ckpt_pretrain_tiny_legacy.pth'
MAGIC = 0x1950a86a20f9469cfc6c


class Raw(bytes):
  """Opcodes that leave one thing on the stack."""


def say(thing):
  """The opcodes that make `thing`, in which there may be opcodes."""
  if isinstance(thing, Raw):
    return thing
  if type(thing) is tuple:
    return Raw(b'(' + b''.join(map(say, thing)) + b't')
  if type(thing) is list:
    return Raw(b'](' + b''.join(map(say, thing)) + b'e')
  if type(thing) is dict:
    parts = [say(part) for item in thing.items() for part in item]
    return Raw(b'}(' + b''.join(parts) + b'u')
  return Raw(pickle.dumps(thing, 2)[2:-1])


def pickled(thing):
  return b'\x80\x02' + say(thing) + b'.'


def name(dotted):
  module, _, attribute = dotted.rpartition('.')
  return Raw(f'c{module}\n{attribute}\n'.encode())


def call(dotted, *arguments):
  return Raw(name(dotted) + say(arguments) + b'R')


def storage(key='0', count=6, kind='Float', view=()):
  return Raw(say(('storage', name(f'torch.{kind}Storage'), key, 'cpu', count,
                  *view)) + b'Q')


def tensor(stored=None, offset=0, shape=(2, 3), strides=(3, 1), *more):
  return call('torch._utils._rebuild_tensor_v2', stored or storage(), offset,
              shape, strides, False, call('collections.OrderedDict'), *more)


SIX = np.arange(6, dtype=np.float32)


def write_zip(path, tree, stored=None, extra=(), folder='archive',
              order=b'little', compression=zipfile.ZIP_STORED):
  """An archive as of torch.save; `tree` is bytes for a pickle as it is."""
  stored = {'0': SIX} if stored is None else stored
  records = [('data.pkl', tree if type(tree) is bytes else pickled(tree)),
             ('byteorder', order)]
  records += [(f'data/{key}', array.tobytes()) for key, array in stored.items()]
  records = [(f'{folder}/{record}', data) for record, data in records]
  with zipfile.ZipFile(path, 'w', compression) as archive:
    for record, data in [*records, *extra]:
      info = zipfile.ZipInfo(record)
      info.compress_type = compression
      # As torch does it, bytes begin at a multiple of 64.
      pad = -(archive.fp.tell() + 34 + len(record)) % 64
      info.extra = b'FB' + struct.pack('<H', pad) + b'Z' * pad
      archive.writestr(info, data)
  return path


def write_stream(path, tree, stored=None, head=(MAGIC, 1001, {}), keys=None):
  """A file as of torch.save before 1.6."""
  stored = {'0': SIX} if stored is None else stored
  data = b''.join(map(pickled, (*head, tree)))
  data += pickled(list(stored) if keys is None else keys)
  for array in stored.values():
    data += struct.pack('<q', array.size) + array.tobytes()
  path.write_bytes(data)
  return path


def legacy_storage(view=None, **settings):
  return storage(view=(view,), **settings)


@pytest.fixture(params=['zip', 'stream'])
def write(request, tmp_path):
  """Writes a tree whose tensors are made by the given function of storages."""

  def write(tree, stored=None):
    if request.param == 'zip':
      return write_zip(tmp_path / 'a.pth', tree(storage), stored)
    return write_stream(tmp_path / 'a.pth', tree(legacy_storage), stored)

  return write


def assert_same(found, expected):
  """Equal in values, types, and the types of what is inside."""
  assert type(found) is type(expected), (found, expected)
  if isinstance(expected, dict):
    assert list(found) == list(expected)
    for key in expected:
      assert_same(found[key], expected[key])
  elif isinstance(expected, (list, tuple)):
    assert len(found) == len(expected)
    for pair in zip(found, expected):
      assert_same(*pair)
  elif isinstance(expected, np.ndarray):
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()
  else:
    assert found == expected


def refused(path, error, message=''):
  """Checks that `read` raises `error`, naming the file and the remedy."""
  with pytest.raises(error, match=re.escape(message) or None) as caught:
    torch_file.read(path)
  text = str(caught.value)
  assert text.startswith(str(path))
  if error is torch_file.UnsafeFile:
    assert 'Nothing of the file was executed.' in text
    assert "torch.save(checkpoint['model'], 'model.pth')" in text
  else:
    assert 'copy or download it again.' in text
  assert len(text) < 1000


# What is read.


@pytest.mark.parametrize('path', [ZIP, LEGACY])
def test_the_released_codes_checkpoints_hold_the_golden_parameters(path):
  assert torch_file.is_torch_file(path)
  found = torch_file.read(path)
  assert type(found) is dict
  golden = goldens.under(
      goldens.read('local_params_0', 'local_params_1'), 'param/')
  if path == LEGACY:
    golden = {key: array for key, array in golden.items()
              if not key.startswith('decoder/blocks')}
  model = {}
  for released, array in found['model'].items():
    assert type(array) is np.ndarray
    assert not array.flags.writeable
    ours = reference.rename(released)
    if ours is not None:
      model[ours] = reference.convert(array, ours)
  assert model.keys() == golden.keys()
  for key, array in golden.items():
    np.testing.assert_array_equal(model[key], array)


def test_what_is_saved_beside_the_model_is_read_too():
  found = torch_file.read(ZIP)
  assert list(found) == ['model', 'optimizer', 'epoch', 'scaler', 'args']
  assert found['epoch'] == 32
  assert found['scaler']['scale'] == 65536.0
  assert type(found['args']) is dict
  assert found['args']['mask_ratio'] == 0.8
  state = found['optimizer']['state'][199]
  assert state['exp_avg'].shape == state['exp_avg_sq'].shape == (1, 1, 48)
  assert state['step'].shape == ()


@pytest.mark.parametrize('kind, dtype', [
    ('Double', 'f8'), ('Float', 'f4'), ('Half', 'f2'),
    ('BFloat16', ml_dtypes.bfloat16), ('Long', 'i8'), ('Int', 'i4'),
    ('Short', 'i2'), ('Char', 'i1'), ('Byte', 'u1'), ('Bool', '?'),
    ('ComplexFloat', 'c8'), ('ComplexDouble', 'c16')])
def test_every_type_of_element_is_read(write, kind, dtype):
  array = np.arange(6).reshape(2, 3).astype(dtype)
  path = write(lambda stored: tensor(stored(kind=kind)), {'0': array})
  assert_same(torch_file.read(path), array)


@pytest.mark.parametrize('offset, shape, strides', [
    (0, (3, 2), (1, 3)),  # transposed
    (1, (2,), (3,)),
    (5, (), ()),
    (2, (4, 3), (0, 0)),  # expanded
    (0, (5, 2), (1, 1)),  # overlapping
    (0, (1, 6), (999, 1)),
    (6, (0, 5), (5, 1)),
    (0, (0,), (1,))])
def test_tensors_are_views_of_their_storage(write, offset, shape, strides):
  path = write(lambda stored: tensor(stored(), offset, shape, strides))
  found = torch_file.read(path)
  assert found.shape == shape
  assert found.dtype == np.float32
  for index in np.ndindex(*shape):
    assert found[index] == offset + np.dot(index, strides)


def test_a_tensor_without_elements_has_an_empty_storage(write):
  path = write(lambda stored: tensor(stored(count=0), 0, (0, 4), (4, 1)),
               {'0': SIX[:0]})
  assert torch_file.read(path).shape == (0, 4)


def test_names_of_one_storage_share_memory(write):
  found = torch_file.read(write(lambda stored: {
      'embed': tensor(stored()), 'head': tensor(stored()),
      'row': tensor(stored(), 3, (3,), (1,))}))
  assert_same(found['head'], SIX.reshape(2, 3))
  assert_same(found['row'], SIX[3:])
  assert np.shares_memory(found['embed'], found['head'])
  assert np.shares_memory(found['embed'], found['row'])
  for array in found.values():
    with pytest.raises(ValueError, match='read-only'):
      array[0] = 1


def test_big_endian_archives_are_read(tmp_path):
  path = write_zip(
      tmp_path / 'a.pth',
      {'float': tensor(), 'half': tensor(storage('1', kind='BFloat16'))},
      {'0': SIX.byteswap(),
       '1': SIX.astype(ml_dtypes.bfloat16).view(np.uint16).byteswap()},
      order=b'big')
  assert_same(torch_file.read(path), {
      'float': SIX.reshape(2, 3),
      'half': SIX.reshape(2, 3).astype(ml_dtypes.bfloat16)})


def test_storages_of_the_cuda_classes_and_old_names_are_read(tmp_path):
  kind = name('torch.cuda.FloatStorage')
  stored = Raw(say(('storage', kind, '0', 'cuda:0', 6)) + b'Q')
  old = call('torch._utils._rebuild_tensor', stored, 0, (2, 3), (3, 1))
  hooks = call('collections.OrderedDict')
  path = write_zip(tmp_path / 'a.pth', [
      old, call('torch._utils._rebuild_parameter', old, True, hooks),
      call('torch._utils._rebuild_parameter_with_state', old, True, hooks, {}),
      tensor(stored, 0, call('torch.Size', (2, 3)), (3, 1), {})])
  assert_same(torch_file.read(path), [SIX.reshape(2, 3)] * 4)


def test_a_part_of_a_storage_may_be_a_storage_of_its_own(tmp_path):
  path = write_stream(
      tmp_path / 'a.pth',
      tensor(legacy_storage(view=('7', 2, 4)), 1, (3,), (1,)))
  assert_same(torch_file.read(path), SIX[3:])


def test_bool_bytes_are_true_or_false(tmp_path):
  path = write_zip(tmp_path / 'a.pth', tensor(storage(kind='Bool')),
                   {'0': np.array([0, 1, 2, 255, 0, 7], np.uint8)})
  found = torch_file.read(path)
  assert found.tobytes() == bytes([0, 1, 1, 1, 0, 1])


PLAIN = {
    'none': None, 'true': True, 'false': False, 'int': -5, 'large': 2**70,
    'float': 0.25, 'text': 'Gerät', 'list': [1, [2]], 'tuple': (1, (2, 3, 4)),
    'four': (1, 2, 3, 4), 'dict': {1: 'a', (1, 2): 'b'}, 'bytes': b'\0\xff',
    'no_bytes': b'', 'set': {1, 2}, 'frozen': frozenset({'a'}),
    'complex': 1 + 2j, 'empty': [(), {}, [], set()]}


@pytest.mark.parametrize('protocol', range(6))
def test_plain_values_come_back_in_every_protocol(tmp_path, protocol):
  path = write_zip(tmp_path / 'a.pth', pickle.dumps(PLAIN, protocol))
  assert_same(torch_file.read(path), PLAIN)


def test_other_containers_come_back_as_plain_ones(tmp_path):
  ordered = collections.OrderedDict(a=1, b=2)
  ordered._metadata = {'version': 1}  # as a state_dict has
  saved = {
      'ordered': ordered, 'count': collections.Counter('aab'),
      'default': collections.defaultdict(dict, {'a': {}}),
      'args': argparse.Namespace(lr=0.1, sub=argparse.Namespace(x=1)),
      'none': argparse.Namespace(),
      'path': pathlib.PurePosixPath('/a/b'),
      'windows': pathlib.PureWindowsPath('c:/a')}
  expected = {
      'ordered': {'a': 1, 'b': 2}, 'count': {'a': 2, 'b': 1},
      'default': {'a': {}}, 'args': {'lr': 0.1, 'sub': {'x': 1}}, 'none': {},
      'path': '/a/b', 'windows': 'c:\\a'}
  for protocol in (2, 4):
    path = write_zip(tmp_path / 'a.pth', pickle.dumps(saved, protocol))
    assert_same(torch_file.read(path), expected)


def test_torchs_own_small_types_come_back_as_text_and_tuples(tmp_path):
  path = write_zip(tmp_path / 'a.pth', [
      call('torch.device', 'cuda', 1), call('torch.device', 'cpu'),
      name('torch.bfloat16'), call('torch.Size', (2, 3))])
  assert_same(torch_file.read(path),
              ['cuda:1', 'cpu', 'torch.bfloat16', (2, 3)])


@pytest.mark.parametrize('number', [
    np.float64(0.1), np.float32(0.5), np.int64(-3), np.uint8(7), np.bool_(True),
    np.complex128(1j), np.dtype('>f4').type(2)])
@pytest.mark.parametrize('protocol', [2, 4])
def test_numpy_numbers_come_back_as_python_numbers(tmp_path, number, protocol):
  path = write_zip(tmp_path / 'a.pth', pickle.dumps([number], protocol))
  assert_same(torch_file.read(path), [number.item()])


def test_numbers_of_the_other_byte_order_and_of_python_2_are_read(tmp_path):
  kind = Raw(call('numpy.dtype', 'f4', False, True)
             + say((3, '>', None, None, None, -1, -1, 0)) + b'b')
  data = Raw(b'U\x04' + struct.pack('>f', 1.5))
  path = write_zip(
      tmp_path / 'a.pth', [call('numpy.core.multiarray.scalar', kind, data)])
  assert_same(torch_file.read(path), [1.5])
  path = write_zip(tmp_path / 'a.pth', call(
      'collections.OrderedDict', [['a', 1], ['b', call('__builtin__.set', [2])
                                             ]]))
  assert_same(torch_file.read(path), {'a': 1, 'b': {2}})


def test_stack_opcodes_that_savers_seldom_use_are_understood(tmp_path):
  path = write_zip(
      tmp_path / 'a.pth', b'\x80\x02(K\x01K\x022K\x03(K\x091(K\x08K\x0700l0t.')
  assert torch_file.read(path) == (1, 2, 2, 3)


def test_a_checksum_of_zero_is_none(tmp_path):
  # As torch.serialization.set_crc32_options(False) writes them.
  path = write_zip(tmp_path / 'a.pth', tensor())
  data = bytearray(path.read_bytes())
  for match in list(re.finditer(b'PK\1\2', data)):
    data[match.start() + 16:match.start() + 20] = bytes(4)
  path.write_bytes(data)
  assert_same(torch_file.read(path), SIX.reshape(2, 3))


def test_bytes_that_are_no_whole_element_are_left_out(tmp_path):
  path = write_zip(tmp_path / 'a.pth', tensor(),
                   {'0': np.frombuffer(SIX.tobytes() + b'ab', np.uint8)})
  assert_same(torch_file.read(path), SIX.reshape(2, 3))


def test_tensors_cost_no_memory_until_they_are_used(tmp_path):
  large = np.ones(2**22, np.float32)
  path = write_zip(
      tmp_path / 'a.pth',
      tensor(storage(count=large.size), 0, large.shape, (1,)), {'0': large})
  tracemalloc.start()
  try:
    found = torch_file.read(path)
    assert tracemalloc.get_traced_memory()[1] < large.nbytes / 8
  finally:
    tracemalloc.stop()
  assert_same(found, large)


def test_a_file_is_recognised_by_its_first_bytes(tmp_path):
  path = write_zip(tmp_path / 'zip', {})
  assert torch_file.is_torch_file(path)
  path.write_bytes(path.read_bytes()[:200])  # so that reading it says why
  assert torch_file.is_torch_file(path)
  assert torch_file.is_torch_file(write_stream(tmp_path / 'legacy', {}))
  with zipfile.ZipFile(tmp_path / 'repacked', 'w') as archive:
    archive.writestr('archive/', b'')
    archive.writestr('archive/data/0', bytes(1000))
    archive.writestr('archive/data.pkl', b'')
  assert torch_file.is_torch_file(tmp_path / 'repacked')
  (tmp_path / 'half').write_bytes(b'PK\3\4')
  np.savez(tmp_path / 'a.npz', a=1)
  (tmp_path / 'text').write_text('a')
  (tmp_path / 'pickle').write_bytes(pickled({}))
  (tmp_path / 'empty').touch()
  for other in ('half', 'a.npz', 'text', 'pickle', 'empty', 'missing', '.'):
    assert not torch_file.is_torch_file(tmp_path / other)


# What could run.


@pytest.fixture
def proof(tmp_path):
  """A file that the payloads would make."""
  return tmp_path / 'it_ran'


def payloads(proof):
  touch = f"open({str(proof)!r}, 'w')"
  return {
      'posix.system': call('posix.system', f'touch {proof}'),
      'builtins.eval': call('builtins.eval', touch),
      '__builtin__.eval': call('__builtin__.eval', touch),
      'builtins.exec': call('builtins.exec', touch),
      'builtins.open': call('builtins.open', str(proof), 'w'),
      'pathlib.Path.touch': Raw(
          b'\x8c\x07pathlib\x8c\x0aPath.touch\x93'
          + say((call('pathlib.PosixPath', str(proof)),)) + b'R')}


PAYLOADS = list(payloads('it_ran'))


@pytest.mark.parametrize('payload', PAYLOADS)
def test_the_payloads_here_do_run_where_they_are_allowed_to(payload, proof):
  said = payloads(proof)[payload].replace(b'__builtin__', b'builtins')
  pickle.loads(b'\x80\x04' + said + b'.')
  assert proof.exists()


PLACES = {
    'alone': lambda it: it,
    'a list': lambda it: [1, [it]],
    'a key': lambda it: {it: 1},
    'what is dropped': lambda it: Raw(it + b'0N'),
    'the arguments of a tensor': lambda it: tensor(storage(), it),
    'the shape of a tensor': lambda it: tensor(storage(), 0, it),
    'the hooks of a tensor': lambda it: tensor(
        storage(), 0, (2, 3), (3, 1), it),
    'a storage class': lambda it: Raw(
        say(('storage', it, '0', 'cpu', 6)) + b'Q'),
    'a key of a storage': lambda it: tensor(storage(key=it)),
    'a persistent id': lambda it: Raw(it + b'Q'),
    'attributes': lambda it: Raw(
        name('argparse.Namespace') + b')\x81' + say({'a': it}) + b'b'),
    'a default': lambda it: call('collections.defaultdict', it),
}


@pytest.mark.parametrize('place', PLACES)
@pytest.mark.parametrize('payload', PAYLOADS)
def test_nothing_runs_wherever_it_stands(tmp_path, proof, payload, place):
  tree = PLACES[place](payloads(proof)[payload])
  for path in (write_zip(tmp_path / 'a.pth', tree),
               write_stream(tmp_path / 'b.pth', tree)):
    refused(path, torch_file.UnsafeFile, f'asks for {payload}, which is not')
    assert not proof.exists()


@pytest.mark.parametrize('at', range(5))
def test_nothing_runs_in_any_pickle_of_a_stream(tmp_path, proof, at):
  parts = [MAGIC, 1001, {}, {}, []]
  parts[at] = payloads(proof)['posix.system']
  path = write_stream(tmp_path / 'a.pth', parts[3], head=parts[:3],
                      keys=parts[4])
  refused(path, torch_file.UnsafeFile, 'asks for posix.system')
  assert not proof.exists()


@pytest.mark.parametrize('dotted', [
    'os.system', 'nt.system', 'subprocess.Popen', 'builtins.getattr',
    'builtins.__import__', 'builtins.object', 'operator.attrgetter',
    'functools.partial', 'pickle.loads', 'torch.load', 'torch.hub.load',
    'torch.storage._load_from_bytes', 'numpy.load', '_codecs.decode',
    'copyreg._reconstructor', 'types.FunctionType', 'importlib.import_module',
    'torch.os.system', 'torch._utils.__builtins__', 'this.d',
    'collections.OrderedDict.__init__.__globals__', 'torch.nn.Linear', '.', ''])
def test_only_known_names_are_allowed_however_they_are_written(
    tmp_path, dotted):
  before = set(sys.modules)
  ways = [name(dotted)]
  for cut in [i for i, letter in enumerate(dotted) if letter == '.']:
    ways.append(Raw(say(dotted[:cut]) + say(dotted[cut + 1:]) + b'\x93'))
  for way in ways:
    path = write_zip(tmp_path / 'a.pth', b'\x80\x04' + way + b'.')
    refused(path, torch_file.UnsafeFile, 'asks for ')
  assert set(sys.modules) == before


TOUCH = b"(S'touch %s'\n"


@pytest.mark.parametrize('opcodes, message', [
    (TOUCH + b'iposix\nsystem\n.', 'asks for posix.system'),
    (b'(S"touch %s"\niargparse\nNamespace\n.',
     'makes an instance of argparse.Namespace by opcode INST'),
    (b"(cposix\nsystem\nS'touch %s'\no.", 'asks for posix.system'),
    (b"(cargparse\nNamespace\nS'touch %s'\no.", 'uses the pickle opcode OBJ'),
    (b"\x82\xf0(S'touch %s'\ntR.", 'uses the pickle opcode EXT1'),
    (b"\x83\xf0\0(S'touch %s'\ntR.", 'uses the pickle opcode EXT2'),
    (b"\x84\xf0\0\0\0(S'touch %s'\ntR.", 'uses the pickle opcode EXT4'),
    (b"cposix\nsystem\n(S'touch %s'\nt\x81.", 'asks for posix.system'),
    (b"cargparse\nNamespace\n(S'touch %s'\nt}\x92.",
     'uses the pickle opcode NEWOBJ_EX'),
    (b"Pposix.system('touch %s')\n.", 'has a persistent id of type str'),
    (b"(S'module'\nS'touch %s'\ntQ.",
     "has a persistent id 'module' of 2 parts"),
    (b")S'touch %s'\n0Q.", 'has a persistent id None of 0 parts'),
    # A callable that is allowed gets another body, or is called twice.
    (b"ctorch._utils\n_rebuild_tensor_v2\n}(S'__code__'\nS'touch %s'\nub.",
     'sets the state of torch._utils._rebuild_tensor_v2'),
    (b"ctorch\nSize\n)R}(S'__class__'\nS'touch %s'\nub.",
     'sets the state of torch.Size'),
    (b"}}(S'__class__'\nS'touch %s'\nub.", 'sets the state of what has none'),
    (b"NS'touch %s'\nb.", 'sets the state of what has none'),
    (b"ctorch\nSize\n)R(S'touch %s'\ntR.", 'calls what is not a name'),
    (b"S'posix.system'\n(S'touch %s'\ntR.", 'calls what is not a name'),
    (b"ctorch\nFloatStorage\n(S'touch %s'\ntR.", 'calls torch.FloatStorage'),
    (b"ctorch\nfloat32\n(S'touch %s'\ntR.", 'calls torch.float32'),
    # The memo says another thing than what was put.
    (b"cposix\nsystem\nq\0ctorch\nSize\n0h\0(S'touch %s'\ntR.",
     'asks for posix.system'),
    (b"S'posix system'\nq\0ctorch\nSize\nq\x010h\0(S'touch %s'\ntR.",
     'calls what is not a name'),
])
def test_no_opcode_runs_anything(tmp_path, proof, opcodes, message):
  copyreg.add_extension('posix', 'system', 0xf0)
  try:
    data = opcodes.replace(b'%s', str(proof).encode())
    refused(write_zip(tmp_path / 'a.pth', data), torch_file.UnsafeFile, message)
  finally:
    copyreg.remove_extension('posix', 'system', 0xf0)
  assert not proof.exists()


@pytest.mark.parametrize('tree, message', [
    (name('torch.FloatStorage'), 'has kind where data belongs'),
    (name('torch.Size'), 'has torch.Size where data belongs'),
    ([name('builtins.dict')], 'has builtins.dict where data belongs'),
    ({'a': storage()}, 'has storage where data belongs'),
    ({'a': (1, (storage(),))}, 'has parts where data belongs'),
    (call('torch._utils._rebuild_parameter', storage(), True, {}),
     'has storage where data belongs'),
    (call('numpy.dtype', 'O', False, True), "has a NumPy dtype 'O'"),
    (call('numpy.dtype', 'V8', False, True), "has a NumPy dtype 'V8'"),
    (call('torch._utils._rebuild_sparse_tensor', 1),
     'asks for torch._utils._rebuild_sparse_tensor'),
    (call('torch._utils._rebuild_qtensor', 1),
     'asks for torch._utils._rebuild_qtensor'),
    (tensor(storage(), 0, (2, 3), (3, 1), {'conj': True}),
     'has a tensor that is conjugated or negated'),
])
def test_what_is_no_data_is_refused(tmp_path, tree, message):
  refused(write_zip(tmp_path / 'a.pth', tree), torch_file.UnsafeFile, message)


def test_a_torchscript_program_is_refused(tmp_path):
  for record in ('constants.pkl', 'code/__torch__.py'):
    path = write_zip(
        tmp_path / 'a.pth', {}, extra=[(f'archive/{record}', b'')])
    refused(path, torch_file.UnsafeFile, f'has a TorchScript program, {record}')


def test_nothing_of_one_file_is_left_in_the_next(tmp_path):
  before = [dict(table) for table in torch_objects.NAMES]
  good = write_zip(tmp_path / 'good.pth', [call('collections.OrderedDict')])
  mean = write_zip(tmp_path / 'mean.pth', b'\x80\x02' + Raw(
      call('collections.OrderedDict') + b'q\0' + say({'update': 1})
      + b'b(K\x01K\x02u.'))
  assert torch_file.read(mean) == {1: 2}
  first = torch_file.read(good)
  first[0]['mine'] = 1
  assert torch_file.read(good) == [{}]
  memo = write_zip(tmp_path / 'memo.pth', b'\x80\x02h\0.')
  refused(memo, torch_file.DamagedFile, 'KeyError: 0')
  assert [dict(table) for table in torch_objects.NAMES] == before


# What is damaged, or claims to be what it is not.


def test_a_missing_file_is_said_to_be_missing(tmp_path):
  with pytest.raises(FileNotFoundError, match='nothing.pth'):
    torch_file.read(tmp_path / 'nothing.pth')


def test_lack_of_memory_is_no_damage(tmp_path, monkeypatch):
  def parse(*_):
    raise MemoryError
  monkeypatch.setattr(inert_pickle, 'parse', parse)
  with pytest.raises(MemoryError):
    torch_file.read(write_zip(tmp_path / 'a.pth', {}))


def test_what_is_no_checkpoint_is_refused(tmp_path):
  refused(tmp_path, torch_file.DamagedFile, 'it is a folder')
  path = tmp_path / 'a.pth'
  for data, message in (
      (b'', 'it is empty'),
      (b'version https://git-lfs', "it begins with b'version https://"),
      (b'\x80\x02', 'pickle exhausted'),
      (pickled({'a': 1}) * 3, "it is a pickle, but begins with {'a': 1}"),
      (pickled(MAGIC) + pickled(1002) + pickled({}), 'version 1002'),
      (b'PK\3\4' + bytes(50), 'File is not a zip file')):
    path.write_bytes(data)
    refused(path, torch_file.DamagedFile, message)
  np.savez(path.with_suffix('.npz'), a=1)
  refused(path.with_suffix('.npz'), torch_file.DamagedFile,
          'it is an archive with 0 data.pkl, not one')
  with tarfile.open(path, 'w') as tar:
    tar.addfile(tarfile.TarInfo('storages'), io.BytesIO())
  refused(path, torch_file.DamagedFile,
          'it has the tar format of torch 0.1; load it with a later torch and')


@pytest.mark.parametrize('settings, message', [
    (dict(extra=[('other/data.pkl', b'')]), 'with 2 data.pkl, not one'),
    (dict(extra=[('other/x', b'')]), "record 'other/x' is not in 'archive'"),
    (dict(extra=[('x', b'')]), "record 'x' is not in 'archive'"),
    (dict(extra=[('/etc/x', b'')]), "record '/etc/x' is not in 'archive'"),
    (dict(extra=[('archive/../x', b'')]), "record 'archive/../x' is not in"),
    (dict(compression=zipfile.ZIP_DEFLATED),
     "record 'data.pkl' is compressed or encrypted; pack the archive again"),
    (dict(order=b'middle'), "its byte order is 'middle', not 'little' or"),
    (dict(stored={}), "it has no record 'data/0'"),
    (dict(stored={'0': SIX[:5]}),
     "storage '0' has 20 bytes, not 6 elements of type float32"),
    (dict(stored={'0': np.arange(7.0)}), "storage '0' has 56 bytes, not 6"),
])
def test_a_wrong_archive_is_refused(tmp_path, settings, message):
  path = write_zip(tmp_path / 'a.pth', tensor(), **settings)
  refused(path, torch_file.DamagedFile, message)


@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_two_records_of_one_name_are_refused(tmp_path):
  path = write_zip(tmp_path / 'a.pth', tensor(),
                   extra=[('archive/data/0', b'')])
  refused(path, torch_file.DamagedFile, "it has two records 'data/0'")


@pytest.mark.parametrize('at, data, message', [
    (42, b'\x01', "record 'archive/data/0' has no header"),
    (8, b'\x01', "record 'data/0' is compressed or encrypted"),
    (20, struct.pack('<II', 2**31, 2**31),
     "record 'archive/data/0' ends after the file"),
    (24, struct.pack('<I', 2**31), "record 'data/0' is compressed"),
    (16, b'\x01\x02', "record 'archive/data/0' differs from its checksum")])
def test_a_wrong_directory_is_refused(tmp_path, at, data, message):
  path = write_zip(tmp_path / 'a.pth', tensor())
  found = bytearray(path.read_bytes())
  entry = found.rindex(b'PK\1\2') + at
  found[entry:entry + len(data)] = data
  path.write_bytes(found)
  refused(path, torch_file.DamagedFile, message)


COUNT = 'is given as a number of elements'


@pytest.mark.parametrize('stored, offset, shape, strides, message', [
    ({}, 1, (2, 3), (3, 1), 'a tensor of shape (2, 3), strides (3, 1) and '
     'offset 1 does not fit its storage of 6 elements'),
    ({}, 0, (7,), (1,), 'does not fit'),
    ({}, 0, (2, 3), (4, 1), 'does not fit'),
    ({}, 6, (), (), 'does not fit'),
    ({}, 0, (2**40,), (1,), 'does not fit'),
    ({}, 0, (2**59,), (2**59,), 'does not fit'),
    ({}, 0, (2**40,), (0,), 'does not fit'),
    ({}, 0, (2**30,) * 2, (0, 0), 'does not fit'),
    ({}, 0, (2, 3), (3,), 'zip() argument 2 is shorter'),
    ({}, 0, (1,) * 99, (1,) * 99, 'maximum'),
    ({}, 0, (0, 2**59, 2**59), (1, 1, 1), 'array is too big'),
    ({}, -1, (2,), (1,), f'-1 {COUNT}'),
    ({}, 0, (-2,), (1,), f'-2 {COUNT}'),
    ({}, 5, (2,), (-1,), f'-1 {COUNT}'),
    ({}, 2**63, (2,), (1,), f'{2**63} {COUNT}'),
    ({}, 0, (2.0,), (1,), f'2.0 {COUNT}'),
    ({}, 0, (True,), (1,), f'True {COUNT}'),
    ({}, None, (2,), (1,), f'None {COUNT}'),
    ({}, 0, 2, (1,), 'TypeError'),
    (dict(count=-1), 0, (2,), (1,), f'-1 {COUNT}'),
    (dict(count=2**64), 0, (2,), (1,), f'{2**64} {COUNT}'),
    (dict(key='1'), 0, (2,), (1,), '1'),
    (dict(key=1), 0, (2,), (1,), 'the persistent id of a storage has'),
    (dict(key='../../a'), 0, (2,), (1,), '../../a'),
    (dict(count=2**59), 0, (2,), (1,), str(2**59)),
])
def test_a_tensor_is_within_its_storage(
    tmp_path, stored, offset, shape, strides, message):
  for make, write in ((storage, write_zip), (legacy_storage, write_stream)):
    path = write(tmp_path / 'a.pth',
                 tensor(make(**stored), offset, shape, strides))
    tracemalloc.start()
    try:
      refused(path, torch_file.DamagedFile,
              message if write is write_zip or not stored else '')
      assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
      tracemalloc.stop()


def nested(opening, closing, depth):
  return opening * depth + b'N' + closing * depth


@pytest.mark.parametrize('opcodes, message', [
    (nested(b'](', b'e', 101), 'it is nested more than 100 deep'),
    (nested(b'](', b'e', 100_000), 'it is nested more than 100 deep'),
    (nested(b'', b'\x85', 100_000), 'it is nested more than 100 deep'),
    (b'}' + nested(b'', b'\x85', 100_000) + b'Ns',
     'it is nested more than 100 deep'),
    (b'\x8f(' + nested(b'', b'\x85', 100_000) + b'\x90',
     'it is nested more than 100 deep'),
    (b']q\0h\0a', 'it is nested more than 100 deep'),
    (b'}q\0Nh\0s', 'it is nested more than 100 deep'),
    # Shared, so that each level is built at a depth of two.
    (b'](' + b']q\0' + b'](h\0eq\0' * 200 + b'e',
     'it is nested more than 100 deep'),
    (b'(' + b']q\0' + b'(h\0h\0tq\0' * 60 + b't',
     'written out, it has more than 10000000 entries'),
    (b'](' + say('a' * 10**6) + b'q\0' + b'h\0' * 400 + b'e',
     'written out, it has more than 10000000 entries'),
    (b'}]Ns', "TypeError: unhashable type: 'list'"),
    (b'}(NNNu', 'zip() argument 2 is shorter'),
    (b'(NNNd', 'zip() argument 2 is shorter'),
    (b'NNa', 'entries of a list are put into something else'),
    (b')Na', 'entries of a list are put into something else'),
    (b']NNs', 'entries of a dict are put into something else'),
    (b'ctorch\nSize\n()tRNNs', 'the result of torch.Size has no items'),
    (b'ctorch\nSize\nNR', 'the arguments of torch.Size are not a tuple'),
    (b'NN\x93', 'a name is not text'),
    (b'h\5', 'KeyError: 5'), (b'j\xff\xff\xff\xff', 'KeyError: 4294967295'),
    (b'q\0', 'IndexError'), (b'0', 'IndexError'), (b't', 'IndexError'),
    (b'', 'IndexError'), (b'N', None), (b'Nr\xff\xff\xff\xff', None),
    (b'\xff', r"opcode b'\xff' unknown"),
    (b'X\xff\xff\xff\x7fa', 'expected 2147483647 bytes'),
    (b'B\xff\xff\xff\xffa', 'expected 4294967295 bytes'),
    (b'\x8d' + b'\xff' * 7 + b'\x0fa', 'bytes in a unicodestring8'),
    (b'\x95' + b'\xff' * 7 + b'\x0fN', None),
    (b'\x8b\xff\xff\xff\x7fa', 'not enough data in stream to read long4'),
    (b'I' + b'1' * 5000 + b'\n', 'Exceeds the limit'),
    (b'X\1\0\0\0\xff', 'UnicodeDecodeError'),
])
def test_a_wrong_pickle_is_refused(tmp_path, opcodes, message):
  path = write_zip(tmp_path / 'a.pth', b'\x80\x02' + opcodes + b'.')
  tracemalloc.start()
  try:
    if message is None:
      assert torch_file.read(path) is None
    else:
      refused(path, torch_file.DamagedFile, message)
    assert tracemalloc.get_traced_memory()[1] < 2**27
  finally:
    tracemalloc.stop()


@pytest.mark.parametrize('dotted, arguments, message', [
    ('_codecs.encode', ('a', 'rot13'), "bytes are encoded by 'rot13'"),
    ('_codecs.encode', (1, 'latin1'), 'AttributeError'),
    ('_codecs.encode', ('€', 'latin1'), 'UnicodeEncodeError'),
    ('numpy.core.multiarray.scalar', (call('numpy.dtype', 'f8'), b'1'),
     'a number of type float64 has 1 bytes'),
    ('numpy.core.multiarray.scalar', ('f8', b'12345678'), 'AttributeError'),
    ('builtins.bytes', (10**12,), 'TypeError'),
    ('builtins.set', ([[]],), 'TypeError'),
    ('pathlib.PosixPath', (1,), 'TypeError'),
    ('torch._utils._rebuild_tensor_v2', (1, 0, (1,), (1,)),
     'a tensor has no storage'),
    ('torch._utils._rebuild_tensor_v2', (), 'TypeError'),
])
def test_a_wrong_argument_is_refused(tmp_path, dotted, arguments, message):
  path = write_zip(tmp_path / 'a.pth', call(dotted, *arguments))
  refused(path, torch_file.DamagedFile, message)


STREAM = tensor(legacy_storage())


@pytest.mark.parametrize('tree, settings, message', [
    (STREAM, dict(keys=['0', '1']), "storage '1' belongs to no tensor"),
    (STREAM, dict(keys=[]), "it has no storage '0'"),
    (STREAM, dict(keys=5), 'TypeError'),
    (STREAM, dict(stored={'0': SIX[:3]}), "it ends in storage '0'"),
    (STREAM, dict(stored={'0': np.arange(7.0)}),
     "storage '0' does not have 6 elements"),
    ([STREAM, tensor(legacy_storage(count=5))], {},
     "storage '0' has two sizes or types"),
    ([STREAM, tensor(legacy_storage(kind='Int'))], {},
     "storage '0' has two sizes or types"),
    (tensor(legacy_storage(view=('7', 3, 4))), {},
     'a part of a storage, 3 to 7, is not in its 6 elements'),
    (tensor(legacy_storage(view=('7', -1, 4))), {}, f'-1 {COUNT}'),
    (tensor(legacy_storage(view=('7',))), {}, 'TypeError'),
])
def test_a_wrong_stream_is_refused(tmp_path, tree, settings, message):
  path = write_stream(tmp_path / 'a.pth', tree, **settings)
  refused(path, torch_file.DamagedFile, message)


def arrays(tree):
  if isinstance(tree, np.ndarray):
    return [tree]
  if isinstance(tree, dict):
    tree = list(tree.values())
  return sum(map(arrays, tree), []) if isinstance(tree, (list, tuple)) else []


@pytest.mark.parametrize('golden', [ZIP, LEGACY])
def test_a_file_that_is_cut_short_is_refused(tmp_path, golden):
  data = golden.read_bytes()
  cuts = np.random.default_rng(0).integers(1, len(data), 60)
  for cut in [*cuts, 3, 10, len(data) - 1]:
    path = tmp_path / 'a.pth'
    path.write_bytes(data[:cut])
    refused(path, torch_file.DamagedFile)


def flipped(path, data, at, bit):
  """What is read after one bit changed, or None when it is refused."""
  changed = bytearray(data)
  changed[at] ^= 1 << bit
  path.write_bytes(changed)
  try:
    return torch_file.read(path)
  except (torch_file.UnsafeFile, torch_file.DamagedFile):
    return None


def test_a_changed_bit_of_an_archive_never_changes_what_is_read(tmp_path):
  golden = ZIP.read_bytes()
  expected = torch_file.read(ZIP)
  directory = golden.rindex(b'PK\5\6') - 9000
  rng = np.random.default_rng(0)
  places = [*rng.integers(0, len(golden), 20), *rng.integers(0, 57_000, 10),
            *rng.integers(directory, len(golden), 20)]
  for at in places:
    found = flipped(tmp_path / 'a.pth', golden, at, rng.integers(8))
    if found is not None:
      assert_same(found, expected)
  # Every byte of a small one.
  data = write_zip(tmp_path / 'b.pth', {
      'a': tensor(), 'b': tensor(storage('1', kind='Int'))},
      {'0': SIX, '1': SIX.astype(np.int32)}).read_bytes()
  expected = torch_file.read(tmp_path / 'b.pth')
  for at in range(len(data)):
    found = flipped(tmp_path / 'b.pth', data, at, rng.integers(8))
    if found is not None:
      assert_same(found, expected)


def test_a_changed_bit_of_a_stream_gives_arrays_or_is_refused(tmp_path):
  # There are no checksums, so numbers may change unseen.
  golden = LEGACY.read_bytes()
  rng = np.random.default_rng(0)
  begin = golden.index(b'model')
  for at in [*rng.integers(0, len(golden), 50), *range(begin)]:
    flipped(tmp_path / 'a.pth', golden, at, rng.integers(8))
  data = write_stream(tmp_path / 'b.pth', {
      'a': STREAM, 'b': argparse_said()}).read_bytes()
  for at in range(len(data)):
    for bit in range(8):
      found = flipped(tmp_path / 'b.pth', data, at, bit)
      for array in arrays(found):
        assert array.size <= 6


def argparse_said():
  return Raw(name('argparse.Namespace') + b')\x81' + say({'lr': 0.1}) + b'b')


# What torch itself writes.


def numpy_of(torch, value):
  """What `read` should make of a saved object."""
  if isinstance(value, torch.Tensor):
    value = value.detach()
    if value.dtype == torch.bfloat16:
      return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return value.numpy()
  if isinstance(value, argparse.Namespace):
    value = vars(value)
  if isinstance(value, dict):
    return {key: numpy_of(torch, entry) for key, entry in value.items()}
  if isinstance(value, torch.Size):
    return tuple(value)
  if isinstance(value, (list, tuple)):
    return type(value)(numpy_of(torch, entry) for entry in value)
  if isinstance(value, (torch.device, torch.dtype, pathlib.Path)):
    return str(value)
  return value.item() if isinstance(value, np.generic) else value


def trained(torch):
  model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
  model(torch.randn(5, 4)).square().sum().backward()
  optimizer.step()
  return {
      'model': model.state_dict(), 'optimizer': optimizer.state_dict(),
      'epoch': 3, 'args': argparse.Namespace(lr=1e-3, out=pathlib.Path('a/b')),
      'scaler': {'scale': 65536.0, 'growth_factor': 2.0, '_growth_tracker': 0}}


def assorted(torch):
  base = torch.arange(24).reshape(4, 6)
  tied = torch.nn.Parameter(torch.randn(3, 2))
  attributes = torch.nn.Parameter(torch.ones(2))
  attributes.group = 'head'
  kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16,
           torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
           torch.bool, torch.complex64, torch.complex128)
  return {
      'kinds': [(base % 5).to(kind) for kind in kinds],
      'strided': [base[1:, ::2], base.T, base[2], base[1, 1], base[:0],
                  torch.ones(1).expand(2, 3), base.unfold(1, 3, 2),
                  base.to(torch.bfloat16).T],
      'tied': {'embed': tied, 'head': tied, 'data': tied.data[1:]},
      'attributes': attributes, 'scalar': torch.tensor(2.5),
      'small': [base.shape, torch.device('cpu'), torch.float16,
                np.float64(0.5), np.int32(4), b'bytes', {1, 2}]}


@pytest.mark.parametrize('new', [True, False])
@pytest.mark.parametrize('make', [trained, assorted])
def test_what_torch_writes_is_read_as_torch_reads_it(tmp_path, make, new):
  torch = pytest.importorskip('torch')
  torch.manual_seed(0)
  saved = make(torch)
  path = tmp_path / 'a.pth'
  torch.save(saved, path, _use_new_zipfile_serialization=new)
  assert torch_file.is_torch_file(path)
  assert_same(torch_file.read(path), numpy_of(torch, saved))
  assert_same(torch_file.read(path), numpy_of(
      torch, torch.load(path, weights_only=False)))


def test_what_torch_writes_of_modules_and_sparse_tensors_is_refused(tmp_path):
  torch = pytest.importorskip('torch')
  path = tmp_path / 'a.pth'
  for thing, message in (
      (torch.nn.Linear(2, 2), 'asks for torch.nn.modules.linear.Linear'),
      (torch.eye(2).to_sparse(), 'asks for torch._utils._rebuild_sparse'),
      (torch.quantize_per_tensor(torch.ones(2), 1, 0, torch.qint8),
       'asks for torch._utils._rebuild_qtensor'),
      (torch.ones(2, dtype=torch.complex64).conj(), 'conjugated or negated'),
      (types.SimpleNamespace(a=1), 'asks for types.SimpleNamespace'),
      (os.system, 'asks for posix.system')):
    torch.save(thing, path)
    refused(path, torch_file.UnsafeFile, message)
  torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
  refused(path, torch_file.UnsafeFile, 'has a TorchScript program')
