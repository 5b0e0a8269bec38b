"""CHAOS: DICOM scans of liver donors with the liver as pictures, one for each slice."""

import functools
import pathlib

import numpy as np

from input_pipeline.ct import dicom
from input_pipeline.sources import files, labels
from input_pipeline.sources.base import Case, Scan, Source, SourceError, loader
from input_pipeline.sources.dataset import SHARES


def chaos_cases(manual_dir: str | None) -> list[Case]:
  """The labelled CT scans.

  Args:
    manual_dir: folder that holds `Train_Sets/CT/N/{DICOM_anon,Ground}`, at any depth and in any
      case of letters.

  Raises:
    SourceError: if there is none.

  Warns:
    UserWarning: of CT scans without labels, which are left out.
  """
  folder = files.folder_of('chaos', manual_dir, 'Train_Sets/CT/N/DICOM_anon and Ground')
  paths = files.walk(folder)
  grounds = {path.parent: path for path in paths if path.name.casefold() == 'ground'}
  cases, unlabelled = [], []
  for scan in (path for path in paths if path.name.casefold() == 'dicom_anon'):
    ground = grounds.get(scan.parent)
    if scan.parent.parent.name.casefold() != 'ct':  # MRI
      continue
    if ground is None or not ground.is_dir():
      unlabelled.append(scan)
    else:
      name = scan.parent.name
      load = functools.partial(_load, scan, ground)
      cases.append(Case('chaos', name, files.split_of('chaos', name, SHARES), ('liver',), load))
  if not cases:
    raise SourceError(f'{folder}: no CT/N/DICOM_anon with a folder Ground beside it')
  if unlabelled:
    files.note(f'chaos: {files.counted(unlabelled, "scans without a folder Ground")}')
  return cases


@loader('_load')
def _load(scan: pathlib.Path, ground: pathlib.Path) -> Scan:
  from PIL import Image

  series = dicom.read_series(scan)
  pictures = sorted(path for path in files.entries(ground) if path.suffix.casefold() == '.png')
  names = sorted(series.names)
  if len(pictures) != len(names):
    raise SourceError(f'{ground}: {len(pictures)} pictures for {len(names)} slices of {scan}')
  by_name = dict(zip(names, pictures, strict=True))  # both are numbered by slice
  columns, rows, _ = series.volume.geometry.shape
  masks = []
  for name in series.names:
    picture = np.asarray(Image.open(by_name[name]))
    if picture.shape != (rows, columns):
      raise SourceError(f'{by_name[name]}: shape {picture.shape}, but slices are {(rows, columns)}')
    # 255 or 1, as 8 bits or 1.
    masks.append((picture > 0).T)
  mask = np.stack(masks, -1).astype(np.uint8)
  organs = dicom.like(series, mask)
  codes = labels.convert(organs, {1: 'liver'}, spacing=series.volume.spacing, name=str(ground))
  return Scan(series.volume.array, codes, series.volume.geometry)


CHAOS = Source(
  name='chaos',
  description='Healthy liver donors, portal phase, DICOM: liver.',
  licence='CC BY-NC-SA 4.0',
  citation=(
    'A.E. Kavur et al., "CHAOS challenge - combined (CT-MR) healthy abdominal organ segmentation," '
    'Medical Image Analysis 69, 2021, doi.org/10.5281/zenodo.3431873'
  ),
  cases=chaos_cases,
  expected=20,
  classes=('liver',),
)
