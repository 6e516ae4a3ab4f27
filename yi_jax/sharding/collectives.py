"""Which data a compiled program sends between devices: read from its text.

XLA's compiler decides where devices talk; its program (`compiled.as_text()`)
says what, among whom and how much. Loops whose number of rounds XLA knows count
as often as they run. Groups of devices come in four notations, all of positions
in the flattened mesh:

  replica_groups={{0,1},{2,3}}                            a list
  replica_groups=[2,2]<=[2,2]T(1,0)                       iota, turned, reshaped
  replica_groups=mesh['a'=2,'b'=2], device_ids=... {'a'}  axes of XLA's own mesh
  source_target_pairs={{0,1},{1,0}}                       of a permutation
"""

import collections
import dataclasses
import math
import re
from collections.abc import Callable

import jax
import numpy as np

KINDS = (
  'all-gather',
  'reduce-scatter',
  'all-reduce',
  'all-to-all',
  'collective-permute',
)


@dataclasses.dataclass(frozen=True)
class Collective:
  """All collectives of one kind over the same axes.

  Attributes:
    kind: one of KINDS.
    axes: mesh axes along which the devices of a group differ.
    count: how often the program runs one.
    bytes: what each device sends in all of them, as rings do it: an all-gather
      of n devices sends (n - 1) / n of its result, an all-reduce twice that.
  """

  kind: str
  axes: tuple[str, ...]
  count: int
  bytes: int


# Sends of a device, in shares of the bytes of the result, among n devices.
_SENT = {
  'all-gather': lambda n: (n - 1) / n,
  'reduce-scatter': lambda n: n - 1,
  'all-reduce': lambda n: 2 * (n - 1) / n,
  'all-to-all': lambda n: (n - 1) / n,
  'collective-permute': lambda n: 1,
}
_Totals = dict[tuple[str, tuple[str, ...]], tuple[int, float]]

_OPERATION = re.compile(
  r'^\s+(?:ROOT )?%?[\w.\-]+ = (?P<shape>.*?) (?P<name>[a-z][\w\-]*)\('
)
_COMPUTATION = re.compile(r'^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$')
_CALLED = re.compile(
  r'(?:calls|to_apply|body|condition|branch_computations|called_computations'
  r'|true_computation|false_computation)=(\{[^}]*\}|%?[\w.\-]+)'
)
_ROUNDS = re.compile(r'known_trip_count"?[:=]\s*\{"?n"?[:=]\s*"?(\d+)')
_CONSTANT = re.compile(r'^\s+%?(?P<name>[\w.\-]+) = .*? constant\((?P<n>\d+)\)')
_BELOW = re.compile(r'compare\(.*?, %?(?P<name>[\w.\-]+)\), direction=LT')
# XLA:TPU's name of the computation that adds up and keeps a part in one go.
_FUSED_SCATTER = 'all-reduce-scatter'


def collectives(
  compiled_text: str, mesh: jax.sharding.Mesh
) -> list[Collective]:
  """Returns what a program sends, most bytes first.

  Args:
    compiled_text: `.as_text()` of a compiled program.
    mesh: the mesh it was compiled for.
  """
  bodies, entry = _computations(compiled_text)
  done: dict[str, _Totals] = {}

  def visit(name: str) -> _Totals:
    if name not in done:
      totals: _Totals = collections.defaultdict(lambda: (0, 0.0))
      for line in bodies.get(name, ()):
        times = _rounds(line, bodies)
        for key, (count, sent) in _of_line(line, mesh, visit).items():
          before = totals[key]
          totals[key] = (before[0] + times * count, before[1] + times * sent)
      done[name] = _scattered(totals) if _FUSED_SCATTER in name else totals
    return done[name]

  found = [
    Collective(*key, count, round(sent))
    for key, (count, sent) in visit(entry).items()
  ]
  return sorted(found, key=lambda c: (-c.bytes, c.kind, c.axes))


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
  """Returns the lines of each computation by name, and where it all starts."""
  bodies, entry, lines = {}, '', []
  for line in text.splitlines():
    if match := _COMPUTATION.match(line):
      lines = bodies[match['name']] = []
      entry = match['name'] if match['entry'] else entry
    elif line.startswith(' '):
      lines.append(line)
  return bodies, entry


def _of_line(
  line: str, mesh: jax.sharding.Mesh, visit: Callable[[str], _Totals]
) -> _Totals:
  """Returns what one operation sends, in what it calls too."""
  match = _OPERATION.match(line)
  if not match:
    return {}
  name = match['name']
  kind = name.removesuffix('-start')
  if kind in KINDS:
    groups = _groups(line, mesh.size)
    size = max(map(len, groups), default=1)
    if size == 1:
      return {}
    shape = match['shape']
    if name != kind and kind != 'all-reduce':  # (operands, results, ...)
      shape = _parts(shape)[1]
    sent = _SENT[kind](size) * _bytes(shape)
    return {(kind, _axes(groups, mesh)): (1, sent)}
  if 'reduce' in name or name in (
    'sort',
    'map',
    'scatter',
    'select-and-scatter',
  ):
    return {}  # calls scalar functions
  totals: _Totals = {}
  for names in _CALLED.findall(line):
    for called in names.strip('{}').split(','):
      for key, (count, sent) in visit(called.strip().lstrip('%')).items():
        before = totals.get(key, (0, 0.0))
        totals[key] = (before[0] + count, before[1] + sent)
  return totals


def _rounds(line: str, bodies: dict[str, list[str]]) -> int:
  """Returns how often a loop runs; 1 for anything else, or if XLA cannot say.

  XLA:CPU and GPU write the number beside the loop. XLA:TPU does not: there the
  loop counts from 0 and its condition compares with a constant.
  """
  if not (match := _OPERATION.match(line)) or match['name'] != 'while':
    return 1
  if known := _ROUNDS.search(line):
    return int(known[1])
  condition = re.search(r'condition=%?([\w.\-]+)', line)
  lines = bodies.get(condition[1], []) if condition else []
  constants = {m['name']: int(m['n']) for m in map(_CONSTANT.match, lines) if m}
  below = [m for m in map(_BELOW.search, lines) if m]
  return constants.get(below[0]['name'], 1) if len(below) == 1 else 1


def _scattered(totals: _Totals) -> _Totals:
  """Turns all-reduces of which each device keeps its part into what they are."""
  return {
    ('reduce-scatter' if kind == 'all-reduce' else kind, axes): (
      count,
      sent / 2 if kind == 'all-reduce' else sent,
    )
    for (kind, axes), (count, sent) in totals.items()
  }


# ----------------------------------------------------------- shapes and groups


def _parts(shape: str) -> list[str]:
  """Splits '(a, (b, c))' into 'a' and '(b, c)'; anything else is one part."""
  if not shape.startswith('('):
    return [shape]
  parts, depth, current = [], 0, ''
  for letter in shape[1:-1]:
    depth += (letter in '([{') - (letter in ')]}')
    if letter == ',' and depth == 0:
      parts.append(current.strip())
      current = ''
    else:
      current += letter
  return [*parts, current.strip()]


def _bytes(shape: str) -> int:
  """Returns the bytes of a shape like (f32[4,8]{1,0}, bf16[2])."""
  total = 0
  for kind, sizes in re.findall(r'([a-z]+\d*\w*)\[([\d,]*)\]', shape):
    width = re.match(r'[a-z]+(\d+)', kind)
    bits = int(width[1]) if width else {'pred': 8}.get(kind, 0)
    count = math.prod(int(size) for size in sizes.split(',') if size)
    total += math.ceil(count * bits / 8)
  return total


def _groups(line: str, num_devices: int) -> list[list[int]]:
  """Returns the groups of a collective, or the pairs of a permutation."""
  if match := re.search(r'source_target_pairs=\{(.*?)\}(?=[,\s]|$)', line):
    pairs = re.findall(r'\{(\d+),(\d+)\}', match[0])
    return [[int(a), int(b)] for a, b in pairs if a != b]
  if match := re.search(r'replica_groups=mesh\[(.*?)\](.*?) \{(.*?)\}', line):
    return _groups_of_mesh(*match.groups())
  if match := re.search(
    r'replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)', line
  ):
    shape = [int(size) for size in match[1].split(',')]
    return _iota(match[2]).reshape(shape).tolist()
  listed = re.search(r'replica_groups=\{(\{.*?\})?\}', line)
  if listed and listed[1]:
    return [
      [int(i) for i in group.split(',')]
      for group in re.findall(r'\{([\d,]+)\}', listed[1])
    ]
  return [list(range(num_devices))]


def _iota(text: str) -> np.ndarray:
  """Returns the numbers '[2,3]T(1,0)' stands for, flat."""
  sizes, _, turn = text.partition('T')
  shape = [int(size) for size in sizes.strip('[]').split(',')]
  numbers = np.arange(math.prod(shape)).reshape(shape)
  if turn:
    numbers = numbers.transpose([int(i) for i in turn.strip('()').split(',')])
  return numbers.ravel()


def _groups_of_mesh(axes: str, order: str, over: str) -> list[list[int]]:
  """Returns groups along axes of a mesh of XLA's own.

  Args:
    axes: "'a'=2,'b'=4".
    order: '' or ', device_ids=([4,2]T(1,0))'.
    over: "'a','b':(2)2"; the latter is that part of b which has 2 positions
      after the first 2.
  """
  names = re.findall(r"'([^']+)'=(\d+)", axes)
  wanted = {
    (name, int(before or 1), int(size or 0))
    for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", over)
  }
  shape, along = [], []
  for name, size in names:
    parts = [int(size)]
    keep = [False]
    for part, before, length in wanted:
      if part == name:
        length = length or int(size)
        parts = [before, length, int(size) // before // length]
        keep = [False, True, False]
    shape += parts
    along += keep
  ids = re.search(r'device_ids=\((.*?\]?(?:T\([\d,]+\))?)\)', order)
  numbers = _iota(ids[1]) if ids else np.arange(math.prod(shape))
  first = [i for i, k in enumerate(along) if not k]
  last = [i for i, k in enumerate(along) if k]
  numbers = numbers.reshape(shape).transpose(first + last)
  return numbers.reshape(-1, math.prod(shape[i] for i in last)).tolist()


def _axes(groups: list[list[int]], mesh: jax.sharding.Mesh) -> tuple[str, ...]:
  """Returns the axes along which the members of a group differ."""
  shape = mesh.devices.shape
  differs = np.zeros(len(shape), bool)
  for group in groups:
    places = np.stack(np.unravel_index(group, shape))
    differs |= (places != places[:, :1]).any(axis=1)
  return tuple(np.asarray(mesh.axis_names)[differs].tolist())
