"""Dice, surface Dice and HD95 against MONAI on random blobs with anisotropic voxels."""

import monai.metrics as monai
import numpy as np
import pytest
import scipy.ndimage
import torch

from mome_jax import metrics

SPACINGS = [(1.0, 1.0, 1.0), (0.8, 0.8, 2.5), (3.0, 1.2, 0.7)]


def blob(seed, shape=(24, 22, 18)):
  """A smooth random shape that keeps off the border, where the two libraries differ."""
  noise = np.random.default_rng(seed).normal(size=shape)
  field = scipy.ndimage.gaussian_filter(noise, 3)
  mask = field > np.quantile(field, 0.85)
  inner = np.zeros(shape, bool)
  inner[3:-3, 3:-3, 3:-3] = True
  return mask & inner


def tensor(mask):
  return torch.from_numpy(mask.astype(np.float32))[None, None]


def pair(seed):
  truth = blob(seed)
  return np.roll(truth, (1, -1, 1), (0, 1, 2)) | (blob(seed + 100) & truth), truth


@pytest.mark.parametrize('spacing', SPACINGS)
@pytest.mark.parametrize('seed', range(4))
def test_dice_and_surface_dice(seed, spacing):
  prediction, truth = pair(seed)
  scores = metrics.score(prediction, truth, spacing)
  y_pred, y = tensor(prediction), tensor(truth)
  assert scores.dice == pytest.approx(float(monai.compute_dice(y_pred, y)), abs=1e-6)
  for value, tolerance in ((scores.nsd_1mm, 1), (scores.nsd, 2), (scores.nsd_3mm, 3)):
    expected = monai.compute_surface_dice(
      y_pred,
      y,
      class_thresholds=[float(tolerance)],
      include_background=True,
      spacing=spacing,
      use_subvoxels=True,
    )
    assert value == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize('spacing', SPACINGS)
@pytest.mark.parametrize('seed', range(3))
def test_hausdorff(seed, spacing):
  # MONAI measures between centres of the masks' edge voxels and counts each once; surface-distance
  # between corners of surface elements, weighted by area. Both describe one surface, half a voxel
  # apart.
  prediction, truth = pair(seed)
  expected = monai.compute_hausdorff_distance(
    tensor(prediction), tensor(truth), include_background=True, percentile=95, spacing=spacing
  )
  half_diagonal = float(np.linalg.norm(spacing)) / 2
  assert metrics.score(prediction, truth, spacing).hd95_mm == pytest.approx(
    float(expected), abs=half_diagonal
  )


def test_hausdorff_of_parallel_cubes_is_exact():
  # Here the definitions agree: a cube moved by 3 voxels of 1.5 mm.
  truth = np.zeros((24, 14, 14), bool)
  truth[4:12, 4:10, 4:10] = True
  prediction = np.roll(truth, 3, 0)
  spacing = (1.5, 1.0, 1.0)
  expected = monai.compute_hausdorff_distance(
    tensor(prediction), tensor(truth), include_background=True, percentile=95, spacing=spacing
  )
  assert metrics.score(prediction, truth, spacing).hd95_mm == float(expected) == 4.5
