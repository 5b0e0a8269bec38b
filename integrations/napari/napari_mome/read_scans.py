"""Files to layers: CT as NIfTI, DICOM series in folders or archives, NRRD, MetaImage; and masks."""

import itertools
import os
import pathlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from input_pipeline import remarks
from input_pipeline.files import file_kinds, inventory
from mome_jax import shipped
from mome_jax.errors import UserError
from mome_jax.predict import find_scans
from napari_mome import placement, result_layer

Layer = tuple[np.ndarray, dict[str, Any], str]
_LOOKED_AT = 256  # files of a folder, to see whether it may hold scans


def get_reader(path: str | Sequence[str]) -> Callable[[Any], list[Layer]] | None:
  """What reads a path, or None where this plugin does not; see npe2."""
  paths = [path] if isinstance(path, str) else list(path)
  return read if all(_may_be_scan(pathlib.Path(one)) for one in paths) else None


def read(path: str | Sequence[str]) -> list[Layer]:
  """The layers of files and folders: an image for each scan, labels for results of `predict`.

  Raises:
    UserError: if nothing can be read; the message is one line.
  """
  layers, problems = [], []
  with remarks.collected() as notes:
    for one in [path] if isinstance(path, str) else path:
      file = pathlib.Path(one)
      rows = result_layer.rows_of(file) if file.name.endswith(result_layer.ENDING) else None
      if rows is not None:
        layers.append(result_layer.of_file(file, rows))
        continue
      scans, more = find_scans.find_scans([one])
      notes += more
      for scan in scans:
        try:
          layers.append(placement.layer_of(find_scans.read(scan), scan.name))
        except UserError as error:
          problems.append(str(error))
  if not layers:
    raise UserError('; '.join(problems))
  for line in [*notes, *problems]:
    warnings.warn(line, stacklevel=2)  # which napari shows
  return layers


def demo() -> list[Layer]:
  """The CT that comes with MoME-JAX."""
  return read(str(shipped.SCAN))


def _may_be_scan(path: pathlib.Path) -> bool:
  kinds = (*file_kinds.VOLUMES, 'dicom', 'zip')
  if not path.is_dir():
    return path.exists() and inventory.look_at(path).kind in kinds
  files = (pathlib.Path(folder, name) for folder, _, names in os.walk(path) for name in names)
  first = itertools.islice(files, _LOOKED_AT)
  # An export of a PACS may have hundreds of files of its viewer before the first slice.
  is_export = lambda file: file.name.upper() == 'DICOMDIR'
  return any(is_export(file) or inventory.look_at(file).kind in kinds for file in first)
