"""What stands between programs and the bucket of `bucket.py`: its distance, and whether it takes
anything."""

import collections
import contextlib
import http.client
import http.server
import json
import threading
import time
from collections.abc import Iterator

# As Google answers writes to a bucket whose project pays no more.
_REFUSAL = {
  'error': {
    'code': 403,
    'message': 'The billing account for the owning project is disabled in state closed',
    'errors': [{'domain': 'global', 'reason': 'accountDisabled'}],
  }
}
_WRITES = 'POST', 'PUT', 'PATCH', 'DELETE'
_OWN = 'connection', 'content-length', 'transfer-encoding'  # headers of one connection


class Gate(http.server.ThreadingHTTPServer):
  """Hands requests on to the server of a bucket and its answers back.

  Attributes:
    address: for programs, in place of the server's.
    target: port of the server.
    delay: seconds that each request takes on its way.
    refuses: whether writes are answered with 403.
    calls: how many requests there were of each method.
  """

  daemon_threads = True
  request_queue_size = 256

  def __init__(self):
    super().__init__(('127.0.0.1', 0), _Handler)
    self.address = f'http://127.0.0.1:{self.server_port}'
    self.target, self.delay, self.refuses = 0, 0.0, False
    self.calls: collections.Counter[str] = collections.Counter()


class _Handler(http.server.BaseHTTPRequestHandler):
  """One connection of a program, and one to the server."""

  server: Gate
  protocol_version = 'HTTP/1.1'
  disable_nagle_algorithm = True

  def setup(self) -> None:
    super().setup()
    self._onward = http.client.HTTPConnection('127.0.0.1', self.server.target, timeout=60)

  def finish(self) -> None:
    self._onward.close()
    with contextlib.suppress(OSError):
      super().finish()

  def handle_one_request(self) -> None:
    try:
      super().handle_one_request()
    except ConnectionError:  # a program that was killed
      self.close_connection = True

  def _answer(self) -> None:
    self.server.calls[self.command] += 1
    body = self._body()
    time.sleep(self.server.delay)
    if self.server.refuses and self.command in _WRITES:
      self._send(403, [('Content-Type', 'application/json')], json.dumps(_REFUSAL).encode())
      return
    headers = {key: text for key, text in self.headers.items() if key.lower() not in _OWN}
    self._onward.request(self.command, self.path, body, headers)
    answer = self._onward.getresponse()
    self._send(answer.status, answer.getheaders(), answer.read())

  do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _answer

  def _body(self) -> bytes | None:
    if self.headers.get('Transfer-Encoding', '').lower() != 'chunked':
      size = int(self.headers.get('Content-Length', 0))
      return self.rfile.read(size) if size else None
    parts = []
    while size := int(self.rfile.readline().split(b';')[0], 16):
      parts.append(self.rfile.read(size))
      self.rfile.readline()
    self.rfile.readline()
    return b''.join(parts)

  def _send(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
    self.send_response_only(status)
    for key, text in headers:
      if key.lower() not in _OWN:
        self.send_header(key, text)
    size = dict(headers).get('Content-Length', '0') if self.command == 'HEAD' else str(len(body))
    if status not in (204, 304):
      self.send_header('Content-Length', size)
    self.end_headers()
    self.wfile.write(body)

  def log_message(self, *_) -> None:
    """Nothing: `Gate.calls` counts."""


@contextlib.contextmanager
def gate() -> Iterator[Gate]:
  """A gate that is open, for `bucket.served`."""
  with Gate() as server:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
      yield server
    finally:
      server.shutdown()
      thread.join()
