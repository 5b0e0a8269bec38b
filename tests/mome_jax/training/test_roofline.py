"""What a chip can do at best, by hand."""

import pytest

from mome_jax.training import roofline

V5E = roofline.CHIPS['v5e']


@pytest.mark.parametrize(
  ('flops', 'traffic', 'seconds', 'share'),
  [
    (197e12, 819e9 / 2, 1, 1),  # a second of computing, half a second of moving
    (197e12, 4 * 819e9, 4, 0.25),
    (0, 0, 0, 0),
  ],
)
def test_the_slower_of_computing_and_moving_bounds_a_step(flops, traffic, seconds, share):
  bound = roofline.bound(V5E, flops, traffic)
  assert bound['seconds'] == pytest.approx(seconds)
  assert bound['mfu_bound'] == pytest.approx(share)


def test_what_a_training_must_cost():
  """By hand: a step of a second, 8 chips, 900 steps are 2 hours of chips."""
  for flops, traffic in ((197e12, 1), (1, 819e9)):  # computing, moving
    assert roofline.chip_hours(roofline.bound(V5E, flops, traffic), 8, 900) == 2
  assert roofline.chip_hours({'seconds': 1}, 4, 123_456) == 137


def step(gigabytes, teraflops, patches, chip=V5E):
  sizes = {'convolution': 0.75e9 * gigabytes, 'copy': 0.25e9 * gigabytes}
  work, traffic = 1e12 * teraflops * patches, 1e9 * gigabytes * patches
  return {
    'patches_per_chip': patches,
    'traffic': {'total': 1e9 * gigabytes, 'kinds': sizes},
    'flops_per_patch': 1e12 * teraflops,
    'roofline': chip and roofline.bound(chip, work, traffic),
    'hbm': {'peak': 3 * 2**29},
  }


def test_the_table_has_all_programs_of_a_report():
  programs = {'train': step(81.9, 1.97, 2), 'see': step(8.19, 0.0197, 1), 'read': step(4, 0, 1)}
  slice_of_four = {'topology': 'v5e:2x2', 'chips': 4, 'hbm_limit': 16 * 2**30}
  report = {**slice_of_four, 'chip_hours': 222, **programs}
  lines = roofline.table(report).splitlines()
  assert len(set(map(len, lines))) == 1
  rows = {name: cells for name, *cells in ([c.strip() for c in line[2:-2].split(' | ')]
                                           for line in lines if '---' not in line)}  # fmt: skip
  assert rows == {
    'v5e:2x2, 4 chips': ['train', 'see', 'read'],
    'patches a chip': ['2', '1', '1'],
    'GB moved a patch': ['81.9', '8.2', '4.0'],
    'convolution': ['61.4', '6.1', '3.0'],
    'copy': ['20.5', '2.0', '1.0'],
    'TFLOP a patch': ['1.97', '0.02', '0.00'],
    'ms of a step, computing at peak': ['20', '0', '0'],
    'ms of a step, moving at full bandwidth': ['200', '10', '5'],
    'MFU at most': ['10%', '1%', '0%'],
    'chip hours of all steps, at least': ['222', '', ''],
    'GiB of a chip (of 16)': ['1.5', '1.5', '1.5'],
  }
  report |= {'hbm_limit': None, **{name: step(1, 1, 1, None) for name in programs}}
  assert 'MFU' not in roofline.table(report)  # of a chip whose peak is not known
