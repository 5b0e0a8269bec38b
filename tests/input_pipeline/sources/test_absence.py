"""Which cases hold which classes, as people read it."""

import os

import nibabel as nib
import numpy as np
import pytest

from input_pipeline.sources import SourceError, absence


def test_classes_by_case(capsys):
  occurs = {name: frozenset({'liver'}) for name in 'abcd'} | {
    'e': frozenset({'liver', 'mandible'}),
    'f': frozenset({'mandible', 'larynx'}),
  }
  table = absence.partial(occurs, ['liver', 'mandible', 'larynx', 'spleen'])
  assert absence.by_case(table).splitlines() == [
    '| label maps | liver | mandible | larynx | spleen |',
    '| -- | -- | -- | -- | -- |',
    '| a, b, c and 1 more | x |  |  |  |',
    '| e | x | x |  |  |',
    '| f |  | x | x |  |',
  ]
  with pytest.raises(SourceError, match="'mandible' is in 2 of 6 label maps"):
    absence.ask('dataset.json', table)
  assert '| f |  | x | x |  |' in capsys.readouterr().err


def test_nothing_is_asked_where_every_case_holds_all(capsys):
  occurs = {name: frozenset({'liver'}) for name in 'ab'}
  absence.ask('dataset.json', absence.partial(occurs, ['liver']))
  assert capsys.readouterr() == ('', '')


def test_thousands_of_cases_are_not_compared_pairwise():
  compared = 0

  class Name(str):
    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other):
      nonlocal compared
      compared += 1
      return str.__eq__(self, other)

  cases = [Name(f'case{number:04d}') for number in range(400)]
  occurs = {case: frozenset({'liver'} if number % 2 else {}) for number, case in enumerate(cases)}
  table = absence.partial(occurs, ['liver'])
  assert [len(part) for part in table['liver']] == [200, 200]
  assert absence.by_case(table).count('\n') == 3
  assert compared < 20 * len(cases)


def test_label_maps_are_read_once_until_they_change(tmp_path, monkeypatch):
  path = tmp_path / 'a.nii.gz'
  reads = []
  read = absence.volume.read_labels
  monkeypatch.setattr(absence.volume, 'read_labels', lambda p: reads.append(p) or read(p))
  meanings = {1: ('liver',), 2: ('spleen',)}

  def write(*values):
    array = np.zeros((4, 4, 4), np.uint8)
    array.ravel()[: len(values)] = values
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)

  write(1)
  for _ in range(2):
    assert absence.occurring({'a': path}, meanings) == {'a': {'liver'}}
  assert len(reads) == 1
  write(1, 2)
  os.utime(path, ns=(0, 1))
  assert absence.occurring({'a': path}, meanings) == {'a': {'liver', 'spleen'}}
  assert absence.occurring({'a': tmp_path / 'none.nii.gz'}, meanings) == {}
