"""Detection numbers of five scans worked out by hand."""

import math

import numpy as np
import pytest

from mome_jax.evaluate import lesions, metrics

SPACING = (2.0, 2.0, 2.0)  # a voxel is 0.008 ml; the least liver tumor, 0.07 ml, takes 9 of them
NAME = 'liver tumor'


def cubes(*corners, edge=3):
  mask = np.zeros((24, 12, 12), bool)
  for x, y, z in corners:
    mask[x : x + edge, y : y + edge, z : z + edge] = True
  return mask


def speck(x):
  return cubes((x, 1, 1), edge=2)  # 8 voxels


A, B, C = (1, 5, 5), (8, 5, 5), (16, 5, 5)
# Prediction and truth:
SCANS = [
  (cubes(A), cubes(A, B)),  # one of two lesions found
  (cubes(C), cubes(A)),  # something predicted, but elsewhere: missed
  (speck(8), cubes()),  # healthy; the speck is below the least volume: silent
  (cubes(A, C), cubes()),  # healthy, two false alarms
  (cubes(), cubes()),  # healthy, silent
]


def test_counts():
  counted = [tuple(lesions.count(*scan, SPACING, NAME).values()) for scan in SCANS]
  #  lesions, found, predicted
  assert counted == [(2, 1, 1), (1, 0, 1), (0, 0, 0), (0, 0, 2), (0, 0, 0)]


@pytest.mark.parametrize('name', [NAME, 'metastasis'])
def test_a_lesion_below_the_least_volume_is_found_by_its_own_mask(name):
  small = speck(8)
  assert lesions.count(small, small, SPACING, name) == {'lesions': 1, 'found': 1, 'predicted': 1}
  voxel = cubes((8, 1, 1), edge=1)
  assert lesions.count(voxel, small, SPACING, name) == {'lesions': 1, 'found': 1, 'predicted': 1}


@pytest.mark.parametrize(('name', 'predicted'), [(NAME, 1), ('metastasis', 2)])
def test_the_least_volume_is_of_alarms_in_scans_with_a_lesion_too(name, predicted):
  counts = lesions.count(speck(8) | speck(1), speck(8), SPACING, name)
  assert counts == {'lesions': 1, 'found': 1, 'predicted': predicted}


def test_one_component_over_two_lesions_finds_both():
  whole = np.ones((24, 12, 12), bool)
  counts = lesions.count(whole, cubes(A, B), SPACING, NAME)
  assert counts == {'lesions': 2, 'found': 2, 'predicted': 1}


def test_summary():
  rows = [lesions.count(*scan, SPACING, NAME) for scan in SCANS]
  summary = lesions.summarize(rows)
  assert (summary['n_diseased'], summary['n_healthy']) == (2, 3)
  assert summary['sensitivity'] == 1 / 2  # the first of the two
  assert summary['specificity'] == pytest.approx(2 / 3)
  assert summary['harmonic_mean'] == pytest.approx(2 / (2 + 3 / 2))
  assert summary['lesion_sensitivity'] == pytest.approx(1 / 3)  # one of 2 + 1 lesions
  assert summary['false_positives_per_healthy'] == pytest.approx(2 / 3)
  for name in ('sensitivity', 'specificity', 'lesion_sensitivity', 'false_positives_per_healthy'):
    low, high = summary[f'{name}_interval']
    assert low <= summary[name] <= high


def test_scans_of_one_patient_are_drawn_together():
  # Found in all scans of one patient, and in none of the other: 0, 1/2 or 1, and of six scans as
  # of six patients seldom either end.
  rows = [
    {'lesions': 1, 'found': found, 'predicted': 1, 'patient': who}
    for who, found in ('a1', 'b0') * 3
  ]
  rows = [row | {'found': int(row['found'])} for row in rows]
  assert lesions.summarize(rows)['sensitivity_interval'] == (0.0, 1.0)
  one = [row | {'patient': 'a'} for row in rows]
  assert all(math.isnan(v) for v in lesions.summarize(one)['lesion_sensitivity_interval'])


def test_without_healthy_or_diseased_scans():
  healthy = [{'lesions': 0, 'found': 0, 'predicted': 1}]
  summary = lesions.summarize(healthy)
  assert math.isnan(summary['sensitivity']) and math.isnan(summary['harmonic_mean'])
  assert summary['specificity'] == 0.0
  missed = lesions.summarize([*healthy, {'lesions': 1, 'found': 0, 'predicted': 0}])
  assert missed['harmonic_mean'] == 0.0


def test_only_lesions_are_detected():
  names = ('kidney tumor', 'kidney cyst', 'metastasis', 'Liver Tumour', 'lung_nodule', 'lesion-2',
           'nodules (solid)', 'Hepatocellular_Carcinoma')  # fmt: skip
  organs = ('liver', 'hepatic vessel', 'portal and splenic vein', 'brainstem', 'cystic_duct')
  assert all(map(lesions.is_lesion, names)) and not any(map(lesions.is_lesion, organs))


def test_an_empty_scan_and_one_without_slices():
  nothing = {'lesions': 0, 'found': 0, 'predicted': 0}
  for shape in ((4, 4, 4), (4, 4, 0)):
    empty = np.zeros(shape, bool)
    assert lesions.count(empty, empty, SPACING, NAME) == nothing


def test_the_summary_of_scores_has_them_for_classes_that_were_counted():
  scores = dict.fromkeys(metrics.METRICS, 0.5)
  counts = {'lesions': 1, 'found': 1, 'predicted': 2}
  rows = [
    {'case': 'a', 'class': 'liver', **scores, **dict.fromkeys(counts)},
    {'case': 'a', 'class': NAME, **scores, **counts},
  ]
  classes = metrics.summarize(rows)['classes']
  assert 'detection' not in classes['liver']
  assert classes[NAME]['detection']['sensitivity'] == 1.0
  assert classes[NAME]['detection']['specificity'] is None


def test_two_lone_voxels_in_a_line_are_two_lesions():
  line = np.array([[[True, False, True]]])
  counts = lesions.count(line, line, SPACING, 'metastasis')
  assert counts == {'lesions': 2, 'found': 2, 'predicted': 2}
