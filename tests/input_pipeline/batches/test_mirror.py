"""Mirror images are what the pipeline would make of mirrored patients."""

import json

import ml_collections
import numpy as np
import pytest

from input_pipeline import bricks, sources
from input_pipeline.anatomy import TEMPLATE
from input_pipeline.batches import augment, mirror
from input_pipeline.batches.sampler import PatchSampler, PipelineError
from input_pipeline.bricks import writer
from input_pipeline.ct import volume

# By hand: codes that change places.
EXCHANGED = ((2, 3), (12, 13), (16, 17), (23, 24), (35, 36), (201, 202), (203, 204), (205, 206))
SPACING = (2.0, 3.0, 2.5)
PATCH = np.array((12, 10, 14))
# Case -> what it labels and where, and the same of its mirror image. The second labels one side.
LABELLED = {
  'both': (
    {'right kidney': (5.0, 30.0), 'left kidney': (-99.0, 99.0), 'kidney tumor': (0.0, 40.0)},
    {'right kidney': (-99.0, 99.0), 'left kidney': (5.0, 30.0), 'kidney tumor': (0.0, 40.0)},
  ),
  'one side': (
    {'liver': (-99.0, 99.0), 'right parotid': (10.0, 20.0)},
    {'liver': (-99.0, 99.0), 'left parotid': (10.0, 20.0)},
  ),
}
# Case -> what it cannot show, and the same of its mirror image.
ABSENT = {'both': ((), ()), 'one side': (('left kidney',), ('right kidney',))}
CODES = {'both': (0, 2, 3, 26, 201, 202), 'one side': (0, 6, 35)}
NOTHING_ELSE = {name: 0.0 for name in augment.DEFAULTS if name.startswith('p_')}
CLASSES = ('liver', 'right kidney', 'left kidney', 'kidney tumor', 'right parotid')


def make_case(name, *, turned):
  """A scan of random voxels, or what a mirror shows of it."""
  seed = list(LABELLED).index(name)
  rng = np.random.default_rng(seed)
  shape = (37, 22, 25)
  image = rng.integers(-800, 800, shape).astype(np.int16)
  codes = rng.choice(CODES[name], shape).astype(np.uint8)
  labelled = LABELLED[name][turned]
  if turned:
    image, plain = image[::-1], codes[::-1]
    codes = plain.copy()
    for a, b in EXCHANGED:
      codes[plain == a], codes[plain == b] = b, a
  geometry = volume.to_canonical(image, np.diag([*SPACING, 1])).geometry
  absent = ABSENT[name][turned]
  names = sources.in_template_order((*labelled, *absent))
  load = lambda: sources.Scan(image, codes, geometry)
  return sources.Case(f'random_{seed}', name, 'train', names, load, labelled, absent=absent)


@pytest.fixture(scope='module')
def stores(tmp_path_factory):
  """The scans, and their mirror images."""
  stores = []
  for turned in (False, True):
    folder = tmp_path_factory.mktemp('data')
    cases = [make_case(name, turned=turned) for name in LABELLED]
    declared = sources.get_source('nifti_folder')
    writer.write(declared, cases, folder, spacing=SPACING, brick=16)
    settings = {'settings': {'version': bricks.VERSION}}
    (folder / 'nifti_folder' / bricks.SETTINGS).write_text(json.dumps(settings))
    stores.append(bricks.open_bricks(folder, 'nifti_folder'))
  return stores


def make_sampler(store, p_mirror, classes=CLASSES, foreground=0.5):
  fields = {
    'patch': tuple(PATCH),
    'windows': ((-500.0, 500.0),),
    'foreground': foreground,
    'balance': 'sources',
    'cache_mb': 64,
    'augment': {**NOTHING_ELSE, 'p_mirror': p_mirror},
    'spacing': SPACING,
  }
  return PatchSampler(ml_collections.ConfigDict(fields), [store], classes)


@pytest.mark.parametrize('turn', [False, True])
def test_a_mirrored_patch_is_the_patch_of_the_mirrored_scan(stores, turn, monkeypatch):
  """Pixels, labels, supervision, heights and slice ranges, with and without rotation and zoom."""
  ours, theirs = make_sampler(stores[0], 1.0), make_sampler(stores[1], 0.0)
  flip = np.diag([-1.0, 1, 1])
  labelled = unseen = 0
  for index in range(24):
    rng = np.random.default_rng(index)
    name = list(LABELLED)[index % 2]
    ((case,), (twin,)) = (
      [c for members, _ in datasets.values() for c in members if c.info.name == name]
      for datasets in (ours._mirrored, theirs._datasets)
    )
    shape = np.array(case.info.shape)
    start = rng.integers(-4, shape - PATCH + 4)
    mirrored = start.copy()
    mirrored[0] = shape[0] - start[0] - PATCH[0]
    matrix = (
      augment.draw_matrix(rng, augment.complete({'p_rotate': 1.0}), SPACING) if turn else None
    )
    monkeypatch.setattr(ours, '_place', lambda *_, at=(case, start, start): at)
    monkeypatch.setattr(theirs, '_place', lambda *_, at=(twin, mirrored, mirrored): at)
    monkeypatch.setattr(augment, 'draw_matrix', lambda *_, m=matrix: m)
    a = ours.sample(index, 0)
    if turn:
      monkeypatch.setattr(augment, 'draw_matrix', lambda *_, m=matrix: flip @ m @ flip)
    b = theirs.sample(index, 0)
    monkeypatch.undo()
    assert a.keys() == b.keys()
    np.testing.assert_allclose(a.pop('image'), b.pop('image'), atol=1e-4)
    np.testing.assert_allclose(a.pop('frame'), b.pop('frame'), atol=1e-4)
    for field in a:
      np.testing.assert_array_equal(a[field], b[field])
    unseen += a['absent'].sum()
    labelled += np.isin(a['label'], (2, 3, 35, 36, 201, 202)).sum()
  assert labelled > 1000 and unseen == 12


def test_a_side_is_trained_only_where_its_partner_was_labelled(stores):
  """Of `one side` the right parotid is labelled: its mirror image shows a left one."""
  sampler = make_sampler(stores[0], 1.0)
  seen = {tuple(sampler.sample(i, 0)['supervised'].astype(int).tolist()) for i in range(20)}
  assert seen == {(1, 1, 0, 0, 0), (0, 1, 1, 1, 0)}
  # Asked for the left one, its mirror image has it, and the scan itself does not.
  classes = ('liver', 'left parotid')
  for p_mirror in (0.0, 1.0):
    example = make_sampler(stores[0], p_mirror, classes).sample(0, 0)
    assert example['supervised'].tolist() == [True, p_mirror == 1]
    assert (example['label'] == 36).any() == (p_mirror == 1)
  np.testing.assert_array_equal(example['slice_range'][1], (10, 20))


def test_as_often_as_asked_and_never_by_default(stores):
  assert augment.DEFAULTS['p_mirror'] == 0
  plain, some = make_sampler(stores[0], 0.0), make_sampler(stores[0], 0.25)
  assert plain._mirrored is None
  labels = [some.sample(i, 0)['label'] for i in range(400)]
  # Code 36 exists in mirror images only; half of the patches are of that scan.
  turned = sum((label == 36).any() for label in labels)
  original = sum((label == 35).any() for label in labels)
  assert turned + original > 150
  assert abs(turned / (turned + original) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 150)


def test_codes_are_exchanged_as_written_by_hand():
  expected = np.arange(256)
  for a, b in EXCHANGED:
    expected[[a, b]] = b, a
  table = mirror.mirrored_codes(TEMPLATE)
  np.testing.assert_array_equal(table, expected)
  np.testing.assert_array_equal(table[table], np.arange(256))


def test_new_classes_with_a_side():
  pair = [{'name': f'{s} hip stem', 'side': s} for s in ('left', 'right')]
  lesions = [{'name': f'tumor of the {s} breast', 'side': s} for s in ('left', 'right')]
  longer = TEMPLATE.extend([*pair, *lesions, {'name': 'upright thing'}])
  names = mirror.mirrored_names(longer)
  assert names['left hip stem'] == 'right hip stem'
  assert names['tumor of the right breast'] == 'tumor of the left breast'
  assert names['upright thing'] == 'upright thing'
  assert names['liver'] == 'liver'
  table = mirror.mirrored_codes(longer)
  assert table[39:44].tolist() == [40, 39, 42, 41, 43]


@pytest.mark.parametrize(
  ('classes', 'message'),
  [
    ([{'name': 'left hip stem', 'side': 'left'}], "'left hip stem' lies on one side"),
    ([{'name': 'left hip stem'}], "'left hip stem' lies on one side"),
    ([{'name': 'pacemaker', 'side': 'left'}], "'pacemaker' lies on one side"),
    ([{'name': 'scar', 'parent': 'left kidney'}], "'scar' lies in .*left kidney"),
    (
      [{'name': 'left scar', 'parent': 'left kidney'}, {'name': 'right scar'}],
      "'left scar' lies in .*'right scar'",
    ),
  ],
)
def test_classes_without_a_mirror_image_are_named(classes, message, stores, monkeypatch):
  longer = TEMPLATE.extend(classes)
  with pytest.raises(ValueError, match=message):
    mirror.mirrored_codes(longer)
  monkeypatch.setattr(stores[0], 'template', longer)
  make_sampler(stores[0], 0.0)
  with pytest.raises(PipelineError, match=f'p_mirror: class {message}.*set it to 0'):
    make_sampler(stores[0], 0.5)


def test_mirror_images_that_show_no_class_are_refused(stores):
  make_sampler(stores[0], 0.0, ('right parotid',))
  with pytest.raises(PipelineError, match='p_mirror: no case .*left parotid.*set it to 0'):
    make_sampler(stores[0], 0.5, ('right parotid',))
