"""The command: one address, what it refuses, and what is left of it."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import fresh
import pytest
from threshold import save_scan

from mome_jax.serve import command

ROOT = pathlib.Path(__file__).resolve().parents[3]


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return fresh.save_model(tmp_path_factory.mktemp('model') / 'm', ('liver', 'spleen'))


@pytest.fixture
def start(model, tmp_path):
  """start(*options, **environment) -> a server and its address; its files are in tmp_path."""
  servers = []

  def call(*options, **environment):
    server = subprocess.Popen(
      [sys.executable, '-m', 'mome_jax.serve', '--checkpoint', model, *options],
      stdout=subprocess.PIPE, text=True, cwd=ROOT,
      env={**os.environ, 'TMPDIR': str(tmp_path), **environment},
    )  # fmt: skip
    servers.append(server)
    return server, server.stdout.readline().strip()

  yield call
  for server in servers:
    server.kill()
    server.wait()


def send(address, content):
  with urllib.request.urlopen(f'{address}api/scans?name=scan.nii.gz', content) as answer:
    assert answer.status == 201


def test_one_address_and_nothing_left(start, tmp_path):
  server, address = start()
  assert re.fullmatch(r'http://127\.0\.0\.1:\d+/[\w-]{30,}/', address)
  scan = save_scan(tmp_path / 'scan.nii.gz').read_bytes()
  send(address, scan)
  [place] = tmp_path.glob('mome-serve-*')
  assert place.stat().st_mode & 0o777 == 0o700
  assert [file.read_bytes() for file in place.rglob('*.nii.gz')] == [scan]
  server.send_signal(signal.SIGINT)
  assert server.wait(60) == 0
  assert server.stdout.read() == ''
  assert not list(place.iterdir())
  # What a killed server leaves is removed by the next one.
  server, address = start()
  send(address, scan)
  assert list(place.rglob('*.nii.gz'))
  server.kill()
  server.wait()
  start()
  assert not list(place.rglob('*.nii.gz'))


def test_the_browser_is_not_started_with_the_token(start, tmp_path):
  browser, told = tmp_path / 'browser', tmp_path / 'told'
  browser.write_text(f'#!/bin/sh\necho "$@" > {told}.part && mv {told}.part {told}\n')
  browser.chmod(0o700)
  server, address = start('--open', BROWSER=f'{browser} %s')
  end = time.monotonic() + 60
  while not told.exists():
    assert time.monotonic() < end
    time.sleep(0.1)
  uri = urllib.parse.urlsplit(told.read_text().strip())
  page = pathlib.Path(urllib.parse.unquote(uri.path))
  assert uri.scheme == 'file' and address.split('/')[-2] not in told.read_text()
  assert f'content="0; url={address}"' in page.read_text()
  assert [path.stat().st_mode & 0o777 for path in (page, page.parent)] == [0o600, 0o700]
  server.send_signal(signal.SIGINT)
  assert server.wait(60) == 0 and not page.exists()


def test_what_cannot_be_is_told_in_one_line(capsys, tmp_path):
  with socket.create_server(('127.0.0.1', 0)) as other:
    port = str(other.getsockname()[1])
    for options, message in (
      (['--port', port], 'choose another, or 0 for any'),
      (['--input', str(tmp_path / 'none')], 'no such folder'),
      (['--input', 'gs://bucket/scans'], 'gs://bucket/scans is in a bucket; give a place'),
      (['--max-upload', '0'], '--max-upload 0: must be above 0'),
      (['--max-upload', 'inf'], '--max-upload inf: must be above 0 and finite'),
      (['--keep-features=-0.5'], '--keep-features -0.5: must be 0 or more'),
      (['--keep-features', 'inf'], '--keep-features inf: must be 0 or more and finite'),
    ):
      assert command.main(options) == 1
      told = capsys.readouterr().err
      assert told.startswith('error: ') and message in told and told.count('\n') == 1
