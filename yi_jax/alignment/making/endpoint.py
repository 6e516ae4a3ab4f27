"""Asks a model behind an OpenAI-compatible /chat/completions address.

What may pass is tried again, later each time: a busy server (429, with its
Retry-After), a failing one (5xx), a lost connection, no answer in time, an
answer that is no JSON. What will not pass (a wrong key, an unknown model, a
request that is refused) is told at once, with the server's own words. The key
is read from an environment variable at each call; it is in no file, no
provenance and no message.
"""

import collections
import concurrent.futures
import dataclasses
import email.utils
import http.client
import itertools
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0  # seconds between two tries
_LARGEST = 16 << 20  # bytes of an answer
_SHOWN = 300  # characters of what a server says
_LOCAL = ('localhost', '127.0.0.1', '::1')

Task = TypeVar('Task')
Result = TypeVar('Result')


class EndpointError(OSError):
  """The endpoint cannot be used: key, address, model, or it is down."""


class RefusedError(ValueError):
  """This one request is refused; others may pass."""


class Reply(NamedTuple):
  """What a model answers.

  Attributes:
    text: of the answer.
    finish_reason: 'stop', 'length' where it was cut, or what the server says.
    tokens: prompt and answer as the server counts them, 0 if it does not.
  """

  text: str
  finish_reason: str
  tokens: int


@dataclasses.dataclass(frozen=True)
class Endpoint:
  """An address, a model, and how patiently to ask.

  Attributes:
    url: up to and without /chat/completions, as in http://localhost:8000/v1.
    model: its name there.
    key_variable: environment variable with the key; '' for none.
    name: for provenance; '' takes host and port of the address.
    timeout: seconds until an answer must be there, whole.
    tries: of one request, in all.
    parallel: requests at a time.
    sampling: temperature, top_p, max_tokens and what else the server takes.
    sleep: waits between tries.
  """

  url: str
  model: str
  key_variable: str = ''
  name: str = ''
  timeout: float = 120.0
  tries: int = 6
  parallel: int = 4
  sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  sleep: Callable[[float], None] = time.sleep

  def __post_init__(self) -> None:
    """Checks all that can be without asking.

    Raises:
      ValueError: naming what is wrong.
    """
    parts = urllib.parse.urlsplit(self.url)
    if parts.scheme not in ('http', 'https') or not parts.hostname:
      raise ValueError(
        f'the endpoint {self.url!r} is no address like http://localhost:8000/v1'
      )
    if parts.username or parts.password or parts.query:
      raise ValueError(
        'the endpoint has a name, a password or a query in its address: keys '
        'come from an environment variable'
      )
    if parts.path.rstrip('/').endswith('/chat/completions'):
      raise ValueError(
        f'leave /chat/completions out of the endpoint {self.url}'
      )
    if not self.model:
      raise ValueError('the endpoint needs the name of a model')
    for key in ('timeout', 'tries', 'parallel'):
      if getattr(self, key) <= 0:
        raise ValueError(f'{key} must be above 0, not {getattr(self, key)}')
    if {'messages', 'model', 'stream', 'n'} & set(self.sampling):
      raise ValueError('messages, model, stream and n are no sampling settings')
    self._key()
    if not self.name:
      object.__setattr__(self, 'name', parts.netloc)

  def ask(self, messages: Sequence[Mapping[str, str]]) -> Reply:
    """Returns the answer to a conversation.

    Args:
      messages: {'role', 'content'}, the last of the user.

    Raises:
      EndpointError: if there is none to be had, from here or for anybody.
      RefusedError: if this request is refused (400, 413, 422).
    """
    body = {**self.sampling, 'model': self.model, 'messages': list(messages)}
    content = json.dumps(body).encode()
    trouble, wait = '', 0.0
    for number in range(self.tries):
      if number:
        backoff = min(_FIRST_WAIT * 2 ** (number - 1), _LONGEST_WAIT)
        self.sleep(min(max(backoff, wait), _LONGEST_WAIT))
      try:
        return _reply(self._post(content))
      except urllib.error.HTTPError as error:
        with error:
          said = _said(error)
          wait = _retry_after(error.headers.get('Retry-After'))
        trouble = self._without_key(f'{error.code} {error.reason}{said}')
        if error.code in (400, 413, 422):
          raise RefusedError(trouble) from None
        if error.code not in _AGAIN:
          raise EndpointError(self._explain(error.code, trouble)) from None
      except (OSError, http.client.HTTPException, ValueError) as error:
        # No connection, no answer in time, or one that is none.
        reason = getattr(error, 'reason', None) or error
        wait = 0.0
        trouble = self._without_key(f'{type(reason).__name__}: {reason}')
    raise EndpointError(
      f'{self.name} gave no answer in {self.tries} tries; the last: {trouble}'
    )

  def provenance(self) -> dict[str, Any]:
    """Returns what a row made here shall remember."""
    return {
      'model': self.model,
      'endpoint': self.name,
      'sampling': dict(self.sampling),
    }

  def _post(self, content: bytes) -> bytes:
    headers = {'Content-Type': 'application/json'}
    if key := self._key():
      headers['Authorization'] = f'Bearer {key}'
    url = f'{self.url.rstrip("/")}/chat/completions'
    request = urllib.request.Request(url, content, headers)
    deadline = time.monotonic() + self.timeout
    parts, size = [], 0
    with self._opener().open(request, timeout=self.timeout) as answer:
      # The socket's own limit is for each read: a server that drips would
      # never reach it.
      while part := answer.read1(1 << 16):
        parts.append(part)
        size += len(part)
        if size > _LARGEST:
          raise ValueError(f'an answer of more than {_LARGEST:,} bytes')
        if time.monotonic() > deadline:
          raise TimeoutError(f'the answer took more than {self.timeout:g} s')
    return b''.join(parts)

  def _opener(self) -> urllib.request.OpenerDirector:
    # A redirect would carry the key elsewhere.
    handlers = [_NoRedirect()]
    if urllib.parse.urlsplit(self.url).hostname in _LOCAL:
      handlers.append(urllib.request.ProxyHandler({}))
    return urllib.request.build_opener(*handlers)

  def _key(self) -> str:
    if not self.key_variable:
      return ''
    key = os.environ.get(self.key_variable, '').strip()
    if not key:
      raise ValueError(
        f'the environment variable {self.key_variable} with the key is not set'
      )
    if not key.isascii() or not key.isprintable():
      raise ValueError(f'{self.key_variable} holds no key that can be sent')
    return key

  def _without_key(self, text: str) -> str:
    """Returns a text as it may be shown: servers repeat a wrong key."""
    key = self._key()
    return text.replace(key, '(key)') if key else text

  def _explain(self, code: int, trouble: str) -> str:
    cure = {
      401: f'; is the key in {self.key_variable or "key_variable"} right?',
      403: f'; may the key in {self.key_variable or "key_variable"} do this?',
      404: f'; is there a model {self.model!r} at {self.url}?',
    }.get(code, '')
    if 300 <= code < 400:
      cure = '; give the address that it moved to'
    return f'{self.name} refuses: {trouble}{cure}'


def defaults() -> dict[str, Any]:
  """Returns the section `endpoint` of a config."""
  return {
    'url': '',  # as in http://localhost:8000/v1
    'model': '',  # its name there
    'key_variable': '',  # environment variable with the key
    'name': '',  # for provenance; host and port if not given
    'timeout': 120.0,  # seconds
    'tries': 6,  # of a request
    'parallel': 4,  # requests at a time
    'sampling': {'temperature': 0.7, 'max_tokens': 1024},
  }


def of_config(config: Any) -> Endpoint:
  """Returns the endpoint of a config's section.

  Raises:
    ValueError: if there is none, or it cannot be.
  """
  if not config.url:
    raise ValueError(
      'endpoint.url is missing: --config.endpoint.url=http://localhost:8000/v1 '
      '--config.endpoint.model=NAME'
    )
  return Endpoint(**config.to_dict())


class _NoRedirect(urllib.request.HTTPRedirectHandler):
  def redirect_request(self, *unused: Any) -> None:
    return None


def in_order(
  work: Callable[[Task], Result], tasks: Iterable[Task], parallel: int
) -> Iterator[tuple[Task, Result | Exception]]:
  """Does tasks at the same time, and yields them in their order.

  An exception is a result. No more than 4 * parallel tasks are ahead of the
  one that is waited for.

  Args:
    work: what to do, in threads.
    tasks: what to do it with.
    parallel: how many at a time.
  """
  tasks = iter(tasks)
  with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
    ahead: collections.deque[tuple[Task, concurrent.futures.Future]] = (
      collections.deque()
    )
    try:
      while True:
        for task in itertools.islice(tasks, 4 * parallel - len(ahead)):
          ahead.append((task, pool.submit(work, task)))
        if not ahead:
          return
        task, future = ahead.popleft()
        try:
          result = future.result()
        except Exception as error:  # noqa: BLE001, the caller decides
          result = error
        yield task, result
    finally:
      for _, future in ahead:
        future.cancel()


def _reply(content: bytes) -> Reply:
  """Returns an answer; raises ValueError for what is none."""
  try:
    answer = json.loads(content)
  except ValueError as error:
    raise ValueError(f'no JSON: {content[:_SHOWN]!r}') from error
  try:
    choice = answer['choices'][0]
    text = choice['message']['content']
  except (KeyError, IndexError, TypeError) as error:
    raise ValueError(f'no answer in {content[:_SHOWN]!r}') from error
  if not isinstance(text, str):
    raise ValueError(f'no text in {content[:_SHOWN]!r}')
  usage = answer.get('usage') or {}
  tokens = usage.get('total_tokens') if isinstance(usage, dict) else 0
  return Reply(
    text,
    str(choice.get('finish_reason') or ''),
    tokens if isinstance(tokens, int) else 0,
  )


def _said(error: urllib.error.HTTPError) -> str:
  """Returns what a server says of an error."""
  try:
    text = error.read(1 << 16).decode('utf-8', 'replace').strip()
  except (OSError, http.client.HTTPException):
    return ''
  try:
    said = json.loads(text)
    inner = said.get('error', said)
    text = str(inner.get('message', text) if isinstance(inner, dict) else inner)
  except (ValueError, AttributeError):
    pass
  return f': {text[:_SHOWN]}' if text else ''


def _retry_after(value: str | None) -> float:
  """Returns the seconds of a Retry-After, 0 without one: a number or a date."""
  if not value:
    return 0.0
  try:
    return max(0.0, float(value))
  except ValueError:
    pass
  try:
    date = email.utils.parsedate_to_datetime(value)
  except ValueError:
    return 0.0
  return max(0.0, date.timestamp() - time.time())
