"""What DICOM outputs repeat of the series that they belong to, and what a series lacks for that."""

import contextlib
import copy
import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from input_pipeline.ct import dicom, dicom_series
from mome_jax.errors import UserError
from mome_jax.predict import find_scans

# May be empty, and must be there (type 2).
EMPTY = ('PatientID', 'PatientName', 'PatientBirthDate', 'PatientSex', 'AccessionNumber',
         'StudyID', 'StudyDate', 'StudyTime', 'ReferringPhysicianName')  # fmt: skip
# By which archives tell patients and show studies (type 3), and what anonymised objects must say.
OPTIONAL = ('StudyDescription', 'IssuerOfPatientID', 'PatientIdentityRemoved',
            'DeidentificationMethod', 'DeidentificationMethodCodeSequence')  # fmt: skip
_COMMON = ('StudyInstanceUID', 'SeriesInstanceUID', 'FrameOfReferenceUID')  # to all slices
_UNICODE = 'ISO_IR 192'
_IDENTITY = (*_COMMON, 'SOPClassUID', 'SOPInstanceUID')


class DicomOutputError(UserError):
  """A series that no DICOM output can be made for; the message says what it lacks."""


@dataclasses.dataclass(frozen=True)
class Doubts:
  """What speaks against the masks of a scan, for who sees them in an archive and no legend.

  Attributes:
    foreign: whether the scan is unlike those that the model was trained on.
    masks: name -> why its mask is implausible; the others are missing.
  """

  foreign: bool = False
  masks: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @classmethod
  def of(cls, rows: Sequence[Mapping[str, Any]], legend: Mapping[str, Any]) -> 'Doubts':
    """Those that the rows of a legend and its other fields hold."""
    masks = {row['name']: '; '.join(row['reasons']) for row in rows if row['plausible'] is False}
    return cls(bool(legend['foreign']), masks)

  def series_description(self, noun: str, purpose: str) -> str:
    """What the series of an output is called: at most 64 characters, as DICOM takes them."""
    doubt = 'UNLIKE THE TRAINING SCANS, do not trust'
    return f'MoME-JAX {noun}, {doubt if self.foreign else purpose}'

  def of_mask(self, name: str) -> str:
    """What is said of a mask, at most 1024 characters; '' where nothing speaks against it."""
    if name not in self.masks:
      return ''
    return f'IMPLAUSIBLE, do not trust: {self.masks[name]}'[:1024]


NO_DOUBTS = Doubts()


def lacking(headers: Sequence[Any]) -> str:
  """Why nothing can refer to slices with these pydicom headers; empty if it can.

  What must be repeated but may be empty (PatientID, AccessionNumber, ...) is no reason.
  """
  for field in _IDENTITY:
    if not all(header.get(field) for header in headers):
      return f'the series has no {field}, which the object must repeat; export it with its UIDs'
    if field in _COMMON and len({header.get(field) for header in headers}) > 1:
      return f'the slices differ in their {field}, of which the object has one'
  uids = [header.get('SOPInstanceUID') for header in headers]
  if len(set(uids)) < len(uids):
    return 'slices share a SOPInstanceUID, by which the object tells them; export it with its UIDs'
  return ''


def check(headers: Sequence[Any]) -> None:
  """Raises DicomOutputError with what the headers lack."""
  problem = lacking(headers)
  if problem:
    raise DicomOutputError(problem)


def impossible(scans: Sequence[find_scans.ScanFiles], ends: Collection[str]) -> dict[str, str]:
  """The DICOM outputs that the first header of a scan forbids, with the reason.

  Args:
    scans: to be segmented.
    ends: of the outputs' names, after `NAME_`.
  """
  import pydicom

  reasons: dict[str, str] = {}
  for scan in scans:
    # A header that cannot be read is told of where the scan is.
    with contextlib.suppress(Exception), contextlib.closing(find_scans.open_files(scan)) as files:
      header = pydicom.dcmread(next(files), stop_before_pixels=True, force=True)
      problem = lacking([header]) if scan.series is not None else ''
      if problem:
        reasons |= {f'{scan.name}_{end}': problem for end in ends}
  return reasons


def completed(headers: Iterable[Any]) -> list[Any]:
  """Copies of pydicom headers with what may be empty and must be there."""
  copies = []
  for header in headers:
    stream = getattr(header, 'buffer', None)  # closed, and so not to be copied
    copies.append(copy.deepcopy(header, {id(stream): None}))
    for field in EMPTY:
      setattr(copies[-1], field, value(header, field))
  return copies


def series_number(series: dicom.Series, first: int) -> int:
  """The number of an output's series: that of its source counted from `first` on, above 0."""
  return first + max(0, dicom_series.series_number(series.headers[0]))


def value(header: Any, field: str) -> Any:
  """The value of one of `EMPTY`; '' where there is none, or one that the field cannot have."""
  held = header.get(field)
  return '' if held is None or unfit(header, field) else held


def left_empty(header: Any) -> list[str]:
  """What is told of the fields of `EMPTY` whose value no DICOM output can repeat."""
  held = {field: unfit(header, field) for field in EMPTY}
  return [
    f'{field} {text!r} of the series is none; left empty in what is written of it'
    for field, text in held.items()
    if text
  ]


def unfit(header: Any, field: str) -> str:
  """What a field of a header holds that it cannot: anonymised dates, say; empty if nothing."""
  from pydicom import multival, valuerep

  held = header.get(field)
  if held is None or held == '':
    return ''
  convert = {'Date': valuerep.DA, 'Time': valuerep.TM}.get(field[-4:], str)
  try:
    convert(held)
    fits = field != 'PatientSex' or held in ('M', 'F', 'O')
  except (TypeError, ValueError):
    fits = False
  fits = fits and not isinstance(held, multival.MultiValue)
  return '' if fits else str(held)


def character_set(series: dicom.Series, names: Iterable[str]) -> str | None:
  """That of the series; Unicode where a name needs it, or where it is none of a single code.

  Texts of several codes (Japanese, Korean), of a misspelled one or of an extended one are written
  anew in Unicode. None where the series has none, or an empty one.
  """
  from highdicom import SpecificCharacterSetValues

  value = series.headers[0].get('SpecificCharacterSet')
  if not all(map(str.isascii, names)):
    return _UNICODE
  if not value:
    return None
  single = {one.value for one in SpecificCharacterSetValues if not one.value.startswith('ISO 2022')}
  return value if isinstance(value, str) and value in single else _UNICODE
