"""CT scans and label maps: NIfTI files to canonical arrays with their geometry, and back.

A canonical array has its axes in RAS order: axis 0 grows to the patient's right, 1 to anterior, 2
to superior. It is reached by permuting and flipping axes only, never by interpolation, so that an
oblique scan stays oblique and every voxel keeps its value and its place in the world.
"""

import contextlib
import dataclasses
import gzip
import math
import os
import pathlib
from collections.abc import Sequence

import nibabel as nib
import numpy as np
from nibabel import orientations
from numpy.typing import DTypeLike

from input_pipeline import file_kinds, inventory, remarks
from input_pipeline.errors import UserError, reading_into_memory

_FIX = 'convert it from the original again, or predict with --assume-spacing X,Y,Z'
ENDINGS = file_kinds.NIFTI_ENDINGS
_LONGEST = 3000  # mm; no scanner's table moves further
AIR = -1024  # HU; the lowest value a CT scale of 12 bits holds
_RAS = np.array([[0, 1], [1, 1], [2, 1]])
_SFORM = ('sform_code', 'srow_x', 'srow_y', 'srow_z', 'xyzt_units')
_QFORM = ('qform_code', *(f'quatern_{i}' for i in 'bcd'), *(f'qoffset_{i}' for i in 'xyz'))


def stem(path: pathlib.Path) -> str:
  """Name of a NIfTI file without its ending."""
  return inventory.stem(path.name)


class VolumeError(UserError):
  """A scan that cannot be used; one line with the file, the offending value and the fix."""


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


def to_canonical(
  array: np.ndarray,
  affine: np.ndarray,
  *,
  name: str | os.PathLike = 'volume',
  header: nib.Nifti1Header | None = None,
) -> Volume:
  """Permutes and flips an array into canonical order.

  Args:
    array: (X, Y, Z), any dtype.
    affine: (4, 4), voxel indices -> world mm (RAS+); may be oblique or sheared.
    name: what error messages call it.
    header: NIfTI header to keep for writing, or None.

  Returns:
    The volume, its array contiguous.

  Raises:
    VolumeError: if the array is not 3D, has a single slice, is over 3 m long, or its axes are none.
  """
  _check_shape(array.shape, name)
  width, height, depth = array.shape[:3]  # of its own axes
  array = array.reshape(width, height, depth)
  affine = np.array(affine, np.float64)
  _check_affine(affine, name)
  _check_extent(array.shape, affine, name)
  orientation = orientations.io_orientation(affine).astype(int)
  canonical = np.ascontiguousarray(orientations.apply_orientation(array, orientation))
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
  return np.ascontiguousarray(orientations.apply_orientation(array, back))


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
      valid geometry.
  """
  with reading_into_memory(path, VolumeError):
    array, affine, header = _read(path, assume_spacing, number)
    array = to_hu(array, path)
  if min(array.shape) < 4:
    remarks.tell(f'{path}: only {min(array.shape)} slices; expect little from so few')
  if assume_spacing is not None:
    remarks.tell(f'{path}: spacing {tuple(map(float, assume_spacing))} mm assumed, not read')
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
      f'{path}: values {low:g}..{high:g} do not look like HU; check scl_slope and scl_inter'
    )
  return array


def read_labels(path: str | os.PathLike) -> Volume:
  """Reads a label map.

  Args:
    path: file as of `read_image` whose values are integers in 0..255, of any dtype.

  Returns:
    Volume of uint8.

  Raises:
    VolumeError: as `read_image`, and if a value is not an integer in 0..255.
  """
  with reading_into_memory(path, VolumeError):
    array, affine, header = _read(path)
    return to_canonical(to_labels(array, path), affine, name=path, header=header)


def to_labels(array: np.ndarray, path: str | os.PathLike) -> np.ndarray:
  """What every reader does to the values of a label map.

  Args:
    array: numbers as stored, rescaled.
    path: for messages.

  Returns:
    uint8 of the same shape.

  Raises:
    VolumeError: if a value is not an integer in 0..255.
  """
  if array.dtype.kind == 'f':
    rounded = np.rint(array)
    # Rescaled integers come back with round-off; NaN fails the comparison as it should.
    wrong = ~(np.abs(array - rounded) < 1e-3)
    if wrong.any():
      values = _some(array[wrong])
      raise VolumeError(f'{path}: label values {values} are no integers; resample by nearest voxel')
    array = rounded
  outside = (array < 0) | (array > 255)
  if outside.any():
    values = _some(array[outside])
    raise VolumeError(f'{path}: label values {values} are outside 0..255; renumber the labels')
  return array.astype(np.uint8)


def _some(values: np.ndarray, most: int = 8) -> str:
  """The different values, as a list for messages."""
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
    image, array = _read_nifti(path, assume_spacing, number)
    affine = image.affine.copy()
    if image.header['sform_code'] == image.header['qform_code'] == 0:
      affine[:3, :3] = np.nan  # nibabel takes the axes for left, anterior, superior
    return array, affine, image.header
  array, affine = itk_image.read(pathlib.Path(path), need_sides=assume_spacing is None)
  return _one_of(array, number, path), affine, None


def _read_nifti(path, assume_spacing, number):
  """The nibabel image of a NIfTI file, and its voxels."""
  try:
    # NOTE: nibabel's load repairs a bad header (a pixdim of 0 becomes 1 mm, an unknown sform_code
    # none): look at the stored one.
    with nib.imageglobals.LoggingOutputSuppressor():
      image = _load(path)
    if not isinstance(image.header, nib.Nifti1Header):
      raise VolumeError(f'{path}: is Analyze 7.5, which does not tell sides; convert it to NIfTI')
    file = image.file_map.get('header', image.file_map['image'])
    with file.get_prepare_fileobj('rb') as stream:
      stored = image.header_class.from_fileobj(stream, check=False)
    _check_header(image, stored, number, path)
    if assume_spacing is None:
      _check_geometry(image, stored, path)
    array = np.asanyarray(image.dataobj)
    return image, _one_of(array, number, path)
  except (VolumeError, MemoryError):
    raise
  except Exception as error:  # nibabel, gzip, zlib and the file system each raise their own
    reason = str(error).split('\n')[0] or type(error).__name__
    message = f'{path}: cannot be read as NIfTI ({reason}); copy or convert it again'
    raise VolumeError(message) from error


def _one_of(array, number, path):
  """A volume (X, Y, Z) of an array that may hold several."""
  _check_number(array.shape, number, path)
  return array.reshape(*array.shape[:3], -1)[..., number or 0]


def _load(path):
  """The image of a file; its first bytes say whether it is compressed, names are often wrong."""
  path = pathlib.Path(path)
  if not _is_compressed(path) and path.name.lower().endswith(('.nii', '.hdr', '.img')):
    return nib.load(path)
  with _unpacked(path) as stream:
    kind, header, content = _stored_header(stream)
    size = math.prod(header.get_data_shape()) * header.get_data_dtype().itemsize
    # What is packed behind the voxels could be of any size.
    content += stream.read(max(int(header['vox_offset']) + size - len(content), 0))
    while stream.read(1 << 20):  # to the end, where the checksum is: nibabel would not look
      pass
  return kind.from_bytes(content)


def stored_shape(path: str | os.PathLike) -> tuple[int, ...]:
  """Voxels along the axes of a NIfTI file, by its header alone, compressed or not.

  Raises:
    Exception: of any kind, where there is no such header.
  """
  with _unpacked(pathlib.Path(path)) as stream:
    return _stored_header(stream)[1].get_data_shape()


def _is_compressed(path):
  with path.open('rb') as stream:
    return file_kinds.is_gzip(stream.read(2))


def _unpacked(path):
  """The open file, its content without compression."""
  return gzip.open(path) if _is_compressed(path) else path.open('rb')


def _stored_header(stream):
  """Class of image, header as it is stored, and the bytes read for it."""
  content = stream.read(nib.Nifti2Header.sizeof_hdr)
  two = nib.Nifti2Header.sizeof_hdr.to_bytes(4) in (content[:4], content[3::-1])
  kind = nib.Nifti2Image if two else nib.Nifti1Image
  header = kind.header_class(content[: kind.header_class.sizeof_hdr], check=False)
  return kind, header, content


def _check_header(image, stored, number, path):
  shape, dtype = image.shape, image.get_data_dtype()
  if 'header' not in image.file_map and stored['vox_offset'] < stored.sizeof_hdr:
    start = int(stored['vox_offset'])
    raise VolumeError(f'{path}: vox_offset {start} lies in the header; copy or convert it again')
  _check_number(shape, number, path)
  if dtype.kind not in 'iuf':
    raise VolumeError(f'{path}: voxels of type {dtype} (colour or complex); save plain numbers')


def _check_number(shape, number, path):
  _check_shape(shape[:3] if number is not None else shape, path)
  volumes = math.prod(shape[3:])
  if number is not None and not 0 <= number < volumes:
    raise VolumeError(f'{path}: has no volume {number}; --volume can be 0..{volumes - 1}')


def _check_geometry(image, stored, path):
  shape, pixdim = image.shape, stored['pixdim'][1:4]
  if not (np.isfinite(pixdim) & (pixdim > 0)).all():
    raise VolumeError(f'{path}: pixdim {pixdim.tolist()} must be positive mm; {_FIX}')
  codes = [int(stored[field]) for field in ('sform_code', 'qform_code')]
  if not set(codes) <= set(range(6)):
    raise VolumeError(f'{path}: sform_code and qform_code {codes} are not in 0..5; {_FIX}')
  unit = int(stored['xyzt_units']) & 7
  if unit in (1, 3):
    name = 'metres' if unit == 1 else 'micrometres'
    raise VolumeError(f'{path}: lengths are in {name} (xyzt_units), not in mm; {_FIX}')
  sform, qform = image.header.get_sform(coded=True)[0], image.header.get_qform(coded=True)[0]
  sizes = nib.affines.voxel_sizes(image.affine)
  differ = sform is not None and not np.allclose(sizes, pixdim, rtol=0.01, atol=0)
  # An identity with this many voxels, or other sizes, is what tools write that lost the geometry.
  lost = np.array_equal(image.affine, np.eye(4)) and (max(shape) >= 512 or differ)
  if lost or (sform is None and qform is None):
    state = f'the identity, pixdim is {_mm(pixdim)}' if lost else 'not set (code 0)'
    raise VolumeError(f'{path}: sform and qform are {state}: sides unknown; {_FIX}')
  if differ:
    remarks.tell(
      f'{path}: voxels of {_mm(sizes)} by sform, of {_mm(pixdim)} by pixdim; using sform'
    )
  if sform is None and qform is not None and stored['pixdim'][0] not in (-1, 0, 1):
    raise VolumeError(f'{path}: pixdim[0] {stored["pixdim"][0]:g} must be 1 or -1; {_FIX}')
  if sform is not None and qform is not None:
    distance = (np.abs(sform - qform) @ [*shape[:3], 1]).max()
    if distance > 1e-3:
      remarks.tell(f'{path}: sform and qform are up to {distance:.3g} mm apart; using sform')


def _mm(sizes):
  return f'{" x ".join(f"{size:.4g}" for size in sizes)} mm'


def _check_shape(shape, name):
  if len(shape) < 3 or min(shape[:3]) < 2:
    raise VolumeError(f'{name}: shape {shape} is not 3D; pass the whole scan')
  if any(n != 1 for n in shape[3:]):
    last = math.prod(shape[3:]) - 1
    raise VolumeError(
      f'{name}: shape {shape} holds several volumes; save one on its own, or predict with '
      f'--volume 0 to {last}'
    )


def _check_affine(affine, name):
  if affine.shape != (4, 4) or not np.isfinite(affine).all():
    raise VolumeError(f'{name}: affine {affine.tolist()} is not a finite 4x4 matrix; {_FIX}')
  if np.abs(affine[:3, 3]).max() > 1e5:
    far = affine[:3, 3].tolist()
    raise VolumeError(f'{name}: the origin {far} mm lies over 100 m away; {_FIX}')
  spacing = nib.affines.voxel_sizes(affine)
  # The determinant relative to the spacing is 1 for right angles and 0 for axes in one plane.
  angle = abs(np.linalg.det(affine[:3, :3])) / max(spacing.prod(), 1e-30)
  if spacing.min() < 1e-4 or angle < 1e-3:
    raise VolumeError(f'{name}: affine {affine[:3].round(4).tolist()} is singular; {_FIX}')
  if spacing.min() < 0.01 or spacing.max() > 100:
    raise VolumeError(f'{name}: spacing {spacing.tolist()} is outside 0.01 to 100 mm; {_FIX}')
  if angle < 0.999:
    remarks.tell(f'{name}: axes are not at right angles; distances are approximate')


def _check_extent(shape, affine, name):
  spacing = nib.affines.voxel_sizes(affine)
  extents = spacing * shape
  axis = extents.argmax()
  if extents[axis] > _LONGEST:
    length, count, size = extents[axis] / 1000, shape[axis], spacing[axis]
    raise VolumeError(f'{name}: is {length:.1f} m long ({count} voxels of {size:g} mm); {_FIX}')
