"""Stores of bricks in memory, and parts of stores."""

import numpy as np

from input_pipeline import bricks
from input_pipeline.anatomy import TEMPLATE
from input_pipeline.batches.sampler import PatchSampler
from tests.input_pipeline.batches.settings import CLASSES, OFF, make_config

SPACING = (8.0, 9.0, 7.0)


def test_a_part_of_a_store_holds_its_cases_alone(tiny_data):
  whole = bricks.open_bricks(tiny_data, 'phantom')
  keys = {(case.source, case.name) for case in whole.cases[1::2]}
  part = whole.part(keys)
  assert {(case.source, case.name) for case in part.cases} == keys
  assert part.digest() == whole.digest()
  assert len(part) == sum(whole.case[i] % 2 for i in range(len(whole)))
  counts, all_counts = part.class_voxels(CLASSES), whole.class_voxels(CLASSES)
  at = 0
  for record in range(len(whole)):
    info = whole.cases[whole.case[record]]
    if (info.source, info.name) not in keys:
      continue
    assert part.cases[part.case[at]] == info
    np.testing.assert_array_equal(part.position[at], whole.position[record])
    np.testing.assert_array_equal(counts[at], all_counts[record])
    for kept, theirs in zip(part.read(at), whole.read(record), strict=True):
      np.testing.assert_array_equal(kept, theirs)
    at += 1
  assert at == len(part)


def test_held_out_scans_in_memory_are_the_scans(tiny_data):
  volumes = bricks.open_volumes(tiny_data, 'phantom')
  store = bricks.MemoryStore('phantom', volumes, spacing=SPACING, brick=16, template=TEMPLATE)
  assert [case.name for case in store.cases] == [volume.name for volume in volumes]
  sampler = PatchSampler(make_config(augment=OFF), [store], CLASSES)
  assert {case.info.name for case in sampler.cases} == {volume.name for volume in volumes}
  for case in sampler.cases:
    volume = next(v for v in volumes if v.name == case.info.name)
    scan = type(
      'Scan', (), {'image': volume.image, 'codes': volume.codes, 'geometry': volume.geometry}
    )
    image, codes, offset = bricks.to_spacing(scan, SPACING)
    got_image, got_codes = sampler.read(case, np.zeros(3, int), np.array(image.shape))
    np.testing.assert_array_equal(got_codes, codes)
    air = image <= -900  # of bricks of nothing but air
    np.testing.assert_array_equal(got_image[~air], image[~air])
    assert case.info.offset == offset
    voxels = store.class_voxels(CLASSES)[store.case == store.cases.index(case.info)].sum(0)
    table = TEMPLATE.code_table(CLASSES)
    expected = [table[codes, k].sum() * (n in volume.supervised) for k, n in enumerate(CLASSES)]
    np.testing.assert_array_equal(voxels, expected)
