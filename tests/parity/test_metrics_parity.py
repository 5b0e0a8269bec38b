"""Dice, surface Dice and HD95 against MONAI and surface-distance."""

import monai.metrics as monai
import numpy as np
import pytest
import scipy.ndimage
import surface_distance
import torch

from input_pipeline.ct import resample, volume
from mome_jax.evaluate import metrics

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


def whole(prediction, truth, spacing):
  """What surface-distance says of the masks as they are, not cropped."""
  distances = surface_distance.compute_surface_distances(truth, prediction, spacing)
  nsd = [surface_distance.compute_surface_dice_at_tolerance(distances, mm) for mm in (1, 2, 3)]
  hd95 = surface_distance.compute_robust_hausdorff(distances, 95)
  return surface_distance.compute_dice_coefficient(truth, prediction), *nsd, hd95


def filled(shape, *index):
  mask = np.zeros(shape, bool)
  mask[index] = True
  return mask


@pytest.mark.parametrize(
  ('truth', 'prediction', 'spacing', 'dice', 'nsd_1mm', 'hd95_mm'),
  [
    # The 3D cases of surface-distance's own tests, and the numbers that these expect.
    (((128,) * 3, 50, 60, 70), ((128,) * 3, 50, 60, 72), (3, 2, 1), 0.0, 0.5, 2.0),
    (((100,) * 3, slice(50)), ((100,) * 3, slice(51)), (2, 1, 1), 0.990, 0.836, 2.0),
    (((128,) * 3, 50, 60, 70), None, (3, 2, 1), 0.0, 0.0, np.inf),
    (None, ((128,) * 3, 50, 60, 72), (3, 2, 1), 0.0, 0.0, np.inf),
    # NOTE: of two empty masks the package calls HD95 infinite; here they score nothing at all.
    (None, None, (3, 2, 1), np.nan, np.nan, np.nan),
  ],
)
def test_the_cases_of_surface_distance(truth, prediction, spacing, dice, nsd_1mm, hd95_mm):
  pair = [np.zeros((128,) * 3, bool) if m is None else filled(*m) for m in (prediction, truth)]
  scores = metrics.score(*pair, spacing)
  ours = (scores.dice, scores.nsd_1mm, scores.hd95_mm)
  np.testing.assert_allclose(ours, (dice, nsd_1mm, hd95_mm), atol=5e-4)
  if truth and prediction:  # else the package fails under NumPy 2
    np.testing.assert_allclose(tuple(vars(scores).values()), whole(*pair, spacing), atol=1e-6)


@pytest.mark.parametrize('patient', ['pt_100', 'pt_118'])
def test_real_organs_and_what_a_coarser_grid_makes_of_them(real_data, patient):
  labels = volume.read_labels(real_data / f'openkbp/train/{patient}_oar.nii.gz')
  coarse = resample.resample(labels.array, labels.spacing, (7.0, 7.0, 5.0), order=0)
  again = resample.resample(
    coarse, (7.0, 7.0, 5.0), labels.spacing, order=0, target_shape=labels.array.shape
  )
  values = np.unique(labels.array)[1:]
  assert len(values) >= 3
  for value in values:
    pair = again == value, labels.array == value
    scores = metrics.score(*pair, labels.spacing)
    assert 0.3 < scores.dice < 1 and 0 < scores.hd95_mm < 20
    np.testing.assert_allclose(
      tuple(vars(scores).values()), whole(*pair, labels.spacing), rtol=0, atol=1e-6
    )
