"""NRRD and MetaImage files, read and written by SimpleITK: the extra `itk`.

ITK's world is LPS (x grows to the left, y to posterior), ours RAS: both signs change on the way.
"""

import contextlib
import os
import pathlib
import re
from collections.abc import Mapping
from types import ModuleType

import numpy as np

from input_pipeline.ct.grid_checks import FIX
from input_pipeline.ct.volume import LPS_TO_RAS, Geometry, VolumeError, from_canonical
from input_pipeline.errors import install
from input_pipeline.files import file_kinds, image_headers

# What says where the axes point. Without it ITK takes any axes for left, posterior, superior.
_DIRECTIONS = 'transformmatrix', 'rotation', 'orientation'
_SPACES = {
  'right-anterior-superior', 'left-anterior-superior', 'left-posterior-superior', 'ras', 'las',
  'lps',
}  # fmt: skip
_MILLIMETRES = {'mm', 'millimeter', 'millimeters', 'millimetre', 'millimetres', ''}


def is_itk(path: str | os.PathLike) -> bool:
  """Whether a file's name is that of an NRRD or MetaImage file."""
  return os.fspath(path).lower().endswith(file_kinds.ITK_ENDINGS)


def library() -> ModuleType:
  """SimpleITK; VolumeError with the command that installs it where it is not there."""
  try:
    import SimpleITK
  except ImportError as error:
    raise VolumeError(f'NRRD and MetaImage need SimpleITK: {install("SimpleITK")}') from error
  SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
  return SimpleITK


def read(path: pathlib.Path, *, need_sides: bool = True) -> tuple[np.ndarray, np.ndarray]:
  """Voxels and their place.

  Args:
    path: `.nrrd`, `.nhdr`, `.mha` or `.mhd` file.
    need_sides: refuse a file that does not say where its axes point, or not in mm; else they are
      NaN.

  Returns:
    (X, Y, Z) or (X, Y, Z, N) numbers as stored, and (4, 4) float64, voxel indices -> world mm
    (RAS+).

  Raises:
    VolumeError: if SimpleITK is not installed, or the file cannot be read or has no such geometry.
  """
  try:
    itk = library()
  except VolumeError as error:
    raise VolumeError(f'{path}: {error}, or convert it to .nii.gz') from error
  try:
    header = image_headers.fields(path)
    image_headers.data_files(path)  # none lies elsewhere
    image = itk.ReadImage(str(path))
  except (image_headers.HeaderError, OSError, RuntimeError) as error:
    if 'alloc' in str(error):  # 'Failed to allocate memory for image.', 'std::bad_alloc'
      raise MemoryError(_reason(error)) from error
    kind = 'NRRD' if path.name.lower().endswith(('.nrrd', '.nhdr')) else 'MetaImage'
    raise VolumeError(
      f'{path}: cannot be read as {kind} ({_reason(error)}); copy or convert it again'
    ) from error
  problem = _unknown_sides(path, header)
  if problem and need_sides:
    raise VolumeError(f'{path}: {problem}: sides unknown; {FIX}')
  units = {*re.findall('"(.*?)"', header.get('space units', '').lower())}
  others = sorted(units - _MILLIMETRES)
  if others and need_sides:
    raise VolumeError(f'{path}: lengths are in {others[0]} (space units), not in mm; {FIX}')
  if 'complex' in image.GetPixelIDTypeAsString():
    raise VolumeError(f'{path}: voxels of complex numbers; save plain numbers')
  # A fourth axis of ITK comes first, components come last.
  array = itk.GetArrayFromImage(image)
  vectors = image.GetNumberOfComponentsPerPixel() > 1
  axes = range(array.ndim - 1, -1, -1) if not vectors else (*range(array.ndim - 2, -1, -1), -1)
  affine = np.eye(4)
  size = image.GetDimension()
  if size < 3:
    raise VolumeError(f'{path}: shape {image.GetSize()} is not 3D; pass the whole scan')
  directions = np.reshape(image.GetDirection(), (size, size))[:3, :3]
  affine[:3, :3] = np.nan if problem else LPS_TO_RAS @ directions @ np.diag(image.GetSpacing()[:3])
  affine[:3, 3] = LPS_TO_RAS @ image.GetOrigin()[:3]
  return array.transpose(tuple(axes)), affine


def grid(path: pathlib.Path) -> tuple[tuple[int, ...], np.ndarray]:
  """Shape and voxel size in mm along a file's axes, from its header alone.

  Raises:
    VolumeError: if SimpleITK is not installed.
    RuntimeError: of ITK, if the header cannot be read.
  """
  reader = library().ImageFileReader()
  reader.SetFileName(str(path))
  reader.ReadImageInformation()
  return tuple(reader.GetSize()[:3]), np.array(reader.GetSpacing()[:3])


def _unknown_sides(path: pathlib.Path, header: Mapping[str, str]) -> str:
  """What a header lacks to say where the axes point; empty if it lacks nothing."""
  if not path.name.lower().endswith(('.nrrd', '.nhdr')):
    known = any(name in header for name in _DIRECTIONS)
    return '' if known else 'TransformMatrix is not set'
  space = header.get('space', 'not set')
  if space.lower() not in _SPACES:
    return f'space is {space}'
  return '' if 'space directions' in header else 'space directions are not set'


def _reason(error: Exception) -> str:
  """The last line of what ITK says, which is the nearest to the cause."""
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  return (lines or [type(error).__name__])[-1].rpartition('ERROR: ')[2]


def write(
  path: pathlib.Path,
  array: np.ndarray,
  geometry: Geometry,
  fields: Mapping[str, str] | None = None,
) -> None:
  """Writes an array on the volume's own grid, compressed, in one step or not at all.

  Args:
    path: `.nrrd` or `.mha` file; replaced if it exists.
    array: (D, H, W) or (D, H, W, C) on the canonical grid, in the type that is stored.
    geometry: of the volume the array belongs to.
    fields: further ones of the header.

  Raises:
    VolumeError: if SimpleITK is not installed.
    ValueError: if the shapes differ.
  """
  itk = library()
  stored = from_canonical(array, geometry)
  vectors = stored.ndim == 4
  order = (2, 1, 0, 3) if vectors else (2, 1, 0)
  image = itk.GetImageFromArray(np.ascontiguousarray(stored.transpose(order)), isVector=vectors)
  spacing = np.linalg.norm(geometry.affine[:3, :3], axis=0)
  image.SetSpacing(spacing.tolist())
  image.SetDirection((LPS_TO_RAS @ geometry.affine[:3, :3] / spacing).ravel().tolist())
  image.SetOrigin((LPS_TO_RAS @ geometry.affine[:3, 3]).tolist())
  for name, value in (fields or {}).items():
    image.SetMetaData(name, value)
  temporary = path.with_name(f'.{os.getpid()}-{path.name}')
  try:
    itk.WriteImage(image, str(temporary), True)
    os.replace(temporary, path)
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink()
