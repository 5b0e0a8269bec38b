"""Organs with what lies in them, and pairs with their sides, whatever has masks of its own."""

import json

import numpy as np
import pytest
from label_maps import AFFINE, LIVER, SPLEEN, TUMOR, declare, labels, save

from input_pipeline.ct import itk_image, slicer_segments, volume
from mome_jax.evaluate import score_folders
from mome_jax.evaluate.mask_folders import ScoreError


def test_an_organ_holds_its_tumor_in_segments_of_3d_slicer(tmp_path):
  """As it paints them, no segment overlaps another; `prepare` takes the tumor for liver too."""
  declared = [slicer_segments.Segment(name, 0, value)
              for name, value in (('liver', LIVER), ('liver tumor', TUMOR))]  # fmt: skip
  codes = labels()
  codes[codes == SPLEEN] = 0
  save(tmp_path / 'out/a/liver.nii.gz', (codes > 0).astype(np.uint8))
  grid = volume.read_labels(tmp_path / 'out/a/liver.nii.gz')
  colours = {segment.name: (1, 0, 0) for segment in declared}
  (tmp_path / 'r').mkdir()
  header = slicer_segments.header(declared, colours, grid.geometry.shape)
  codes = volume.to_canonical(codes, AFFINE, name='a').array
  itk_image.write(tmp_path / 'r/a.seg.nrrd', codes, grid.geometry, header)
  scores = score_folders.score_folders(tmp_path / 'out', tmp_path / 'r', classes=['liver'])
  assert [row['dice'] for row in scores.rows] == [1.0]


def test_a_kidney_of_the_class_table_holds_its_tumor(tmp_path):
  """As `predict` numbers them, and its legend is lost."""
  codes = np.zeros((20, 8, 8), np.uint8)  # axis 0 runs to the left
  codes[2:6, 2:6, 2:6], codes[4:7, 2:4, 2:4], codes[13:17, 2:6, 2:6] = 2, 26, 3
  save(tmp_path / 'out/a.nii.gz', codes)
  for name, values in (('kidney_right', (2, 26)), ('kidney_left', (3,)), ('kidney_tumor', (26,))):
    save(tmp_path / f'r/a/{name}.nii.gz', np.isin(codes, values).astype(np.uint8))
  rows = score_folders.score_folders(tmp_path / 'out', tmp_path / 'r').rows
  assert {row['class']: row['dice'] for row in rows} == dict.fromkeys(
    ('right kidney', 'left kidney', 'kidney tumor'), 1.0
  )


def of_both_sides(tmp_path, **declared):
  """A label map of kidneys without their sides, and masks of both as `predict` names them."""
  codes = np.zeros((20, 8, 8), np.uint8)
  codes[2:6, 2:6, 2:6] = codes[13:17, 2:6, 2:6] = 1
  codes[4:7, 2:4, 2:4] = 2
  declare(tmp_path, **declared)
  save(tmp_path / 'labelsTr/a.nii.gz', codes)
  for name, half in (('kidney_right', slice(10)), ('kidney_left', slice(10, None))):
    side = np.zeros_like(codes)
    side[half] = codes[half] > 0
    save(tmp_path / f'out/a/{name}.nii.gz', side)
  save(tmp_path / 'out/a/kidney_tumor.nii.gz', (codes == 2).astype(np.uint8))
  return codes


@pytest.mark.parametrize('name', ['kidney', 'Kidneys'])
def test_both_sides_are_the_pair_that_a_reference_does_not_divide(name, tmp_path):
  """`prepare` makes right and left of such a label, so that the model predicts these."""
  of_both_sides(tmp_path, **{name: 1, 'kidney tumor': 2})
  scores = score_folders.score_folders(tmp_path / 'out', tmp_path / 'labelsTr')
  assert not scores.failed
  assert {row['class']: row['dice'] for row in scores.rows} == {'kidney': 1.0, 'kidney tumor': 1.0}
  (tmp_path / 'out/a/kidney_left.nii.gz').unlink()
  with pytest.raises(ScoreError, match="no class 'kidney'; there are kidney tumor, right kidney"):
    score_folders.score_folders(tmp_path / 'out', tmp_path / 'labelsTr')


def test_of_a_pair_out_of_view_the_volume_of_both_sides_is_told(tmp_path):
  codes = of_both_sides(tmp_path)
  content = {'labels': {'background': 0, 'kidney': 1}, 'absent': ['kidney']}
  (tmp_path / 'dataset.json').write_text(json.dumps(content))
  save(tmp_path / 'labelsTr/a.nii.gz', np.zeros_like(codes))
  scores = score_folders.score_folders(tmp_path / 'out', tmp_path / 'labelsTr')
  told = {row['class']: row['false_positive_ml'] for row in scores.rows}
  assert told.keys() == {'kidney', 'kidney tumor'} and not scores.failed
  assert told['kidney'] == pytest.approx((codes > 0).sum() * 0.009)


def test_sides_on_two_grids_are_no_pair(tmp_path):
  of_both_sides(tmp_path, kidney=[1, 2])
  save(tmp_path / 'out/a/kidney_left.nii.gz', np.zeros((20, 8, 7), np.uint8))
  ((_, reason),) = score_folders.score_folders(tmp_path / 'out', tmp_path / 'labelsTr').failed
  assert "sides of 'kidney' are on two grids" in reason


def test_what_lies_midway_between_a_pair_belongs_to_the_left_one_as_in_training(tmp_path):
  codes = np.zeros((20, 8, 8), np.uint8)  # axis 0 runs to the left
  codes[2:6, 2:6, 2:6] = 1
  codes[13:17, 2:6, 2:6] = 2
  codes[7:12, 2:4, 2:4] = 3  # the middle is at 9
  declare(tmp_path, right_kidney=1, left_kidney=2, kidney_tumor=3)
  save(tmp_path / 'labelsTr/a.nii.gz', codes)
  right = np.arange(20)[:, None, None] < 9
  whole = {
    'right kidney': (codes == 1) | (codes == 3) & right,
    'left kidney': (codes == 2) | (codes == 3) & ~right,
  }
  for name, mask in whole.items():
    save(tmp_path / f'out/a/{name}.nii.gz', mask.astype(np.uint8))
  rows = score_folders.score_folders(
    tmp_path / 'out', tmp_path / 'labelsTr', classes=list(whole)
  ).rows
  assert [row['dice'] for row in rows] == [1.0, 1.0]
