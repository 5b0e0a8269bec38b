"""Commands clean up when the system asks them to end, and say how they ended."""

import importlib
import os
import signal
import tempfile
import time

import pytest

from input_pipeline import errors, stopping

PARSES = {'crossval': 'parse', 'reproduce': 'make_parser'}


def test_the_signal_unwinds_the_block():
  left = []
  with pytest.raises(stopping.Stopped) as stopped, stopping.stoppable():
    try:
      os.kill(os.getpid(), signal.SIGTERM)
      time.sleep(5)
    finally:
      os.kill(os.getpid(), signal.SIGTERM)  # a second one does not end the cleaning up
      left.append(True)
  assert left and stopped.value.signal == signal.SIGTERM
  assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(
  ('number', 'told'),
  [
    (signal.SIGTERM, 'stopped by SIGTERM'),
    (signal.SIGHUP, 'stopped by SIGHUP'),
    (signal.SIGINT, 'interrupted'),
  ],
)
def test_commands_remove_their_temporary_files(number, told, tmp_path, capsys):
  default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
  before = signal.signal(number, default)  # the tests may run under nohup

  @errors.command
  def main(argv):
    with tempfile.TemporaryDirectory(dir=tmp_path):
      os.kill(os.getpid(), number)
      time.sleep(5)
    return 0

  try:
    assert main([]) == 128 + number
  finally:
    signal.signal(number, before)
  assert capsys.readouterr().err == f'error: {told}\n'
  assert not os.listdir(tmp_path)


def test_ignored_signals_stay_ignored():
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
  try:
    with stopping.stoppable():
      os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
  finally:
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
  ('number', 'code'), [(signal.SIGTERM, 75), (signal.SIGHUP, 129), (signal.SIGINT, 130)]
)
@pytest.mark.parametrize('name', ['crossval', 'reproduce'])
def test_what_goes_on_by_the_same_command_asks_for_it(name, number, code, monkeypatch, capsys):
  """Launchers start again on 75, and on nothing else; nobody wants that after Control-C."""
  module = importlib.import_module(f'mome_jax.{name}.command')
  stop = KeyboardInterrupt() if number == signal.SIGINT else stopping.Stopped(number)

  def begin(*_):
    raise stop

  monkeypatch.setattr(module.command_line if name == 'crossval' else module, PARSES[name], begin)
  assert module.main([]) == code
  assert ('the same command goes on' in capsys.readouterr().err) == (code == 75)
