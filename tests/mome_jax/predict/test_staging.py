"""Results appear as a whole or not at all, and nothing half-written stays."""

import os
import signal
import subprocess
import sys
import time

import pytest

from mome_jax.predict import staging


def content(folder):
  """Every file under a folder with its text."""
  return {
    str(path.relative_to(folder)): path.read_text() for path in folder.rglob('*') if path.is_file()
  }


@pytest.fixture
def old(tmp_path):
  (tmp_path / 'a_masks').mkdir()
  (tmp_path / 'a_masks' / 'liver').write_text('old')
  for name in ('a_seg.json', 'a_seg.nii.gz', 'a_seg.dcm'):
    (tmp_path / name).write_text('old')
  return tmp_path


def write_new(folder):
  (folder / 'a_masks').mkdir()
  (folder / 'a_masks' / 'liver').write_text('new')
  for name in ('a_seg.json', 'a_seg.nii.gz', 'a_preview.png'):
    (folder / name).write_text('new')


def test_all_is_replaced(old):
  with staging.staged(old, ['a_seg.dcm', 'a_report.html']) as folder:
    write_new(folder)
  assert content(old) == dict.fromkeys(
    ['a_masks/liver', 'a_preview.png', 'a_seg.json', 'a_seg.nii.gz'], 'new'
  )


def test_what_another_run_made_meanwhile_stays(tmp_path):
  with (
    pytest.raises(staging.MeanwhileError, match=r'a_seg\.json: another run made it meanwhile'),
    staging.staged(tmp_path, ['a_seg.dcm'], unless='a_seg.json') as folder,
  ):
    write_new(folder)
    with staging.staged(tmp_path, unless='a_seg.json') as other:
      for name in ('a_seg.json', 'a_seg.dcm'):
        (other / name).write_text('other')
  assert content(tmp_path) == dict.fromkeys(['a_seg.json', 'a_seg.dcm'], 'other')


# Moves are: the old legend, masks, volume and DICOM SEG out; four new things in, the legend last.
@pytest.mark.parametrize('number', range(8))
def test_a_rename_that_fails_leaves_the_old_result(old, monkeypatch, number):
  before, moves, replace = content(old), [], os.replace

  def fail_once(*paths):
    moves.append(paths)
    if len(moves) == number + 1:
      raise OSError(5, 'Input/output error', paths[1])
    replace(*paths)

  with pytest.raises(OSError, match='Input/output'), staging.staged(old, ['a_seg.dcm']) as folder:
    write_new(folder)
    monkeypatch.setattr(os, 'replace', fail_once)
  assert content(old) == before


@pytest.mark.parametrize('number', range(8))
def test_a_kill_between_renames_is_mended_by_the_next_run(old, number):
  before = content(old)
  program = (
    'import os, pathlib, sys\n'
    'from mome_jax.predict import staging\n'
    'sys.path.insert(0, sys.argv[2])\n'
    'from test_staging import write_new\n'
    'moves, replace = [], os.replace\n'
    'def kill(*paths):\n'
    '  moves.append(paths)\n'
    '  os.kill(os.getpid(), 9) if len(moves) == int(sys.argv[3]) + 1 else replace(*paths)\n'
    'with staging.staged(pathlib.Path(sys.argv[1]), ["a_seg.dcm"]) as folder:\n'
    '  write_new(folder)\n'
    '  os.replace = kill\n'
  )
  arguments = [sys.executable, '-c', program, old, os.path.dirname(__file__), str(number)]
  assert subprocess.run(arguments, check=False).returncode == -signal.SIGKILL
  staging.sweep(old)
  assert content(old) == before


def test_what_a_live_process_writes_stays(tmp_path):
  with staging.staged(tmp_path) as folder:
    write_new(folder)
    staging.sweep(tmp_path)
    assert folder.is_dir()
  assert 'a_seg.json' in content(tmp_path)


def test_folders_without_a_lock_go_after_a_day(tmp_path):
  for name, hours in (('new', 1), ('old', 25)):
    (tmp_path / f'.incomplete-{name}').mkdir()
    then = time.time() - 3600 * hours
    os.utime(tmp_path / f'.incomplete-{name}', (then, then))
  staging.sweep(tmp_path)
  assert os.listdir(tmp_path) == ['.incomplete-new']
