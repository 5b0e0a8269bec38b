"""Recall and precision of `input_pipeline.dedupe` on real scans and changed copies of them.

PYTHONPATH=. python tests/benchmarks/dedupe.py --data=DIR [--every=1]

Every scan is compared with a copy of itself after each change, and with all other patients: the
scans as they are, and copies changed in turn.
"""

import argparse
import pathlib

import numpy as np

from input_pipeline import progress
from input_pipeline.ct import resample, volume
from input_pipeline.dedupe import fingerprint


def cut(image, spacing, rng):
  """A third of the slices is cut off."""
  n = image.shape[2] // 6
  return image[:, :, n:-n], spacing


def turned(image, spacing, rng):
  """The first axis and the slices run the other way."""
  return image[::-1, :, ::-1], spacing


def resampled(image, spacing, rng):
  """Coarser voxels, other ones in each direction."""
  coarse = spacing * (1.4, 1.4, 1.3)
  return resample.resample(image, spacing, coarse, order=1), coarse


def offset(image, spacing, rng):
  """CT numbers from 0 on."""
  return image + 1024, spacing


def compressed(image, spacing, rng):
  """Noise, and steps of 16 HU."""
  return np.round((image + rng.normal(0, 20, image.shape)) / 16) * 16, spacing


def everything(image, spacing, rng):
  """All of these: a quarter of the slices cut off, steps of 8 HU."""
  noisy = (image + rng.normal(0, 20, image.shape))[::-1, :, image.shape[2] // 4 :]
  coarse = spacing * 1.3
  return resample.resample(np.round((noisy + 200) / 8) * 8, spacing, coarse, order=1), coarse


CHANGES = (cut, turned, resampled, offset, compressed, everything)


SAME = fingerprint._SAME


def find_scans(data: pathlib.Path) -> list[pathlib.Path]:
  """One file for each patient."""
  return [
    *sorted((data / 'openkbp').glob('*/*_ct.nii.gz')),
    *sorted((data / 'ibsi_sts').glob('*_CT_image.nii.gz')),
    data / 'totalsegmentator' / 'example_ct.nii.gz',
  ]


def similarity(a: fingerprint.Fingerprint, b: fingerprint.Fingerprint) -> float:
  """What decides whether two scans are the same; -1 where their slices do not even compare."""
  if fingerprint.profile_distances(a.profile, [b.profile])[0] >= fingerprint._PROFILE_DISTANCE:
    return -1.0
  return fingerprint.correlation(a, b)


def compare(paths, progress=progress.bar):
  """Similarities of same and of different scans.

  Returns:
    {change: similarities of the N scans with their copies}, and those of all pairs of different
    scans: both as they are, and one of them changed.
  """
  originals, copies, same = [], [], {change.__name__: [] for change in CHANGES}
  for number, path in enumerate(progress(paths, desc='scans')):
    rng = np.random.default_rng(number)
    scan = volume.read_image(path)
    originals.append(fingerprint.fingerprint(scan.array, scan.spacing))
    for i, change in enumerate(CHANGES):
      copy = fingerprint.fingerprint(*change(scan.array, scan.spacing, rng))
      same[change.__name__].append(similarity(originals[-1], copy))
      if i == number % len(CHANGES):
        copies.append(copy)
  different = []
  for i, a in enumerate(progress(originals, desc='pairs')):
    different += [similarity(a, b) for b in originals[i + 1 :]]
    different += [similarity(a, b) for j, b in enumerate(copies) if j != i]
  return {name: np.array(values) for name, values in same.items()}, np.array(different)


def main() -> None:
  """Prints Markdown tables."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--data', type=pathlib.Path, required=True, help='folder of real scans')
  parser.add_argument('--every', type=int, default=1, help='take every n-th scan')
  args = parser.parse_args()
  paths = find_scans(args.data)[:: args.every]
  same, different = compare(paths)
  print(f'{len(paths)} patients; the same from a correlation of {SAME} on\n')
  print('| change | found | recall | lowest correlation |\n|:--|--:|--:|--:|')
  for name, values in same.items():
    alike = int((values >= SAME).sum())
    missed = [f'{paths[i].name} {values[i]:.3f}' for i in np.flatnonzero(values < SAME)]
    print(f'| {name} | {alike} of {len(values)} | {alike / len(values):.1%} | {values.min():.3f} |')
    for line in missed:
      print(f'<!-- missed: {line} -->')
  wrong = int((different >= SAME).sum())
  alike = sum(int((values >= SAME).sum()) for values in same.values())
  print(
    f'\n{wrong} of {len(different)} pairs of different patients are called the same (highest '
    f'correlation {different.max():.3f}); precision {alike / max(alike + wrong, 1):.1%}'
  )


if __name__ == '__main__':
  main()
