"""A server of some model: its app with a client of its own, or on a port."""

import contextlib
import json
import socket
import threading

import uvicorn
from starlette.testclient import TestClient

from mome_jax.predict.request import Request
from mome_jax.serve import answers, app, compute, guard, scans

TOKEN, HOST = 'a-token', '127.0.0.1:8000'
ADDRESS = f'http://{HOST}/{TOKEN}/'


@contextlib.contextmanager
def desk(model, folder, *, most=4, limit=1 << 30, keep=1 << 30, inputs=()):
  """What a server of some model works with; it is closed afterwards."""
  line = compute.Line()
  made = app.Desk(
    answers.Answerer(model, Request(()), keep),
    scans.Scans(folder, most, lambda scan: made.close(scan)),
    line,
    {scan.name: scan for scan in inputs},
    limit,
  )
  try:
    yield made
  finally:
    line.close()


def guarded(made, hosts=(HOST,)):
  """The app, as it is served."""
  return guard.Guard(app.make_app(made), TOKEN, hosts)


@contextlib.contextmanager
def client(made):
  """A client of a desk."""
  with TestClient(guarded(made), base_url=ADDRESS) as one:
    yield one


def send(one, path, name=None):
  """Opens the scan of a file; its number."""
  answer = one.post('api/scans', params={'name': name or path.name}, content=path.read_bytes())
  assert answer.status_code == 201, answer.text
  return answer.json()['scans'][0]['scan']


def ask(one, scan, prompts, **more):
  """Asks for masks and waits; the states of the job, and the set."""
  answer = one.post(f'api/scans/{scan}/prompts', json={'prompts': prompts, **more})
  assert answer.status_code == 202, answer.text
  told = answer.json()
  states = follow(one, told['job'])
  return states, one.get(f'api/scans/{scan}/sets/{told["set"]}').json()


def follow(one, job):
  """The states of a job, until it is over."""
  with one.stream('GET', f'api/jobs/{job}/events') as stream:
    assert stream.headers['content-type'].startswith('text/event-stream')
    return [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith('data: ')]


@contextlib.contextmanager
def serving(made):
  """A desk on a port of this machine: its address, and what stops it."""
  with socket.create_server(('127.0.0.1', 0)) as listener:
    host = f'127.0.0.1:{listener.getsockname()[1]}'
    config = uvicorn.Config(
      guarded(made, [host]), log_level='error', ws='none', timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()

    def stop():
      made.stopping.set()
      server.should_exit = True
      thread.join(30)

    try:
      yield f'http://{host}/{TOKEN}/', stop
    finally:
      stop()
