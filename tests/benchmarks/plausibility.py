r"""How often right masks are called implausible, and masks in other parts of the body are not.

  mome predict --input HEAD_AND_NECK --output right
  mome predict --input OTHERS --output other
  python -m tests.benchmarks.plausibility --checkpoint MODEL --right right --references FOLDER \
      --other other

Masks are read as `predict` wrote them and judged anew by the record of MODEL. A mask is right where
its Dice with the reference is at least one half. References are those of OpenKBP, NAME_oar.nii.gz
beside each NAME_ct.nii.gz of the training or validation folder.
"""

import argparse
import json
import pathlib
import warnings

import numpy as np

from input_pipeline.ct import volume
from input_pipeline.sources.openkbp import ORGANS
from mome_jax import checkpoint
from mome_jax.inference.segmentation import Segmentation
from mome_jax.plausibility import record
from mome_jax.plausibility.judge import OUTSIDE
from mome_jax.predict import plausible_masks

_RIGHT = 0.5  # Dice


def judged(folder, known):
  """Yields, of each scan of a prediction, its name, masks by class, judgement, and own legend."""
  for file in sorted(folder.glob('*_seg.json')):
    legend = json.loads(file.read_text())
    scan = volume.read_image(legend['input'])
    labels = volume.read_labels(file.with_suffix('').with_suffix('.nii.gz')).array
    judged_classes = {name for region in known for name in (*region.classes, *region.absent)}
    rows = [row for row in legend['labels'] if row['name'] in judged_classes]
    names = tuple(row['name'] for row in rows)
    winner = np.zeros(labels.shape, np.uint8)
    for k, row in enumerate(rows, 1):
      winner[labels == row['label']] = k
    masks = Segmentation(names, winner, np.zeros((*winner.shape, 1), np.uint8))
    present = [name for name in names if masks.boxes[name] is not None]
    yield (
      file.name.removesuffix('_seg.json'),
      {name: masks.mask(name) for name in present},
      plausible_masks.judge_masks(scan, masks, known),
    )


def right(folder, references, known):
  """Prints how many right masks are called implausible."""
  values = {name: value for value, name in ORGANS.values()}
  total = wrong = poor = doubted = foreign = scans = 0
  for case, masks, judgement in judged(folder, known):
    scans, foreign = scans + 1, foreign + judgement.foreign
    reference = volume.read_labels(references / f'{case.removesuffix("_ct")}_oar.nii.gz').array
    for name, mask in masks.items():
      truth = reference == values[name]
      if not truth.any():
        continue
      dice = 2 * (mask & truth).sum() / (mask.sum() + truth.sum())
      implausible = judgement.verdicts[name].plausible is False
      if dice < _RIGHT:
        poor, doubted = poor + 1, doubted + implausible
        continue
      total, wrong = total + 1, wrong + implausible
      if implausible:
        print(f'  {case} {name}, Dice {dice:.2f}: {"; ".join(judgement.verdicts[name].reasons)}')
  print(f'right masks called implausible: {wrong} of {total} ({100 * wrong / max(total, 1):.1f} %)')
  print(f'masks of Dice below {_RIGHT} called so: {doubted} of {poor}')
  print(f'scans called foreign: {foreign} of {scans}')


def other(folder, known):
  """Prints how many masks in scans of other parts of the body are called implausible."""
  total = caught = outside = foreign = scans = 0
  for case, masks, judgement in judged(folder, known):
    verdicts = [judgement.verdicts[name] for name in masks]
    missed = [name for name in masks if judgement.verdicts[name].plausible is not False]
    scans, foreign = scans + 1, foreign + judgement.foreign
    total, caught = total + len(masks), caught + len(masks) - len(missed)
    outside += sum(OUTSIDE in verdict.reasons for verdict in verdicts)
    print(f'  {case}: {len(masks) - len(missed)} of {len(masks)} {", ".join(missed)}')
  print(
    f'masks called implausible: {caught} of {total}, {outside} of them outside the field of view'
  )
  print(f'scans called foreign: {foreign} of {scans}')


def main():
  """Judges the masks of two predictions."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--checkpoint', required=True, help='model with class_statistics.json')
  parser.add_argument('--right', type=pathlib.Path, help='predictions of head and neck scans')
  parser.add_argument('--references', type=pathlib.Path, help='folder of NAME_oar.nii.gz')
  parser.add_argument('--other', type=pathlib.Path, help='predictions of scans elsewhere')
  args = parser.parse_args()
  warnings.simplefilter('ignore')  # what is odd about a scan was told when it was segmented
  known = record.read(checkpoint.folder_of(args.checkpoint))
  if args.right:
    right(args.right, args.references, known)
  if args.other:
    other(args.other, known)


if __name__ == '__main__':
  main()
