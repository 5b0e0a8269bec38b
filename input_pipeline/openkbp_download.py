r"""Fetches OpenKBP and converts its CSV files to the NIfTI folders that the source `openkbp` reads.

  python -m input_pipeline.openkbp_download --output=DIR
  python -m input_pipeline.openkbp_download --output=DIR --patients=pt_202
  python -m input_pipeline.openkbp_download --output=DIR --original=DOWNLOADED

The first two need git and a connection. What is fetched is one pinned commit: git verifies every
file against its checksum. `--original` takes a copy of the repository that is there already.

In the CSV files only voxels with a value are stored, by their index in a C-ordered 128x128x128
array whose axes run to posterior, left and inferior. CT numbers are 1000 above HU. In about half of
the patients the CT is blanked above and below the target volumes except in and next to contoured
structures, which would give the labels away: such slices become air, without labels, and an organ
that loses more than half of its voxels there counts as not labelled.
"""

import argparse
import csv
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence

import nibabel as nib
import numpy as np

from input_pipeline import cli, errors, progress
from input_pipeline.files import text_files
from input_pipeline.sources import SourceError
from input_pipeline.sources.openkbp import ORGANS

REPOSITORY = 'https://github.com/ababier/open-kbp'
COMMIT = 'ce625e62f3b04203f22bd9d1634f3e8fb0245e46'
_FOLDERS = {'train-pats': 'train', 'validation-pats': 'val'}
_SIZE = 128
_TARGETS = {'PTV56': 56, 'PTV63': 63, 'PTV70': 70}
_TISSUE_HU = -900
_MARGIN = 2  # voxels around a structure that a blanked slice keeps
_FEW = 30  # stray voxels of tissue in a blanked slice


def fetch(
  folder: pathlib.Path,
  repository: str = REPOSITORY,
  commit: str = COMMIT,
  patients: Sequence[str] = (),
) -> None:
  """Gets the CSV files of one commit, without the dose files.

  Args:
    folder: for the repository; created where missing, continued where half done.
    repository: address for git.
    commit: full hash; git checks everything it fetches against it.
    patients: 'pt_N' of those to take; () is all.

  Raises:
    SourceError: if git is missing or fails.
  """
  folder.mkdir(parents=True, exist_ok=True)
  files = [f'/provided-data/*/{patient}/*.csv' for patient in patients or '*']
  patterns = [*files, '!dose.csv', '!possible_dose_mask.csv']
  commands = [
    ['init', '--quiet'],
    ['config', 'remote.origin.url', repository],
    ['config', 'remote.origin.promisor', 'true'],
    ['sparse-checkout', 'set', '--no-cone', *patterns],
    ['fetch', '--quiet', '--depth=1', '--filter=blob:none', 'origin', commit],
    ['checkout', '--quiet', '--force', commit],
  ]
  for command in commands:
    try:
      subprocess.run(['git', *command], cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
      raise SourceError('git is not installed; install it, or pass --original') from error
    except subprocess.CalledProcessError as error:
      reason = error.stderr.strip().splitlines()[-1:] or ['no message']
      raise SourceError(
        f'git {command[0]} of {repository} failed ({reason[0]}); try again, or pass --original'
      ) from error


def convert(original: pathlib.Path, output: pathlib.Path, patients: Sequence[str] = ()) -> None:
  """Writes `train/` and `val/` with their `dataset.json`.

  Args:
    original: the repository, or its folder `provided-data`.
    output: created where missing.
    patients: 'pt_N' of those to take; () is all.

  Raises:
    SourceError: if there are no patients, one is missing, or a file is malformed.
  """
  folders = {name: sorted(original.glob(f'**/{name}/pt_*')) for name in _FOLDERS}
  if not any(folders.values()):
    raise SourceError(f'{original}: no train-pats/pt_N in it; pass the repository of OpenKBP')
  missing = set(patients) - {path.name for paths in folders.values() for path in paths}
  if missing:
    raise SourceError(
      f'{original}: no {", ".join(sorted(missing))} in it; patients are pt_1 and on'
    )
  if patients:
    _check_no_others(output, patients)
    folders = {name: [p for p in paths if p.name in patients] for name, paths in folders.items()}
  for name, paths in folders.items():
    folder = output / _FOLDERS[name]
    folder.mkdir(parents=True, exist_ok=True)
    paths.sort(key=lambda path: int(path.name.split('_')[1]))
    cases = [_convert_patient(path, folder) for path in progress.bar(paths, desc=name)]
    text_files.replace(folder / 'dataset.json', json.dumps({'cases': cases}, indent=1) + '\n')


def _check_no_others(output: pathlib.Path, patients: Sequence[str]) -> None:
  """SourceError where a folder lists patients that would be struck from its list."""
  for place in _FOLDERS.values():
    index = output / place / 'dataset.json'
    if index.is_file():
      others = {case['id'] for case in text_files.read_json(index)['cases']} - set(patients)
      if others:
        raise SourceError(
          f'{index}: lists {len(others)} other patients, such as {min(others)}; choose another '
          '--output for some alone'
        )


def read_sparse(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
  """Indices (N,) int64 and values (N,) float64 of a CSV file; masks have the value 1.

  Raises:
    SourceError: if it is malformed or an index is outside the volume.
  """
  try:
    rows = list(csv.reader(text_files.read_text(path).splitlines()))[1:]
    indices = np.array([int(row[0]) for row in rows], np.int64)
    values = np.array([float(row[1]) if row[1:] and row[1] else 1.0 for row in rows])
  except (OSError, ValueError, IndexError) as error:
    raise SourceError(f'{path}: not a sparse CSV file ({error}); fetch it again') from error
  if len(indices) and not 0 <= indices.min() <= indices.max() < _SIZE**3:
    raise SourceError(f'{path}: index {indices.max()} is outside {_SIZE}^3; fetch it again')
  return indices, values


def _mask(path: pathlib.Path) -> np.ndarray:
  mask = np.zeros(_SIZE**3, bool)
  mask[read_sparse(path)[0]] = True
  return mask.reshape((_SIZE,) * 3)


def blanked_slices(hu: np.ndarray, structures: np.ndarray) -> np.ndarray:
  """Slices whose tissue is only that in and next to structures.

  Args:
    hu: (128, 128, 128) int16.
    structures: (128, 128, 128) bool.

  Returns:
    (128,) bool, along the last axis.
  """
  from scipy import ndimage  # slow to import

  near = ndimage.binary_dilation(structures, np.ones((3, 3, 1), bool), iterations=_MARGIN)
  tissue = hu > _TISSUE_HU
  return tissue.any((0, 1)) & ((tissue & ~near).sum((0, 1)) < _FEW)


def _read_spacing(path: pathlib.Path) -> list[float]:
  try:
    spacing = [float(mm) for mm in text_files.read_text(path).replace(',', ' ').split()]
  except (OSError, ValueError):
    spacing = []
  if len(spacing) != 3 or not min(spacing) > 0:
    raise SourceError(f'{path}: expected three mm; fetch it again')
  return spacing


def _convert_patient(path: pathlib.Path, folder: pathlib.Path) -> dict:
  spacing = _read_spacing(path / 'voxel_dimensions.csv')
  indices, values = read_sparse(path / 'ct.csv')
  hu = np.full(_SIZE**3, -1000, np.int16)
  hu[indices] = np.clip(values, 0, 4095) - 1000
  hu = hu.reshape((_SIZE,) * 3)
  contours = {name: path / f'{name}.csv' for name in (*ORGANS, *_TARGETS)}
  # A link to nothing is no organ without a contour: reading it fails, and is told.
  masks = {name: _mask(p) for name, p in contours.items() if os.path.lexists(p)}
  blank = blanked_slices(hu, np.any(list(masks.values()), 0)) if masks else np.zeros(_SIZE, bool)
  hu[..., blank] = -1000
  oar, ptv = np.zeros(hu.shape, np.uint8), np.zeros(hu.shape, np.uint8)
  slices = {}
  for name, mask in masks.items():
    left = mask & ~blank
    if name in _TARGETS:
      ptv[left] = _TARGETS[name]
    elif left.sum() > mask.sum() / 2:
      oar[left] = ORGANS[name][0]  # of two organs in one voxel, the higher value stays
      at = np.flatnonzero(left.any((0, 1)))
      slices[name] = [int(at[0]), int(at[-1])]
  affine = np.zeros((4, 4))
  # The world's origin is the middle of the volume: that of the scanner is not known.
  for axis, (world, step) in enumerate(((1, -spacing[1]), (0, -spacing[0]), (2, -spacing[2]))):
    affine[world, axis], affine[world, 3] = step, -step * (_SIZE - 1) / 2
  affine[3, 3] = 1
  kinds = {'ct': hu, 'oar': oar} | ({'ptv': ptv} if ptv.any() else {})
  if 'ptv' not in kinds:  # of an earlier conversion
    (folder / f'{path.name}_ptv.nii.gz').unlink(missing_ok=True)
  for kind, array in kinds.items():
    _save(nib.Nifti1Image(array, affine), folder / f'{path.name}_{kind}.nii.gz')
  return {
    'id': path.name,
    **{kind: f'{path.name}_{kind}.nii.gz' for kind in kinds},
    'shape': list(hu.shape),
    'spacing_mm': [spacing[1], spacing[0], spacing[2]],
    'axcodes': 'PLI',
    'labelled_organs': list(slices),
    'label_slices': slices,
  }


def _save(image: nib.Nifti1Image, path: pathlib.Path) -> None:
  """In one step: whoever ends the command leaves the file of an earlier conversion whole."""
  part = path.with_name(f'.{path.name}')
  try:
    nib.save(image, part)
    part.replace(path)
  finally:
    part.unlink(missing_ok=True)


def make_parser() -> argparse.ArgumentParser:
  """The options."""
  parser = cli.Parser(prog='python -m input_pipeline.openkbp_download', description=__doc__)
  parser.add_argument('--output', required=True, type=pathlib.Path, help='for train/ and val/')
  parser.add_argument('--original', type=pathlib.Path, help='a copy of the repository')
  parser.add_argument(
    '--patients', type=cli.names, default=(), metavar='pt_N,...', help='only these'
  )
  return parser


@errors.command
def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns the exit code."""
  args = make_parser().parse_args(cli.dashed(argv))
  original = args.original or args.output / 'original'
  with errors.writing(args.output):
    if args.original is None:
      fetch(original, patients=args.patients)
    convert(original, args.output, args.patients)
  print(f'{args.output}: prepare it with --source=openkbp --manual_dir={args.output}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
