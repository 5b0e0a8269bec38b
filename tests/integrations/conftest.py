"""A screen for napari: that of Xvfb, else Qt's offscreen platform, where no canvas is drawn."""

import os
import select
import shutil
import subprocess

import pytest


@pytest.fixture(scope='session')
def draws(tmp_path_factory):
  """Whether napari can draw; chooses the platform of Qt, which a process has once."""
  folder = tmp_path_factory.mktemp('napari')
  os.environ |= {'NAPARI_CONFIG': str(folder / 'settings.yaml'), 'QT_QPA_PLATFORM': 'offscreen'}
  program = shutil.which('Xvfb')
  if program is None:
    yield False
    return
  reading, writing = os.pipe()
  command = [
    program,
    '-displayfd',
    str(writing),
    '-screen',
    '0',
    '1600x1000x24',
    '-nolisten',
    'tcp',
  ]
  with subprocess.Popen(command, pass_fds=[writing], stderr=subprocess.DEVNULL) as server:
    os.close(writing)
    try:
      ready, _, _ = select.select([reading], [], [], 60)
      number = os.read(reading, 16).decode().strip() if ready else ''
      if number:
        os.environ |= {'DISPLAY': f':{number}', 'QT_QPA_PLATFORM': 'xcb'}
      yield bool(number)
    finally:
      server.terminate()
      os.close(reading)
