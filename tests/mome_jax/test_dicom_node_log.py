"""What the DICOM node tells of its results in the log, and what it does not."""

import contextlib
import os

import pydicom
import pytest

from mome_jax.dicom_node import command
from mome_jax.plausibility.judge import Judgement, Verdict
from mome_jax.predict import plausible_masks
from tests.mome_jax.test_dicom_node import archive, end, running, send, series, until, waiting

__all__ = ['series']  # a fixture


def test_masks_not_to_be_trusted_are_told(series, tmp_path, monkeypatch):
  verdict = Verdict(False, ('100 ml, 5 to 20 in training',))
  for foreign, told in (True, 'do not trust its masks'), (False, 'liver is implausible: 100 ml'):
    judgement = Judgement({'liver': verdict}, foreign, ())
    monkeypatch.setattr(plausible_masks, 'judge_masks', lambda *_, one=judgement: one)
    with archive() as (port, _), running(tmp_path / told[:5], port) as (node, lines):
      send(node.port, series)
      until(lambda lines=lines: any('sent to ARCHIVE' in line for line in lines))
    assert sum(told in line for line in lines) == 1, lines


def test_no_name_of_a_header_is_told(series, tmp_path):
  """Also where an output is missing, and the notes on the headers are not."""
  for path in series:
    dataset = pydicom.dcmread(path)
    dataset.PatientName = ['Miller^Jane', 'Jones^Ann']
    dataset.StudyInstanceUID = ''
    dataset.save_as(path)
  with archive() as (port, _), running(tmp_path, port) as (node, lines):
    send(node.port, series)
    until(lambda: any('failed' in line for line in lines))
  assert 'StudyInstanceUID' in str(lines) and 'Jane' not in str(lines)


def test_a_log_that_nobody_reads_costs_no_series(series, tmp_path):
  """As of a node whose output goes to a program that has ended."""
  node, lines, name = waiting(tmp_path, series)
  node.tell = command._tell
  reading, writing = os.pipe()
  os.close(reading)
  with contextlib.suppress(BrokenPipeError), open(writing, 'w', encoding='utf-8') as log:  # noqa: SIM117
    with contextlib.redirect_stdout(log), pytest.raises(SystemExit) as stopped:
      node.step()
  assert stopped.value.code == 141
  assert not list(node.failed.iterdir())
  node.tell = lines.append
  end(node)
  again = type(node)(node.settings, node.model, lines.append)  # goes on with it
  assert [path.name for path in again.incoming.iterdir()] == [name]
  end(again)
