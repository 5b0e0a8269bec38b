"""How much disk a preparation takes, told before it begins: from the headers of the scans."""

import functools
import os
import pathlib
import shutil
from collections.abc import Iterable, Sequence
from typing import Any

import nibabel as nib
import numpy as np

from input_pipeline import sources
from input_pipeline.ct import itk_image, volume
from input_pipeline.errors import UserError
from input_pipeline.files.buckets import is_in_bucket

# Bytes of a voxel once compressed: int16 HU of six chest CTs took 0.7 to 1.15, labels next to none.
_VOXEL = 1.2
_COPIES = 2  # the files of the cases, and the records that they are joined to


class DiskError(UserError):
  """The disk does not hold what is to be written; the message says how much that is."""


def estimate(cases: Iterable[sources.Case], spacing: Sequence[float]) -> int:
  """About how many bytes preparing takes while it runs, of the cases whose scan is one file.

  Args:
    cases: training cases are resampled, the others stay on their own grid.
    spacing: (3,) mm of the prepared training scans.
  """
  total = 0
  for case in cases:
    shape_and_size = _header(case)
    if shape_and_size is None:  # DICOM, or a case that will fail and say why
      continue
    shape, size = shape_and_size
    voxels = float(np.prod(shape))
    scale = float(np.prod(size) / np.prod(spacing)) if case.split == 'train' else 1.0
    total += int(_VOXEL * _COPIES * voxels * scale)
  return total


def _header(case: sources.Case) -> tuple[tuple[int, ...], np.ndarray] | None:
  """Shape and voxel size in mm of a scan whose `load` reads one file, else None."""
  if not isinstance(case.load, functools.partial) or not case.load.args:
    return None
  path = case.load.args[0]
  if not isinstance(path, pathlib.Path):
    return None
  is_itk = itk_image.is_itk(path)
  if not is_itk and not path.name.lower().endswith(volume.ENDINGS):
    return None
  try:
    if is_itk:
      return itk_image.grid(path)
    image: Any = nib.load(path)
    return image.shape[:3], np.array(nib.affines.voxel_sizes(image.affine))
  except Exception:  # whatever is wrong with a file is told where it is read
    return None


def check(folder: str | os.PathLike, needed: int, what: str, written: int = 0) -> str:
  """Says how much is needed of how much is free.

  Args:
    folder: to be written, there or not; nothing is known of gs:// and the like.
    needed: bytes, 0 where no header tells.
    what: is written, for the message.
    written: bytes of it that are on the disk already.

  Raises:
    DiskError: if less is free.
  """
  text = f'{what}: {"about " + in_words(needed) if needed else "of unknown size"}'
  if is_in_bucket(folder):
    return text
  place = pathlib.Path(folder).expanduser().absolute()
  while not place.exists():
    place = place.parent
  free = shutil.disk_usage(place).free
  if needed > free + written:
    more = f' ({in_words(written)} are written)' if written else ''
    raise DiskError(
      f'{folder}: {what} take about {in_words(needed)}{more}, and {in_words(free)} are free on its '
      'disk; free space or choose another place'
    )
  return f'{text}, {in_words(free)} of the disk are free'


def in_words(number: int) -> str:
  """'1.5 GB': decimal units, two digits."""
  units = ('bytes', 'kB', 'MB', 'GB', 'TB')
  power = min(max(len(str(int(number))) - 1, 0) // 3, len(units) - 1)
  size = number / 1000**power
  return f'{size:.1f} {units[power]}' if power and size < 10 else f'{size:.0f} {units[power]}'
