import numpy as np

from input_pipeline.ct.hu_windows import hu_windows


def test_every_window_is_a_channel():
  image = np.array([[-2000, -175, 37.5], [250, 300, 3000]], np.float32)
  channels = hu_windows(image, ((-175.0, 250.0), (-1000.0, 1000.0)))
  assert channels.dtype == np.float32
  np.testing.assert_allclose(channels[..., 0], [[0, 0, 0.5], [1, 1, 1]])
  np.testing.assert_allclose(channels[..., 1], [[0, 0.4125, 0.51875], [0.625, 0.65, 1]])


def test_one_window():
  assert hu_windows(np.zeros((2, 3, 4), np.float32), ((-1, 1),)).shape == (2, 3, 4, 1)
