"""What a mask looks like: numbers worked out by hand on a patient who is a block of soft tissue."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from input_pipeline.ct import resample
from mome_jax.plausibility import measures
from mome_jax.plausibility.measures import Scene

SPACING = (4.0, 4.0, 3.0)


def patient(shape=(40, 40, 40)):
  """40 HU from voxel 10 to 29 along the first axes, slices 5 to 34; air around."""
  image = np.full(shape, -1000.0, np.float32)
  image[10:30, 10:30, 5:35] = 40
  return image


def cube(start, stop, shape=(40, 40, 40)):
  mask = np.zeros(shape, bool)
  mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
  return mask


def test_size_density_and_place():
  image = patient()
  mask = cube((20, 18, 10), (24, 22, 16))
  image[22:24, 18:22, 10:16] = 100
  look = Scene(image, SPACING).look(mask)
  values = look.values
  assert values['volume_ml'] == pytest.approx(4 * 4 * 6 * 48 / 1000)
  assert values['section_mm2'] == pytest.approx(16 * 16)
  assert (values['mean_hu'], values['hu_sd']) == (70, 30)
  # The patient's section is 20 voxels wide: middle at 19.5, variance (400 - 1) / 12 voxels.
  assert values['right'] == pytest.approx(2 / np.sqrt(399 / 12))
  assert values['anterior'] == pytest.approx(0)
  assert values['body_cm2'] == pytest.approx(80 * 80 / 100)
  np.testing.assert_allclose(look.centre, [(21.5 - 19.5) * 4, 0, (12.5 - 19.5) * 3], atol=1e-9)
  assert not look.cut and values['largest_piece'] == 1


def test_a_scan_in_numbers():
  image = patient()
  image[10:20, 10:30, 5:35] = -100  # fat
  image[20:22, 10:30, 5:35] = 700  # bone
  values = Scene(image, SPACING).values
  assert values['section_cm2'] == values['slimmest_cm2'] == pytest.approx(64)
  assert (values['fat'], values['bone'], values['air']) == (0.5, 0.1, 0)
  assert Scene(np.full((9, 9, 9), -1000.0), SPACING).values is None


def test_surroundings_are_shares_by_distance():
  image = patient()
  image[10:20, 10:30, 5:35] = -100
  mask = cube((18, 18, 18), (22, 22, 22))
  values = Scene(image, SPACING).look(mask).values
  distance = ndimage.distance_transform_edt(~mask, SPACING)
  for low, high in measures.SHELLS_MM:
    shell = (distance > low) & (distance <= high)
    shell[:, :, :5] = shell[:, :, 35:] = False  # no patient in these slices
    for name, inside in (
      ('fat', image == -100),
      ('soft', image == 40),
      ('outside', image == -1000),
    ):
      share = (shell & inside).sum() / shell.sum()
      assert values[f'{name}_{low:.0f}_{high:.0f}_mm'] == pytest.approx(share)
  assert sum(values[name] for name in measures.SURROUNDINGS) == pytest.approx(2)


@pytest.mark.parametrize(
  ('start', 'stop', 'cut'),
  [
    ((15, 15, 15), (20, 20, 20), False),
    ((15, 15, 3), (20, 20, 20), True),  # beyond the first slice with the patient
    ((15, 15, 5), (20, 20, 20), True),
    ((15, 15, 6), (20, 20, 20), False),
    ((15, 15, 20), (20, 20, 35), True),
    ((15, 15, 20), (20, 20, 34), False),
    ((0, 15, 20), (20, 20, 25), True),  # a side of the grid
    ((15, 15, 20), (20, 40, 25), True),
  ],
)
def test_what_the_field_of_view_cuts(start, stop, cut):
  assert Scene(patient(), SPACING).look(cube(start, stop)).cut is cut


def test_what_spills_over_the_last_slice_is_not_measured():
  scene = Scene(patient(), SPACING)
  whole, spilt = (scene.look(cube((15, 15, low), (20, 20, 20))) for low in (5, 2))
  assert spilt.values == whole.values
  assert scene.look(cube((15, 15, 0), (20, 20, 5))) is None
  assert scene.look(np.zeros((40, 40, 40), bool)) is None


def test_pieces():
  mask = cube((12, 12, 12), (15, 15, 15)) | cube((20, 20, 20), (21, 21, 21))
  look = Scene(patient(), SPACING).look(mask)
  assert look.values['largest_piece'] == pytest.approx(27 / 28)


def test_a_place_is_compared_slice_by_slice():
  """A slanted cord scanned twice as far lies as far behind the gullet, slice by slice."""
  scene = Scene(patient(), SPACING)
  cord, gullet = np.zeros((2, 40, 40, 40), bool)
  for z in range(8, 32):
    cord[19:21, 10 + z // 4, z] = True
    if z < 20:
      gullet[19:21, 13 + z // 4, z] = True
  offset = scene.look(cord).offset(scene.look(gullet))
  np.testing.assert_allclose(offset, [0, 12, -6 * 3], atol=1e-9)
  away = scene.look(cube((25, 12, 32), (27, 14, 34)))  # no slice in common: the middles count
  expected = np.subtract(away.centre, scene.look(gullet).centre)
  np.testing.assert_allclose(scene.look(gullet).offset(away), expected)


@given(shift=st.tuples(*[st.integers(-4, 4)] * 3), size=st.tuples(*[st.integers(2, 5)] * 3))
def test_a_moved_patient_looks_the_same(shift, size):
  image = patient()
  image[15:18, 12:20, 10:30] = 300
  mask = cube((14, 14, 14), tuple(14 + n for n in size))
  before = Scene(image, SPACING).look(mask)
  after = Scene(np.roll(image, shift, (0, 1, 2)), SPACING).look(np.roll(mask, shift, (0, 1, 2)))
  assert after.values == pytest.approx(before.values)
  np.testing.assert_allclose(
    np.subtract(after.centre, before.centre), np.multiply(shift, SPACING), atol=1e-9
  )


def test_a_fine_scan_is_measured_on_the_grid_of_the_record():
  rng = np.random.default_rng(0)
  image = ndimage.gaussian_filter(rng.normal(0, 400, (60, 50, 45)), 3).astype(np.float32)
  spacing = (1.0, 1.5, 2.0)
  scene = Scene(image, spacing, SPACING)
  np.testing.assert_allclose(
    scene._hu, resample.resample(image, spacing, SPACING, order=1), atol=1e-3
  )
  assert Scene(image, spacing).grid == (3, 3, 3)
  mask = rng.random((60, 50, 45)) > 0.5
  np.testing.assert_array_equal(
    scene.sample(mask), resample.resample(mask, spacing, SPACING, order=0)
  )
