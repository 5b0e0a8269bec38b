"""NIfTI files as they are stored: what a reader should know of them and nibabel repairs."""

import gzip
import math
import os
import pathlib

import nibabel as nib
import numpy as np

from input_pipeline import remarks
from input_pipeline.ct.grid_checks import FIX, VolumeError, check_number
from input_pipeline.files import file_kinds


def read(
  path: str | os.PathLike, *, number: int | None = None, need_geometry: bool = True
) -> tuple[np.ndarray, np.ndarray, nib.Nifti1Header]:
  """Reads a file with a sound header.

  Args:
    path: of the file.
    number: which volume of a file with several, from 0 on.
    need_geometry: whether the header must say where the voxels lie.

  Returns:
    (X, Y, Z) voxels, scaled as stored; (4, 4) voxel indices -> world mm (RAS+), whose axes are NaN
    if the header does not say them; and the header.

  Raises:
    VolumeError: if it cannot be read, or its header is not sound.
  """
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
    if need_geometry:
      _check_geometry(image, stored, path)
    place = np.unravel_index(number or 0, image.shape[3:])  # of a scan over time, no other is read
    array = np.asanyarray(image.dataobj[..., *place] if place else image.dataobj)
  except (VolumeError, MemoryError):
    raise
  except Exception as error:  # nibabel, gzip, zlib and the file system each raise their own
    reason = str(error).split('\n')[0] or type(error).__name__
    message = f'{path}: cannot be read as NIfTI ({reason}); copy or convert it again'
    raise VolumeError(message) from error
  affine = image.affine.copy()
  if image.header['sform_code'] == image.header['qform_code'] == 0:
    affine[:3, :3] = np.nan  # nibabel takes the axes for left, anterior, superior
  return array, affine, image.header


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
    header = _stored_header(stream)[1]
  if header['magic'].item() not in (header.single_magic, header.pair_magic):
    raise VolumeError(f'{path}: does not begin as NIfTI; copy or convert it again')
  return header.get_data_shape()


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
  check_number(shape, number, path)
  if dtype.kind not in 'iuf':
    raise VolumeError(f'{path}: voxels of type {dtype} (colour or complex); save plain numbers')


def _check_geometry(image, stored, path):
  shape, pixdim = image.shape, stored['pixdim'][1:4]
  if not (np.isfinite(pixdim) & (pixdim > 0)).all():
    raise VolumeError(f'{path}: pixdim {pixdim.tolist()} must be positive mm; {FIX}')
  codes = [int(stored[field]) for field in ('sform_code', 'qform_code')]
  if not set(codes) <= set(range(6)):
    raise VolumeError(f'{path}: sform_code and qform_code {codes} are not in 0..5; {FIX}')
  unit = int(stored['xyzt_units']) & 7
  if unit in (1, 3):
    name = 'metres' if unit == 1 else 'micrometres'
    raise VolumeError(f'{path}: lengths are in {name} (xyzt_units), not in mm; {FIX}')
  sform, qform = image.header.get_sform(coded=True)[0], image.header.get_qform(coded=True)[0]
  sizes = nib.affines.voxel_sizes(image.affine)
  differ = sform is not None and not np.allclose(sizes, pixdim, rtol=0.01, atol=0)
  # An identity with this many voxels, or other sizes, is what tools write that lost the geometry.
  lost = np.array_equal(image.affine, np.eye(4)) and (max(shape) >= 512 or differ)
  if lost or (sform is None and qform is None):
    state = f'the identity, pixdim is {_mm(pixdim)}' if lost else 'not set (code 0)'
    raise VolumeError(f'{path}: sform and qform are {state}: sides unknown; {FIX}')
  if differ:
    remarks.tell(
      f'{path}: voxels of {_mm(sizes)} by sform, of {_mm(pixdim)} by pixdim; using sform'
    )
  if sform is None and qform is not None and stored['pixdim'][0] not in (-1, 0, 1):
    raise VolumeError(f'{path}: pixdim[0] {stored["pixdim"][0]:g} must be 1 or -1; {FIX}')
  if sform is not None and qform is not None:
    distance = (np.abs(sform - qform) @ [*shape[:3], 1]).max()
    if distance > 1e-3:
      remarks.tell(f'{path}: sform and qform are up to {distance:.3g} mm apart; using sform')


def _mm(sizes):
  return f'{" x ".join(f"{size:.4g}" for size in sizes)} mm'
