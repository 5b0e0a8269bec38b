import types

import numpy as np
import pytest
from scipy import ndimage

from input_pipeline import bricks
from input_pipeline.anatomy import OUTSIDE_CODE, TEMPLATE
from input_pipeline.batches import augment
from input_pipeline.batches.sampler import PatchSampler, PipelineError
from input_pipeline.ct import volume
from tests.input_pipeline.batches.settings import CLASSES, OFF, ON, PATCH, make_config


@pytest.fixture(scope='module')
def scans(store, tiny_cases):
  """name -> image and codes on the bricks' grid, made without the bricks."""
  arrays = {}
  for case in tiny_cases[:6]:
    image, codes, _ = bricks.to_spacing(case.load(), store.spacing)
    arrays[case.name] = np.where(image <= -900, volume.AIR, image), codes
  return arrays


def padded(array, low, high, fill):
  """array[low:high] where the box may reach outside."""
  width = 64
  inside = tuple(slice(a + width, b + width) for a, b in zip(low, high, strict=True))
  return np.pad(array, width, constant_values=fill)[inside]


def test_any_box_equals_a_slice_of_the_scan(store, scans):
  sampler = PatchSampler(make_config(), [store], CLASSES)
  rng = np.random.default_rng(0)
  cases = sampler.cases
  reached_outside = 0
  for _ in range(200):
    case = cases[rng.integers(len(cases))]
    low = rng.integers(-20, np.array(case.info.shape) + 5)
    high = low + rng.integers(1, 40, 3)
    image, label = sampler.read(case, low, high)
    full_image, full_codes = scans[case.info.name]
    expected = padded(full_image, low, high, volume.AIR)
    # Air within a stored brick keeps its noise.
    np.testing.assert_array_equal(np.where(image <= -900, volume.AIR, image), expected)
    np.testing.assert_array_equal(label, padded(full_codes, low, high, OUTSIDE_CODE))
    reached_outside += (low < 0).any() or (high > case.info.shape).any()
  assert 50 < reached_outside < 200


def test_identity_matrix_equals_the_crop(store):
  sampler = PatchSampler(make_config(), [store], CLASSES)
  case = sampler.cases[0]
  for start in ([0, 0, 0], [-7, 5, 20], [33, 30, 40]):
    plain = sampler.crop(case, np.array(start), None)
    turned = sampler.crop(case, np.array(start), np.eye(3))
    for a, b in zip(plain, turned, strict=True):
      np.testing.assert_array_equal(a, b)


def test_turned_crop_equals_sampling_the_whole_scan(store):
  sampler = PatchSampler(make_config(), [store], CLASSES)
  config = augment.complete(ON)
  patch = np.array(PATCH)
  voxels = np.stack(np.meshgrid(*map(np.arange, PATCH), indexing='ij'))
  cases = sampler.cases
  for seed in range(12):
    rng = np.random.default_rng(seed)
    case = cases[seed % len(cases)]
    shape = np.array(case.info.shape)
    matrix = augment.draw_matrix(rng, config, store.spacing)
    start = rng.integers(-5, shape - patch + 5)
    image, label, linear, origin = sampler.crop(case, start, matrix)
    # The patch turns about its centre.
    middle = (patch - 1) / 2
    np.testing.assert_allclose(linear @ middle + origin, start + middle)
    at = np.einsum('ij,j...->i...', linear, voxels) + origin[:, None, None, None] + 40
    full_image, full_codes = sampler.read(case, np.full(3, -40), shape + 40)
    expected = ndimage.map_coordinates(full_image.astype(np.float32), at, order=1)
    np.testing.assert_allclose(image, expected, atol=0.01)
    np.testing.assert_array_equal(label, ndimage.map_coordinates(full_codes, at, order=0))


def test_a_deformed_crop_equals_sampling_the_whole_scan(store):
  config = augment.complete({**ON, 'p_warp': 0.0, 'elastic': (16.0, 16.0)})
  sampler = PatchSampler(make_config(), [store], CLASSES)
  voxels = np.stack(np.meshgrid(*map(np.arange, PATCH), indexing='ij'))
  case = sampler.cases[0]
  for seed, turned in ((0, False), (1, True)):
    rng = np.random.default_rng(seed)
    matrix = augment.draw_matrix(rng, config, store.spacing) if turned else None
    shifts = augment.draw_shifts(rng, config, PATCH, store.spacing, level=False)
    image, label, linear, origin = sampler.crop(case, np.array([3, 4, 2]), matrix, shifts)
    at = np.einsum('ij,j...->i...', linear, voxels) + origin[:, None, None, None] + shifts + 40
    full_image, full_codes = sampler.read(case, np.full(3, -40), np.array(case.info.shape) + 40)
    expected = ndimage.map_coordinates(full_image.astype(np.float32), at, order=1)
    np.testing.assert_allclose(image, expected, atol=0.1)  # places in float32
    codes = ndimage.map_coordinates(full_codes, at, order=0)
    assert (label != codes).mean() < 1e-3
    assert np.ptp(label) and (label != sampler.crop(case, np.array([3, 4, 2]), matrix)[1]).any()


@pytest.mark.parametrize('elastic', [False, True])
@pytest.mark.parametrize('settings', [OFF, ON])
def test_frame_gives_the_height_of_every_patch_voxel(store, settings, elastic, monkeypatch):
  """A scan whose HU are its heights tells where each patch voxel came from.

  Where a class was contoured over some slices only, an elastic scan keeps its heights.
  """
  if elastic:
    settings = settings | {'enabled': True, 'p_elastic': 1.0}
    ranges = {'slice_ranges': dict.fromkeys(CLASSES, (12.0, 300.0))}
    cases = [bricks.CaseInfo(**{**vars(c), **ranges}) for c in store.cases]
    monkeypatch.setattr(store, 'cases', cases)
  sampler = PatchSampler(
    make_config(augment=settings, windows=((-100.0, 900.0),), foreground=0.0), [store], CLASSES
  )

  def read(record):
    offset = store.cases[store.case[record]].offset[2]
    height = offset + (store.position[record][2] + np.arange(16)) * store.spacing[2]
    return np.broadcast_to(height, (16, 16, 16)).astype(np.float32), np.ones((16,) * 3, np.uint8)

  get = lambda store, records: [read(record) for record in records]
  sampler._cache = types.SimpleNamespace(get=get)
  config = {**augment.complete(settings), 'p_intensity': 0, 'p_noise': 0, 'p_blur': 0}
  config |= {'p_low_resolution': 0, 'p_gamma': 0, 'p_gamma_inverted': 0, 'p_cut_out': 0}
  config |= dict.fromkeys(('p_contrast', 'p_content', 'p_streaks', 'p_thick_slices'), 0)
  config |= dict.fromkeys(('p_elastic', 'p_warp'), float(elastic))
  sampler._augment = dict.fromkeys(sampler._augment, config)
  voxels = np.stack(np.meshgrid(*map(np.arange, PATCH), indexing='ij'), -1)
  compared = 0
  for index in range(20):
    example = sampler.sample(index, 3)
    # Not next to implied air, which would be mixed in.
    valid = ndimage.binary_erosion(example['label'] == 1, iterations=2)
    height = voxels @ example['frame'][:3] + example['frame'][3]
    # read() keeps HU as integers, so heights are cut to whole mm.
    np.testing.assert_allclose(
      example['image'][..., 0][valid] * 1000 - 100, height[valid], atol=1.1
    )
    compared += valid.sum()
  assert compared > 1000


def test_slice_range_and_supervision_are_those_of_the_case(store, monkeypatch):
  ranges = {'liver': (12.0, 300.0)}
  monkeypatch.setattr(
    store, 'cases', [bricks.CaseInfo(**{**vars(c), 'slice_ranges': ranges}) for c in store.cases]
  )
  sampler = PatchSampler(make_config(), [store], CLASSES)
  # Classes by dataset, in the order of CLASSES.
  allowed = {(1, 1, 0, 0, 0, 0), (0, 0, 1, 1, 1, 0), (1, 0, 1, 1, 0, 1)}
  seen = set()
  for index in range(40):
    example = sampler.sample(index, 0)
    seen.add(tuple(example['supervised'].astype(int).tolist()))
    np.testing.assert_array_equal(example['slice_range'][0], (12, 300))
    np.testing.assert_array_equal(example['slice_range'][1:], [(-np.inf, np.inf)] * 5)
  assert seen == allowed


def test_what_a_scan_cannot_show_is_that_of_the_case(store, monkeypatch):
  absent = lambda info: tuple(n for n in info.supervised if n in ('liver', 'left kidney'))
  cases = [bricks.CaseInfo(**{**vars(c), 'absent': absent(c)}) for c in store.cases]
  monkeypatch.setattr(store, 'cases', cases)
  sampler = PatchSampler(make_config(), [store], CLASSES)
  seen = {tuple(sampler.sample(i, 0)['absent'].astype(int).tolist()) for i in range(40)}
  # Classes by dataset, in the order of CLASSES.
  assert seen == {(1, 0, 0, 0, 0, 0), (0, 0, 1, 0, 0, 0), (1, 0, 1, 0, 0, 0)}


def test_labels_hold_no_class_beyond_the_supervised(store):
  sampler = PatchSampler(make_config(), [store], CLASSES)
  table = TEMPLATE.code_table(CLASSES)
  for index in range(40):
    example = sampler.sample(index, 0)
    present = table[example['label']].any((0, 1, 2))
    assert not (present & ~example['supervised']).any()


def test_right_stays_right(store):
  """Patches of both kidneys, however augmented: the right one has the larger x."""
  sampler = PatchSampler(make_config(patch=(40, 16, 16)), [store], ('right kidney', 'left kidney'))
  right, left = TEMPLATE.code_table(('right kidney', 'left kidney')).T
  both = 0
  for index in range(40):
    label = sampler.sample(index, 0)['label']
    if right[label].any() and left[label].any():
      both += 1
      assert np.argwhere(right[label])[:, 0].mean() > np.argwhere(left[label])[:, 0].mean()
  assert both > 10


def test_foreground_patches_hold_a_supervised_class(store):
  sampler = PatchSampler(make_config(foreground=1.0, augment=OFF), [store], CLASSES)
  table = TEMPLATE.code_table(CLASSES)
  for index in range(60):
    example = sampler.sample(index, 0)
    assert (table[example['label']].any((0, 1, 2)) & example['supervised']).any()
    assert example['image'].min() >= 0
    assert example['image'].max() <= 1


def draws(store, balance, weights=()):
  """(source, class) of 900 patches around a voxel of some class."""
  config = make_config(foreground=1.0, balance=balance, weights=weights)
  sampler = PatchSampler(config, [store], CLASSES)
  drawn = []
  voxel = sampler._voxel

  def note(rng, case, k):
    drawn.append((case.info.source, k))
    return voxel(rng, case, k)

  sampler._voxel = note
  for index in range(900):
    sampler.sample(index, 0)
  assert len(drawn) == 900
  return drawn


def test_datasets_take_turns_and_small_classes_in_them(store):
  drawn = draws(store, 'sources')
  count = {name: sum(source == name for source, _ in drawn) for name, _ in drawn}
  assert len(count) == 3
  # Binomial with p = 1/3 of 900: standard deviation 14; four of them.
  assert all(abs(n - 300) < 57 for n in count.values())
  liver = [k for source, k in drawn if source == 'phantom_liver']
  assert abs(liver.count(1) - len(liver) / 2) < 4 * np.sqrt(len(liver) / 4)


def test_every_pair_of_dataset_and_class_takes_turns(store):
  drawn = draws(store, 'classes')
  pairs = sorted(set(drawn))
  p = 1 / len(pairs)
  assert len(pairs) > 3
  for pair in pairs:
    assert abs(drawn.count(pair) - 900 * p) < 4 * np.sqrt(900 * p * (1 - p)), pair


def test_a_dataset_is_drawn_more_often(store):
  drawn = draws(store, 'sources', (('phantom_liver', 3.0), ('phantom_kidney', 0.5)))
  odds = {'phantom_liver': 3, 'phantom_kidney': 0.5, 'phantom_organs': 1}
  for name, weight in odds.items():
    p = weight / 4.5
    count = sum(source == name for source, _ in drawn)
    assert abs(count - 900 * p) < 4 * np.sqrt(900 * p * (1 - p)), name
  with pytest.raises(PipelineError, match="data.weights: .*'phantom_livr'; did you mean phantom_l"):
    draws(store, 'sources', (('phantom_livr', 3.0),))


def test_a_dataset_is_augmented_as_it_asks(store):
  """Patches of the others stay as they were."""
  turned = {'p_rotate': 1.0, 'p_noise': 1.0}
  plain = PatchSampler(make_config(augment={}), [store], CLASSES)
  some = make_config(augment={}, augment_of=(('phantom_liver', turned),))
  some = PatchSampler(some, [store], CLASSES)
  all_so = PatchSampler(make_config(augment=turned), [store], CLASSES)
  drawn = set()
  for index in range(20):
    name, _ = plain._dataset(np.random.default_rng([0, index]))
    expected = (all_so if name == 'phantom_liver' else plain).sample(index, 0)
    for field, value in some.sample(index, 0).items():
      np.testing.assert_array_equal(value, expected[field])
    drawn.add(name)
  assert len(drawn) == 3
  with pytest.raises(PipelineError, match="augment_of: no dataset is called 'liver'; known: ph"):
    PatchSampler(make_config(augment_of=(('liver', turned),)), [store], CLASSES)


@pytest.mark.parametrize('everywhere', [0.0, 0.5])
def test_mirror_images_of_one_dataset_come_no_more_often(store, everywhere):
  nothing = dict.fromkeys(ON, 0.0)
  of = (('phantom_liver', {'p_mirror': 1.0}),)
  config = make_config(augment={**nothing, 'p_mirror': everywhere}, augment_of=of)
  sampler = PatchSampler(config, [store], CLASSES)
  drawn = [sampler._dataset(np.random.default_rng([0, i])) for i in range(900)]
  names = [name for name, _ in drawn]
  turned = [name for name, mirrored in drawn if mirrored]
  assert turned.count('phantom_liver') == names.count('phantom_liver')
  for name in set(names):
    assert abs(names.count(name) - 300) < 57  # four standard deviations
  assert abs((len(turned) - 300) - everywhere * 600) < 57


def test_a_dataset_without_cases_in_a_fold_is_known(store):
  rest = [(case.source, case.name) for case in store.cases if case.source != 'phantom_kidney']
  fields = {'weights': (('phantom_kidney', 2.0),), 'augment_of': (('phantom_kidney', {}),)}
  sampler = PatchSampler(make_config(**fields), [store.part(rest)], ('liver', 'left lung'))
  assert {case.info.source for case in sampler.cases} == {'phantom_liver', 'phantom_organs'}


def test_an_unknown_balance_is_refused(store):
  with pytest.raises(PipelineError, match="data.balance is 'cases'"):
    PatchSampler(make_config(balance='cases'), [store], CLASSES)


def test_patch_larger_than_the_scan_holds_all_of_it(store, scans):
  sampler = PatchSampler(make_config(patch=(64, 64, 80), augment=OFF), [store], CLASSES)
  count = lambda codes: tuple(np.bincount(codes.ravel(), minlength=256)[1:OUTSIDE_CODE])
  wholes = {count(codes) for _, codes in scans.values()}
  assert len(wholes) == 6
  for index in range(6):
    label = sampler.sample(index, 0)['label']
    assert label.shape == (64, 64, 80)
    assert count(label) in wholes


def test_wrong_spacing_and_missing_classes_are_named(store):
  with pytest.raises(PipelineError, match='--spacing'):
    PatchSampler(make_config(spacing=(1.5, 1.5, 1.5)), [store], CLASSES)
  with pytest.raises(PipelineError, match='brainstem'):
    PatchSampler(make_config(), [store], ('brainstem',))


STRONG = dict.fromkeys(ON, 0.0) | {
  'p_rotate': 1.0, 'max_degrees': 40.0, 'p_zoom': 1.0, 'zoom': (1.2, 1.6), 'p_shear': 1.0,
  'p_warp': 1.0, 'warp': (30.0, 40.0), 'p_field': 1.0, 'field': (0.5, 0.9),
}  # fmt: skip


@pytest.mark.parametrize('hold', [True, False])
def test_the_class_that_a_patch_is_drawn_for_stays_in_it(store, hold):
  config = make_config(foreground=1.0, augment=STRONG | {'hold_voxel': hold}, patch=(12, 12, 12))
  sampler = PatchSampler(config, [store], CLASSES)
  voxel, drawn = sampler._voxel, []
  sampler._voxel = lambda rng, case, k: drawn.append(k) or voxel(rng, case, k)
  examples = [sampler.sample(index, 1) for index in range(80)]
  table = TEMPLATE.code_table(CLASSES)
  kept = [table[e['label']][..., k].any() for e, k in zip(examples, drawn, strict=True)]
  assert all(kept) == hold


def test_beyond_the_field_is_what_is_beyond_a_scan(store):
  sampler = PatchSampler(make_config(), [store], CLASSES)
  case = sampler.cases[0]
  shape = np.array(case.info.shape)
  low, high = np.full(3, -10), shape + 10
  field = np.array([-50, 7, 11]), np.array([shape[0] // 2, 900, shape[2] - 3])
  image, label = sampler._read(case, low, high, field)
  whole, codes = sampler.read(case, low, high)
  inside = np.zeros(whole.shape, bool)
  inside[: 10 + shape[0] // 2, 17:, 21 : 10 + shape[2] - 3] = True
  np.testing.assert_array_equal(image, np.where(inside, whole, volume.AIR))
  np.testing.assert_array_equal(label, np.where(inside, codes, OUTSIDE_CODE))
  assert (codes[~inside] != OUTSIDE_CODE).any()
  # A field that the box does not touch leaves nothing.
  image, label = sampler._read(case, low, high, (np.array([-90, 0, 0]), np.array([-50, 90, 90])))
  assert (label == OUTSIDE_CODE).all() and (image == volume.AIR).all()


def test_all_augmentation_together_depends_on_seed_and_index_alone(store):
  settings = ON | {'hold_voxel': True}
  one, two = (PatchSampler(make_config(augment=settings), [store], CLASSES) for _ in range(2))
  for index in (0, 5, 3):
    for a, b in zip(one.sample(index, 7).values(), two.sample(index, 7).values(), strict=True):
      np.testing.assert_array_equal(a, b)
      assert a.dtype == b.dtype
  other = one.sample(3, 8)['image']
  assert (other != one.sample(3, 7)['image']).any() and np.isfinite(other).all()
