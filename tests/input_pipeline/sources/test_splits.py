"""What is held out stays so while cases come and go."""

import json

import hypothesis
import nibabel as nib
import numpy as np
from hypothesis import strategies

from input_pipeline import prepare, sources
from input_pipeline.bricks.writer import read_outcomes
from input_pipeline.sources import files, splits

SHARE = 0.2
NAMES = [f'case_{i}' for i in range(500)]


def cases_of(names, drawn=True):
  out = files.hold_out(names, SHARE)
  return [
    sources.Case('s', name, 'validation' if name in out else 'train', (), print, drawn=drawn)
    for name in names
  ]


def test_a_draw_depends_on_the_name_alone():
  """About a fifth; the rest of the cohort moves nobody."""
  whole = files.hold_out(NAMES, SHARE)
  assert 0.15 < len(whole) / len(NAMES) < 0.25
  for part in (NAMES[:100], NAMES[50:], NAMES[::3]):
    assert files.hold_out(part, SHARE) == whole & set(part)


def test_at_least_one_of_two_and_never_all():
  low = sorted(NAMES, key=files.fraction)[:5]
  high = sorted(NAMES, key=files.fraction)[-5:]
  assert max(map(files.fraction, low)) < SHARE < min(map(files.fraction, high))
  assert files.hold_out(low, SHARE) == set(low[:4])
  assert files.hold_out(high, SHARE) == {high[0]}
  assert files.hold_out(low[:1], SHARE) == set() == files.hold_out([], SHARE)


@hypothesis.given(
  strategies.lists(strategies.sets(strategies.sampled_from(NAMES), min_size=1), min_size=2)
)
def test_what_was_prepared_keeps_its_split_and_one_is_held_out_where_one_can_be(stages):
  drawn = {}
  for names in stages:
    now = {case.name: case.split for case in splits.keep(cases_of(sorted(names)), drawn)}
    assert all(now[name] == drawn[name] for name in now.keys() & drawn.keys())
    if len(now) > 1 and now.keys() - drawn.keys():
      assert 'validation' in now.values()
    drawn |= now


def test_a_declared_split_is_obeyed():
  (case,) = cases_of(['a'], drawn=False)
  assert splits.keep([case], {'a': 'validation'}) == [case]


def test_the_one_scan_that_was_trained_on_is_not_held_out_when_others_come(tmp_path):
  """Prepared again and again as a cohort grows and shrinks, at other settings too."""
  folder, data = tmp_path / 'mine', tmp_path / 'data'
  (folder / 'imagesTr').mkdir(parents=True)
  (folder / 'labelsTr').mkdir()
  (folder / 'dataset.json').write_text(json.dumps({'labels': {'background': 0, 'liver': 1}}))
  rng = np.random.default_rng(0)
  names = sorted(NAMES[:12], key=files.fraction)
  # The first is the one that would be held out of any cohort.
  cohorts = [names[:1], names[:3], names[1:4], names[:8], names]
  seen = {}
  for number, cohort in enumerate(cohorts):
    for old in folder.glob('*/*.nii.gz'):
      old.unlink()
    for name in cohort:
      image = rng.integers(0, 100, (4, 4, 4)).astype(np.int16)
      nib.save(nib.Nifti1Image(image, np.eye(4)), folder / 'imagesTr' / f'{name}.nii.gz')
      label = nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4))
      nib.save(label, folder / 'labelsTr' / f'{name}.nii.gz')
    prepare.prepare(
      'nifti_folder', data, manual_dir=str(folder), spacing=(1, 1, 1), brick=4 + number % 2 * 4,
      overwrite=True,
    )  # fmt: skip
    now = {outcome.name: outcome.split for outcome in read_outcomes(data / 'nifti_folder')}
    assert now.keys() == set(cohort)
    assert not {name for name in now.keys() & seen.keys() if now[name] != seen[name]}
    assert 'validation' in now.values() or len(cohort) == 1
    seen |= now
  assert seen[names[0]] == 'train'
