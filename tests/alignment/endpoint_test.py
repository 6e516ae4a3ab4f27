"""The client of chat completions against a server that misbehaves."""

import json
import threading
import time

import pytest

from yi_jax.alignment.making import endpoint

_ASKED = [{'role': 'user', 'content': 'How many legs has a spider?'}]
_KEY = 'sk-secret-0815'


@pytest.fixture
def waits():
  return []


@pytest.fixture
def asked(server, waits):
  """Returns an endpoint; its waits are written down and not waited."""

  def make(**changes):
    values = {'model': 'yi', 'timeout': 60.0, 'sleep': waits.append}
    return endpoint.Endpoint(server.url, **{**values, **changes})

  return make


def _in_turn(*answers):
  """Returns a server's answers, one a request, the last again and again."""
  left = list(answers)
  return lambda messages: left.pop(0) if len(left) > 1 else left[0]


def test_a_request_and_its_answer(server, asked):
  server.answer = lambda messages: 'Eight 八.'
  reply = asked(sampling={'temperature': 0.5, 'max_tokens': 9}).ask(_ASKED)
  assert reply == endpoint.Reply('Eight 八.', 'stop', 7)
  assert server.requests == [
    {
      'path': '/v1/chat/completions',
      'model': 'yi',
      'messages': _ASKED,
      'temperature': 0.5,
      'max_tokens': 9,
    }
  ]
  assert server.keys == [None]


@pytest.mark.parametrize(
  ('trouble', 'expected'),
  [
    ((429, {'Retry-After': '7'}, b'slow down'), [7.0, 7.0]),
    ((500, {}, b'{"error": {"message": "oops"}}'), [1.0, 2.0]),
    ((503, {}, b''), [1.0, 2.0]),
    ((200, {}, b'{"choices": [{"mess'), [1.0, 2.0]),
    ((200, {}, b'{"choices": []}'), [1.0, 2.0]),
    ((200, {}, b'<html>\xff'), [1.0, 2.0]),
  ],
)
def test_what_may_pass_is_tried_again(server, asked, waits, trouble, expected):
  server.answer = _in_turn(trouble, trouble, 'Eight.')
  assert asked().ask(_ASKED).text == 'Eight.'
  assert waits == expected
  assert len(server.requests) == 3


def test_it_gives_up_with_the_last_trouble(server, asked, waits):
  server.answer = _in_turn((500, {}, b'{"error": {"message": "no memory"}}'))
  with pytest.raises(
    endpoint.EndpointError, match='no answer in 8 tries.*500.*no memory'
  ):
    asked(tries=8).ask(_ASKED)
  assert waits == [1, 2, 4, 8, 16, 32, 60]


def test_no_answer_in_time_is_tried_again(server, asked):
  free = threading.Event()

  def slow(messages):
    if len(server.requests) == 1:
      free.wait(60)
    return 'Eight.'

  server.answer = slow
  try:
    assert asked(timeout=3.0).ask(_ASKED).text == 'Eight.'
  finally:
    free.set()
  assert len(server.requests) == 2


def test_a_lost_connection_is_told(asked):
  closed = endpoint.Endpoint(
    'http://127.0.0.1:9/v1', 'yi', tries=2, sleep=lambda seconds: None
  )
  with pytest.raises(endpoint.EndpointError, match='127.0.0.1:9 .* 2 tries'):
    closed.ask(_ASKED)


@pytest.mark.parametrize(
  ('code', 'message'),
  [
    (401, 'is the key in YI_TEST_KEY right'),
    (404, "is there a model 'yi'"),
    (307, 'the address that it moved to'),
  ],
)
def test_what_will_not_pass_is_told_at_once(
  server, asked, waits, monkeypatch, code, message
):
  monkeypatch.setenv('YI_TEST_KEY', _KEY)
  said = json.dumps({'error': {'message': f'bad key {_KEY}'}}).encode()
  headers = {'Location': 'http://127.0.0.1:9/elsewhere'}
  server.answer = lambda messages: (code, headers, said)
  with pytest.raises(endpoint.EndpointError, match=message) as error:
    asked(key_variable='YI_TEST_KEY').ask(_ASKED)
  assert server.keys == [f'Bearer {_KEY}']
  assert _KEY not in str(error.value)
  assert waits == []


def test_the_key_is_nowhere_but_in_the_request(asked, monkeypatch):
  monkeypatch.setenv('YI_TEST_KEY', _KEY)
  made = asked(key_variable='YI_TEST_KEY')
  assert _KEY not in repr(made) + json.dumps(made.provenance())


def test_a_refused_request_is_another_matter(server, asked):
  said = b'{"error": {"message": "too long"}}'
  server.answer = lambda messages: (400, {}, said)
  with pytest.raises(endpoint.RefusedError, match='400 .*: too long'):
    asked().ask(_ASKED)


def test_requests_run_in_parallel_and_come_in_order(server, asked):
  together = threading.Barrier(3)

  def answer(messages):
    number = int(messages[0]['content'])
    if number < 3:
      together.wait(timeout=60)
    time.sleep(0.03 if number % 4 == 0 else 0.01)
    return (400, {}, b'') if number == 5 else f'answer {number}'

  server.answer = answer
  made = asked(parallel=3)

  def ask(number):
    return made.ask([{'role': 'user', 'content': str(number)}]).text

  found = list(endpoint.in_order(ask, range(12), 3))
  assert [number for number, _ in found] == list(range(12))
  assert isinstance(found[5][1], endpoint.RefusedError)
  assert found[11] == (11, 'answer 11')
  assert server.most_at_once == 3


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'url': 'localhost:8000'}, 'no address like'),
    ({'url': 'http://me:pass@host/v1'}, 'keys come from an environment'),
    ({'url': 'http://host/v1/chat/completions'}, 'leave /chat/completions'),
    ({'model': ''}, 'name of a model'),
    ({'parallel': 0}, 'parallel must be above 0'),
    ({'key_variable': 'YI_NO_SUCH_KEY'}, 'YI_NO_SUCH_KEY .* is not set'),
    ({'sampling': {'stream': True}}, 'no sampling settings'),
  ],
)
def test_bad_settings_are_told(changes, message):
  with pytest.raises(ValueError, match=message):
    endpoint.Endpoint(**{'url': 'http://host/v1', 'model': 'yi', **changes})
