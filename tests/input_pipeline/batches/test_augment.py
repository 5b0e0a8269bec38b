import numpy as np
import pytest

from input_pipeline.batches import augment

ALWAYS = {name: 1.0 for name in augment.DEFAULTS if name.startswith('p_')}
ISOTROPIC = (1.5, 1.5, 1.5)


def test_off_changes_nothing():
  config = augment.complete({'enabled': False, **ALWAYS})
  rng = np.random.default_rng(0)
  image = rng.random((4, 5, 6), np.float32)
  assert augment.draw_matrix(rng, config, ISOTROPIC) is None
  np.testing.assert_array_equal(augment.change_hu(rng, image, config), image)
  np.testing.assert_array_equal(
    augment.change_contrast(rng, image[..., None], config)[..., 0], image
  )
  assert augment.complete(None) == augment.complete({'enabled': False})


def test_wrong_fields_are_named():
  with pytest.raises(augment.AugmentError, match='p_colour'):
    augment.complete({'p_colour': 0.5})
  with pytest.raises(augment.AugmentError, match=r'p_noise is 1\.5'):
    augment.complete({'p_noise': 1.5})
  with pytest.raises(augment.AugmentError, match=r'zoom is \(2, 1\); expected \(lowest, highest\)'):
    augment.complete({'zoom': (2, 1)})
  with pytest.raises(augment.AugmentError, match='at most 8.06.* or the scan would fold'):
    augment.complete({'elastic_grid': 20.0, 'elastic': (0, 9)})


@pytest.mark.parametrize(
  ('field', 'value', 'told'),
  [
    ('noise', -3, 'expected a number from 0 on'),
    ('max_degrees', float('inf'), 'expected a number from 0 on'),
    ('intensity_shift', float('nan'), 'expected a number from 0 on'),
    ('zoom', (0, 1), 'expected numbers above 0'),
    ('low_resolution', (0.0, 2.0), 'expected numbers above 0'),
    ('stretch', (1, float('inf')), 'expected .lowest, highest.'),
  ],
)
def test_numbers_that_no_patch_can_be_made_with(field, value, told):
  with pytest.raises(augment.AugmentError, match=rf'data\.augment\.{field} is .*; {told}'):
    augment.complete({field: value})


@pytest.mark.parametrize('spacing', [ISOTROPIC, (0.7, 0.7, 5.0)])
def test_matrix_is_a_rotation_and_a_zoom_in_mm(spacing):
  config = augment.complete({**ALWAYS, 'p_stretch': 0.0, 'p_shear': 0.0})
  mm = np.diag(spacing)
  for seed in range(50):
    matrix = augment.draw_matrix(np.random.default_rng(seed), config, spacing)
    world = mm @ matrix @ np.linalg.inv(mm)
    zoom = 1 / np.cbrt(np.linalg.det(world))
    rotation = world * zoom
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    # A mirror image would have determinant -1 and a negative zoom.
    assert 0.85 <= zoom <= 1.25
    # Three turns of at most 15 degrees make at most 45 degrees: the trace is 1 + 2 cos(angle).
    assert np.trace(rotation) >= 1 + 2 * np.cos(np.deg2rad(45)) - 1e-9
    assert not np.allclose(rotation, np.eye(3))


def test_zoom_above_one_enlarges():
  config = augment.complete({**dict.fromkeys(ALWAYS, 0.0), 'p_zoom': 1.0, 'zoom': (1.25, 1.25)})
  matrix = augment.draw_matrix(np.random.default_rng(0), config, ISOTROPIC)
  # A step of one patch voxel is a step of 0.8 voxels in the scan.
  np.testing.assert_allclose(matrix, 0.8 * np.eye(3))


def test_same_generator_state_same_patch():
  config = augment.complete(ALWAYS)
  image = np.random.default_rng(0).normal(0, 100, (12, 12, 12)).astype(np.float32)
  before = image.copy()
  one, two, other = (augment.change_hu(np.random.default_rng(s), image, config) for s in (1, 1, 2))
  np.testing.assert_array_equal(one, two)
  assert not np.array_equal(one, other)
  np.testing.assert_array_equal(image, before)
  assert one.dtype == np.float32
  assert one.shape == image.shape


def test_intensity_alone_is_one_line_for_all_voxels():
  off = dict.fromkeys(ALWAYS, 0.0)
  config = augment.complete({**off, 'p_intensity': 1.0})
  image = np.linspace(-1000, 1000, 27, dtype=np.float32).reshape(3, 3, 3)
  for seed in range(20):
    changed = augment.change_hu(np.random.default_rng(seed), image, config).ravel()
    scale, shift = np.polyfit(image.ravel(), changed, 1)
    assert 0.9 - 1e-4 <= scale <= 1.1 + 1e-4
    assert abs(shift) <= 20 + 1e-2
    np.testing.assert_allclose(changed, scale * image.ravel() + shift, atol=0.1)


def test_blur_and_low_resolution_smooth_but_keep_the_mean():
  off = dict.fromkeys(ALWAYS, 0.0)
  image = np.random.default_rng(0).normal(40, 100, (24, 24, 24)).astype(np.float32)
  for name in ('p_blur', 'p_low_resolution'):
    changes = {**off, name: 1.0, 'low_resolution': (2.0, 2.0)}
    smooth = augment.change_hu(np.random.default_rng(3), image, augment.complete(changes))
    assert smooth.std() < 0.8 * image.std()
    assert abs(smooth.mean() - image.mean()) < 5


def test_noise_is_bounded_by_its_largest_deviation():
  config = augment.complete({**dict.fromkeys(ALWAYS, 0.0), 'p_noise': 1.0, 'noise': 10.0})
  flat = np.zeros((30, 30, 30), np.float32)
  spreads = [augment.change_hu(np.random.default_rng(s), flat, config).std() for s in range(30)]
  assert max(spreads) < 10.2
  # Uniform in 0..10: the mean of 30 lies within four standard errors of 5.
  assert abs(np.mean(spreads) - 5) < 4 * 10 / np.sqrt(12 * 30)


def test_contrast_keeps_order_black_and_white():
  config = augment.complete(ALWAYS)
  image = np.linspace(0, 1, 64, dtype=np.float32).reshape(4, 4, 2, 2)
  for seed in range(10):
    changed = augment.change_contrast(np.random.default_rng(seed), image, config).ravel()
    assert changed[0] == 0
    assert changed[-1] == 1
    assert (np.diff(changed) > 0).all()


def test_stretch_scales_each_axis_of_the_patch():
  off = dict.fromkeys(ALWAYS, 0.0)
  config = augment.complete({**off, 'p_stretch': 1.0, 'stretch': (0.8, 1.25)})
  spacing = (0.7, 0.7, 5.0)
  seen = [augment.draw_matrix(np.random.default_rng(s), config, spacing) for s in range(40)]
  assert all(np.allclose(matrix, np.diag(np.diag(matrix))) for matrix in seen)
  factors = 1 / np.array([np.diag(matrix) for matrix in seen])
  assert 0.8 <= factors.min() < 0.85 and 1.2 < factors.max() <= 1.25
  assert np.ptp(factors, axis=1).min() > 1e-3


@pytest.mark.parametrize('spacing', [ISOTROPIC, (0.7, 0.7, 5.0)])
def test_elastic_shifts_are_smooth_bounded_and_never_fold(spacing):
  off = dict.fromkeys(ALWAYS, 0.0)
  config = augment.complete({**off, 'p_elastic': 1.0, 'elastic': (16.0, 16.0)})
  for seed in range(10):
    draw = lambda level, s=seed: augment.draw_shifts(
      np.random.default_rng(s), config, (40, 40, 12), spacing, level=level
    )
    shifts = draw(False)
    assert shifts.shape == (3, 40, 40, 12) and shifts.dtype == np.float32
    mm = shifts * np.reshape(spacing, (3, 1, 1, 1))
    assert 1 < np.abs(mm).max() <= 16
    # Of x + shift(x) the Jacobian's determinant stays above 0.
    slopes = np.stack([np.stack(np.gradient(part), -1) for part in shifts], -2) + np.eye(3)
    assert np.linalg.det(slopes).min() > 0
    assert not draw(True)[2].any() and draw(True)[:2].any()
  assert augment.draw_shifts(np.random.default_rng(0), augment.complete({}), (4,) * 3, spacing,
                             level=False) is None  # fmt: skip


def test_a_spline_of_equal_points_is_flat_and_of_a_line_a_line():
  basis = augment._spline(30, 0.23)
  points = basis.shape[1]
  np.testing.assert_allclose(basis.sum(1), 1)
  # B-splines reproduce lines; the first point lies one step before voxel 0.
  np.testing.assert_allclose(basis @ (np.arange(points) - 1), 0.23 * np.arange(30), atol=1e-12)


def test_lost_slices_hold_the_mean_and_no_other_is_touched():
  off = dict.fromkeys(ALWAYS, 0.0)
  config = augment.complete({**off, 'p_cut_out': 1.0, 'cut_out': (2, 3)})
  image = np.random.default_rng(0).normal(size=(5, 6, 9)).astype(np.float32)
  runs = set()
  for seed in range(60):
    changed = augment.change_hu(np.random.default_rng(seed), image, config)
    lost = np.flatnonzero((changed != image).any((0, 1)))
    np.testing.assert_allclose(changed[:, :, lost], image.mean(), rtol=1e-5)
    assert len(lost) == np.ptp(lost) + 1
    runs.add((len(lost), lost[0]))
  assert {n for n, _ in runs} == {2, 3} and {first for _, first in runs} == set(range(8))
  thin = augment.change_hu(np.random.default_rng(0), image[:, :, :1], config)
  assert np.ptp(thin) == 0


def test_inverted_gamma_is_gamma_of_the_negative():
  off = dict.fromkeys(ALWAYS, 0.0)
  config = augment.complete({**off, 'p_gamma_inverted': 1.0, 'gamma': (2.0, 2.0)})
  image = np.array([0, 0.25, 0.5, 1], np.float32).reshape(2, 2, 1, 1)
  changed = augment.change_contrast(np.random.default_rng(0), image, config).ravel()
  np.testing.assert_allclose(changed, [0, 1 - 0.75**2, 0.75, 1], rtol=1e-6)


def test_what_is_off_by_default_draws_no_number():
  """Batches of runs made before it existed stay what they were."""
  rng = np.random.default_rng(5)
  config = augment.complete({})
  image = np.ones((4, 4, 4), np.float32)
  augment.draw_matrix(rng, config, ISOTROPIC)
  augment.draw_shifts(rng, config, (4, 4, 4), ISOTROPIC, level=False)
  augment.change_hu(rng, image, {**config, **dict.fromkeys(ALWAYS, 0.0)})
  augment.change_contrast(rng, image[..., None], {**config, 'p_gamma': 0.0})
  other = np.random.default_rng(5)
  other.random(2 + 3 + 1 + 4 + 1)
  assert rng.random() == other.random()


def test_shear_keeps_volume_and_slides_planes():
  off = dict.fromkeys(ALWAYS, 0.0)
  config = augment.complete({**off, 'p_shear': 1.0, 'shear': (0.05, 0.15)})
  spacing = (0.7, 0.7, 5.0)
  pairs = set()
  for seed in range(60):
    matrix = augment.draw_matrix(np.random.default_rng(seed), config, spacing)
    world = matrix * np.reshape(spacing, (3, 1)) / spacing
    slide = world - np.eye(3)
    [(along, across)] = np.argwhere(slide)
    assert along != across and 0.05 <= abs(slide[along, across]) <= 0.15
    pairs.add((along, across, slide[along, across] > 0))
  assert len(pairs) == 12


def test_warps_reach_further_and_never_fold_with_elastic():
  off = dict.fromkeys(ALWAYS, 0.0)
  changes = {'p_elastic': 1.0, 'p_warp': 1.0, 'elastic': (7.0, 7.0), 'warp': (27.0, 27.0)}
  config = augment.complete({**off, **changes})
  largest = 0
  for seed in range(10):
    rng = np.random.default_rng(seed)
    shifts = augment.draw_shifts(rng, config, (50, 50, 20), (3.0, 3.0, 5.0), level=seed == 9)
    mm = shifts * np.reshape((3, 3, 5), (3, 1, 1, 1))
    largest = max(largest, np.abs(mm).max())
    slopes = np.stack([np.stack(np.gradient(part), -1) for part in shifts], -2) + np.eye(3)
    assert np.linalg.det(slopes).min() > 0
    assert shifts[2].any() == (seed != 9)
  assert 16 < largest <= 34
  with pytest.raises(augment.AugmentError, match=r'warp shifts by up to 28 .* at most 27\.38'):
    augment.complete({**changes, 'warp': (0, 28)})  # 120 / 2.48 less 7 / 40 of 120
  assert augment.complete({**changes, 'p_elastic': 0.0, 'warp': (0, 48)})


def test_a_field_ends_where_it_says_and_keeps_the_voxel():
  off = dict.fromkeys(ALWAYS, 0.0)
  config = augment.complete({**off, 'p_field': 1.0, 'field': (0.2, 0.5)})
  start, patch = np.array([5, -3, 40]), (20, 30, 10)
  ends = []
  for seed in range(400):
    rng = np.random.default_rng(seed)
    voxel = start + rng.integers(patch)
    low, high = augment.draw_field(rng, config, start, patch, voxel)
    assert (low <= voxel).all() and (voxel < high).all()
    below, above = low > start, high < start + patch
    assert (below | above).sum() <= 1
    lost = np.maximum(low - start, 0) + np.maximum(start + patch - high, 0)
    assert (lost[below ^ above] <= np.array(patch)[below ^ above] / 2).all()
    ends += [
      (axis, side) for side, cut in enumerate((below, above)) for axis in np.flatnonzero(cut)
    ]
  counts = {end: ends.count(end) for end in set(ends)}
  assert len(counts) == 6
  assert min(counts[2, side] for side in (0, 1)) > max(counts[0, 0], counts[1, 1])
  assert augment.draw_field(rng, augment.complete({}), start, patch, voxel) is None
