"""A Hub of models on this machine: as much of Hugging Face's API as fetching a model takes."""

import contextlib
import functools
import hashlib
import http.server
import json
import threading

COMMIT = hashlib.sha1(b'commit').hexdigest()


class _Handler(http.server.BaseHTTPRequestHandler):
  def __init__(self, root, asked, *args):
    self._root, self._asked = root, asked
    super().__init__(*args)

  def log_message(self, *args):
    pass

  def do_HEAD(self):
    self.do_GET()

  def do_GET(self):
    self._asked.append(self.path)
    parts = self.path.partition('?')[0].strip('/').split('/')
    if parts[:2] == ['api', 'models'] and len(parts) > 3:
      folder = self._root / parts[2] / parts[3]
      names = [p.relative_to(folder).as_posix() for p in sorted(folder.rglob('*')) if p.is_file()]
      if not names or parts[5:] not in ([], ['main'], [COMMIT]):
        self._answer(404, b'', {'X-Error-Code': 'RepoNotFound'})
        return
      if parts[4:5] == ['tree']:
        files = [{'type': 'file', 'path': name, 'size': (folder / name).stat().st_size,
                  'oid': hashlib.sha1(name.encode()).hexdigest()} for name in names]  # fmt: skip
        self._answer(200, json.dumps(files).encode(), {'Content-Type': 'application/json'})
        return
      info = {'id': '/'.join(parts[2:4]), 'sha': COMMIT, 'private': False, 'tags': [],
              'downloads': 0, 'siblings': [{'rfilename': name} for name in names]}  # fmt: skip
      self._answer(200, json.dumps(info).encode(), {'Content-Type': 'application/json'})
      return
    file = self._root.joinpath(*parts[:2], *parts[4:])
    if parts[2:3] != ['resolve'] or not file.is_file():
      self._answer(404, b'', {'X-Error-Code': 'EntryNotFound'})
      return
    data = file.read_bytes()
    etag = f'"{hashlib.sha256(data).hexdigest()}"'
    self._answer(200, data, {'ETag': etag, 'X-Repo-Commit': COMMIT})

  def _answer(self, status, body, headers):
    self.send_response(status)
    for name, value in {'Content-Length': str(len(body)), **headers}.items():
      self.send_header(name, value)
    self.end_headers()
    if self.command != 'HEAD':
      self.wfile.write(body)


@contextlib.contextmanager
def serving(root):
  """(URL, what was asked for so far) of a Hub whose models are root/ORG/NAME."""
  asked = []
  server = http.server.ThreadingHTTPServer(
    ('127.0.0.1', 0), functools.partial(_Handler, root, asked)
  )
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  try:
    yield f'http://127.0.0.1:{server.server_port}', asked
  finally:
    server.shutdown()
    thread.join(10)
    server.server_close()
