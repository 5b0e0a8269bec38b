"""A screen for napari: that of Xvfb, else Qt's offscreen platform, where no canvas is drawn."""

import os
import select
import shutil
import subprocess

import pytest


@pytest.fixture(scope='session')
def screen():
  """Number of the screen, or ''; Qt keeps to it as long as the process lives."""
  program = shutil.which('Xvfb')
  if program is None:
    yield ''
    return
  reading, writing = os.pipe()
  words = f'{program} -displayfd {writing} -screen 0 1600x1000x24 -nolisten tcp -noreset'.split()
  with subprocess.Popen(words, pass_fds=[writing], stderr=subprocess.DEVNULL) as server:
    os.close(writing)
    try:
      ready, _, _ = select.select([reading], [], [], 60)
      yield os.read(reading, 16).decode().strip() if ready else ''
    finally:
      server.terminate()
      os.close(reading)


@pytest.fixture(scope='package')
def draws(screen, tmp_path_factory):
  """Whether napari can draw; chooses the platform of Qt, of these tests alone."""
  folder = tmp_path_factory.mktemp('napari')
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('NAPARI_CONFIG', str(folder / 'settings.yaml'))
    patch.setenv('QT_QPA_PLATFORM', 'xcb' if screen else 'offscreen')
    if screen:
      patch.setenv('DISPLAY', f':{screen}')
    yield bool(screen)
