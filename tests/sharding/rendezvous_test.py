"""Processes meet before JAX joins them; who is missing or differs is named."""

import concurrent.futures
import socket

from yi_jax.sharding import rendezvous

_SAME = {'jax': '0.10.2', 'yi_jax': 'files ab'}


def _meet(members, port, seconds=20.0):
  """Lets members meet; returns the error of each, None for those that go on."""

  def one(member):
    try:
      rendezvous.meet(f'localhost:{port}', member, seconds)
    except (ValueError, OSError) as error:
      return error
    return None

  with concurrent.futures.ThreadPoolExecutor(len(members)) as pool:
    return list(pool.map(one, members))


def _member(index, count=3, versions=None):
  return rendezvous.Member(index, count, f'host{index}', versions or _SAME)


def test_all_go_on_when_all_are_there(free_port):
  assert _meet([_member(i) for i in (2, 0, 1)], free_port) == [None] * 3
  # The port is free again at once: JAX listens there next.
  socket.create_server(('', free_port)).close()


def test_who_does_not_come_is_named_to_everybody(free_port):
  errors = _meet([_member(0, 4), _member(2, 4)], free_port, seconds=5.0)
  for error in errors:
    assert isinstance(error, rendezvous.NotJoined)
    assert 'processes 1, 3 of 4 did not come within 5 s' in str(error)
    assert 'processes 0 (host0), 2 (host2)' in str(error)


def test_a_process_that_does_not_find_the_first_says_where_it_looked(free_port):
  [error] = _meet([_member(1)], free_port, seconds=0.5)
  assert isinstance(error, rendezvous.NotJoined)
  assert f'did not reach process 0 at localhost:{free_port}' in str(error)


def test_different_software_is_told_with_who_has_what(free_port):
  errors = _meet(
    [_member(0), _member(1, versions={**_SAME, 'jax': '0.10.1'}), _member(2)],
    free_port,
  )
  for error in errors:
    assert isinstance(error, ValueError)
    assert (
      'differ in jax: 0.10.2 on processes 0 (host0), 2 (host2); '
      '0.10.1 on process 1 (host1)'
    ) in str(error)


def test_different_ideas_of_how_many_there_are_are_told(free_port):
  for error in _meet([_member(0, 3), _member(1, 2)], free_port):
    assert 'differ in number of processes: 3 on process 0' in str(error)


def test_two_with_one_number_are_told(free_port):
  errors = _meet([_member(0), _member(1), _member(1)], free_port)
  assert all('two processes say they are process 1' in str(e) for e in errors)


def test_strangers_and_those_who_leave_do_not_count(free_port):
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    first = pool.submit(_meet, [_member(0)], free_port)
    for line in (b'GET / HTTP/1.1\r\n\r\n\n', b'', b'{"yi_jax": 1}\n'):
      _visit(free_port, line)
    # One comes, dies while it waits, and is started again.
    with _connected(free_port) as early:
      rendezvous._send(early, _member(1).__dict__)
    assert _meet([_member(1), _member(2)], free_port) == [None, None]
    assert first.result() == [None]


def _connected(port):
  while True:
    try:
      return socket.create_connection(('localhost', port))
    except ConnectionRefusedError:
      continue


def _visit(port, line):
  with _connected(port) as connection:
    connection.sendall(line)


def test_a_port_that_is_taken_is_named():
  with socket.create_server(('', 0)) as other:
    port = other.getsockname()[1]
    [error] = _meet([_member(0)], port)
  assert f'cannot listen on port {port}' in str(error)
