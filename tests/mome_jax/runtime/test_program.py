"""Programs that another one runs."""

import contextlib
import os
import signal
import subprocess
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


@contextlib.contextmanager
def asking(number, when):
  """Sends this process a signal, once there is such a file, while the block runs."""

  def ask():
    while not when.exists():
      time.sleep(0.02)
    os.kill(os.getpid(), number)

  thread = threading.Thread(target=ask)
  thread.start()
  yield
  thread.join()


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_program_that_is_to_end_is_waited_for(make, number):
  """SIGTERM is passed on; of Control-C, which a terminal sends to both, nothing is."""
  saves = 'lambda *_: (time.sleep(0.2), os._exit(75))'
  folder = make(
    f'signal.signal(signal.SIGTERM, {saves})',
    'pathlib.Path("began").touch()',
    'time.sleep(0.5 if sys.argv[1] == "SIGINT" else 60)',
    'os._exit(130)',
  )
  before = signal.getsignal(signal.SIGTERM)
  with asking(number, folder / 'began'):
    assert program.run('told', number.name) == (75 if number == signal.SIGTERM else 130)
  assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
  ('number', 'raised'), [(signal.SIGTERM, stopping.Stopped), (signal.SIGINT, KeyboardInterrupt)]
)
def test_what_comes_when_a_program_has_done_all_is_for_its_caller(make, number, raised):
  """Lost, the next fold of a cross-validation would begin."""
  folder = make(
    'signal.signal(signal.SIGTERM, signal.SIG_IGN)',  # as while an interpreter ends
    'pathlib.Path("began").touch()',
    'time.sleep(0.5)',
  )
  with asking(number, folder / 'began'), pytest.raises(raised), stopping.stoppable():
    program.run('told')


def test_what_comes_while_a_program_begins_reaches_it(make, monkeypatch):
  """Else it would be trained to its end, waited for by a process that was asked to end."""
  make('time.sleep(20)')
  begun = []

  class Begun(subprocess.Popen):
    def __init__(self, *arguments):
      super().__init__(*arguments)
      begun.append(self)
      signal.raise_signal(signal.SIGTERM)

  monkeypatch.setattr(subprocess, 'Popen', Begun)
  with pytest.raises(stopping.Stopped), stopping.stoppable():
    program.run('told')
  assert begun[0].poll() == -signal.SIGTERM


def test_a_program_that_is_asked_to_end_before_it_listens(make):
  """It ends with 143, of which no launcher knows that the same command goes on."""
  folder = make('pathlib.Path("began").touch()', 'time.sleep(60)')

  main = stopping.resumable(lambda: program.run('told'))
  with asking(signal.SIGTERM, folder / 'began'), stopping.stoppable():
    assert main() == stopping.PREEMPTED
  make('sys.exit(143)')
  assert program.run('told') == 143  # nobody asked this one
