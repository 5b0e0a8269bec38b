"""Seconds to prepare a case, beside those to read its NIfTI files alone.

PYTHONPATH=. python tests/benchmarks/preparation.py --openkbp=DIR [--cases=12] [--spacing=1.5]
"""

import argparse
import pathlib
import tempfile
import time

import nibabel as nib
import numpy as np

from input_pipeline import bricks, sources
from input_pipeline.bricks import writer


def main() -> None:
  """Prints one line."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--openkbp', type=pathlib.Path, required=True)
  parser.add_argument('--cases', type=int, default=12)
  parser.add_argument('--spacing', type=float, default=1.5, help='mm')
  args = parser.parse_args()
  cases = sources.get_source('openkbp').cases(str(args.openkbp))
  cases = [case for case in cases if case.split == 'train'][: args.cases + 1]
  conversion = writer.Conversion((args.spacing,) * 3, 64)
  bricks.import_tfds()
  read = prepared = 0.0
  with tempfile.TemporaryDirectory() as folder:
    writer.stage(cases[0], folder=folder, conversion=conversion)  # imports, caches
    for case in cases[1:]:
      start = time.perf_counter()
      for kind in ('ct', 'oar'):
        np.asarray(nib.load(args.openkbp / 'train' / f'{case.name}_{kind}.nii.gz').dataobj)
      middle = time.perf_counter()
      writer.stage(case, folder=folder, conversion=conversion)
      read += middle - start
      prepared += time.perf_counter() - middle
  n = len(cases) - 1
  print(
    f'{n} cases at {args.spacing} mm: {prepared / n:.2f} s a case, reading its files alone '
    f'{read / n:.3f} s, ratio {prepared / read:.0f}'
  )


if __name__ == '__main__':
  main()
