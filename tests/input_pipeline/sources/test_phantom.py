"""The phantom: anatomy within human ranges, labels on the right side, one patient on any grid."""

import functools

import numpy as np
import pytest
from scipy import ndimage

from input_pipeline import anatomy
from input_pipeline.sources.phantom import trunk

SEEDS = range(8)
CYSTS = (203, 204)


@functools.cache
def cohort():
  return [trunk.make_phantom(seed) for seed in SEEDS]


def code(name):
  return anatomy.TEMPLATE.get(name).index


def target(codes, name):
  """Mask of a class, children included, as training sees it."""
  return anatomy.TEMPLATE.code_table([name])[codes, 0]


def milliliters(mask, spacing):
  return mask.sum() * np.prod(spacing) / 1000


def test_same_seed_gives_same_bytes_and_another_seed_another_patient():
  image, codes, spacing = cohort()[0]
  again = trunk.make_phantom(0)
  np.testing.assert_array_equal(again[0], image)
  np.testing.assert_array_equal(again[1], codes)
  np.testing.assert_array_equal(again[2], spacing)
  assert {c.shape for _, c, _ in cohort()} != {codes.shape}


def test_formats_and_field_of_view():
  for image, codes, spacing in cohort():
    assert image.dtype == np.int16
    assert codes.dtype == np.uint8
    assert image.shape == codes.shape
    extent = image.shape * spacing
    assert (extent > (320, 230, 370)).all()
    assert (extent < (430, 330, 450)).all()
    assert image.min() >= -1024
    assert image.max() < 1500
    # Air around the patient, in front and above the corners of every slice.
    assert np.median(image[:3, -3:]) == pytest.approx(-1000, abs=10)


def test_codes_are_the_declared_classes_and_lesions_are_absent_in_a_minority():
  allowed = {0, *(code(name) for name in trunk.CLASSES), *CYSTS} - {code('kidney cyst')}
  organs = {code(name) for name in trunk.CLASSES} - {code('liver tumor'), code('kidney cyst')}
  for _, codes, _ in cohort():
    present = set(np.unique(codes).tolist())
    assert present <= allowed
    assert organs <= present
  for name in ('liver tumor', 'kidney cyst'):
    assert sum(target(codes, name).any() for _, codes, _ in cohort()) > len(SEEDS) / 2


def test_a_phantom_may_have_no_lesion(monkeypatch):
  monkeypatch.setattr(trunk, '_ABSENT', 1.0)
  codes = trunk.make_phantom(0, spacing=(8, 8, 8))[1]
  assert not target(codes, 'liver tumor').any()
  assert not target(codes, 'kidney cyst').any()


@pytest.mark.parametrize(
  ('name', 'low', 'high'),
  [
    ('spleen', 80, 400),
    ('right kidney', 80, 300),
    ('left kidney', 80, 300),
    ('liver', 900, 2200),
    ('stomach', 100, 900),
    ('aorta', 60, 300),
    ('pancreas', 30, 150),
    ('right lung', 800, 3500),
    ('left lung', 800, 3500),
    ('bladder', 50, 500),
  ],
)
def test_volumes_are_human_and_differ_between_patients(name, low, high):
  volumes = [milliliters(target(codes, name), spacing) for _, codes, spacing in cohort()]
  assert low < min(volumes)
  assert max(volumes) < high
  assert np.std(volumes) > 0.03 * np.mean(volumes)


@pytest.mark.parametrize(
  ('name', 'low', 'high'),
  [
    ('spleen', 85, 140),
    ('right kidney', 85, 180),
    ('left kidney', 85, 180),
    ('liver', 45, 120),
    ('stomach', -40, 60),
    ('aorta', 110, 280),
    ('pancreas', 55, 120),
    ('right lung', -920, -750),
    ('left lung', -920, -750),
    ('bladder', -15, 35),
  ],
)
def test_attenuation_is_plausible(name, low, high):
  medians = [np.median(image[codes == code(name)]) for image, codes, _ in cohort()]
  assert low < min(medians)
  assert max(medians) < high


def test_sides_are_the_patients():
  for _, codes, _ in cohort():
    centers = {n: np.argwhere(target(codes, n)).mean(0) for n in trunk.CLASSES[:10]}
    x, y, z = ({n: center[axis] for n, center in centers.items()} for axis in range(3))
    assert x['liver'] > x['spleen']
    assert x['right kidney'] > x['aorta'] > x['left kidney']
    assert x['right lung'] > x['aorta'] > x['left lung']
    assert x['liver'] > x['stomach']
    assert y['stomach'] > y['aorta'] > y['left kidney']
    assert z['right lung'] > z['liver'] > z['right kidney'] > z['bladder']


def test_each_organ_is_one_piece():
  for _, codes, _ in cohort():
    for name in trunk.CLASSES[:10]:
      if name == 'aorta':  # its arch lies above the scan: the ascending part stands alone
        continue
      pieces, _ = ndimage.label(target(codes, name), np.ones((3, 3, 3)))
      sizes = np.bincount(pieces.ravel())[1:]
      assert sizes.max() > 0.95 * sizes.sum(), name


def test_tumors_lie_in_the_liver_and_cysts_on_the_kidney_of_their_side():
  for image, codes, _ in cohort():
    tumor = codes == code('liver tumor')
    if tumor.any():
      around = codes[ndimage.binary_dilation(tumor) & ~tumor]
      assert (around == code('liver')).mean() > 0.75
      liver = np.median(image[codes == code('liver')])
      assert image[tumor].mean() != pytest.approx(liver, abs=5)
    for cyst, kidney in zip(CYSTS, ('right kidney', 'left kidney'), strict=True):
      mask = codes == cyst
      if mask.any():
        around = codes[ndimage.binary_dilation(mask) & ~mask]
        assert (around == code(kidney)).mean() > 0.15
        assert -30 < np.median(image[mask]) < 50


def test_surface_voxels_hold_a_mixture_of_both_sides():
  image, codes, _ = trunk.make_phantom(0, noise_hu=0)
  lung = np.isin(codes, [code('right lung'), code('left lung')])
  inside = image[ndimage.binary_erosion(lung, iterations=2)]
  shell = image[lung & ~ndimage.binary_erosion(lung)]
  between = (shell > -700) & (shell < -150)
  assert between.mean() > 0.2
  assert ((inside > -700) & (inside < -150)).mean() < between.mean() / 2


def test_noise_has_the_asked_spread_and_spares_the_anatomy():
  clean, codes, _ = trunk.make_phantom(1, noise_hu=0)
  noisy, same, _ = trunk.make_phantom(1, noise_hu=15)
  np.testing.assert_array_equal(codes, same)
  noise = (noisy.astype(float) - clean)[codes == code('liver')]
  assert noise.std() == pytest.approx(15, rel=0.2)
  assert noise.mean() == pytest.approx(0, abs=1)


@pytest.mark.parametrize('spacing', [(6.0, 6.0, 6.0), (3.0, 3.0, 6.0)])
def test_the_grid_does_not_change_the_patient(spacing):
  _, expected, fine = cohort()[0]
  _, codes, coarse = trunk.make_phantom(0, spacing=spacing)
  np.testing.assert_array_equal(coarse, spacing)
  for name in trunk.CLASSES:
    volume = milliliters(target(expected, name), fine)
    assert milliliters(target(codes, name), coarse) == pytest.approx(volume, rel=0.1, abs=2), name
    if volume:
      center, expected_center = (
        (np.argwhere(target(c, name)).mean(0) - (np.array(c.shape) - 1) / 2) * step
        for c, step in ((codes, coarse), (expected, fine))
      )
      np.testing.assert_allclose(center, expected_center, atol=3.0, err_msg=name)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'spacing': (4, 0, 4)}, 'spacing .*three positive numbers'),
    ({'spacing': (4, np.nan, 4)}, 'spacing .*three positive numbers'),
    ({'spacing': (4, 4)}, 'spacing .*three positive numbers'),
    ({'noise_hu': -1}, 'noise_hu -1'),
  ],
)
def test_wrong_arguments_are_named(arguments, message):
  with pytest.raises(ValueError, match=message):
    trunk.make_phantom(0, **arguments)
