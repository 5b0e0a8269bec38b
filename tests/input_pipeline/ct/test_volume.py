import gzip
import itertools
import tracemalloc
import warnings

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.transform import Rotation

from input_pipeline import anatomy
from input_pipeline.ct import nifti, resample, volume

SPACING = (0.75, 1.25, 3.0)
SHAPE = (5, 6, 7)
ORIENTATIONS = [
  ''.join(codes)
  for axes in itertools.permutations(['LR', 'PA', 'IS'])
  for codes in itertools.product(*axes)
]


def affine_of(codes, shape=SHAPE, spacing=SPACING):
  """Affine of an array whose axes run towards `codes`, with a spacing per own axis."""
  orientation = nib.orientations.axcodes2ornt(codes)
  affine = np.eye(4)
  affine[:3, :3] = 0
  for axis, (world, sign) in enumerate(orientation):
    affine[int(world), axis] = sign * spacing[axis]
  affine[:3, 3] = (-31.5, 12.25, 700)
  return affine


def oblique(seed):
  """A random rotation with anisotropic spacing."""
  rng = np.random.default_rng(seed)
  affine = np.eye(4)
  affine[:3, :3] = Rotation.random(rng=rng).as_matrix() * rng.uniform(0.5, 5, 3)
  affine[:3, 3] = rng.uniform(-300, 300, 3)
  return affine


AFFINES = [pytest.param(affine_of(codes), id=codes) for codes in ORIENTATIONS]
AFFINES += [pytest.param(oblique(seed), id=f'oblique{seed}') for seed in range(20)]


def random_image(seed=0, shape=SHAPE, dtype=np.int16):
  return np.random.default_rng(seed).integers(-1000, 1000, shape).astype(dtype)


def save(path, array, affine=None, **header):
  """Writes a NIfTI file; header fields are set as given."""
  image = nib.Nifti1Image(array, affine_of('RAS') if affine is None else affine)
  for field, value in header.items():
    image.header[field] = value
  nib.save(image, path)
  return path


def patch(path, offset, content):
  """Overwrites bytes of an uncompressed NIfTI-1 header; nibabel would repair bad values."""
  data = bytearray(path.read_bytes())
  data[offset : offset + len(content)] = content
  path.write_bytes(data)
  return path


def test_analyze_is_refused(tmp_path):
  path = tmp_path / 'scan.img'
  nib.save(nib.AnalyzeImage(np.zeros((4, 5, 6), np.int16), np.eye(4)), path)
  for spacing in (None, (1.0, 1.0, 1.0)):
    with pytest.raises(volume.VolumeError, match='is Analyze 7.5, which does not tell sides'):
      volume.read_image(path, assume_spacing=spacing)


def test_there_are_48_orientations():
  assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize('affine', AFFINES)
def test_canonical_order_is_nibabels(affine):
  array = random_image()
  scan = volume.to_canonical(array, affine)
  oracle = nib.as_closest_canonical(nib.Nifti1Image(array, affine))
  np.testing.assert_array_equal(scan.array, np.asarray(oracle.dataobj))
  np.testing.assert_allclose(scan.geometry.canonical_affine, oracle.affine, atol=1e-9)
  np.testing.assert_allclose(scan.spacing, nib.affines.voxel_sizes(oracle.affine))
  assert scan.geometry.canonical_shape == scan.array.shape
  assert scan.geometry.shape == array.shape


@pytest.mark.parametrize('affine', AFFINES)
def test_landmark_keeps_its_place_in_the_world(affine):
  array = np.zeros(SHAPE, np.int16)
  array[1, 4, 2] = 1
  scan = volume.to_canonical(array, affine)
  landmark = np.argwhere(scan.array)[0]
  np.testing.assert_allclose(
    nib.affines.apply_affine(scan.geometry.canonical_affine, landmark),
    nib.affines.apply_affine(affine, (1, 4, 2)),
    atol=1e-9,
  )


@pytest.mark.parametrize('affine', AFFINES)
@pytest.mark.parametrize('form', ['sform', 'qform'])
def test_file_round_trip_is_exact(affine, form, tmp_path):
  array = random_image()
  image = nib.Nifti1Image(array, None)
  image.header.set_sform(affine if form == 'sform' else None, code=int(form == 'sform') * 2)
  image.header.set_qform(affine if form == 'qform' else None, code=int(form == 'qform'))
  image.header['pixdim'][1:4] = nib.affines.voxel_sizes(affine)
  nib.save(image, tmp_path / 'in.nii')
  scan = volume.read_image(tmp_path / 'in.nii')
  mask = (scan.array > 100).astype(np.uint8)
  volume.write_nifti(tmp_path / 'out.nii.gz', mask, scan.geometry, np.uint8)
  source, out = nib.load(tmp_path / 'in.nii'), nib.load(tmp_path / 'out.nii.gz')
  np.testing.assert_allclose(source.affine, affine, atol=1e-3)  # the file holds float32
  np.testing.assert_array_equal(out.affine, source.affine)
  for field in ('sform_code', 'qform_code'):
    assert out.header[field] == source.header[field]
  assert out.get_data_dtype() == np.uint8
  np.testing.assert_array_equal(np.asarray(out.dataobj), array > 100)


@settings(deadline=None, max_examples=60)
@given(
  hnp.arrays(np.uint8, st.tuples(*[st.integers(2, 6)] * 3)),
  st.integers(0, 2**32 - 1),
  st.sampled_from(ORIENTATIONS),
)
def test_arrays_round_trip(array, seed, codes):
  for affine in (oblique(seed), affine_of(codes)):
    scan = volume.to_canonical(array, affine)
    np.testing.assert_array_equal(volume.from_canonical(scan.array, scan.geometry), array)
    channels = np.stack([scan.array, scan.array // 2], -1)
    back = volume.from_canonical(channels, scan.geometry)
    np.testing.assert_array_equal(back, np.stack([array, array // 2], -1))


@pytest.mark.parametrize('affine', AFFINES[::5])
def test_mask_survives_the_way_through_the_working_grid(affine):
  affine = affine @ np.diag([0.4, 0.4, 0.4, 1])
  spacing = nib.affines.voxel_sizes(affine)
  shape = np.rint(45 / spacing).astype(int)
  index = np.stack(np.indices(shape), -1)
  mask = np.linalg.norm((index - (shape - 1) / 2) * spacing, axis=-1) < 18  # a ball of 24 ml
  scan = volume.to_canonical(mask, affine)
  coarse = resample.resample(scan.array.astype(np.float32), scan.spacing, (1.5,) * 3, order=1)
  fine = resample.resample(coarse, (1.5,) * 3, scan.spacing, order=1, target_shape=scan.array.shape)
  back = volume.from_canonical(fine > 0.5, scan.geometry)
  assert 2 * (mask & back).sum() / (mask.sum() + back.sum()) > 0.99


def test_written_without_a_header(tmp_path):
  scan = volume.to_canonical(random_image(), affine_of('LPS'))
  volume.write_nifti(tmp_path / 'out.nii', scan.array, scan.geometry, np.int16)
  back = volume.read_image(tmp_path / 'out.nii')
  np.testing.assert_array_equal(back.geometry.affine, affine_of('LPS'))
  np.testing.assert_array_equal(back.array, scan.array)


@pytest.mark.parametrize('kind', [nib.Nifti2Image, nib.Nifti1Pair])
def test_other_nifti_files(kind, tmp_path):
  affine = oblique(3)
  name = 'in.nii' if kind is nib.Nifti2Image else 'in.hdr'
  nib.save(kind(random_image(), affine), tmp_path / name)
  scan = volume.read_image(tmp_path / name)
  volume.write_nifti(tmp_path / 'out.nii.gz', scan.array, scan.geometry, np.int16)
  out = nib.load(tmp_path / 'out.nii.gz')
  np.testing.assert_array_equal(out.affine, nib.load(tmp_path / name).affine)
  np.testing.assert_array_equal(np.asarray(out.dataobj), random_image())


def test_private_text_is_not_copied(tmp_path):
  path = save(tmp_path / 'in.nii', random_image(), descrip=b'JANE DOE', db_name=b'DOE')
  scan = volume.read_image(path)
  volume.write_nifti(tmp_path / 'out.nii', scan.array, scan.geometry, np.int16)
  assert b'DOE' not in (tmp_path / 'out.nii').read_bytes()


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
  scan = volume.to_canonical(random_image(), affine_of('RAS'))
  path = tmp_path / 'out.nii.gz'
  path.write_text('old')

  def fail(image, name):
    name.write_text('half')
    raise OSError('disk full')

  monkeypatch.setattr(nib, 'save', fail)
  with pytest.raises(OSError, match='disk full'):
    volume.write_nifti(path, scan.array, scan.geometry, np.int16)
  assert [p.name for p in tmp_path.iterdir()] == ['out.nii.gz']
  assert path.read_text() == 'old'


@pytest.mark.parametrize('bad', [300, -1, 0.5])
def test_values_that_the_stored_type_cannot_hold(bad, tmp_path):
  array = np.zeros(SHAPE)
  array[0, 0, 0] = bad
  scan = volume.to_canonical(array, affine_of('RAS'))
  with np.errstate(invalid='ignore'), pytest.raises(ValueError, match='uint8 cannot hold'):
    volume.write_nifti(tmp_path / 'out.nii', scan.array, scan.geometry, np.uint8)
  assert not list(tmp_path.iterdir())


def test_wrong_grid_or_ending(tmp_path):
  scan = volume.to_canonical(random_image(), affine_of('SRP'))
  with pytest.raises(ValueError, match=r'\(5, 6, 7\) is not on the canonical grid \(6, 7, 5\)'):
    volume.from_canonical(random_image(), scan.geometry)
  with pytest.raises(ValueError, match='name the file .nii or .nii.gz'):
    volume.write_nifti(tmp_path / 'out.nrrd', scan.array, scan.geometry, np.int16)


@pytest.mark.parametrize('dtype', [np.int16, np.int32, np.float32, np.float64, '>i2'])
def test_stored_types(dtype, tmp_path):
  path = save(tmp_path / 'in.nii', random_image(dtype=dtype))
  scan = volume.read_image(path)
  assert scan.array.dtype == np.float32
  np.testing.assert_array_equal(scan.array, random_image())


def test_slope_and_intercept_are_applied(tmp_path):
  image = nib.Nifti1Image((random_image() + 1024).astype(np.uint16), affine_of('RAS'))
  image.header.set_slope_inter(1, -1024)
  nib.save(image, tmp_path / 'in.nii.gz')
  np.testing.assert_array_equal(volume.read_image(tmp_path / 'in.nii.gz').array, random_image())


def test_padding_and_broken_voxels_become_air(tmp_path):
  array = random_image(dtype=np.float32)
  values = [np.nan, np.inf, -np.inf, -2000, -3024, -1025, -1024, 3095]
  array.ravel()[: len(values)] = values
  path = save(tmp_path / 'in.nii', array)
  with pytest.warns(UserWarning, match=r'in.nii: 3 voxels not finite and 3 voxels below -1024 HU'):
    scan = volume.read_image(path)
  assert scan.array.ravel()[: len(values)].tolist() == [-1024] * 7 + [3095]
  np.testing.assert_array_equal(scan.array.ravel()[len(values) :], array.ravel()[len(values) :])


def test_clean_scan_gives_no_warning(tmp_path):
  path = save(tmp_path / 'in.nii', random_image())
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    volume.read_image(path)


def test_unsigned_scan_is_called_implausible(tmp_path):
  path = save(tmp_path / 'in.nii', (random_image() + 1024).astype(np.uint16))
  with pytest.warns(UserWarning, match='do not look like HU'):
    volume.read_image(path)


def test_sform_wins_over_qform(tmp_path):
  image = nib.Nifti1Image(random_image(), affine_of('LPS'))
  moved = affine_of('LPS')
  moved[2, 3] += 2
  image.set_qform(moved, code=1)
  nib.save(image, tmp_path / 'in.nii')
  with pytest.warns(UserWarning, match='sform and qform are up to 2 mm apart; using sform'):
    scan = volume.read_image(tmp_path / 'in.nii')
  np.testing.assert_array_equal(scan.geometry.affine, affine_of('LPS'))


def test_sheared_axes_warn_and_keep_the_affine():
  affine = affine_of('RAS')
  affine[0, 1] = 0.25
  with pytest.warns(UserWarning, match='right angles'):
    scan = volume.to_canonical(random_image(), affine)
  np.testing.assert_array_equal(scan.geometry.affine, affine)


@pytest.mark.parametrize(
  ('shape', 'message'),
  [
    ((5, 6), r'shape \(5, 6\) is not 3D'),
    ((5, 6, 1), r'shape \(5, 6, 1\) is not 3D'),
    ((5, 6, 7, 2), r'shape \(5, 6, 7, 2\) holds several volumes'),
    ((5, 6, 7, 1, 3), r'shape \(5, 6, 7, 1, 3\) holds several'),
  ],
)
def test_wrong_number_of_axes(shape, message, tmp_path):
  path = save(tmp_path / 'in.nii', np.zeros(shape, np.int16))
  for read in (volume.read_image, volume.read_labels):
    with pytest.raises(volume.VolumeError, match=f'in.nii: {message}'):
      read(path)


def test_a_single_fourth_axis_is_dropped(tmp_path):
  path = save(tmp_path / 'in.nii', random_image()[..., None])
  np.testing.assert_array_equal(volume.read_image(path).array, random_image())


@pytest.mark.parametrize('dtype', [[('R', 'u1'), ('G', 'u1'), ('B', 'u1')], np.complex64])
def test_colour_and_complex(dtype, tmp_path):
  path = save(tmp_path / 'in.nii', np.zeros(SHAPE, dtype))
  with pytest.raises(volume.VolumeError, match='in.nii: voxels of type .*save plain numbers'):
    volume.read_image(path)


@pytest.mark.parametrize('value', [0, -1.25, np.nan, np.inf])
def test_bad_pixdim(value, tmp_path):
  path = save(tmp_path / 'in.nii', random_image())
  patch(path, 84, np.float32(value).tobytes())  # pixdim[2]
  with pytest.raises(
    volume.VolumeError, match=r'in.nii: pixdim \[0.75, .*, 3.0\] must be positive'
  ):
    volume.read_image(path)


@pytest.mark.parametrize(
  'rows', [np.zeros((3, 4)), [[1, 2, 0, 0], [2, 4, 0, 0], [0, 0, 1, 0]], np.full((3, 4), np.nan)]
)
def test_singular_affine(rows, tmp_path):
  path = patch(save(tmp_path / 'in.nii', random_image()), 280, np.float32(rows).tobytes())
  with pytest.raises(volume.VolumeError, match='in.nii: .*(singular|finite)'):
    volume.read_image(path)


def test_unknown_orientation(tmp_path):
  path = save(tmp_path / 'in.nii', random_image())
  patch(path, 252, bytes(4))  # qform_code and sform_code
  with pytest.raises(volume.VolumeError, match=r'not set \(code 0\)'):
    volume.read_image(path)
  save(path, np.zeros((512, 2, 2), np.int16), np.eye(4))
  with pytest.raises(volume.VolumeError, match='identity'):
    volume.read_image(path)


@pytest.mark.parametrize('damage', ['empty', 'truncated', 'cut header', 'noise', 'missing'])
@pytest.mark.parametrize('ending', ['nii', 'nii.gz'])
def test_unreadable_files(damage, ending, tmp_path):
  path = save(tmp_path / f'in.{ending}', random_image(shape=(20, 20, 20)))
  data = path.read_bytes()
  if damage == 'missing':
    path.unlink()
  else:
    cut = {'empty': 0, 'truncated': len(data) * 2 // 3, 'cut header': 100}.get(damage)
    path.write_bytes(data[:cut] if cut is not None else np.random.default_rng(0).bytes(9000))
  with pytest.raises(volume.VolumeError, match=rf'in.{ending}: cannot be read') as error:
    volume.read_image(path)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('read', [volume.read_image, volume.read_labels])
def test_a_lack_of_memory_is_no_damage(read, tmp_path, monkeypatch):
  def fail(*arguments, **options):
    raise MemoryError('Unable to allocate 40 GiB')

  path = save(tmp_path / 'in.nii.gz', np.ones((4, 5, 6), np.uint8))
  for module, function in ((nifti, '_load'), (volume, 'to_canonical')):
    with monkeypatch.context() as context:
      context.setattr(module, function, fail)
      with pytest.raises(volume.VolumeError, match='in.nii.gz: not enough memory to read') as error:
        read(path)
    assert '40 GiB' in str(error.value) and 'convert' not in str(error.value)


@pytest.mark.parametrize('name', ['in.nii', 'in.nii.gz', 'in.NII', 'in.NII.GZ', 'in.gz', 'in'])
@pytest.mark.parametrize('kind', [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize('pack', [bytes, gzip.compress])
def test_the_first_bytes_say_what_a_file_is(pack, kind, name, tmp_path):
  image = kind(random_image(), affine_of('LPS'))
  (tmp_path / name).write_bytes(pack(image.to_bytes()))
  scan = volume.read_image(tmp_path / name)
  np.testing.assert_array_equal(scan.array, random_image()[::-1, ::-1])
  np.testing.assert_array_equal(scan.geometry.affine, image.affine)


def test_other_formats(tmp_path):
  nib.save(nib.MGHImage(random_image(dtype=np.float32), affine_of('RAS')), tmp_path / 'in.mgz')
  (tmp_path / 'in.txt').write_text('not a scan')
  (tmp_path / 'in2.nii.gz').write_bytes(gzip.compress(b'not a scan'))
  for name in ('in.mgz', 'in.txt', 'in2.nii.gz'):
    with pytest.raises(volume.VolumeError, match=f'{name}: cannot be read as NIfTI'):
      volume.read_image(tmp_path / name)


def test_all_broken(tmp_path):
  path = save(tmp_path / 'in.nii', np.full(SHAPE, np.nan, np.float32))
  with pytest.raises(volume.VolumeError, match='no voxel has a finite value'):
    volume.read_image(path)


@pytest.mark.parametrize('dtype', [np.uint8, np.int16, np.uint16, np.float32, np.float64])
def test_labels_of_any_type(dtype, tmp_path):
  array = np.random.default_rng(0).choice([0, 1, 38, 206, 255], SHAPE)
  scan = volume.read_labels(save(tmp_path / 'in.nii', array.astype(dtype)))
  assert scan.array.dtype == np.uint8
  np.testing.assert_array_equal(scan.array, array)


def test_labels_stored_with_a_slope(tmp_path):
  array = np.arange(210, dtype=np.uint8).reshape(SHAPE)
  path = save(tmp_path / 'in.nii', array // 3 * 3)
  patch(path, 112, np.float32(1 / 3).tobytes())  # scl_slope; three thirds are not quite one
  np.testing.assert_array_equal(volume.read_labels(path).array, array // 3)
  patch(path, 112, np.float32(0.5).tobytes())
  with pytest.raises(volume.VolumeError, match='label values 1.5, 4.5, '):
    volume.read_labels(path)


@pytest.mark.parametrize(
  ('value', 'dtype', 'message'),
  [
    (0.5, np.float32, 'label values 0.5 are no integers'),
    (np.nan, np.float32, 'label values nan are no integers'),
    (np.inf, np.float32, 'label values inf are no integers'),
    (-1, np.int16, 'label values -1 are outside 0..255'),
    (256, np.int16, 'label values 256 are outside 0..255'),
    (-3, np.float32, 'label values -3 are outside'),
  ],
)
@pytest.mark.filterwarnings('ignore:invalid value')
def test_bad_labels(value, dtype, message, tmp_path):
  array = np.zeros(SHAPE, dtype)
  array[1, 2, 3] = value
  with pytest.raises(volume.VolumeError, match=f'in.nii: {message}'):
    volume.read_labels(save(tmp_path / 'in.nii', array))


def test_all_bad_labels_are_named(tmp_path):
  array = np.zeros(SHAPE, np.int16)
  array.flat[:4] = 300, -1, 300, 7
  with pytest.raises(volume.VolumeError, match='label values -1, 300 are outside'):
    volume.read_labels(save(tmp_path / 'in.nii', array))
  array = np.arange(array.size, dtype=np.float32).reshape(SHAPE) / 2
  with pytest.raises(volume.VolumeError, match=r'values 0\.5, 1\.5, .*7\.5 and 97 more are no int'):
    volume.read_labels(save(tmp_path / 'in.nii', array))


def centre_x(mask):
  return np.argwhere(mask)[:, 0].mean()


def test_openkbp_parotids(real_data):
  folder = real_data / 'openkbp' / 'train'
  scan = volume.read_labels(folder / 'pt_90_oar.nii.gz')
  image = volume.read_image(folder / 'pt_90_ct.nii.gz')
  assert nib.aff2axcodes(scan.geometry.affine) == ('P', 'L', 'I')
  assert scan.array.shape == image.array.shape == (60, 69, 128)
  np.testing.assert_allclose(scan.spacing, (3.906, 3.906, 3.0), atol=1e-6)
  right, left = scan.array == 3, scan.array == 4
  assert right.any() and left.any()
  assert centre_x(right) > centre_x(left) + 10
  cord, mandible = np.argwhere(scan.array == 2), np.argwhere(scan.array == 7)
  assert mandible[:, 1].mean() > cord[:, 1].mean()  # anterior
  assert mandible[:, 2].mean() > cord[:, 2].mean()  # superior


def test_totalsegmentator_sides(real_data):
  folder = real_data / 'totalsegmentator'
  with pytest.warns(UserWarning, match=': [1-9][0-9]* voxels below -1024 HU'):
    image = volume.read_image(folder / 'example_ct.nii.gz')  # int32, down to -1207
  labels = volume.read_labels(folder / 'example_seg_fast_force_split.nii.gz').array
  assert image.array.min() == -1024
  assert image.array.max() == 3382
  liver, spleen = (centre_x(labels == value) for value in (5, 1))
  assert liver > (image.array.shape[0] - 1) / 2 > spleen
  assert 30 < np.median(image.array[labels == 5]) < 90  # HU of liver


def test_dcmqi_padding(real_data):
  path = real_data / 'dcmqi_3slice' / 'ct_3slice.nii.gz'
  with pytest.warns(UserWarning, match='below -1024 HU'):
    scan = volume.read_image(path)
  raw = np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj)
  assert 0.2 < (raw == -3024).mean() < 0.22
  np.testing.assert_array_equal(scan.array, np.maximum(raw, -1024))


def test_write_back_on_real_grids(real_data, tmp_path):
  for name in ('ibsi_sts/STS_008_CT_mask', 'openkbp/train/pt_90_oar'):
    path = real_data / f'{name}.nii.gz'
    scan = volume.read_labels(path)
    volume.write_nifti(tmp_path / 'out.nii.gz', scan.array, scan.geometry, np.uint8)
    source, out = nib.load(path), nib.load(tmp_path / 'out.nii.gz')
    np.testing.assert_array_equal(out.affine, source.affine)
    np.testing.assert_array_equal(np.asarray(out.dataobj), np.asarray(source.dataobj))
    assert scan.array.max() < anatomy.FIRST_SIDED_CODE


@pytest.mark.parametrize('name', ['a.nii', 'a.nii.gz'])
def test_of_several_volumes_one_is_read(name, tmp_path):
  """The others may be more than fits into memory."""
  array = np.random.default_rng(0).integers(-1000, 1000, (24, 24, 24, 1, 4, 10), np.int16)
  image = nib.Nifti1Image(array, np.eye(4))
  image.header.set_slope_inter(0.5, -10)
  nib.save(image, tmp_path / name)
  tracemalloc.start()
  scan = volume.read_image(tmp_path / name, number=13)
  most = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  np.testing.assert_array_equal(scan.array, array[..., 0, 1, 3] * np.float32(0.5) - 10)
  assert most < 3 * array.nbytes  # scaled, all of them take four times as much
