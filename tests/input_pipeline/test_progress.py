"""Progress bars: lines in a log, drawn over one another on a terminal."""

import io
import sys

import pytest

from input_pipeline import progress


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture
def clock(monkeypatch):
  """What tqdm takes for the time, to be set."""
  now = [1000.0]
  monkeypatch.setattr('tqdm.std.time', lambda: now[0])
  monkeypatch.setattr('tqdm.tqdm.monitor_interval', 0)  # no thread that looks at the real clock
  return now


def test_a_log_gets_a_line_every_half_minute(monkeypatch, clock):
  log = io.StringIO()
  monkeypatch.setattr(sys, 'stderr', log)
  bar = progress.bar(range(1000), desc='train')
  for step in bar:
    clock[0] += 0.1  # 100 seconds in all
    bar.set_description('train')
    bar.set_postfix(loss=f'{step}')
  lines = log.getvalue().split('\n')
  assert lines.pop() == ''
  counts = [int(line.split('/')[0].split()[-1]) for line in lines]
  assert len(counts) in (5, 6), lines  # at 0, after 30, 60 and 90 s, and at the end
  assert counts[0] == 0
  assert counts[-1] == 1000
  assert all(b - a >= 300 for a, b in zip(counts[:-2], counts[1:-1], strict=True)), counts
  assert not set('\r\x1b') & set(log.getvalue())


def test_a_terminal_is_redrawn(monkeypatch, clock):
  terminal = Terminal()
  monkeypatch.setattr(sys, 'stderr', terminal)
  for _ in progress.bar(range(100), desc='train'):
    clock[0] += 0.2
  assert terminal.getvalue().count('\r') > 50
  assert terminal.getvalue().count('\n') == 1


def test_notes_between_states_are_lines_and_draw_no_bar(monkeypatch, clock):
  log = io.StringIO()
  monkeypatch.setattr(sys, 'stderr', log)
  with progress.bar(total=3) as bar:
    for number in range(3):
      bar.write(f'note {number}', file=log)
      bar.update(1)
  lines = log.getvalue().splitlines()
  assert [line for line in lines if line.startswith('note')] == ['note 0', 'note 1', 'note 2']
  assert len(lines) == 5  # the bar at its start and end
