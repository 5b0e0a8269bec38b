"""Progress bars: lines in a log, drawn over one another on a terminal."""

import datetime
import io
import sys

import pytest

from input_pipeline import prepare, progress, sources
from input_pipeline.prepare import check, preparation


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


def test_a_check_of_a_download_tells_how_far_it_is(monkeypatch, clock, capsys):
  terminal = Terminal()
  monkeypatch.setattr(sys, 'stderr', terminal)

  def check_case(case, template):
    clock[0] += 10
    return [check.Finding(case.name, 'error', 'is damaged')]

  monkeypatch.setattr(check, 'check_case', check_case)
  cases = len(sources.get_source('phantom').cases(None))
  assert prepare.main(['--source=phantom', '--check']) == 1
  assert f'/{cases} [' in terminal.getvalue() and 'check:' in terminal.getvalue()
  lines = capsys.readouterr().out.splitlines()  # none begins at the end of a bar
  assert sum(line.startswith('error: ') for line in lines) == cases


@pytest.mark.parametrize(('seconds', 'words'), [
  (0.2, '0 s'), (89, '89 s'), (90, '2 min'), (3000, '50 min'), (5400, '1.5 h'), (9000, '2.5 h'),
  (40_000, '11 h'), (129_600, '1.5 days'), (2e6, '23 days'),
])  # fmt: skip
def test_times_in_words(seconds, words):
  assert progress.in_words(seconds) == words


def test_when_something_ends():
  evening = datetime.datetime(2026, 11, 27, 22, 30)
  assert progress.until(3600, evening) == 'until 23:30'
  assert progress.until(7200, evening) == 'until Sat 28 Nov, 00:30'


@pytest.mark.parametrize(('seconds', 'line'), [
  ([30.0, 1, 1, 1, 1], '4 cases are left: about 2 min at 30 s each, until '),
  # Five seconds are over after the third; the first paid for what was loaded.
  ([4.0] + [0.5] * 100, '98 cases are left: about 49 s at 0.5 s each, until '),
  ([3.0, 1, 1, 1, 1], ''),  # 2 seconds are left: not worth a line
])  # fmt: skip
def test_preparing_tells_how_long_the_rest_takes(seconds, line, monkeypatch, capsys):
  now = [0.0]
  monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])

  def stage(case):
    now[0] += case

  preparation._run_here(seconds, stage)
  printed = capsys.readouterr().out
  assert printed.count('\n') == bool(line) and printed.startswith(line)
