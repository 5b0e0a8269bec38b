"""The pictures of routing: what is large is dark, and lies where it belongs."""

import numpy as np
import pytest
from matplotlib.image import imread

from mome_jax.pictures import router_pictures

SHARE = np.array([[0.9, 0.1], [np.nan, np.nan]])


def liver(scales, name='liver'):
  """A slice of soft tissue with these expected scales, 0 to 1."""
  scales = np.asarray(scales, float)
  image = np.full(scales.shape, 40.0)
  weights = np.stack([1 - scales, scales])
  return router_pictures.RouterSlice(name, image, weights, 0 * scales, image > 100, (1.0, 1.0))


def routing_picture(path, slices=(), share=SHARE, names=('liver', 'spleen')):
  labels = ['scale 1 (4 mm)', 'scale 2 (8 mm)']
  shares = router_pictures.Shares(names, labels, share)
  router_pictures.routing(path, shares, slices, title='routing')
  return imread(path)[..., :3]


def test_routing_orientation(tmp_path):
  # The coarse scale is trusted in the right anterior quarter, the fine one elsewhere: viridis runs
  # from purple (blue over green) to yellow (green over blue).
  scales = np.zeros((30, 40))
  scales[15:, 20:] = 1.0
  pixels = routing_picture(tmp_path / 'r.png', [liver(scales)])
  flat = routing_picture(tmp_path / 'f.png', [liver(0 * scales)])
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
  even = routing_picture(tmp_path / 'a.png', share=np.full((2, 2), 0.0))
  one = routing_picture(tmp_path / 'b.png', share=np.array([[0.0, 1.0], [0.0, 0.0]]))
  rows, columns = np.nonzero(np.abs(even - one).max(axis=2) > 0.3)
  assert (
    one[rows.min() + 3, columns.min() + 3].mean() < even[rows.min() + 3, columns.min() + 3].mean()
  )
  # Upper row, right column of the table.
  assert columns.mean() > even.shape[1] / 2


@pytest.mark.parametrize('n', [0, 1, 2, 3, 4, 6])
def test_routing_any_number_of_maps(tmp_path, n):
  names = [f'organ {i}' for i in range(6)]
  slices = [liver(np.ones((20 + i, 30)), names[i]) for i in range(n)]
  pixels = routing_picture(tmp_path / 'r.png', slices, np.full((6, 2), 0.5), names)
  assert pixels.std() > 0.05


def test_a_table_that_does_not_fit_its_names():
  with pytest.raises(ValueError, match=r'share \(2, 3\): expected \(2, 2\)'):
    router_pictures.Shares(['liver', 'spleen'], ['1', '2'], np.zeros((2, 3)))


def test_maps_show_shares_and_entropy(tmp_path):
  """A row for each class: one panel a scale, one for the entropy."""
  half = np.zeros((30, 40))
  half[15:] = 1
  part = liver(half)
  router_pictures.scale_maps(tmp_path / 'm.png', [part, part], ['4 mm', '8 mm'], title='t')
  pixels = imread(tmp_path / 'm.png')[..., :3]
  # Yellow (green over blue) is a share of one: half of two of the three panels of a row.
  yellow = (pixels[..., 1] > pixels[..., 2] + 0.2)[:, : int(0.9 * pixels.shape[1])]
  columns = np.flatnonzero(yellow.any(0))
  thirds = np.unique(3 * columns // int(0.9 * pixels.shape[1]))
  assert thirds.tolist() == [0, 1]
