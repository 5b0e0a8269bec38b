"""Damaged scans: a clear message, or the geometry and values that the file's own bytes state.

The oracle reads NIfTI by the text of the standard (nifti1.h, nifti2.h), without nibabel.
"""

import contextlib
import gzip
import pathlib
import struct
import tempfile
import warnings

import nibabel as nib
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from input_pipeline.ct import dicom, volume
from tests.input_pipeline.sources import layouts

SHAPE = (4, 6, 5)
# Field -> offset and struct format in NIfTI-1 and NIfTI-2.
FIELDS = {
  'dim': ((40, '8h'), (16, '8q')),
  'datatype': ((70, 'h'), (12, 'h')),
  'bitpix': ((72, 'h'), (14, 'h')),
  'pixdim': ((76, '8f'), (104, '8d')),
  'vox_offset': ((108, 'f'), (168, 'q')),
  'scl_slope': ((112, 'f'), (176, 'd')),
  'scl_inter': ((116, 'f'), (184, 'd')),
  'xyzt_units': ((123, 'B'), (500, 'i')),
  'qform_code': ((252, 'h'), (344, 'i')),
  'sform_code': ((254, 'h'), (348, 'i')),
  'quatern': ((256, '3f'), (352, '3d')),
  'qoffset': ((268, '3f'), (376, '3d')),
  'srow': ((280, '12f'), (400, '12d')),
}
TYPES = {2: 'u1', 4: 'i2', 8: 'i4', 16: 'f4', 64: 'f8', 256: 'i1', 512: 'u2', 768: 'u4',
         1024: 'i8', 1280: 'u8'}  # fmt: skip


def make_file(version, order, forms):
  """The bytes of a sound scan: oblique, anisotropic, with the transforms of `forms`."""
  rng = np.random.default_rng(0)
  array = rng.integers(-900, 900, SHAPE).astype(np.int16)
  kind = nib.Nifti1Image if version == 1 else nib.Nifti2Image
  affine = np.eye(4)
  affine[:3, :3] = Rotation.from_euler('xyz', (10, -20, 5), degrees=True).as_matrix()
  affine[:3, :3] = affine[:3, [1, 2, 0]] * (-0.8, 0.9, 3)
  affine[:3, 3] = (-31.5, 12.25, 700)
  header = kind.header_class(endianness=order)
  image = kind(array, affine, header)
  image.header.set_sform(affine, code=1 if 's' in forms else 0)
  image.header.set_qform(affine, code=1 if 'q' in forms else 0)
  return image.to_bytes()


SOUND = {
  (version, order, forms): make_file(version, order, forms)
  for version in (1, 2)
  for order in '<>'
  for forms in ('s', 'q', 'sq')
}


def locate(kind, field):
  offset, form = FIELDS[field][kind[0] - 1]
  return offset, kind[1] + form


def fields(data, kind):
  numbers = {}
  for field in FIELDS:
    offset, form = locate(kind, field)
    values = struct.unpack_from(form, data, offset)
    numbers[field] = values[0] if len(values) == 1 else values
  return numbers


def reference(data, kind):
  """Affine (4, 4) and values (X, Y, Z) of a file, as the standard reads."""
  f = fields(data, kind)
  affine = np.eye(4)
  if f['sform_code'] > 0:
    affine[:3] = np.reshape(f['srow'], (3, 4))
  elif f['qform_code'] > 0:
    b, c, d = f['quatern']
    a = np.sqrt(max(0.0, 1 - (b * b + c * c + d * d)))
    turn = np.array(
      [
        [a * a + b * b - c * c - d * d, 2 * b * c - 2 * a * d, 2 * b * d + 2 * a * c],
        [2 * b * c + 2 * a * d, a * a + c * c - b * b - d * d, 2 * c * d - 2 * a * b],
        [2 * b * d - 2 * a * c, 2 * c * d + 2 * a * b, a * a + d * d - c * c - b * b],
      ]
    )
    sign = -1 if f['pixdim'][0] < 0 else 1
    affine[:3, :3] = turn * (f['pixdim'][1], f['pixdim'][2], sign * f['pixdim'][3])
    affine[:3, 3] = f['qoffset']
  else:
    raise AssertionError('no transform, and yet it was read')
  unit = {1: 1000.0, 3: 0.001}.get(f['xyzt_units'] & 7, 1.0)
  affine[:3] *= unit
  shape = f['dim'][1 : 1 + f['dim'][0]]
  dtype = np.dtype(kind[1] + TYPES[f['datatype']])
  start = int(f['vox_offset'])
  values = np.frombuffer(data, dtype, count=int(np.prod(shape)), offset=start)
  values = values.reshape(shape[:3], order='F').astype(np.float64)
  slope, inter = f['scl_slope'], f['scl_inter']
  if np.isfinite(slope) and slope != 0:
    values = values * slope + inter
  return affine, values


def read(data, ending):
  """The volume, or None where the reader explains in one line why not."""
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, f'scan{ending}')
    path.write_bytes(data)
    with warnings.catch_warnings(), np.errstate(all='ignore'):
      warnings.simplefilter('ignore')
      try:
        return volume.read_image(path)
      except volume.VolumeError as error:
        message = str(error)
        assert message.startswith(str(path)) and '\n' not in message and len(message) > 60
        return None


def assert_true(scan, data, kind):
  """Every voxel of the volume has the value and the place that the bytes state."""
  with np.errstate(all='ignore'):
    affine, values = reference(data, kind)
    expected = values.astype(np.float32)
  expected = np.where(np.isfinite(expected) & (expected > -1024), expected, np.float32(-1024))
  index = np.stack(np.indices(scan.array.shape), -1).reshape(-1, 3)
  world = nib.affines.apply_affine(scan.geometry.canonical_affine, index)
  indices = nib.affines.apply_affine(np.linalg.inv(affine), world)
  nearest = np.rint(indices).astype(int)
  assert np.abs(indices - nearest).max() < 0.02
  assert sorted(scan.array.shape) == sorted(values.shape)
  values = scan.array.reshape(-1)
  np.testing.assert_allclose(values, expected[tuple(nearest.T)], rtol=1e-4, atol=1e-3)
  np.testing.assert_allclose(scan.geometry.affine, affine, rtol=1e-5, atol=1e-4)
  np.testing.assert_allclose(
    scan.spacing, np.linalg.norm(scan.geometry.canonical_affine[:3, :3], axis=0), rtol=1e-5
  )
  # Canonical: each axis runs towards where its name says, as far as the scan is not oblique.
  linear = scan.geometry.canonical_affine[:3, :3] / scan.spacing
  assert np.linalg.det(linear) > 0 or np.diag(linear).min() <= np.sqrt(0.5)


NUMBERS = st.one_of(
  st.sampled_from([0, 1, -1, 2, 3, 5, 7, 8, 255, 348, 352, 540, 32767, -32768, 1e-30, 1e30]),
  st.sampled_from([np.nan, np.inf, -np.inf, 0.5, -0.5, 1e-3, 1e3, 1e6, -2.5]),
  st.floats(-2, 2),
  st.integers(-(2**15), 2**15 - 1),
)


@st.composite
def damaged_headers(draw):
  """A sound file with some numbers of its header replaced, or some bytes."""
  kind = draw(st.sampled_from(sorted(SOUND)))
  data = bytearray(SOUND[kind])
  for _ in range(draw(st.integers(1, 3))):
    if draw(st.integers(0, 4)) == 0:
      data[draw(st.integers(0, 543))] = draw(st.integers(0, 255))
      continue
    offset, form = locate(kind, draw(st.sampled_from(sorted(FIELDS))))
    values = list(struct.unpack_from(form, data, offset))
    values[draw(st.integers(0, len(values) - 1))] = draw(NUMBERS)
    whole = form[-1] in 'hqiB'
    with contextlib.suppress(struct.error, ValueError, OverflowError):
      struct.pack_into(form, data, offset, *(int(v) if whole else v for v in values))
  return kind, bytes(data)


def check_damaged_header(case):
  kind, data = case
  scan = read(data, '.nii')
  if scan is None:
    return
  # A damaged size or magic may leave the other kind of file; those are told apart by their size.
  for other in ((1, '<'), (1, '>'), (2, '<'), (2, '>')):
    if struct.unpack_from(f'{other[1]}i', data)[0] == {1: 348, 2: 540}[other[0]]:
      kind = other
  assert_true(scan, data, kind)


def check_damaged_archive(kind, place, change, truncate):
  sound = gzip.compress(SOUND[kind], mtime=0)
  place %= len(sound)
  data = bytearray(sound[:place] if truncate else sound)
  if not truncate:
    data[place] ^= change
  scan = read(bytes(data), '.nii.gz')
  if scan is not None:  # the change was in a name or a time of the archive
    assert gzip.decompress(bytes(data)) == SOUND[kind]
    assert_true(scan, SOUND[kind], kind)


KINDS, PLACES, CHANGES = st.sampled_from(sorted(SOUND)), st.integers(0, 2**16), st.integers(1, 255)


@pytest.mark.parametrize('kind', sorted(SOUND))
def test_sound_files_are_read(kind):
  for data, ending in ((SOUND[kind], '.nii'), (gzip.compress(SOUND[kind]), '.nii.gz')):
    scan = read(data, ending)
    assert_true(scan, SOUND[kind], kind)


@settings(max_examples=1000, derandomize=True)
@given(damaged_headers())
def test_damaged_headers(case):
  check_damaged_header(case)


@settings(max_examples=350, derandomize=True)
@given(KINDS, PLACES, CHANGES, st.booleans())
def test_damaged_archives(kind, place, change, truncate):
  check_damaged_archive(kind, place, change, truncate)


@settings(max_examples=200, derandomize=True)
@given(KINDS, PLACES)
def test_truncated_files(kind, place):
  data = SOUND[kind][: place % len(SOUND[kind])]
  assert read(data, '.nii') is None


@pytest.mark.slow
@settings(max_examples=40_000)
@given(damaged_headers())
def test_many_damaged_headers(case):
  check_damaged_header(case)


@pytest.mark.slow
@settings(max_examples=10_000)
@given(KINDS, PLACES, CHANGES, st.booleans())
def test_many_damaged_archives(kind, place, change, truncate):
  check_damaged_archive(kind, place, change, truncate)


@pytest.fixture(scope='module')
def slices():
  return layouts.dicom_files(layouts.body([1, 2])[0][..., :6], 'i{:03d}.dcm')


@settings(max_examples=100, derandomize=True)
@example(number=0, place=303, change=1, truncate=True)  # cut off within the header
@example(number=0, place=216, change=1, truncate=False)  # a transfer syntax that is none
@example(number=0, place=351, change=1, truncate=False)  # a modality that reaches into the pixels
@given(number=st.integers(0, 5), place=PLACES, change=CHANGES, truncate=st.booleans())
def test_damaged_dicom(slices, number, place, change, truncate):
  """One slice with a byte changed, or cut: a message, or a volume on a sound grid."""
  name = sorted(slices)[number]
  place %= len(slices[name])
  data = bytearray(slices[name][:place] if truncate else slices[name])
  if not truncate:
    data[place] ^= change
  with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    layouts.write_files(pathlib.Path(folder), {**slices, name: bytes(data)})
    try:
      scan = dicom.read_dicom(pathlib.Path(folder))
    except volume.VolumeError as error:
      assert '\n' not in str(error)
      return
  # The five sound slices still say how the volume lies; without the sixth, something is said.
  np.testing.assert_allclose(scan.spacing, layouts.SPACING, rtol=0.03)
  assert np.linalg.det(scan.geometry.canonical_affine[:3, :3]) > 0
  if scan.geometry.shape[2] != 6 and place >= 132:  # before, it is no DICOM file at all
    assert caught
