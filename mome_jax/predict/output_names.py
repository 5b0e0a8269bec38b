"""What the files are called that are written for a scan."""

import re
import unicodedata

from mome_jax.predict.request import FIRST_FREE_LABEL, Options, Target

_LONGEST = 60  # characters of a class in a file name; four bytes each fit into 255


def of_scan(name: str, options: Options, *, present: bool = True) -> list[str]:
  """Names of what is written for a scan.

  Args:
    name: NAME in them.
    options: what is written besides labels and legend.
    present: whether a class has voxels; a DICOM SEG of nothing is not written.
  """
  ends = {
    'seg.json': True,
    'seg.nii.gz': True,
    'seg.dcm': options.dicom_seg and present,
    'preview.png': options.preview,
    'report.html': options.report,
    'masks': options.masks,
    'probabilities': options.probabilities,
  }
  return [f'{name}_{end}' for end, needed in ends.items() if needed]


def possible(name: str) -> list[str]:
  """Everything that a prediction can write for a scan."""
  return of_scan(name, Options(True, True, True, True, True))


def of_class(target: Target) -> str:
  """The file of a class, which no other class has, on disks that ignore case either.

  A name of plain Latin words stands for itself; any other one, and free text, after its label.
  """
  word = re.sub(r'\W+', '_', unicodedata.normalize('NFKC', target.name)).strip('_')
  plain = re.fullmatch(r'[a-z][a-z0-9]*( [a-z0-9]+)*', target.name) and len(word) <= _LONGEST
  if not plain or target.label >= FIRST_FREE_LABEL:
    word = f'{target.label}_{word[:_LONGEST]}'.rstrip('_')
  return f'{word}.nii.gz'
