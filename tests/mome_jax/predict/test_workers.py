"""Scans in worker threads: what is told of them."""

import errno
import pathlib
import threading

import pytest
from threshold import save_scan

from mome_jax.inference.segmenter import Segmenter
from mome_jax.predict import find_scans, workers
from mome_jax.predict.request import Request


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


@pytest.mark.parametrize('problem', [None, RuntimeError('no memory')])
def test_programs_are_compiled_while_the_first_scan_is_read(problem, run, tmp_path, monkeypatch):
  save_scan(tmp_path / 'a.nii.gz', seed=0)
  save_scan(tmp_path / 'b.nii.gz', seed=1)
  compiling, at = threading.Event(), []

  def compile_programs(segmenter):
    compiling.set()
    at.append(segmenter)
    if problem is not None:
      raise problem

  def read(request, scan):
    assert compiling.wait(60)
    return slow(request, scan)

  slow = Request.read
  monkeypatch.setattr(Request, 'read', read)
  monkeypatch.setattr(Segmenter, 'compile', compile_programs)
  monkeypatch.setattr(workers, '_SOON', 0)
  results = run(tmp_path / 'a.nii.gz', tmp_path / 'b.nii.gz')
  assert [result.status for result in results] == ['ok', 'ok'] and len(at) == 1


def test_what_cannot_be_read_is_told_before_anything_is_compiled(run, tmp_path, monkeypatch):
  (tmp_path / 'a.nii.gz').write_bytes(b'no scan')
  monkeypatch.setattr(Segmenter, 'compile', lambda _: pytest.fail('compiles'))
  monkeypatch.setattr(workers, '_SOON', 60)
  assert run(tmp_path / 'a.nii.gz')[0].status == 'failed'
