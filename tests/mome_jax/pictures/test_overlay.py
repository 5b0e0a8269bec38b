"""The pictures: written, in the right orientation, and with the right things on them."""

import numpy as np
import pytest
from matplotlib.image import imread

from mome_jax.pictures import overlay, training_curves

SHAPE = (40, 40, 40)
SPACING = (2.0, 2.0, 2.0)


def cube(low, high):
  mask = np.zeros(SHAPE, bool)
  mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
  return mask


def soft_tissue():
  """A block of 40 HU that fills the scan: mid grey in every panel."""
  return np.full(SHAPE, 40.0, np.float32)


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
  overlay.overlay(tmp_path / 'o.png', soft_tissue(), {'liver': mask}, SPACING, title='one cube')
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
  overlay.overlay(tmp_path / 'o.png', image, {'liver': mask}, SPACING, title='few')
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
  overlay.overlay(tmp_path / 'both.png', soft_tissue(), masks, SPACING, title='t')
  both = imread(tmp_path / 'both.png')
  del masks['spleen']
  overlay.overlay(tmp_path / 'one.png', soft_tissue(), masks, SPACING, title='t')
  np.testing.assert_array_equal(both, imread(tmp_path / 'one.png'))


def test_panels_keep_millimetres(tmp_path):
  # The slices are 4 times as thick as the pixels: 40 x 40 x 40 voxels are 1 : 1 : 4.
  mask = cube((10, 10, 10), (30, 30, 30))
  overlay.overlay(tmp_path / 'o.png', soft_tissue(), {'liver': mask}, (1, 1, 4), title='tall')
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
  overlay.overlay(tmp_path / 'p.png', image, {'liver': mask}, SPACING, title='t')
  overlay.overlay(tmp_path / 't.png', image, {}, SPACING, truths={'liver': mask}, title='t')
  prediction, truth = (panels(tmp_path / name)[0] for name in ('p.png', 't.png'))
  middle = tuple(n // 2 for n in prediction.shape[:2])
  assert np.ptp(prediction[middle]) > 0.1  # filled
  assert np.ptp(truth[middle]) < 0.02  # only outlined
  assert (np.ptp(truth, axis=2) > 0.15).sum() > 50


def test_window_clips(tmp_path):
  image = soft_tissue()
  image[:, :20] = 3000.0
  overlay.overlay(tmp_path / 'o.png', image, {}, SPACING, title='t', window=(0, 80))
  axial = imread(tmp_path / 'o.png')[..., :3]
  greys = axial[60 : axial.shape[0] // 2, axial.shape[1] // 6]
  assert 0.45 < np.median(greys[: len(greys) // 3]) < 0.55  # 40 HU of [0, 80], anterior half


def test_nothing_labelled_and_air_only(tmp_path):
  air = np.full(SHAPE, -1000.0, np.float32)
  nothing = {'liver': np.zeros(SHAPE, bool)}
  overlay.overlay(tmp_path / 'deep' / 'er' / 'o.png', air, nothing, SPACING, title='empty')
  assert all(panel.max() > 0.9 for panel in panels(tmp_path / 'deep' / 'er' / 'o.png'))  # letters


def test_mask_on_another_grid_is_named():
  with pytest.raises(ValueError, match=r'spleen: mask \(2, 2, 2\)'):
    overlay.overlay('x.png', soft_tissue(), {'spleen': np.ones((2, 2, 2))}, SPACING, title='t')


@pytest.mark.parametrize('shape', [(40, 40, 6), (40, 40, 120), (6, 40, 40), (1, 1, 1)])
def test_any_shape(tmp_path, shape):
  image, mask = np.zeros(shape, np.float32), np.ones(shape, bool)
  overlay.overlay(tmp_path / 'o.png', image, {'liver': mask}, (1.0, 1.0, 2.5), title='t ' * 90)
  assert imread(tmp_path / 'o.png').std() > 0.05


def curve_rows(n):
  for step in range(1, n + 1):
    yield {
      'step': 10 * step,
      'loss': 2 / step,
      'loss_bce': 1 / step,
      'loss_dice': 1 / step,
      'learning_rate': 1e-4,
      'grad_norm': 100.0 / step,
    }


def test_training_curves(tmp_path):
  training_curves.training_curves(tmp_path / 'full.png', curve_rows(200))
  full = imread(tmp_path / 'full.png')
  training_curves.training_curves(tmp_path / 'again.png', list(curve_rows(200)))
  np.testing.assert_array_equal(full, imread(tmp_path / 'again.png'))
  odd = [{'step': 5, 'dice': 0.5}, {'step': 7, 'loss': float('nan')}, {'step': 8, 'loss': None}]
  training_curves.training_curves(tmp_path / 'odd.png', [*curve_rows(200), *odd])
  np.testing.assert_array_equal(full, imread(tmp_path / 'odd.png'))  # nothing of them is drawn
  training_curves.training_curves(tmp_path / 'none.png', [])
  none = imread(tmp_path / 'none.png')
  assert none.shape == full.shape
  third = full.shape[1] // 3
  for i in range(3):  # each panel has a line in it
    part = slice(i * third, (i + 1) * third)
    assert (np.ptp(full[:, part, :3], axis=2) > 0.3).sum() > 300
    assert (np.ptp(none[:, part, :3], axis=2) > 0.3).sum() == 0


@pytest.mark.parametrize('n', [1, 2])
def test_training_curves_of_few_steps(tmp_path, n):
  training_curves.training_curves(tmp_path / 'few.png', curve_rows(n))
  assert (np.ptp(imread(tmp_path / 'few.png')[..., :3], axis=2) > 0.3).sum() > 100


def routing_picture(path, **changes):
  plane = np.full((30, 40), 40.0)
  arguments = {
    'share': np.array([[0.9, 0.1], [np.nan, np.nan]]),
    'names': ['liver', 'spleen'],
    'scale_labels': ['scale 1 (4 mm)', 'scale 2 (8 mm)'],
    'image_slice': plane,
    'maps': {'liver': np.zeros_like(plane)},
    'outlines': {'liver': plane > 100},
    'spacing_2d': (1.0, 1.0),
    'title': 'routing',
  }
  overlay.routing(path, **{**arguments, **changes})
  return imread(path)[..., :3]


def test_routing_orientation(tmp_path):
  # The coarse scale is trusted in the right anterior quarter, the fine one elsewhere: viridis runs
  # from purple (blue over green) to yellow (green over blue).
  scales = np.zeros((30, 40))
  scales[15:, 20:] = 1.0
  plane = np.full((30, 40), 40.0)
  pixels = routing_picture(tmp_path / 'r.png', maps={'liver': scales}, image_slice=plane)
  flat = routing_picture(tmp_path / 'f.png', image_slice=plane)
  rows, columns = np.nonzero(np.abs(pixels - flat).max(axis=2) > 0.1)
  yellow = pixels[int(np.median(rows)), int(np.median(columns))]
  assert yellow[1] > yellow[2] + 0.2
  # The map stands left of the legend; its box is where purple is in the flat picture.
  purple = flat[..., 2] - flat[..., 1] > 0.15
  purple[:, int(0.86 * flat.shape[1]) :] = False  # Without the legend.
  wide = purple[:, int(0.6 * flat.shape[1]) :]
  box_rows = np.flatnonzero(wide.any(axis=1))
  box_columns = np.flatnonzero(wide.any(axis=0)) + int(0.6 * flat.shape[1])
  assert rows.mean() < box_rows.mean() and columns.mean() < box_columns.mean()


def test_routing_share_is_darker_where_larger(tmp_path):
  even = routing_picture(tmp_path / 'a.png', share=np.full((2, 2), 0.0), maps={})
  one = routing_picture(tmp_path / 'b.png', share=np.array([[0.0, 1.0], [0.0, 0.0]]), maps={})
  rows, columns = np.nonzero(np.abs(even - one).max(axis=2) > 0.3)
  assert (
    one[rows.min() + 3, columns.min() + 3].mean() < even[rows.min() + 3, columns.min() + 3].mean()
  )
  # Upper row, right column of the table.
  assert columns.mean() > even.shape[1] / 2


@pytest.mark.parametrize('n', [0, 1, 2, 3, 4, 6])
def test_routing_any_number_of_maps(tmp_path, n):
  names = [f'organ {i}' for i in range(6)]
  slices = {name: np.full((20 + i, 30), 40.0) for i, name in enumerate(names)}
  maps = {name: np.ones_like(slices[name]) for name in names[:n]}
  share = np.full((6, 2), 0.5)
  pixels = routing_picture(
    tmp_path / 'r.png', share=share, names=names, image_slice=slices, maps=maps, outlines=None
  )
  assert pixels.std() > 0.05


def test_routing_errors(tmp_path):
  with pytest.raises(ValueError, match=r'share \(2, 3\)'):
    routing_picture(tmp_path / 'r.png', share=np.zeros((2, 3)))
  with pytest.raises(ValueError, match='image_slice'):
    routing_picture(tmp_path / 'r.png', image_slice=None)
