"""Files of a set of prompts, written when they are asked for."""

import pathlib
import shutil
import zipfile

import numpy as np

from input_pipeline.ct import volume
from mome_jax.errors import UserError, writing
from mome_jax.predict import formats, output_names, write_results
from mome_jax.serve import answers
from mome_jax.serve.scans import GoneError, PromptSet, Scan

# What can be downloaded: kind -> what it is called in `formats.FORMATS`, '' for what always is.
KINDS = {
  'seg.nii.gz': '',
  'seg.json': '',
  'preview.png': 'preview',
  'report.html': 'report',
  'seg.dcm': 'dicom_seg',
  'rtstruct.dcm': 'rtstruct',
  'masks.zip': 'masks',
}


def of_kind(scan: Scan, one: PromptSet, kind: str) -> pathlib.Path:
  """A file of a set of prompts, as `predict` writes it.

  Args:
    scan: the scan.
    one: prompts, whose masks are finished.
    kind: of KINDS.

  Raises:
    GoneError: if there is no such kind.
    UserError: if it cannot be written of this scan.
  """
  if kind not in KINDS:
    raise GoneError(f'{kind}: no such file; there are {", ".join(KINDS)}')
  check_done(scan, one)
  with scan.lock:
    path = one.files.get(kind)
    if path is None:
      with writing(f'{scan.title}_{kind}'):
        path = one.files[kind] = _write(scan, one, kind)
    return path


def mask(scan: Scan, one: PromptSet, name: str) -> pathlib.Path:
  """The mask of one class on the scan's own grid: NIfTI, uint8.

  Raises:
    GoneError: if it was not asked for.
    UserError: if it is not finished.
  """
  check_done(scan, one)
  assert one.segmented is not None
  targets = {target.name: target for target in one.segmented.targets}
  if name not in targets:
    raise GoneError(f'{name}: was not asked for in prompts {one.number}; they have {_listed(one)}')
  path = scan.folder / f'{one.number}_{output_names.of_class(targets[name])}'
  with scan.lock:
    if not path.exists():
      values = one.segmented.segmentation.mask(name)
      with writing(path.name):
        volume.write_nifti(path, values, scan.loaded.volume.geometry, np.uint8)
  return path


def _write(scan: Scan, one: PromptSet, kind: str) -> pathlib.Path:
  assert one.segmented is not None
  name = KINDS[kind]
  if name and formats.FORMATS[name].needs_series and scan.loaded.series is None:
    raise UserError(
      f'{scan.title}: is not DICOM; {formats.FORMATS[name].switch} needs the headers of a series'
    )
  folder = scan.folder / f'{one.number}_{kind}'
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir()
  missing: dict[str, str] = {}
  write_results.write_scan(
    folder,
    one.segmented,
    options=formats.make_options([name] if name else []),
    origin=answers.origin_of(scan, one),
    missing=missing,
  )
  masks = folder / f'{scan.title}_masks'
  path = folder / f'{scan.title}_{kind}'
  if kind == 'masks.zip' and masks.is_dir():
    return _zipped(folder, masks)
  if not path.exists():
    reason = '; '.join(missing.values()) or 'no class has a voxel'
    raise UserError(scan.clean(f'{path.name} is not written: {reason}'))
  return path


def _zipped(folder: pathlib.Path, masks: pathlib.Path) -> pathlib.Path:
  path = folder / f'{masks.name}.zip'
  with zipfile.ZipFile(path, 'w') as archive:  # the files in it are compressed
    for file in sorted(masks.iterdir()):
      archive.write(file, f'{masks.name}/{file.name}')
  return path


def check_done(scan: Scan, one: PromptSet) -> None:
  """UserError if masks of a set of prompts are not finished."""
  if not one.is_whole or one.segmented is None:
    raise UserError(f'{scan.title}: prompts {one.number} are not finished; wait for their job')


def _listed(one: PromptSet) -> str:
  return ', '.join(target.name for target in one.asked.targets)
