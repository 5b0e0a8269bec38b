"""Each rule on blocks whose answer is known, on packed masks."""

import numpy as np
import pytest
import scipy.ndimage
from threshold import decide

from input_pipeline.anatomy import TEMPLATE
from mome_jax.inference import postprocess
from mome_jax.inference.segmentation import Segmentation

NAMES = ('liver', 'right lung', 'left lung', 'liver tumor', 'pancreas', 'portal and splenic vein',
         'spleen', 'right kidney', 'left kidney')  # fmt: skip
SHAPE = (20, 12, 12)
SPACING = (2.0, 2.0, 2.0)
ALL = tuple(postprocess.RULES)


def block(x, y=(2, 6), z=(2, 6)):
  mask = np.zeros(SHAPE, bool)
  mask[slice(*x), slice(*y), slice(*z)] = True
  return mask


def segmentation(**blocks):
  """Masks by name, blanks written as underscores; a later one is more probable."""
  logits = np.full((*SHAPE, len(NAMES)), -1.0, np.float32)
  for rank, (name, mask) in enumerate(blocks.items()):
    logits[mask, NAMES.index(name.replace('_', ' '))] = 1 + rank
  over, winner = decide(logits, NAMES)
  return Segmentation(NAMES, winner, over)


def run(segmented, *rules, midline=9.5):
  return postprocess.apply(segmented, rules, SPACING, midline)


def test_no_rule_changes_nothing_and_the_input_is_never_changed():
  segmented = segmentation(liver=block((2, 6)) | block((9, 10)))
  assert run(segmented) is segmented
  before = segmented.winner.copy(), segmented.over.copy()
  assert run(segmented, *ALL).mask('liver').sum() == 4**3
  np.testing.assert_array_equal(segmented.winner, before[0])
  np.testing.assert_array_equal(segmented.over, before[1])


def test_an_organ_keeps_its_largest_component_and_the_tumor_in_it():
  tumor = block((4, 8))
  segmented = run(segmentation(liver=block((2, 8)) | block((12, 14)), liver_tumor=tumor), 'largest')
  np.testing.assert_array_equal(segmented.mask('liver'), block((2, 8)))
  np.testing.assert_array_equal(segmented.mask('liver tumor'), tumor)


def test_a_tumor_stays_inside_its_surrounded_organ():
  # 2 mm voxels and 3 mm of reach: one voxel beyond the organ stays, the second does not.
  organ, tumor = block((2, 8)), block((6, 12))
  segmented = run(segmentation(liver=organ, liver_tumor=tumor), 'inside')
  np.testing.assert_array_equal(segmented.mask('liver tumor'), block((6, 9)))
  np.testing.assert_array_equal(segmented.mask('liver'), organ)
  assert not run(segmentation(liver_tumor=tumor), 'inside').mask('liver tumor').any()


def test_the_surroundings_of_a_mask_are_scipys_closing_and_dilation():
  organ = scipy.ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(24, 24, 24)), 2) > 0
  organ[:6], organ[-6:], organ[:, :6], organ[:, -6:] = False, False, False, False
  organ[..., :6], organ[..., -6:] = False, False
  x = np.arange(-2, 3)
  ball = (x[:, None, None] ** 2 + x[:, None] ** 2 + x**2) * 1.5**2 <= 9
  expected = scipy.ndimage.binary_dilation(scipy.ndimage.binary_closing(organ, ball), ball)
  np.testing.assert_array_equal(postprocess._surroundings(organ, (1.5,) * 3, (5,) * 3), expected)


def test_a_small_tumor_becomes_the_organ_around_it():
  speck = block((3, 5), (3, 5), (3, 5))  # 8 voxels of 8 mm^3 are 0.064 ml, the least is 0.07
  segmented = run(segmentation(liver=block((2, 8)), liver_tumor=speck), 'minimum')
  assert not segmented.mask('liver tumor').any()
  np.testing.assert_array_equal(segmented.winner, block((2, 8)) * 1)
  larger = block((3, 6), (3, 5), (3, 5))
  kept = run(segmentation(liver=block((2, 8)), liver_tumor=larger), 'minimum')
  np.testing.assert_array_equal(kept.mask('liver tumor'), larger)


def test_sides_follow_the_body_not_the_names():
  # Axis 0 grows to the patient's right: swapped lungs, and a single kidney under the wrong name.
  low, high = block((2, 7)), block((12, 18))
  segmented = segmentation(right_lung=low, left_lung=high, right_kidney=block((2, 5), (8, 11)))
  segmented = run(segmented, 'sides')
  np.testing.assert_array_equal(segmented.mask('right lung'), high)
  np.testing.assert_array_equal(segmented.mask('left lung'), low)
  np.testing.assert_array_equal(segmented.mask('left kidney'), block((2, 5), (8, 11)))
  assert not segmented.mask('right kidney').any()


def test_lungs_that_touch_are_kept_when_ordered_and_split_when_not():
  low, high = block((2, 8)), block((8, 18))
  kept = run(segmentation(left_lung=low, right_lung=high), 'sides')
  np.testing.assert_array_equal(kept.mask('right lung'), high)
  split = run(segmentation(left_lung=low | high), 'sides')
  np.testing.assert_array_equal(split.mask('right lung'), block((10, 18)))
  np.testing.assert_array_equal(split.mask('left lung'), block((2, 10)))


def test_the_portal_vein_ends_at_the_pancreas():
  vein = block((2, 4), z=(0, 8))
  segmented = run(segmentation(pancreas=block((8, 12)), portal_and_splenic_vein=vein), 'portal')
  np.testing.assert_array_equal(segmented.mask(NAMES[5]), block((2, 4), z=(2, 8)))
  alone = run(segmentation(portal_and_splenic_vein=vein), 'portal')
  np.testing.assert_array_equal(alone.mask(NAMES[5]), vein)


def test_a_class_that_came_with_a_dataset_may_be_several_pieces():
  template = TEMPLATE.extend([{'name': 'lymph node'}])
  names = ('lymph node', 'liver')
  logits = np.full((*SHAPE, 2), -1.0, np.float32)
  nodes, liver = block((2, 4)) | block((12, 15)), block((6, 9)) | block((16, 18))
  logits[nodes, 0], logits[liver, 1] = 1, 1
  over, winner = decide(logits, names, template)
  segmented = run(Segmentation(names, winner, over, template), 'largest')
  np.testing.assert_array_equal(segmented.mask('lymph node'), nodes)
  np.testing.assert_array_equal(segmented.mask('liver'), block((6, 9)))


def test_empty_masks():
  assert not run(segmentation(), *ALL).winner.any()


def blobs(seed):
  """Smooth random masks of every class, each in several pieces."""
  rng = np.random.default_rng(seed)
  fields = [scipy.ndimage.gaussian_filter(rng.normal(size=SHAPE), 1.2) for _ in NAMES]
  masks = [field > np.quantile(field, 0.75) for field in fields]
  masks[NAMES.index('pancreas')][:, :, :4] = False  # where the portal vein is to be cut
  return segmentation(**{n.replace(' ', '_'): m for n, m in zip(NAMES, masks, strict=True)})


@pytest.mark.parametrize('rule', ALL)
@pytest.mark.parametrize('seed', range(3))
def test_a_second_application_changes_nothing(rule, seed):
  once = run(blobs(seed), rule)
  twice = run(once, rule)
  np.testing.assert_array_equal(once.winner, twice.winner)
  np.testing.assert_array_equal(once.over, twice.over)


# The classes that a rule may take voxels from.
CHANGES = {
  'sides': {'right lung', 'left lung', 'right kidney', 'left kidney'},
  'largest': set(NAMES) - {'liver tumor', 'portal and splenic vein'},
  'portal': {'portal and splenic vein'},
  'inside': {'liver tumor'},
  'minimum': {'liver tumor'},
}


@pytest.mark.parametrize('rule', ALL)
@pytest.mark.parametrize('seed', range(3))
def test_a_rule_takes_voxels_from_its_own_classes_and_gives_none(rule, seed):
  before = blobs(seed)
  after = run(before, rule)
  pairs = {name: name for name in NAMES}
  if rule == 'sides':  # what one side loses the other gets
    pairs |= {f'right {organ}': f'left {organ}' for organ in ('lung', 'kidney')}
    pairs |= {f'left {organ}': f'right {organ}' for organ in ('lung', 'kidney')}
  changed = set()
  for name, other in pairs.items():
    had, has = (segmented.mask(name) | segmented.mask(other) for segmented in (before, after))
    assert not (has & ~had).any(), name
    if not np.array_equal(before.mask(name), after.mask(name)):
      changed.add(name)
  assert changed <= CHANGES[rule]
  assert changed  # else the masks put nothing to the test


@pytest.mark.parametrize('gone', [('liver',), ('liver tumor', 'left lung'), NAMES, ()])
def test_masks_that_are_taken_away_are_empty_and_the_others_as_before(gone):
  before = blobs(7)
  copies = before.winner.copy(), before.over.copy()
  after = postprocess.without(before, gone)
  assert all(before.mask(name).any() for name in gone)
  assert [after.boxes[name] for name in gone] == [None] * len(gone)
  for name in set(NAMES) - set(gone):
    np.testing.assert_array_equal(after.mask(name), before.mask(name), err_msg=name)
  np.testing.assert_array_equal(before.winner, copies[0])
  np.testing.assert_array_equal(before.over, copies[1])


def test_rules_of_a_command_line():
  assert postprocess.parse('sides, largest') == ('sides', 'largest')
  assert postprocess.parse('none') == postprocess.parse('') == ()
  with pytest.raises(postprocess.PostprocessError, match="'all'.*known: sides"):
    postprocess.parse('all')


def test_an_unknown_rule_is_named():
  with pytest.raises(postprocess.PostprocessError, match="'biggest'.*known: sides, largest"):
    run(segmentation(), 'biggest')


def test_two_lone_voxels_in_a_line():
  """A box of 3 x 1 x 1 voxels, of which the middle one is background."""
  ends = block((4, 5), (3, 4), (3, 4)) | block((6, 7), (3, 4), (3, 4))
  segmented = run(segmentation(spleen=ends), *ALL)
  assert segmented.mask('spleen').sum() == 1
