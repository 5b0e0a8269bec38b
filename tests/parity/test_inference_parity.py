"""Our sliding window against MONAI's."""

import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference

from mome_jax.inference import sliding_window


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
    return np.stack([x * ramp, x.mean((1, 2, 3), keepdims=True) + 0 * x, np.flip(x, 1)], -1)

  def predict_torch(windows):
    return torch.from_numpy(np.moveaxis(predict(np.moveaxis(windows.numpy(), 1, -1)), -1, 1).copy())

  expected = sliding_window_inference(
    torch.from_numpy(np.moveaxis(image, -1, 0)[None].copy()),
    window, 2, predict_torch, overlap=overlap, mode='gaussian', sigma_scale=0.125,
  )  # fmt: skip
  tiling = sliding_window.Tiling(window, overlap, batch_size=3, skip_air=False)
  slabs = sliding_window.sliding_window(predict, image, tiling)
  got = np.moveaxis(np.concatenate([slab.copy() for slab in slabs]), -1, 0)
  np.testing.assert_allclose(got, expected[0].numpy(), atol=1e-5)
