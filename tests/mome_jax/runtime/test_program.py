"""Programs that another one runs."""

import os
import signal
import threading
import time

import pytest

from input_pipeline import stopping
from mome_jax.runtime import program


@pytest.fixture
def make(tmp_path, monkeypatch):
  """Makes a module `told` of some lines; the folder that they may write to is theirs."""
  monkeypatch.setenv('PYTHONPATH', str(tmp_path))
  monkeypatch.chdir(tmp_path)

  def made(*lines):
    (tmp_path / 'told.py').write_text('\n'.join(('import os, pathlib, signal, sys, time', *lines)))
    return tmp_path

  return made


@pytest.mark.parametrize(
  ('line', 'code'),
  [
    ('sys.exit(len(sys.argv) - 1)', 2),
    ('os.kill(os.getpid(), signal.SIGKILL)', 128 + signal.SIGKILL),
  ],
)
def test_exit_codes_are_those_of_a_shell(make, line, code):
  make(line)
  assert program.run('told', 'one', 'other') == code


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_program_that_is_to_end_is_waited_for(make, number):
  """SIGTERM is passed on; of Control-C, which a terminal sends to both, nothing is."""
  saves = 'lambda *_: (time.sleep(0.2), os._exit(75))'
  folder = make(
    f'signal.signal(signal.SIGTERM, {saves})',
    'pathlib.Path("began").touch()',
    'time.sleep(0.5 if sys.argv[1] == "SIGINT" else 60)',
  )

  def stop():
    while not (folder / 'began').exists():
      time.sleep(0.02)
    os.kill(os.getpid(), number)

  asking = threading.Thread(target=stop)
  asking.start()
  before = signal.getsignal(signal.SIGTERM)
  assert program.run('told', number.name) == (75 if number == signal.SIGTERM else 0)
  asking.join()
  assert signal.getsignal(signal.SIGTERM) is before


def test_a_program_that_is_asked_to_end_before_it_listens(make):
  """It ends with 143, of which no launcher knows that the same command goes on."""
  folder = make('pathlib.Path("began").touch()', 'time.sleep(60)')

  def stop():
    while not (folder / 'began').exists():
      time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)

  asking = threading.Thread(target=stop)
  asking.start()
  main = stopping.resumable(lambda: program.run('told'))
  with stopping.stoppable():
    assert main() == stopping.PREEMPTED
  asking.join()
  make('sys.exit(143)')
  assert program.run('told') == 143  # nobody asked this one
