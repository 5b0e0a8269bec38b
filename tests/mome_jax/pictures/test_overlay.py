"""Overlays: written, in the right orientation, and with the right things on them."""

import numpy as np
import pytest
from matplotlib.image import imread

from mome_jax.pictures import overlay

SHAPE = (40, 40, 40)
SPACING = (2.0, 2.0, 2.0)


def cube(low, high):
  mask = np.zeros(SHAPE, bool)
  mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
  return mask


def soft_tissue():
  """A block of 40 HU that fills the scan: mid grey in every panel."""
  return np.full(SHAPE, 40.0, np.float32)


def draw(path, image, masks, *, truths=None, spacing=SPACING, title='t'):
  overlay.overlay(path, image, spacing, overlay.Layers(masks, truths or {}), title)


def panels(path):
  """The three panels of an overlay of a cubic scan, left to right, as (rows, columns, 3)."""
  pixels = imread(path)[..., :3]
  inked = (pixels < 0.9).any(axis=2)
  # A panel's columns are inked nearly from top to bottom, which text and legend are not.
  columns = inked.mean(axis=0) > 0.4
  starts = np.flatnonzero(np.diff(columns.astype(int)) == 1) + 1
  ends = np.flatnonzero(np.diff(columns.astype(int)) == -1) + 1
  assert len(starts) == len(ends) == 3
  rows = np.flatnonzero(inked[:, starts[0] + 5 : ends[0] - 5].mean(axis=1) > 0.9)
  return [pixels[rows[0] : rows[-1], a:b] for a, b in zip(starts, ends, strict=True)]


def centre(panel):
  """Where the coloured pixels of a panel are: fractions (from the top, from the left)."""
  coloured = np.argwhere(np.ptp(panel, axis=2) > 0.15)
  assert len(coloured) > 50
  return coloured.mean(axis=0) / panel.shape[:2]


@pytest.mark.parametrize('right', [True, False])
@pytest.mark.parametrize('anterior', [True, False])
@pytest.mark.parametrize('superior', [True, False])
def test_radiological_convention(tmp_path, right, anterior, superior):
  # Canonical axes grow to the patient's right, to anterior and to superior.
  low = [26 if high else 6 for high in (right, anterior, superior)]
  mask = cube(low, [i + 8 for i in low])
  draw(tmp_path / 'o.png', soft_tissue(), {'liver': mask}, title='one cube')
  axial, coronal, sagittal = (centre(panel) for panel in panels(tmp_path / 'o.png'))
  assert (axial[1] < 0.45) == right and (axial[1] > 0.55) == (not right)
  assert (axial[0] < 0.45) == anterior and (axial[0] > 0.55) == (not anterior)
  assert (coronal[1] < 0.45) == right and (coronal[0] < 0.45) == superior
  assert (sagittal[1] < 0.45) == anterior and (sagittal[0] < 0.45) == superior


@pytest.mark.parametrize('axis', [0, 1, 2])
def test_of_few_slices_three_are_drawn_instead_of_strips(tmp_path, axis):
  # The mask grows from slice to slice; seen along the thin axis it lies right, anterior, superior.
  shape = [40, 40, 40]
  shape[axis] = 4
  mask = np.zeros(shape, bool)
  for k in range(4):
    part = [slice(34 - 4 * k, 38)] * 3
    part[axis] = k
    mask[tuple(part)] = True
  image = np.full(shape, 40.0, np.float32)
  draw(tmp_path / 'o.png', image, {'liver': mask}, title='few')
  drawn = panels(tmp_path / 'o.png')
  sizes = [(np.ptp(panel, axis=2) > 0.15).mean() for panel in drawn]
  # Of the slices 1 and 2 together, then 3 and 4, the fullest: 8, 12 and 16 voxels wide.
  np.testing.assert_allclose(np.sqrt(sizes), np.array([8, 12, 16]) / 40, rtol=0.15)
  for panel in drawn:
    assert panel.shape[0] == pytest.approx(panel.shape[1], rel=0.02)
    assert (centre(panel) < 0.45).all()


def test_panels_pass_through_the_fullest_slice(tmp_path):
  # A large cube and a far voxel-thin rod: only the cube's slices may be shown, and only the cube
  # may be named in the legend.
  masks = {'liver': cube((5, 5, 5), (15, 15, 15)), 'spleen': cube((35, 35, 35), (36, 36, 37))}
  draw(tmp_path / 'both.png', soft_tissue(), masks, title='t')
  both = imread(tmp_path / 'both.png')
  del masks['spleen']
  draw(tmp_path / 'one.png', soft_tissue(), masks, title='t')
  np.testing.assert_array_equal(both, imread(tmp_path / 'one.png'))


def test_panels_keep_millimetres(tmp_path):
  # The slices are 4 times as thick as the pixels: 40 x 40 x 40 voxels are 1 : 1 : 4.
  mask = cube((10, 10, 10), (30, 30, 30))
  draw(tmp_path / 'o.png', soft_tissue(), {'liver': mask}, spacing=(1, 1, 4), title='tall')
  pixels = imread(tmp_path / 'o.png')[..., :3]
  green_free = np.ptp(pixels, axis=2) > 0.15
  columns = green_free.any(axis=0)
  starts = np.flatnonzero(np.diff(columns.astype(int)) == 1) + 1
  ends = np.flatnonzero(np.diff(columns.astype(int)) == -1) + 1
  upper = green_free[: int(0.93 * len(pixels))]  # Without the legend.
  sizes = [(upper[:, a:b].any(axis=1).sum(), b - a) for a, b in zip(starts, ends, strict=True)]
  sizes = [size for size in sizes if size[0] > 20]
  ratios = [height / width for height, width in sizes]
  np.testing.assert_allclose(ratios, [1, 4, 4], rtol=0.08)


def test_prediction_and_truth_differ_and_truth_alone_is_drawn(tmp_path):
  mask, image = cube((10, 10, 10), (30, 30, 30)), soft_tissue()
  draw(tmp_path / 'p.png', image, {'liver': mask}, title='t')
  draw(tmp_path / 't.png', image, {}, truths={'liver': mask})
  prediction, truth = (panels(tmp_path / name)[0] for name in ('p.png', 't.png'))
  middle = tuple(n // 2 for n in prediction.shape[:2])
  assert np.ptp(prediction[middle]) > 0.1  # filled
  assert np.ptp(truth[middle]) < 0.02  # only outlined
  assert (np.ptp(truth, axis=2) > 0.15).sum() > 50


def test_window_clips(tmp_path):
  image = soft_tissue()
  image[:, :20] = 3000.0
  draw(tmp_path / 'o.png', image, {})
  axial = imread(tmp_path / 'o.png')[..., :3]
  greys = axial[60 : axial.shape[0] // 2, axial.shape[1] // 6]
  assert 0.45 < np.median(greys[: len(greys) // 3]) < 0.55  # 40 HU of [-160, 240], anterior half


def test_nothing_labelled_and_air_only(tmp_path):
  air = np.full(SHAPE, -1000.0, np.float32)
  nothing = {'liver': np.zeros(SHAPE, bool)}
  draw(tmp_path / 'deep' / 'er' / 'o.png', air, nothing, title='empty')
  assert all(panel.max() > 0.9 for panel in panels(tmp_path / 'deep' / 'er' / 'o.png'))  # letters


def test_mask_on_another_grid_is_named():
  with pytest.raises(ValueError, match=r'spleen: mask \(2, 2, 2\)'):
    draw('x.png', soft_tissue(), {'spleen': np.ones((2, 2, 2))})


@pytest.mark.parametrize('shape', [(40, 40, 6), (40, 40, 120), (6, 40, 40), (1, 1, 1)])
def test_any_shape(tmp_path, shape):
  image, mask = np.zeros(shape, np.float32), np.ones(shape, bool)
  draw(tmp_path / 'o.png', image, {'liver': mask}, spacing=(1.0, 1.0, 2.5), title='t ' * 90)
  assert imread(tmp_path / 'o.png').std() > 0.05
