"""Contrast phases against phantoms that are drawn in the other phase."""

import numpy as np
import pytest
from scipy import ndimage

from input_pipeline.anatomy import IGNORE_CODE, TEMPLATE
from input_pipeline.batches import augment, contrast

TABLE = contrast.organ_table(TEMPLATE)
NUMBER = {name: n for n, name in enumerate((*contrast.PHASES, *contrast.HOLLOW), 1)}
COMPLETE = {
  'aorta', 'postcava', 'portal and splenic vein', 'liver', 'spleen', 'right kidney', 'left kidney',
}  # fmt: skip
FAT = -100.0


def code(name: str) -> int:
  return TEMPLATE.get(name).index


def at(time: float, **changes) -> dict:
  still = {'contrast_phase': (time, time), 'contrast_dose': (1.0, 1.0), 'contrast_spread': 0.0}
  return augment.complete(still | changes)


def change(image, label, config, known=COMPLETE, seed=0):
  rng = np.random.default_rng(seed)
  return contrast.change_phase(rng, image, label, TABLE, known, config)


def test_which_organ_a_code_goes_with():
  with_organ = {
    'liver tumor': 'liver', 'pancreas tumor': 'pancreas', 'hepatic vessel': 'hepatic vessel',
    'aorta': 'aorta', 'colon': 'colon', 'colon tumor': 'colon',
  }  # fmt: skip
  for name, organ in with_organ.items():
    assert TABLE[code(name)] == NUMBER[organ]
  assert TABLE[201] == NUMBER['right kidney'] and TABLE[202] == NUMBER['left kidney']
  # Cysts do not enhance; lungs, bones and what nobody labelled are no business of this.
  for other in (0, 203, 204, code('right lung'), code('mandible'), IGNORE_CODE):
    assert TABLE[other] == 0
  heart = TEMPLATE.extend([{'name': 'heart'}])
  assert contrast.organ_table(heart)[heart.get('heart').index] == NUMBER['heart']


def scene(liver: float, spleen: float, aorta: float, noise: float = 12.0):
  """Boxes and a vessel in fat, blurred as by a scanner; their labels are those of the anatomy."""
  fine = np.full((48, 48, 48), FAT)
  codes = np.zeros(fine.shape, np.uint8)
  for name, hu, part in (
    ('liver', liver, np.s_[4:28, 6:44, 6:40]),
    ('spleen', spleen, np.s_[30:42, 8:30, 8:30]),
    ('aorta', aorta, np.s_[32:40, 34:42, :]),
  ):
    fine[part], codes[part] = hu, code(name)
  image = ndimage.gaussian_filter(fine, 0.6).astype(np.float32)
  noisy = np.random.default_rng(1).normal(0, noise, image.shape) if noise else 0
  return (image + noisy).astype(np.float32), codes


@pytest.mark.parametrize(
  'start, end', [(1, 2), (1, 3), (2, 1), (2, 4), (3, 1), (3, 2), (4, 1), (2, 3)]
)
def test_another_phase_is_what_the_phantom_looks_like_in_it(start, end):
  """Compared with the phantom that has the other phase's HU to begin with, and the same noise."""
  organs = ('liver', 'spleen', 'aorta')
  image, label = scene(*(contrast.PHASES[name][start - 1] for name in organs))
  expected, _ = scene(*(contrast.PHASES[name][end - 1] for name in organs))
  changed = change(image, label, at(end))
  for name in organs:
    inside = ndimage.binary_erosion(label == code(name), iterations=2)
    assert abs(np.median(changed[inside]) - contrast.PHASES[name][end - 1]) < 4
    # The noise is the scan's own.
    np.testing.assert_allclose(changed[inside].std(), image[inside].std(), rtol=0.15)
    assert np.abs(changed - expected)[inside].mean() < 8
  # No halo: what is off at the edges is a fraction of what changed, and nothing beyond them is.
  edge = ndimage.binary_dilation(label > 0, iterations=2) & ~ndimage.binary_erosion(label > 0)
  difference = abs(contrast.PHASES['aorta'][start - 1] - contrast.PHASES['aorta'][end - 1])
  assert np.abs(changed - expected)[edge].mean() < 6 + 0.1 * difference
  assert abs((changed - expected)[edge].mean()) < 3 + 0.05 * difference
  far = ~ndimage.binary_dilation(label > 0, np.ones((3, 3, 3)), iterations=2)
  np.testing.assert_array_equal(changed[far], image[far])


def test_a_label_one_voxel_too_small_leaves_no_bright_rim():
  image, label = scene(58, 48, 300, noise=0)
  small = np.where(ndimage.binary_erosion(label > 0), label, 0).astype(np.uint8)
  changed = change(image, small, at(1))
  vessel = label == code('aorta')
  assert np.percentile(image[vessel], 90) > 290
  assert np.percentile(changed[vessel], 99) < 70


def test_heart_muscle_and_blood_lose_contrast_alike():
  heart = TEMPLATE.extend([{'name': 'heart'}])
  table, name = contrast.organ_table(heart), heart.get('heart').index
  image = np.full((20, 20, 20), 120, np.float32)
  image[6:14, 6:14, 6:14] = 320
  label = np.full(image.shape, name, np.uint8)
  native = contrast.PHASES['heart'][0]
  rng = np.random.default_rng(0)
  changed = contrast.change_phase(rng, image, label, table, COMPLETE | {'heart'}, at(4))
  # Delayed 100: both keep the same part of what they had over 45.
  part = (np.median(changed) - native) / (120 - native)
  np.testing.assert_allclose(changed[9:11, 9:11, 9:11], native + part * (320 - native), rtol=0.01)
  assert 0 < part <= 1


def test_without_all_labels_organs_move_as_patients_differ():
  image, label = scene(110, 120, 150)
  for known in (COMPLETE - {'spleen'}, {'liver'}):
    moved = {name: [] for name in ('liver', 'spleen', 'aorta')}
    for seed in range(12):
      changed = change(image, label, at(1, contrast_spread=8.0), known, seed)
      for name, shifts in moved.items():
        inside = ndimage.binary_erosion(label == code(name), iterations=2)
        shifts.append(np.median(changed[inside] - image[inside]))
    for name, shifts in moved.items():
      assert (np.std(shifts) > 3) == (name in known)
      assert np.abs(shifts).max() < 30
      assert name in known or not np.any(shifts)


def test_in_the_chest_the_heart_must_be_labelled():
  abdomen = np.full((20, 20, 20), 40, np.float32)
  chest = abdomen.copy()
  chest[:, :6] = -850
  assert contrast.is_complete(abdomen, COMPLETE)
  assert not contrast.is_complete(chest, COMPLETE)
  assert contrast.is_complete(chest, COMPLETE | {'heart'})
  outside = abdomen.copy()
  outside[:, :6] = -1000  # air around the patient is no lung
  assert contrast.is_complete(outside, COMPLETE)


def test_kidneys_of_a_patient_enhance_alike():
  image = np.full((24, 12, 12), 35, np.float32)
  label = np.zeros(image.shape, np.uint8)
  label[2:10, 2:10, 2:10], label[14:22, 2:10, 2:10] = code('right kidney'), code('left kidney')
  for seed in range(5):
    changed = change(image, label, at(3, contrast_spread=20.0), seed=seed)
    np.testing.assert_allclose(changed[6, 6, 6], changed[18, 6, 6], atol=0.1)


def test_content_fills_bowel_and_leaves_gas_wall_and_all_else():
  image = np.full((24, 24, 24), FAT, np.float32)
  label = np.zeros(image.shape, np.uint8)
  image[4:20, 4:20, 4:20], label[4:20, 4:20, 4:20] = 40, code('colon')
  image[8:16, 14:18, 8:16] = -1000
  fillings = []
  for seed in range(40):
    rng = np.random.default_rng(seed)
    changed = contrast.change_content(rng, image, label, TABLE, {'colon'})
    np.testing.assert_array_equal(changed[label == 0], image[label == 0])
    np.testing.assert_array_equal(changed[image < -900], -1000)
    fillings.append(changed[10, 8, 10])
    # The wall changes by half at most.
    assert abs(changed[4, 10, 10] - 40) <= 0.55 * abs(fillings[-1] - 40) + 1e-3
    rng = np.random.default_rng(seed)
    assert contrast.change_content(rng, image, label, TABLE, {'liver'}) is image
  fillings = np.array(fillings)
  assert ((fillings == 40) | ((fillings > -40) & (fillings < 60)) | (fillings > 90)).all()
  assert (fillings == 40).any() and (fillings > 100).any() and (fillings < 39).any()


def test_nothing_labelled_nothing_changed():
  image = np.zeros((8, 8, 8), np.float32)
  for codes in (0, code('right lung'), IGNORE_CODE):
    label = np.full(image.shape, codes, np.uint8)
    assert change(image, label, at(2)) is image
