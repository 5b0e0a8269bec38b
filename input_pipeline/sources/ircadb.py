"""3D-IRCADb-01: DICOM scans with a DICOM mask for each structure, in folders or zip archives."""

import functools
import pathlib
import re
import zipfile
from collections.abc import Sequence

import numpy as np

from input_pipeline.ct import dicom
from input_pipeline.sources import files, labels
from input_pipeline.sources.base import Case, Scan, Source, SourceError, loader

# Name of a mask's folder -> what it is; None is declared and not used. Later ones win where masks
# overlap, so that a tumor is on top of its organ. Cysts of the liver are part of the liver.
_FOLDERS = (
  (r'liver', 'liver'),
  (r'livercyst|liverkyste?', 'liver'),
  (r'rightkidney', 'right kidney'),
  (r'leftkidney', 'left kidney'),
  (r'kidneys', 'kidney'),
  (r'spleen', 'spleen'),
  (r'gallbladder', 'gallbladder'),
  (r'stomach', 'stomach'),
  (r'pancreas', 'pancreas'),
  (r'rightlung', 'right lung'),
  (r'leftlung', 'left lung'),
  (r'lungs', 'lung'),
  (r'livertumou?rs?\d*', 'liver tumor'),
  # Not contoured whole or everywhere, beyond the template, or (tumor, surretumor) of the adrenals.
  (r'artery|biliarysystem|bladder|bone|colon|duodenum|heart|hyperplasie|lymphnodes|metal', None),
  (r'metastasectomie|portalvein\d*|sigmoid|skin|smallintestine?|stomachoesophage|stones', None),
  (r'(left|right)?surrenalgland|(left|right)surretumor|tumor|uterus|venacava|venoussystem', None),
)


def ircadb_cases(manual_dir: str | None) -> list[Case]:
  """All patients, as test cases.

  Args:
    manual_dir: folder that holds `3Dircadb1.N/{PATIENT_DICOM,MASKS_DICOM}` or their `.zip`, at any
      depth.

  Raises:
    SourceError: if there is none.

  Warns:
    UserWarning: of archives of whole patients, which are left out.
  """
  folder = files.folder_of('ircadb', manual_dir, '3Dircadb1.N/{PATIENT_DICOM,MASKS_DICOM}')
  paths = [path for path in files.walk(folder) if path.name.casefold().startswith('3dircadb1.')]
  patients = [path for path in paths if path.is_dir()]
  # An archive that was unpacked into a folder of its name.
  around = {outer for path in patients for outer in path.parents}
  cases = [_case(patient) for patient in patients if patient not in around]
  if packed := [path for path in paths if path.suffix.casefold() == '.zip']:
    files.note(f'ircadb: {files.counted(packed, "archives of patients, to be unpacked")}')
  if not cases:
    raise SourceError(f'{folder}: no 3Dircadb1.N with PATIENT_DICOM and MASKS_DICOM (or .zip)')
  return cases


def _case(patient: pathlib.Path) -> Case:
  try:
    scan, masks = (_inside(patient, name) for name in ('PATIENT_DICOM', 'MASKS_DICOM'))
    meanings = {name: _meaning(name, masks) for name in _mask_names(masks)}
  except SourceError as error:
    return Case('ircadb', patient.name, 'test', (), functools.partial(files.fail, str(error)))
  supervised = labels.classes_of(dict(enumerate(meanings.values())))
  load = functools.partial(_load, scan, masks, meanings)
  return Case('ircadb', patient.name, 'test', supervised, load)


def _inside(patient: pathlib.Path, name: str) -> pathlib.Path:
  """A folder of a patient, or its archive; SourceError if there is neither."""
  entries = {path.name.casefold(): path for path in sorted(patient.iterdir())}
  for text in (name, f'{name}.zip'):
    if (path := entries.get(text.casefold())) is not None and path.exists():
      return path
  raise SourceError(f'{patient}: no {name} or {name}.zip; copy it again')


def _mask_names(masks: pathlib.Path) -> list[str]:
  """Names of the folders that hold a mask's slices, in the order of `_FOLDERS`."""
  if masks.is_dir():
    paths = [p.relative_to(masks).as_posix() for p in files.walk(masks) if p.is_file()]
  else:
    try:
      with zipfile.ZipFile(masks) as archive:
        paths = [name for name in archive.namelist() if not name.endswith('/')]
    except (OSError, zipfile.BadZipFile) as error:
      raise SourceError(f'{masks}: cannot be read ({error}); copy it again') from error
  names = {path.split('/')[-2] for path in paths if '/' in path and not path.startswith('__MACOSX')}
  return sorted(names, key=lambda name: (_rank(name, masks), name))


def _rank(name: str, masks: pathlib.Path) -> int:
  for rank, (pattern, _) in enumerate(_FOLDERS):
    if re.fullmatch(pattern, name.casefold()):
      return rank
  raise SourceError(f'{masks}: unknown mask {name!r}; declare it in sources/ircadb.py')


def _meaning(name: str, masks: pathlib.Path) -> str | None:
  return _FOLDERS[_rank(name, masks)][1]


@loader('_load')
def _load(scan: pathlib.Path, masks: pathlib.Path, meanings: dict[str, str | None]) -> Scan:
  series = dicom.read_series(scan)
  used = [name for name, meaning in meanings.items() if meaning is not None]
  values = np.zeros(series.volume.geometry.shape, np.uint8)
  for value, name in enumerate(used, 1):
    values[dicom.read_pixels(masks, name, series.names, values.shape) > 0] = value
  organs = dicom.like(series, values)
  codes = labels.convert(
    organs,
    dict(enumerate((meanings[name] for name in used), 1)),
    spacing=series.volume.spacing,
    name=str(masks),
    image=series.volume.array,
  )
  return Scan(series.volume.array, codes, series.volume.geometry)


def _classes(patterns: Sequence[tuple[str, str | None]]) -> tuple[str, ...]:
  return labels.classes_of(dict(enumerate(name for _, name in patterns)))


IRCADB = Source(
  name='ircadb',
  description='Liver patients, three in four with tumours; organs vary. DICOM. All for testing.',
  licence='CC BY-NC-ND 4.0',
  citation=(
    'L. Soler et al., "3D image reconstruction for comparison of algorithm database: A patient '
    'specific anatomical and medical image database," IRCAD, 2010'
  ),
  cases=ircadb_cases,
  expected=20,
  classes=_classes(_FOLDERS),
)
