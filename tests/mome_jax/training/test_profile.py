"""A profile of steps is written, or it is said why there is none."""

import jax
import jax.numpy as jnp
import pytest

from mome_jax.training.profile import Trace


def run(trace, first, last):
  for step in range(first, last):
    trace.before(step, None)
    jnp.ones(4).sum().block_until_ready()
  trace.close()


@pytest.mark.parametrize('last', [13, 16])
def test_a_profile(tmp_path, capsys, last):
  """Of all steps that are left, or of some."""
  run(Trace(tmp_path / 'profile', first=12, steps=2), 10, last)
  assert capsys.readouterr().out == f'profile: {tmp_path / "profile"}\n'
  assert list((tmp_path / 'profile').rglob('*.xplane.pb'))


def test_too_few_steps_are_told_of(tmp_path, capsys):
  run(Trace(tmp_path / 'profile', first=12, steps=2), 10, 12)
  told = capsys.readouterr().out
  assert told == 'note: no profile: it begins with step 13, which this run had not\n'
  assert not (tmp_path / 'profile').exists()


def test_one_that_cannot_be_written_ends_no_run(tmp_path, capsys):
  (tmp_path / 'profile').write_text('a file')
  run(Trace(tmp_path / 'profile', first=12, steps=2), 10, 16)
  told = capsys.readouterr().out
  assert told.startswith(f'note: no profile: {tmp_path / "profile"} cannot be written (')


def test_none_where_none_is_asked_for(tmp_path, capsys):
  run(Trace(tmp_path / 'profile', first=12, steps=0), 10, 16)
  assert not (tmp_path / 'profile').exists() and not capsys.readouterr().out


def test_it_holds_whole_steps(tmp_path, monkeypatch):
  """Of the step before it nothing, of its last one all: the host is ahead of the devices."""
  told = []

  class State:
    def __init__(self, step):
      self.step = step

    def block_until_ready(self):
      told.append(f'{self.step} done')

  monkeypatch.setattr(jax.profiler, 'start_trace', lambda folder: told.append('start'))
  monkeypatch.setattr(jax.profiler, 'stop_trace', lambda: told.append('stop'))
  trace = Trace(tmp_path, first=12, steps=1)
  for step in range(10, 16):
    trace.before(step, State(step - 1))
  assert told == ['11 done', 'start', '12 done', 'stop']
