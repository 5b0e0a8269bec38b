"""From a scan to masks on its own grid."""

import tracemalloc

import numpy as np

from mome_jax.inference.segmenter import Segmenter, Settings
from mome_jax.inference.sliding_window import Tiling


def test_a_segmenter_returns_masks_on_the_grid_of_the_scan():
  shape, spacing = (33, 41, 27), (1.7, 1.3, 2.9)
  world = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
  x, y, z = np.meshgrid(*world, indexing='ij')
  ball = x**2 + y**2 + z**2 < 15**2
  image = np.where(ball, 100.0, -50.0)
  run = Segmenter(
    lambda windows: np.stack([windows[..., 0] - 0.5, -np.ones_like(windows[..., 0])], 1),
    ('liver', 'spleen'),
    Settings((2.0, 2.0, 2.0), ((-50, 100),), Tiling((16, 16, 16), 0.5, 2)),
  )
  segmentation = run(image, spacing)
  mask = segmentation.mask('liver')
  assert mask.shape == shape
  assert 2 * (mask & ball).sum() / (mask.sum() + ball.sum()) > 0.97
  assert not segmentation.mask('spleen').any()


def test_a_scan_is_not_copied_on_its_way_to_the_grid_of_the_network():
  image = np.zeros((64, 128, 128), np.float32)
  run = Segmenter(lambda windows: windows, (), Settings((3.0,) * 3, ((0, 1),), Tiling((16,) * 3)))
  tracemalloc.start()
  run.network_input(image, (1.0, 1.0, 1.0))
  most = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert most < image.nbytes
