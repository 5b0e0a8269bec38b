"""Scans in worker threads: what is told of them."""

import errno
import pathlib

import pytest

from mome_jax.predict import find_scans, workers


def test_the_path_of_a_scan_is_said_once():
  notes = ['a/b.nii: odd spacing', 'a/b.nii: DOES NOT LOOK LIKE CT', 'preview: no space']
  told = 'a/b.nii: odd spacing; DOES NOT LOOK LIKE CT; preview: no space'
  assert workers.joined(notes, 'a/b.nii') == told
  assert workers.joined(notes[2:], 'a/b.nii') == notes[2] and workers.joined([], 'a') == ''


def test_a_lack_of_memory_costs_one_scan_and_no_traceback(capsys):
  work = workers._Work(find_scans.ScanFiles('a', pathlib.Path('a.nii')))
  with work.stage('segment'):
    raise MemoryError('Unable to allocate 46 GiB')
  assert work.error.startswith('a.nii: not enough memory (Unable to allocate 46 GiB); ask for')
  assert not capsys.readouterr().err


@pytest.mark.parametrize(
  ('stage', 'fix'),
  [
    ('read', 'copy the scan again'),
    ('segment', 'check the output folder'),
    ('write', 'check the output folder'),
  ],
)
def test_what_a_disk_refuses_is_told_of_what_lies_on_it(stage, fix):
  work = workers._Work(find_scans.ScanFiles('a', pathlib.Path('a.nii')))
  with work.stage(stage):
    raise OSError(errno.EIO, 'Input/output error')
  assert work.error == f'a.nii: Input/output error; {fix}'
