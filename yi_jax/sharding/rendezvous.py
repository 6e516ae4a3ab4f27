"""Who is there? Asked once, before JAX joins the processes.

JAX's own start ends a process that waits in vain, and cannot say for whom. So
process 0 first listens at the coordinator's address itself. The others come,
say who they are and what software they run, and all get one answer: go on, or
what is wrong. Then the port is JAX's.

One JSON object a line, each way:

  {"yi_jax": 1, "index": 1, "count": 4, "host": "b", "versions": {...}}
  {"yi_jax": 1, "kind": "go", "error": ""}
"""

import collections
import dataclasses
import json
import selectors
import socket
import time
from collections.abc import Iterable

_RETRY_SECONDS = 0.2
_SPEAK_SECONDS = 5  # for a line, once a connection stands
_LONGEST = 1 << 16  # bytes of a line


class NotJoined(OSError):
  """Some processes did not come, or process 0 could not be reached."""


_ERRORS = {'absent': NotJoined, 'unequal': ValueError}


@dataclasses.dataclass(frozen=True)
class Member:
  """One process, as it describes itself.

  Attributes:
    index: from 0.
    count: how many processes it believes there are.
    host: name of its machine.
    versions: name -> version of what must be equal everywhere.
  """

  index: int
  count: int
  host: str
  versions: dict[str, str]


def meet(address: str, me: Member, seconds: float) -> None:
  """Returns once all processes have come and run the same software.

  Args:
    address: host:port of process 0.
    me: this process.
    seconds: how long the others are waited for.

  Raises:
    NotJoined: if some do not come, naming them.
    ValueError: if they do not fit together, naming who has what.
  """
  if me.count == 1:
    return
  host, _, port = address.rpartition(':')
  if me.index == 0:
    answer = _receive(int(port), me, seconds)
  else:
    answer = _visit(host.strip('[]'), int(port), me, seconds)
  if answer['error']:
    raise _ERRORS[answer['kind']](answer['error'])


def refuse_unequal(members: Iterable[Member]) -> None:
  """Raises ValueError, saying who has what, unless all have the same.

  Args:
    members: those that have come.
  """
  members = sorted(members, key=lambda member: member.index)
  hosts = {member.index: member.host for member in members}
  names = sorted({name for member in members for name in member.versions})
  for name in ('number of processes', *names):
    groups = collections.defaultdict(list)
    for member in members:
      version = (
        str(member.count)
        if name == 'number of processes'
        else member.versions.get(name, 'absent')
      )
      groups[version].append(member.index)
    if len(groups) > 1:
      shown = '; '.join(
        f'{version} on {_processes(indices, hosts)}'
        for version, indices in groups.items()
      )
      raise ValueError(
        f'the processes differ in {name}: {shown}. Install the same on all '
        'hosts and start them with the same arguments'
      )


def _receive(port: int, me: Member, seconds: float) -> dict[str, str]:
  """Waits for all others, as process 0, and gives everybody the answer."""
  deadline = time.monotonic() + seconds
  there: dict[int, tuple[socket.socket, Member]] = {}
  try:
    with _listen(port) as door:
      error = _gather(door, there, me, deadline)
    members = [me, *(member for _, member in there.values())]
    answer = _verdict(members, me.count, error, seconds)
    for connection, _ in there.values():
      _tell(connection, answer)
  finally:
    for connection, _ in there.values():
      connection.close()
  return answer


def _listen(port: int) -> socket.socket:
  try:
    if socket.has_dualstack_ipv6():
      return socket.create_server(
        ('', port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
      )
    return socket.create_server(('', port), backlog=1024)
  except OSError as error:
    raise NotJoined(
      f'process 0 cannot listen on port {port} ({error.strerror}); another '
      'process has it: name another port in JAX_COORDINATOR_ADDRESS or '
      'JAX_COORDINATOR_PORT'
    ) from error


def _gather(
  door: socket.socket,
  there: dict[int, tuple[socket.socket, Member]],
  me: Member,
  deadline: float,
) -> str:
  """Fills `there`; returns what is wrong with one who came, or ''."""
  with selectors.DefaultSelector() as selector:
    selector.register(door, selectors.EVENT_READ)
    while len(there) < me.count - 1 and time.monotonic() < deadline:
      left = deadline - time.monotonic()
      for key, _ in selector.select(max(left, 0)):
        if key.data is not None:
          _forget_if_gone(key.data, there, selector)
          continue
        connection, _ = door.accept()
        member = _read_member(connection)
        if member is None:  # not one of ours: a port scanner, a health check
          connection.close()
          continue
        _forget_if_gone(member.index, there, selector)
        twice = there.get(member.index, (None, me))[1]
        if member.index in there or member.index == 0:
          there[-1] = (connection, member)  # is told as well
          return (
            f'two processes say they are process {member.index}: on '
            f'{twice.host} and on {member.host}'
          )
        there[member.index] = (connection, member)
        selector.register(connection, selectors.EVENT_READ, member.index)
        if member.count != me.count:
          return ''  # `refuse_unequal` says it
  return ''


def _forget_if_gone(
  index: int,
  there: dict[int, tuple[socket.socket, Member]],
  selector: selectors.BaseSelector,
) -> None:
  """Makes room for a process that died and was started again."""
  if index not in there:
    return
  connection = there[index][0]
  connection.setblocking(False)
  try:
    gone = connection.recv(1) == b''
  except BlockingIOError:
    gone = False
  except OSError:
    gone = True
  connection.settimeout(_SPEAK_SECONDS)
  if gone:
    selector.unregister(connection)
    connection.close()
    del there[index]


def _verdict(
  members: list[Member], count: int, error: str, seconds: float
) -> dict[str, str]:
  """Returns the answer for all."""
  if error:
    return {'kind': 'unequal', 'error': error}
  try:
    refuse_unequal(members)
  except ValueError as unequal:
    return {'kind': 'unequal', 'error': str(unequal)}
  hosts = {member.index: member.host for member in members}
  missing = [index for index in range(count) if index not in hosts]
  if not missing:
    return {'kind': 'go', 'error': ''}
  return {
    'kind': 'absent',
    'error': (
      f'{_processes(missing, {})} of {count} did not come within '
      f'{seconds:.0f} s; here: {_processes(sorted(hosts), hosts)}. Look at the '
      'hosts that are missing, or give them longer with YI_JOIN_SECONDS'
    ),
  }


def _visit(host: str, port: int, me: Member, seconds: float) -> dict[str, str]:
  """Goes to process 0 and returns its answer."""
  deadline = time.monotonic() + seconds
  reason = 'no answer'
  while time.monotonic() < deadline:
    try:
      with socket.create_connection((host, port), _SPEAK_SECONDS) as connection:
        _send(connection, dataclasses.asdict(me))
        # The answer comes when the last has come, or when process 0, which may
        # have started later than this one, is tired of waiting.
        connection.settimeout(seconds + _SPEAK_SECONDS)
        answer = _read(connection)
        if answer is not None and 'error' in answer:
          return answer
        reason = 'it went away'
    except OSError as error:
      reason = error.strerror or str(error)
    time.sleep(_RETRY_SECONDS)
  raise NotJoined(
    f'process {me.index} of {me.count} (on {me.host}) did not reach process 0 '
    f'at {host}:{port} within {seconds:.0f} s: {reason}. Is process 0 running, '
    'and the port open between the hosts?'
  )


def _send(connection: socket.socket, message: dict[str, object]) -> None:
  line = json.dumps({'yi_jax': 1, **message}) + '\n'
  connection.sendall(line.encode())


def _tell(connection: socket.socket, answer: dict[str, str]) -> None:
  """Sends the answer and waits until it was taken.

  Who closes first keeps the port busy for a minute: that shall be the visitor.
  """
  try:
    _send(connection, answer)
    connection.settimeout(_SPEAK_SECONDS)
    connection.recv(1)
  except OSError:
    pass  # gone since: JAX will miss it as well


def _read(connection: socket.socket) -> dict[str, object] | None:
  """Returns one message; None if something else comes, or nothing."""
  received = b''
  while not received.endswith(b'\n') and len(received) < _LONGEST:
    more = connection.recv(4096)
    if not more:
      return None
    received += more
  try:
    message = json.loads(received)
  except ValueError:
    return None
  if not isinstance(message, dict) or message.pop('yi_jax', None) != 1:
    return None
  return message


def _read_member(connection: socket.socket) -> Member | None:
  connection.settimeout(_SPEAK_SECONDS)
  try:
    message = _read(connection)
    return None if message is None else Member(**message)
  except (OSError, TypeError):
    return None


def _processes(indices: list[int], hosts: dict[int, str]) -> str:
  """Returns e.g. 'process 3' or 'processes 0 (a), 1 (b)', at most eight."""
  shown = [
    f'{index} ({hosts[index]})' if index in hosts else str(index)
    for index in indices[:8]
  ]
  if len(indices) > 8:
    shown.append(f'and {len(indices) - 8} more')
  return f'process{"es" if len(indices) > 1 else ""} {", ".join(shown)}'
