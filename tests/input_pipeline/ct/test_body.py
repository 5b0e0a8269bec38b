import numpy as np
import pytest

from input_pipeline.ct import body

AIR = -1000.0


def slab(first, last, shape=(20, 6, 4)):
  """A scan of air with tissue in the sagittal planes [first, last)."""
  image = np.full(shape, AIR, np.float32)
  image[first:last] = 40
  return image


def test_the_midline_has_half_of_the_tissue_on_either_side():
  assert body.midline(slab(4, 11)) == 7.0
  image = slab(4, 11)
  image[15:17] = 40  # an arm: 9 planes of tissue, the fifth of them is number 8
  assert body.midline(image) == 8.0
  assert body.midline(np.full((20, 6, 4), AIR)) == 9.5


def test_the_midline_of_some_slices():
  image = slab(4, 11)
  image[..., 2:] = slab(10, 15)[..., 2:]
  assert body.midline(image, np.array([False, False, True, True])) == 12.0
  assert body.midline(image, np.zeros(4, bool)) == body.midline(image)


def test_the_patient_has_lungs_and_no_couch():
  image = np.full((12, 12, 3), AIR)
  image[2:10, 4:11] = 40
  image[4:7, 6:9] = -850  # a lung, closed in every slice
  image[1:11, 1] = 200  # the couch
  expected = np.zeros(image.shape, bool)
  expected[2:10, 4:11] = True
  np.testing.assert_array_equal(body.patient(image), expected)
  np.testing.assert_array_equal(body.patient(image[..., 0]), expected[..., 0])
  assert not body.patient(np.full((4, 4, 4), AIR)).any()


def test_outside_is_air_that_nothing_encloses():
  rng = np.random.default_rng(0)
  image = rng.normal(AIR, 30, (30, 14, 4))
  image[2:12, 3:11] = 40
  image[5:8, 5:8] = AIR  # bowel gas, open in one slice
  image[5:8, 3:8, 2] = AIR
  image[18:, 1:13, 3] = 40  # a chest that the border cuts,
  image[20:, 2:12, 3] = -800  # and lung in it
  expected = np.ones(image.shape, bool)
  expected[2:12, 3:11] = expected[18:, 1:13, 3] = False
  expected[5:8, 3:8, 2] = True
  np.testing.assert_array_equal(body.outside(image), expected)
  # Nor does lung beyond which a round field of view has nothing.
  image = np.full((40, 40, 1), -800.0)
  place = np.hypot(*np.indices((40, 40)) - 19.5)
  image[place > 16] = -1024
  around = body.outside(image)[..., 0]
  assert not around[place < 14].any() and around[place > 18].all()
  assert not body.outside(np.full((4, 4, 4), -850.0)).any()
  assert body.outside(np.full((4, 4, 4), AIR)).all()


@pytest.mark.parametrize(
  ('margin', 'expected'),
  [
    (None, (slice(3, 6), slice(0, 2), slice(4, 5))),
    ((1, 2, 9), (slice(2, 7), slice(0, 4), slice(0, 7))),
  ],
)
def test_box(margin, expected):
  mask = np.zeros((9, 8, 7), bool)
  mask[3, 0, 4] = mask[5, 1, 4] = True
  assert body.box(mask, margin) == expected


def test_the_box_of_nothing_is_everything():
  assert body.box(np.zeros((3, 4), bool)) == (slice(0, 3), slice(0, 4))
