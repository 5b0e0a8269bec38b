"""CT scans and label maps: NIfTI files to canonical arrays with their geometry, and back.

A canonical array has its axes in RAS order: axis 0 grows to the patient's right, 1 to anterior, 2
to superior. It is reached by permuting and flipping axes only, never by interpolation, so that an
oblique scan stays oblique and every voxel keeps its value and its place in the world.
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Sequence

import nibabel as nib
import numpy as np
from nibabel import orientations
from numpy.typing import DTypeLike

from input_pipeline import remarks
from input_pipeline.ct import grid_checks, nifti
from input_pipeline.ct.grid_checks import VolumeError
from input_pipeline.errors import reading_into_memory
from input_pipeline.files import file_kinds, inventory

ENDINGS = file_kinds.NIFTI_ENDINGS
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])  # DICOM and ITK count to the left and to posterior
AIR = -1024  # HU; the lowest value a CT scale of 12 bits holds
_RAS = np.array([[0, 1], [1, 1], [2, 1]])
_SFORM = ('sform_code', 'srow_x', 'srow_y', 'srow_z', 'xyzt_units')
_QFORM = ('qform_code', *(f'quatern_{i}' for i in 'bcd'), *(f'qoffset_{i}' for i in 'xyz'))


def stem(path: pathlib.Path) -> str:
  """Name of a NIfTI file without its ending."""
  return inventory.stem(path.name)


@dataclasses.dataclass(frozen=True, eq=False)
class Geometry:
  """Where a volume lies, and the way back to its own grid.

  Attributes:
    shape, affine: of its own grid; (4, 4) float64, voxel indices -> world mm (RAS+).
    orientation: (3, 2), nibabel's: for each own axis its canonical axis and 1 or -1.
    spacing, canonical_shape: (3,) float64 mm and voxels, along the canonical axes.
    header: of the file it came from; `write_nifti` takes over both of its transforms.
  """

  shape: tuple[int, int, int]
  affine: np.ndarray
  orientation: np.ndarray
  spacing: np.ndarray
  canonical_shape: tuple[int, int, int]
  header: nib.Nifti1Header | None = None

  @property
  def canonical_affine(self) -> np.ndarray:
    """(4, 4) float64, canonical voxel indices -> world mm (RAS+)."""
    return self.affine @ orientations.inv_ornt_aff(self.orientation, self.shape)


@dataclasses.dataclass(frozen=True, eq=False)
class Volume:
  """A scan or label map: `array` (D, H, W) in canonical order, and its geometry."""

  array: np.ndarray
  geometry: Geometry

  @property
  def spacing(self) -> np.ndarray:
    """(3,) float64 mm along the axes of `array`."""
    return self.geometry.spacing

  @property
  def voxel_ml(self) -> float:
    """The volume of a voxel, ml."""
    return abs(float(np.linalg.det(self.geometry.affine[:3, :3]))) / 1000


def to_canonical(
  array: np.ndarray,
  affine: np.ndarray,
  *,
  name: str | os.PathLike = 'volume',
  header: nib.Nifti1Header | None = None,
  fix: str = grid_checks.FIX,
) -> Volume:
  """Permutes and flips an array into canonical order.

  Args:
    array: (X, Y, Z), any dtype.
    affine: (4, 4), voxel indices -> world mm (RAS+); may be oblique or sheared.
    name: what error messages call it.
    header: NIfTI header to keep for writing, or None.
    fix: what error messages say to do.

  Returns:
    The volume, its array contiguous.

  Raises:
    VolumeError: if the array is not 3D, has a single slice, is over 3 m long, or its axes are none.
  """
  grid_checks.check_shape(array.shape, name)
  width, height, depth = array.shape[:3]  # of its own axes
  array = array.reshape(width, height, depth)
  affine = np.array(affine, np.float64)
  grid_checks.check_affine(affine, name, fix)
  grid_checks.check_extent(array.shape, affine, name, fix)
  orientation = orientations.io_orientation(affine).astype(int)
  canonical = _contiguous(orientations.apply_orientation(array, orientation))
  spacing = np.empty(3)
  spacing[orientation[:, 0]] = nib.affines.voxel_sizes(affine)
  geometry = Geometry((width, height, depth), affine, orientation, spacing, canonical.shape, header)
  return Volume(canonical, geometry)


def from_canonical(array: np.ndarray, geometry: Geometry) -> np.ndarray:
  """Undoes `to_canonical`.

  Args:
    array: (D, H, W) or (D, H, W, C) on the canonical grid.
    geometry: of the volume to return to.

  Returns:
    (X, Y, Z) or (X, Y, Z, C) on the volume's own grid; ValueError if the shapes differ.
  """
  if array.shape[:3] != tuple(geometry.canonical_shape):
    shape = geometry.canonical_shape
    raise ValueError(f'array {array.shape} is not on the canonical grid {shape}; resample it first')
  back = orientations.ornt_transform(_RAS, geometry.orientation)
  return _contiguous(orientations.apply_orientation(array, back))


def _contiguous(array: np.ndarray) -> np.ndarray:
  """The array (D, H, W, ...) in C order.

  Copied plane by plane: a NIfTI file lies the other way round, and numpy would go across the whole
  of it for each row.
  """
  if array.flags.c_contiguous:
    return array
  copy = np.empty(array.shape, array.dtype)
  for row in range(array.shape[1]):
    copy[:, row] = array[:, row]
  return copy


def read_image(
  path: str | os.PathLike,
  *,
  assume_spacing: Sequence[float] | None = None,
  number: int | None = None,
) -> Volume:
  """Reads a CT scan.

  Args:
    path: NIfTI file, or NRRD or MetaImage (see `itk_image`).
    assume_spacing: (3,) mm along the file's axes, in place of what its header says; the axes keep
      the directions of the header, or count as right, anterior, superior where it has none.
    number: which volume of a file with several, from 0 on.

  Returns:
    Volume of float32 HU >= -1024. Values that are not finite, and padding below -1024, become air
    (-1024) with a warning that counts them.

  Raises:
    VolumeError: if the file cannot be read, does not fit into memory, or is not one 3D scan with a
      valid geometry; or if `assume_spacing` is not three sizes.
  """
  if assume_spacing is not None:
    assume_spacing = grid_checks.sizes(assume_spacing)
  with reading_into_memory(path, VolumeError):
    array, affine, header = _read(path, assume_spacing, number)
    array = to_hu(array, path)
  if min(array.shape) < 4:
    remarks.tell(f'{path}: only {min(array.shape)} slices; expect little from so few')
  if assume_spacing is not None:
    remarks.tell(f'{path}: spacing {assume_spacing} mm assumed, not read')
    affine = _assume(affine, assume_spacing, path)
  with reading_into_memory(path, VolumeError):
    return to_canonical(array, affine, name=path, header=header)


def _assume(affine: np.ndarray, spacing: Sequence[float], path: str | os.PathLike) -> np.ndarray:
  """The affine with another spacing, and without directions that are none."""
  with np.errstate(invalid='ignore', divide='ignore'):
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
  if not np.isfinite(directions).all() or abs(np.linalg.det(directions)) < 1e-3:
    directions = np.eye(3)
    remarks.tell(f'{path}: axes taken for right, anterior, superior: sides not checked')
  assumed = np.eye(4)
  assumed[:3, :3] = directions * spacing
  assumed[:3, 3] = np.nan_to_num(affine[:3, 3], posinf=0, neginf=0)
  return assumed


def to_hu(array: np.ndarray, path: str | os.PathLike) -> np.ndarray:
  """What every reader does to the values of a CT.

  Args:
    array: (X, Y, Z) numbers as stored, rescaled.
    path: for messages.

  Returns:
    (X, Y, Z) float32 HU >= -1024; see `read_image`.

  Raises:
    VolumeError: if no value is finite.
  """
  array = array.astype(np.float32, copy=False)
  broken = ~np.isfinite(array)
  below = array < AIR
  if broken.all():
    raise VolumeError(f'{path}: no voxel has a finite value; export the scan again')
  if broken.any() or below.any():
    array = np.where(broken | below, np.float32(AIR), array)
    counts = {'not finite': broken.sum(), f'below {AIR} HU': np.sum(below & ~broken)}
    told = ' and '.join(f'{count} voxels {kind}' for kind, count in counts.items() if count)
    remarks.tell(f'{path}: {told} taken as air')
  low, high = array.min(), array.max()
  if low > -100 or high < 100:
    remarks.tell(
      f'{path}: values {low:g}..{high:g} do not look like HU; check scl_slope and scl_inter, of '
      'DICOM RescaleSlope and RescaleIntercept'
    )
  return array


def read_labels(path: str | os.PathLike, *, most: int = 255) -> Volume:
  """Reads a label map.

  Args:
    path: file as of `read_image` whose values are integers in 0..most, of any dtype.
    most: 255, or up to 65535.

  Returns:
    Volume of uint8, or of uint16 where there are values beyond.

  Raises:
    VolumeError: as `read_image`, and if a value is not an integer in 0..most.
  """
  with reading_into_memory(path, VolumeError):
    array, affine, header = _read(path)
    return to_canonical(to_labels(array, path, most), affine, name=path, header=header)


def to_labels(array: np.ndarray, path: str | os.PathLike, most: int = 255) -> np.ndarray:
  """What every reader does to the values of a label map.

  Args:
    array: numbers as stored, rescaled.
    path: for messages.
    most: as of `read_labels`.

  Returns:
    uint8 of the same shape, or uint16 where there are values beyond.

  Raises:
    VolumeError: if a value is not an integer in 0..most.
  """
  if array.dtype.kind == 'f':
    rounded = np.rint(array)
    # Rescaled integers come back with round-off; NaN fails the comparison as it should.
    wrong = ~(np.abs(array - rounded) < 1e-3)
    if wrong.any():
      values = _some(array[wrong])
      raise VolumeError(f'{path}: label values {values} are no integers; resample by nearest voxel')
    array = rounded
  outside = (array < 0) | (array > most)
  if outside.any():
    values = _some(array[outside])
    raise VolumeError(f'{path}: label values {values} are outside 0..{most}; renumber the labels')
  return array.astype(np.uint8 if array.max(initial=0) <= 255 else np.uint16)


def _some(values: np.ndarray, most: int = 8) -> str:
  """The different values, as a list for messages; of an interpolated map they are millions."""
  different = np.unique(values)  # NaN once
  told = ', '.join(f'{value:g}' for value in different[:most])
  return f'{told} and {len(different) - most} more' if len(different) > most else told


def write_nifti(
  path: str | os.PathLike,
  array: np.ndarray,
  geometry: Geometry,
  dtype: DTypeLike,
  *,
  slope: float = 1,
) -> None:
  """Writes an array with the volume's own shape and affine, in one step or not at all.

  Args:
    path: `.nii` or `.nii.gz` file; replaced if it exists.
    array: (D, H, W) on the canonical grid.
    geometry: of the volume the array belongs to.
    dtype: stored type; no scaling is applied.
    slope: what readers multiply the stored values with.

  Raises:
    ValueError: if the shapes differ, an integer `dtype` cannot hold the values, or the name ends
      differently.
  """
  path = pathlib.Path(path)
  if not path.name.endswith(ENDINGS):
    raise ValueError(f'{path}: unknown ending; name the file .nii or .nii.gz')
  restored = from_canonical(array, geometry)
  stored = restored.astype(dtype, copy=False)
  if stored.dtype.kind in 'iu' and not np.array_equal(stored, restored):
    raise ValueError(f'{path}: {stored.dtype} cannot hold the values; choose a wider dtype')
  temporary = path.with_name(f'.{os.getpid()}-{path.name}')
  try:
    image = _image(stored, geometry)
    if slope != 1:
      image.header.set_slope_inter(slope, 0)
    nib.save(image, temporary)
    os.replace(temporary, path)
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink()


def _image(array, geometry):
  source = geometry.header
  kind = nib.Nifti2Image if isinstance(source, nib.Nifti2Header) else nib.Nifti1Image
  header = kind.header_class()
  header.set_data_dtype(array.dtype)
  header.set_xyzt_units('mm')
  if source is None:
    return kind(array, geometry.affine, header)
  # Copied as stored, also where another spacing was assumed: the mask must lie on its scan, and a
  # quaternion made from the affine differs in the last bit. Free-text fields stay behind, they may
  # name the patient.
  for field in (*_SFORM, *_QFORM):
    header[field] = source[field]
  header['pixdim'][:4] = source['pixdim'][:4]
  return kind(array, source.get_best_affine(), header)


def _read(path, assume_spacing=None, number=None):
  """Voxels, scaled as stored, and affine of a file with a sound header; of NIfTI the header too.

  Where a spacing is assumed, the axes of the affine are NaN if the header does not say them.
  """
  from input_pipeline.ct import itk_image  # which builds on this module

  if not itk_image.is_itk(path):
    return nifti.read(path, number=number, need_geometry=assume_spacing is None)
  array, affine = itk_image.read(pathlib.Path(path), need_sides=assume_spacing is None)
  return grid_checks.one_of(array, number, path), affine, None
