"""Folds of patients, and what is set aside of the training cases."""

import collections
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.bricks import CaseInfo
from input_pipeline.patients import patient_folds, patient_groups


def case(name, source='a', supervised=('liver',), digest=''):
  return CaseInfo(name, source, supervised, {}, (1, 1, 1), (0.0, 0.0, 0.0), (), digest)


def number_of(patient):
  """The place of a patient, from the definition: 64 bits of SHA-256 as a fraction."""
  return int(hashlib.sha256(patient.encode()).hexdigest()[:16], 16) / 2**64


def names(parts):
  return {name for part in parts.values() for _, name in part.cases}


def set_aside(cases, number, groups=None, **more):
  patients = patient_folds.patients(cases, groups)
  return patient_folds.set_aside(cases, patients, number, **more)


def test_the_first_places_are_set_aside():
  cases = [case(f'case_{i}') for i in range(20)]
  order = sorted(cases, key=lambda c: number_of(f'a/{c.name}'))
  assert names(set_aside(cases, 3)) == {c.name for c in order[:3]}
  assert names(set_aside(cases[::-1], 3)) == {c.name for c in order[:3]}
  part = set_aside(cases, 100)['a']
  assert len(part.cases) == 4 and part.total == 20  # a fifth
  # They begin fold 0.
  dealt = patient_folds.deal([f'a/{case.name}' for case in order], 2)
  assert {dealt[f'a/{case.name}'] for case in order[:2]} == {0}


@given(st.sets(st.text(min_size=1), min_size=1), st.integers(1, 9), st.text(min_size=1))
def test_folds_are_even_and_hardly_change(patients, folds, new):
  dealt = patient_folds.deal(patients, folds)
  assert dealt.keys() == patients
  sizes = collections.Counter(dealt.values())
  assert set(sizes) <= set(range(folds))
  assert max(sizes[f] for f in range(folds)) - min(sizes[f] for f in range(folds)) <= 1
  order = sorted(patients, key=number_of)
  assert [dealt[who] for who in order] == sorted(dealt.values())
  after = patient_folds.deal(patients | {new}, folds)
  assert sum(after[who] != dealt[who] for who in patients) <= folds - 1


def test_only_who_is_labelled_with_a_class_of_the_run_is_set_aside():
  cases = [case(f'c{i}', supervised=('tumor',) if i % 3 else ('liver',)) for i in range(20)]
  assert names(set_aside(cases, 4)) & {f'c{i}' for i in range(0, 20, 3)}
  taken = names(set_aside(cases, 4, classes=('tumor',)))
  assert len(taken) == 4 and not taken & {f'c{i}' for i in range(0, 20, 3)}


def test_each_dataset_has_its_part():
  cases = [case(f'c{i}', source) for source in 'ab' for i in range(10)]
  parts = set_aside(cases, 2)
  assert {source: len(part.cases) for source, part in parts.items()} == {'a': 2, 'b': 2}
  assert set_aside(cases[:4], 2)['a'].cases == frozenset()  # a fifth of four is none


def test_a_patient_is_never_divided():
  """A group of dedupe across two datasets, and equal voxels under two names."""
  cases = [case(f'c{i}', source) for source in 'ab' for i in range(20)]
  cases += [case('same', 'a', digest='d'), case('copy', 'b', digest='d')]
  groups = patient_groups.patients(
    [{'split': 'train', 'members': [('a', f'c{i}'), ('b', f'c{19 - i}')]} for i in range(20)]
  )
  patients = patient_folds.patients(cases, groups)
  assert patients['a', 'same'] == patients['b', 'copy']
  assert patients['a', 'c0'] == patients['b', 'c19'] == 'a/c0'
  taken = {
    key for part in patient_folds.set_aside(cases, patients, 4).values() for key in part.cases
  }
  assert taken
  for key in patients:
    same = {other for other in patients if patients[other] == patients[key]}
    assert same <= taken or not same & taken


def test_no_class_loses_its_last_training_case():
  cases = [case(f'c{i}') for i in range(20)]
  first = min(cases, key=lambda c: number_of(f'a/{c.name}'))
  cases[cases.index(first)] = case(first.name, supervised=('liver', 'spleen'))
  assert first.name not in names(set_aside(cases, 4))
  assert len(names(set_aside(cases, 4))) == 4


def test_what_the_start_has_seen_is_not_set_aside():
  cases = [case(f'c{i}') for i in range(20)]
  first = names(set_aside(cases, 4))
  other = names(set_aside(cases, 4, without={('a', name) for name in first}))
  assert len(other) == 4 and not other & first
  assert not names(set_aside(cases, 4, without={('a', c.name) for c in cases}))


@pytest.mark.parametrize('number', [0, 1])
def test_few_or_none(number):
  assert names(set_aside([case('only')], number)) == set()


def test_the_only_case_that_shows_a_class_is_not_set_aside():
  cases = [case(f'c{i}', supervised=('liver', 'tumor')) for i in range(10)]
  taken = sorted(names(set_aside(cases, 2)))
  shown = {('a', c.name): ['liver'] for c in cases} | {('a', taken[0]): ['liver', 'tumor']}
  assert taken[0] not in names(set_aside(cases, 2, shown=shown))
  assert len(names(set_aside(cases, 2, shown=shown))) == 2


def test_groups_of_several_files_that_share_a_scan_are_one_patient():
  cases = [case('x1', digest='1'), case('x2', digest='2'),
           case('y1', 'b', digest='1'),
           case('y2', 'b', digest='3')]  # fmt: skip
  groups = {('a', 'x1'): 'a/x1', ('a', 'x2'): 'a/x1', ('b', 'y1'): 'b/y1', ('b', 'y2'): 'b/y1'}
  assert len(set(patient_folds.patients(cases, groups).values())) == 1
  del groups['b', 'y2']
  assert patient_folds.patients(cases, groups)['b', 'y2'] == 'b/y2'
