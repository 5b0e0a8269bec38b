"""Who has a folder alone."""

import fcntl

import pytest

from input_pipeline.files import folder_lock


def test_a_lock_of_a_folder_that_was_removed_is_none(tmp_path, monkeypatch):
  """Another process ends, and a third one begins, between opening and locking."""
  folder, lock = tmp_path / 'work', fcntl.flock
  folder.mkdir()

  def meanwhile(*args):
    monkeypatch.setattr(fcntl, 'flock', lock)
    folder.rmdir()
    folder.mkdir()
    lock(*args)

  monkeypatch.setattr(fcntl, 'flock', meanwhile)
  with pytest.raises(ValueError, match='taken'), folder_lock.sole(folder, ValueError('taken')):
    pass
  with folder_lock.sole(folder, ValueError('taken')):
    folder.rmdir()  # by who has it
