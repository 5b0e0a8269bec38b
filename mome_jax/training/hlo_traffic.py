"""Bytes that a compiled program moves through the memory of a chip, by kind of operation.

XLA's own count takes the body of a loop once, ignores that a TPU stores arrays in padded tiles, and
does not say what the bytes are for.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

from mome_jax.models import class_maps

KINDS = ('convolution', 'copy', 'normalisation', 'class maps', 'other')
# Nothing moves: these name, group or make up values.
_FREE = frozenset(('parameter', 'constant', 'bitcast', 'tuple', 'get-tuple-element', 'iota'))
_FREE |= {'after-all', 'partition-id', 'replica-id', 'opt-barrier', 'add-dependency'}
_MOVES = frozenset(('copy', 'transpose', 'slice', 'pad', 'concatenate', 'reshape', 'reverse'))
_MOVES |= {'dynamic-slice', 'dynamic-update-slice', 'copy-start', 'slice-start'}
_CASTS = frozenset(('convert', 'broadcast', 'select', 'compare', *_MOVES, *_FREE))
_SLICES = ('slice', 'dynamic-slice', 'gather')
_ARRAY = re.compile(r'\b([a-z]+\d*)(?:e\d\w*)?\[([\d,]*)\](?:\{([^}]*)\})?')
_CALLED = re.compile(
  r'(calls|body|condition|to_apply|called_computations|branch_computations)=(\{[^}]*\}|%\S+)'
)
_LIBRARY = re.compile(r'custom_call_target="__cu(?:dnn|blas)')  # of a GPU, for products
_NORM = re.compile(r'(?:^|/)(?:\w*norm(?:_\w+)?|GroupNorm|LayerNorm)(?:[./]|$)')


@dataclasses.dataclass(frozen=True)
class _Operation:
  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  attributes: str

  @property
  def path(self) -> str:
    """Where in the Python program it comes from: 'jit(step)/jvp(MoME)/backbone/conv_0/...'."""
    name = re.search(r'op_name="([^"]*)"', self.attributes)
    return name[1] if name else ''

  def called(self, *roles: str) -> list[str]:
    """Names of the computations that it runs."""
    names = (names for role, names in _CALLED.findall(self.attributes) if role in roles)
    return [name for some in names for name in re.findall(r'%([\w.-]+)', some)]


_Program = Mapping[str, Mapping[str, _Operation]]


def by_kind(hlo: str) -> dict[str, float]:
  """Bytes read and written in the memory of one chip by one run of a program.

  Every operation reads its operands and writes its results, once each, in the tiles in which they
  are stored; what is held in the chip's vector memory costs nothing. A loop counts as often as it
  runs, where the compiler knows; of a branching the largest branch counts.

  Args:
    hlo: the compiled program, `compiled.as_text()`.

  Returns:
    Kind, of `KINDS`, -> bytes. All that is done for maps of classes is 'class maps'; the rest is a
    'convolution' if it holds one or a matrix product, a 'copy' if it moves, pads, or converts only,
    'normalisation' by the name of the layer that it comes from.
  """
  program, entry = _read(hlo)
  totals = dict.fromkeys(KINDS, 0.0)
  if entry:
    _add(program, entry, 1.0, totals)
  return totals


def _add(program: _Program, computation: str, times: float, totals: dict[str, float]) -> None:
  operations = program[computation]
  for operation in operations.values():
    if operation.opcode in _FREE or operation.opcode.endswith('-done'):
      continue
    if operation.opcode == 'while':
      for body in operation.called('body'):
        _add(program, body, times * _trips(program, operation), totals)
    elif operation.opcode == 'conditional':
      branches = []
      for branch in operation.called('branch_computations', 'called_computations'):
        branches.append(dict.fromkeys(KINDS, 0.0))
        _add(program, branch, times, branches[-1])
      largest = max(branches, key=lambda kinds: sum(kinds.values()), default={})
      for kind, size in largest.items():
        totals[kind] += size
    elif operation.opcode in ('call', 'async-start'):
      for inner in operation.called('to_apply', 'calls', 'called_computations'):
        _add(program, inner, times, totals)
    else:
      totals[_kind(program, operation)] += times * _bytes(program, operations, operation)


def _trips(program: _Program, loop: _Operation) -> int:
  """How often a loop runs that counts up from 0 by 1, as those of JAX and of the compiler do."""
  known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
  if known:
    return int(known[1])
  (condition,) = (program.get(name, {}) for name in loop.called('condition'))
  for operation in condition.values():
    if operation.opcode == 'compare' and 'direction=LT' in operation.attributes:
      bound = condition[operation.operands[1]]
      number = re.match(r'\d+', bound.attributes)
      return int(number[0]) if bound.opcode == 'constant' and number else 1
  return 1


def _kind(program: _Program, operation: _Operation) -> str:
  if f'/{class_maps.SCOPE}/' in f'/{_plain(operation.path)}/':
    return 'class maps'
  inside = list(_inside(program, operation))
  opcodes = {inner.opcode for inner in inside}
  by_library = any(_LIBRARY.search(inner.attributes) for inner in inside)
  if by_library or opcodes & {'convolution', 'dot'}:
    return 'convolution'
  if opcodes <= _CASTS and opcodes & {'convert', *_MOVES}:
    return 'copy'
  return 'normalisation' if _NORM.search(_plain(operation.path)) else 'other'


def _plain(path: str) -> str:
  """A path without the transformations around its parts: 'jvp(a)/transpose(jvp(b))' -> 'a/b'."""
  return re.sub(r'[()]', '/', path)


def _inside(program: _Program, operation: _Operation) -> Iterator[_Operation]:
  if operation.opcode != 'fusion':
    yield operation
    return
  for computation in operation.called('calls'):
    for inner in program.get(computation, {}).values():
      yield from _inside(program, inner)


def _bytes(program: _Program, operations: Mapping[str, _Operation], operation: _Operation) -> float:
  if operation.opcode in _SLICES:
    return 2.0 * _size(operation.shape)
  if operation.opcode == 'dynamic-update-slice':
    return 2.0 * _size(operations[operation.operands[1]].shape)
  if operation.opcode in ('copy-start', 'slice-start'):
    ends = _ARRAY.findall(operation.shape)[:2]  # destination and source, each in either memory
    moved = min(_stored(dtype, sizes, _in_memory(layout)) for dtype, sizes, layout in ends)
    return float(moved * sum(_stored(*end) > 0 for end in ends))
  shapes = [operations[name].shape for name in operation.operands if name in operations]
  if operation.opcode != 'fusion':
    return float(_size(operation.shape) + sum(map(_size, shapes)))
  (inner,) = (program[name] for name in operation.called('calls')[:1])
  return _fusion_bytes(inner, shapes, operation.shape)


def _fusion_bytes(inner: Mapping[str, _Operation], shapes: list[str], result: str) -> float:
  """Of a fusion: an operand that is only sliced is read in slices, one updated in place in part."""
  total = 0.0
  updates = [o for o in inner.values() if o.opcode == 'dynamic-update-slice']
  parameters = sorted(
    (o for o in inner.values() if o.opcode == 'parameter'),
    key=lambda o: int(re.search(r'^\d+', o.attributes)[0]),  # type: ignore[index]
  )
  for parameter, shape in zip(parameters, shapes, strict=False):
    users = [o for o in inner.values() if parameter.name in o.operands]
    if users and all(o.opcode in _SLICES and o.operands[0] == parameter.name for o in users):
      total += min(_size(shape), sum(_size(o.shape) for o in users))
    elif not any(o.operands[0] == parameter.name for o in updates):
      total += _size(shape)
  in_place = [o for o in updates if _size(o.shape)]
  if in_place:
    part = sum(_size(inner[o.operands[1]].shape) for o in in_place)
    return total + min(_size(result), part)
  return total + _size(result)


def _size(shape: str) -> int:
  return sum(_stored(*array) for array in _ARRAY.findall(shape))


def _in_memory(layout: str) -> str:
  return re.sub(r'S\(\d+\)', '', layout)


def _stored(dtype: str, dimensions: str, layout: str) -> int:
  """Bytes of an array in the chip's main memory: whole tiles, 0 where it is held elsewhere."""
  if re.search(r'S\([1-9]', layout):
    return 0
  sizes = [int(n) for n in dimensions.split(',') if n]
  order, _, tiling = layout.partition(':')
  tile = re.search(r'T\(([\d,]+)\)', tiling)
  if tile and order and sizes:
    sizes = [sizes[int(axis)] for axis in order.split(',')]  # the fastest first
    for i, side in enumerate(reversed([int(n) for n in tile[1].split(',')])):
      if i < len(sizes):
        sizes[i] = -(-sizes[i] // side) * side
  return math.prod(sizes) * bits(dtype) // 8


def bits(dtype: str) -> int:
  """Bits of a value of an HLO type: 'bf16' 16, 'pred' 8, 'f8' 8."""
  return int(re.sub(r'\D', '', dtype) or (8 if dtype == 'pred' else 0))


def _read(hlo: str) -> tuple[_Program, str | None]:
  """Computations of a program by name, and the name of the one that runs."""
  program: dict[str, dict[str, _Operation]] = {}
  entry, current = None, None
  for line in hlo.splitlines():
    if line.endswith('{') and (head := re.match(r'(ENTRY )?%([\w.-]+) ', line)):
      current = program.setdefault(head[2], {})
      entry = head[2] if head[1] else entry
    elif current is not None and (operation := _operation(line)):
      current[operation.name] = operation
  return program, entry


def _operation(line: str) -> _Operation | None:
  head = re.match(r'\s+(?:ROOT )?%([\w.-]+) = ', line)
  if not head:
    return None
  rest = line[head.end() :]
  end = _closing(rest, 0) if rest.startswith('(') else rest.index(' ')
  shape, rest = rest[:end], rest[end:].lstrip()
  start = rest.index('(')
  end = _closing(rest, start)
  inputs = rest[start + 1 : end - 1]
  operands = tuple(re.findall(r'%([\w.-]+)', inputs))
  # The number of a parameter and the value of a constant stand where others have operands.
  value = inputs if rest.startswith(('parameter', 'constant')) else ''
  return _Operation(head[1], shape, rest[:start], operands, value + rest[end:])


def _closing(text: str, start: int) -> int:
  """Index behind the parenthesis that closes the one at `start`."""
  depth = 0
  for i in range(start, len(text)):
    depth += (text[i] == '(') - (text[i] == ')')
    if depth == 0:
      return i + 1
  return len(text)
