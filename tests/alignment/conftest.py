"""A small server on loopback that speaks the protocol of chat completions."""

import http.server
import json
import threading

import pytest


class Server(http.server.ThreadingHTTPServer):
  """Answers what `answer` says: a text, or (code, headers, bytes)."""

  daemon_threads = True

  def __init__(self):
    super().__init__(('127.0.0.1', 0), _Handler)
    self.url = f'http://127.0.0.1:{self.server_port}/v1'
    self.requests, self.keys = [], []
    self.running = self.most_at_once = 0
    self.lock = threading.Lock()
    self.answer = lambda messages: 'Very well, here it is.'


class _Handler(http.server.BaseHTTPRequestHandler):
  def do_POST(self):
    server = self.server
    size = int(self.headers['Content-Length'])
    request = json.loads(self.rfile.read(size))
    with server.lock:
      server.requests.append({'path': self.path, **request})
      server.keys.append(self.headers.get('Authorization'))
      server.running += 1
      server.most_at_once = max(server.most_at_once, server.running)
    try:
      said = server.answer(request['messages'])
    finally:  # before the client can know, and ask again
      with server.lock:
        server.running -= 1
    try:
      code, headers = 200, {}
      if isinstance(said, tuple):
        code, headers, content = said
      else:
        content = completion(said)
      self.send_response(code)
      for name, value in headers.items():
        self.send_header(name, value)
      self.send_header('Content-Length', str(len(content)))
      self.end_headers()
      self.wfile.write(content)
    except (BrokenPipeError, ConnectionResetError):
      pass  # the client has gone

  def log_message(self, *unused):
    pass


def completion(text, finish_reason='stop'):
  """Returns an answer as servers send it."""
  message = {'role': 'assistant', 'content': text}
  choice = {'index': 0, 'message': message, 'finish_reason': finish_reason}
  usage = {'prompt_tokens': 3, 'completion_tokens': 4, 'total_tokens': 7}
  return json.dumps({'choices': [choice], 'usage': usage}).encode()


@pytest.fixture
def server():
  """A server of its own for each test; server.answer says what it does."""
  found = Server()
  thread = threading.Thread(
    target=found.serve_forever, kwargs={'poll_interval': 0.01}
  )
  thread.start()
  yield found
  found.shutdown()
  thread.join()
  found.server_close()
