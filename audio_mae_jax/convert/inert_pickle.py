"""A pickle as a tree of what it says, in which nothing can run.

`pickle` imports what a file names and calls it, so whoever wrote the file
decides what happens. Here `parse` only notes the names and the calls, and
refuses names that it was not given; `build` makes of the notes what the tables
in `Names` say. Neither imports, looks up attributes of, nor calls anything
that the file chooses, and nothing outlives the call.
"""

from collections.abc import Callable
import pickletools
from typing import NamedTuple

# A checkpoint is about ten deep and has some 10,000 entries. Deeper ones would
# overflow the stack of whoever walks them; a small file that shares its parts
# can say more entries than any memory holds. Text counts by its length.
MAX_DEPTH = 100
MAX_ENTRIES = 10_000_000
_CHARACTERS_PER_ENTRY = 16


class Refused(Exception):
  """The pickle asks for what is not data; the message says for what."""


class Names(NamedTuple):
  """What the dotted names that a pickle may use stand for."""
  values: dict[str, object]
  calls: dict[str, Callable]  # of the arguments
  states: dict[str, Callable]  # of the result of the call, and the state

  def __contains__(self, name):
    return name in self.values or name in self.calls


NO_NAMES = Names({}, {}, {})


class Part:
  """What may be an argument, but is no data of its own, e.g. a storage."""
  __slots__ = ()


class _Name(Part):
  """A callable that is not called."""
  __slots__ = ('name',)

  def __init__(self, name):
    self.name = name


class _Parts(tuple, Part):
  """A tuple in which there are parts."""
  __slots__ = ()


class Node:
  """One thing the pickle says, of smaller things in `parts`.

  Of a call they are the arguments, the items set in its result, and states.
  """
  __slots__ = ('kind', 'name', 'parts')

  def __init__(self, kind, parts, name=''):
    self.kind, self.parts, self.name = kind, parts, name


def parse(stream, names: Names = NO_NAMES) -> tuple[object, list[Node]]:
  """The next pickle of a binary stream, and the persistent ids in it.

  Raises:
    Refused: it names what is not in `names`, or would change a callable.
    Exception: of many types, when it is no whole pickle.
  """
  parser = _Parser(names)
  # Read to a stop by `genops`, so that the stream is where the next one starts.
  for opcode, value, _ in pickletools.genops(stream):
    parser.step(opcode.name, value)
  return parser.stack.pop(), parser.persistent


class _Parser:
  """The stack and the memo of one pickle."""

  def __init__(self, names):
    self._names = names
    self._memo = {}
    self._below = []  # stacks under the marks
    self.stack = []
    self.persistent = []

  def step(self, opcode, value):
    if opcode in _PUSH:
      self.stack.append(value)
    elif opcode in _CONSTANTS:
      self.stack.append(_CONSTANTS[opcode])
    elif opcode in _COLLECT:
      kind, count = _COLLECT[opcode]
      node = Node(kind, self._take(count))  # a mark's end changes the stack
      self.stack.append(node)
    elif opcode in _EXTEND:
      self._extend(*_EXTEND[opcode])
    elif opcode in _PUT:
      self._memo[len(self._memo) if value is None else value] = self.stack[-1]
    elif opcode in _GET:
      self.stack.append(self._memo[value])
    elif opcode in _STEPS:
      _STEPS[opcode](self, value)
    elif opcode not in ('PROTO', 'FRAME', 'STOP'):
      raise Refused(f'uses the pickle opcode {opcode}')

  def _take(self, count=None):
    """The last `count` entries; those since the last mark when it is None."""
    if count is None:
      taken, self.stack = self.stack, self._below.pop()
      return taken
    return [self.stack.pop() for _ in range(count)][::-1]

  def _extend(self, kind, count):
    parts = self._take(count)
    node = self.stack[-1]
    if isinstance(node, Node) and node.kind == 'call' and kind == 'dict':
      node = node.parts[1]
    if not isinstance(node, Node) or node.kind != kind:
      raise ValueError(f'entries of a {kind} are put into something else')
    node.parts.extend(parts)

  def _mark(self, _):
    self._below.append(self.stack)
    self.stack = []

  def _name(self, value):
    self._push_name(value.replace(' ', '.'))

  def _stack_name(self, _):
    module, name = self._take(2)
    if not isinstance(module, str) or not isinstance(name, str):
      raise ValueError('a name is not text')
    self._push_name(f'{module}.{name}')

  def _push_name(self, name):
    if name not in self._names:
      raise Refused(f'asks for {ascii(name)[1:-1][:100]}')
    self.stack.append(Node('name', [], name))

  def _instance(self, value):
    self._name(value)
    raise Refused(f'makes an instance of {self.stack[-1].name} by opcode INST')

  def _call(self, _):
    function, arguments = self._take(2)
    if not isinstance(function, Node) or function.kind != 'name':
      raise Refused('calls what is not a name')
    if not isinstance(arguments, Node) or arguments.kind != 'tuple':
      raise ValueError(f'the arguments of {function.name} are not a tuple')
    self.stack.append(
        Node('call', [arguments, Node('dict', [])], function.name))

  def _state(self, _):
    node, state = self._take(2)
    if not isinstance(node, Node) or node.kind != 'call':
      name = getattr(node, 'name', '')
      raise Refused(f'sets the state of {name or "what has none"}')
    node.parts.append(state)
    self.stack.append(node)

  def _persistent(self, value):
    self.persistent.append(Node('persistent', [value]))
    self.stack.append(self.persistent[-1])


_PUSH = {
    'INT', 'BININT', 'BININT1', 'BININT2', 'LONG', 'LONG1', 'LONG4', 'FLOAT',
    'BINFLOAT', 'STRING', 'BINSTRING', 'SHORT_BINSTRING', 'UNICODE',
    'BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8', 'BINBYTES',
    'SHORT_BINBYTES', 'BINBYTES8'}
_CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}
# (kind, number of entries); None for those since the last mark.
_COLLECT = {
    'EMPTY_LIST': ('list', 0), 'LIST': ('list', None),
    'EMPTY_DICT': ('dict', 0), 'DICT': ('dict', None),
    'EMPTY_TUPLE': ('tuple', 0), 'TUPLE': ('tuple', None),
    'TUPLE1': ('tuple', 1), 'TUPLE2': ('tuple', 2), 'TUPLE3': ('tuple', 3),
    'EMPTY_SET': ('set', 0), 'FROZENSET': ('frozenset', None)}
_EXTEND = {
    'APPEND': ('list', 1), 'APPENDS': ('list', None), 'SETITEM': ('dict', 2),
    'SETITEMS': ('dict', None), 'ADDITEMS': ('set', None)}
_PUT = {'PUT', 'BINPUT', 'LONG_BINPUT', 'MEMOIZE'}
_GET = {'GET', 'BINGET', 'LONG_BINGET'}
_STEPS = {
    'MARK': _Parser._mark,
    'POP': lambda parser, _: parser.stack.pop(),
    'POP_MARK': lambda parser, _: parser._take(),
    'DUP': lambda parser, _: parser.stack.append(parser.stack[-1]),
    'GLOBAL': _Parser._name,
    'STACK_GLOBAL': _Parser._stack_name,
    'INST': _Parser._instance,
    'REDUCE': _Parser._call,
    'NEWOBJ': _Parser._call,
    'BUILD': _Parser._state,
    'PERSID': _Parser._persistent,
    'BINPERSID': lambda parser, _: parser._persistent(parser.stack.pop())}


def build(tree, names: Names = NO_NAMES, persistent: Callable | None = None):
  """What a parsed pickle holds, in plain containers.

  Args:
    tree: by `parse`.
    names: as `parse` was given.
    persistent: of the parts of a persistent id, what it stands for.
  """
  value, _, _ = _Builder(names, persistent).build(tree, 0)
  _require_data([value])
  return value


class _Builder:
  """Makes each node once, since a pickle may share it."""

  def __init__(self, names, persistent):
    self._names = names
    self._persistent = persistent
    self._done = {}

  def build(self, node, depth):
    """`(value, height, number of entries)`."""
    if isinstance(node, (str, bytes)):
      return node, 0, 1 + len(node) // _CHARACTERS_PER_ENTRY
    if not isinstance(node, Node):
      return node, 0, 1
    if id(node) not in self._done:
      # What holds itself has no height, but any depth.
      if depth > MAX_DEPTH:
        raise ValueError(f'it is nested more than {MAX_DEPTH} deep')
      parts = [self.build(part, depth + 1) for part in node.parts]
      height = 1 + max((height for _, height, _ in parts), default=0)
      entries = 1 + sum(entries for _, _, entries in parts)
      # What is shared was built at one depth and may stand at a greater one.
      if height > MAX_DEPTH:
        raise ValueError(f'it is nested more than {MAX_DEPTH} deep')
      if entries > MAX_ENTRIES:
        raise ValueError(
            f'written out, it has more than {MAX_ENTRIES} entries')
      value = self._value(node, [value for value, _, _ in parts])
      self._done[id(node)] = value, height, entries
    return self._done[id(node)]

  def _value(self, node, parts):
    if node.kind == 'tuple':
      inner = any(isinstance(part, Part) for part in parts)
      return _Parts(parts) if inner else tuple(parts)
    if node.kind == 'name':
      return self._names.values.get(node.name, _Name(node.name))
    if node.kind == 'call':
      return self._result(node.name, *parts)
    if node.kind == 'persistent':
      return self._persistent_value(*parts)
    _require_data(parts)
    if node.kind == 'dict':
      return dict(zip(parts[::2], parts[1::2], strict=True))
    return _CONTAINERS[node.kind](parts)

  def _result(self, name, arguments, items, *states):
    if name not in self._names.calls:
      raise Refused(f'calls {name}')
    value = self._names.calls[name](*arguments)
    if items:
      if type(value) is not dict:
        raise ValueError(f'the result of {name} has no items')
      value.update(items)
    for state in states:
      if name not in self._names.states:
        raise Refused(f'sets the state of {name}')
      value = self._names.states[name](value, state)
    return value

  def _persistent_value(self, saved):
    if self._persistent is None or not isinstance(saved, tuple):
      raise Refused(f'has a persistent id of type {type(saved).__name__}')
    return self._persistent(*saved)


_CONTAINERS = {'list': list, 'set': set, 'frozenset': frozenset}


def _require_data(values):
  for value in values:
    if isinstance(value, Part):
      name = getattr(value, 'name', type(value).__name__.strip('_').lower())
      raise Refused(f'has {name} where data belongs')
