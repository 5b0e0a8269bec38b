"""Our sliding window against MONAI's."""

import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference

from mome_jax.inference import sliding_window
from mome_jax.inference.segmenter import Segmenter, Settings


@pytest.mark.parametrize(
  'shape', [(40, 33, 50), (20, 50, 33), (70, 24, 24)]
)  # smaller than a window, too
@pytest.mark.parametrize('overlap', [0.25, 0.5, 0.6])
def test_blending_agrees_with_monai(shape, overlap):
  image = np.random.default_rng(0).uniform(0, 1, (*shape, 1)).astype(np.float32)
  window = (32, 24, 24)

  # Not voxelwise and different in every window, so that starts, weights and padding all matter.
  ramp = np.linspace(-1, 1, np.prod(window)).reshape(window).astype(np.float32)

  def predict(windows):
    x = windows[..., 0]
    return np.stack([x * ramp, x.mean((1, 2, 3), keepdims=True) + 0 * x, np.flip(x, 1)], 1)

  def predict_torch(windows):
    return torch.from_numpy(predict(np.moveaxis(windows.numpy(), 1, -1)).copy())

  expected = sliding_window_inference(
    torch.from_numpy(np.moveaxis(image, -1, 0)[None].copy()),
    window, 2, predict_torch, overlap=overlap, mode='gaussian', sigma_scale=0.125,
  )  # fmt: skip
  tiling = sliding_window.Tiling(window, overlap, batch_size=3, skip_air=False)
  slabs = sliding_window.sliding_window(predict, image, tiling)
  got = np.concatenate([slab.copy() for slab in slabs], 1)
  np.testing.assert_allclose(got, expected[0].numpy(), atol=1e-5)


@pytest.mark.parametrize('shape', [(40, 33, 50), (20, 50, 33)])
def test_blending_on_the_device_agrees_with_monai(shape):
  image = np.random.default_rng(0).uniform(0.01, 1, shape).astype(np.float32)
  window, overlap = (32, 24, 24), 0.5
  ramp = np.linspace(-1, 1, np.prod(window)).reshape(window).astype(np.float32)

  def predict(windows):
    return np.stack([windows[..., 0] * ramp, np.flip(windows[..., 0], 1)], 1)

  expected = sliding_window_inference(
    torch.from_numpy(image[None, None]), window, 2,
    lambda windows: torch.from_numpy(predict(np.moveaxis(windows.numpy(), 1, -1)).copy()),
    overlap=overlap, mode='gaussian', sigma_scale=0.125,
  )  # fmt: skip
  tiling = sliding_window.Tiling(window, overlap, batch_size=3, skip_air=False)
  settings = Settings((1.0, 1.0, 1.0), ((0.0, 1.0),), tiling)
  logits = np.full((2, *shape), np.nan, np.float32)

  def on_slab(slab):
    for k in range(2):
      logits[k, slab.planes] = slab.logits(k)

  masks = Segmenter(predict, ('liver', 'spleen'), settings, on_device=True)(
    image, (1.0, 1.0, 1.0), on_slab
  )
  np.testing.assert_allclose(logits, expected[0].numpy(), atol=1e-5)
  first, second = expected[0].numpy()
  sure = np.minimum(np.abs(first - second), np.maximum(np.abs(first), np.abs(second))) > 1e-4
  winner = np.where(np.maximum(first, second) > 0, np.where(first >= second, 1, 2), 0)
  near = np.abs(np.maximum(first, second)) < 1e-4
  np.testing.assert_array_equal(masks.winner[sure & ~near], winner[sure & ~near])
