"""NRRD and MetaImage, against pynrrd and a header written by hand."""

import pathlib
import subprocess
import sys

import nibabel as nib
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from input_pipeline.ct import itk_image, volume
from input_pipeline.files import image_headers, inventory

# NRRD's axes of the world -> RAS.
TO_RAS = {
  'left-posterior-superior': (-1, -1, 1), 'RAS': (1, 1, 1), 'left-anterior-superior': (-1, 1, 1),
}  # fmt: skip
DIRECTIONS = Rotation.from_euler('xyz', (0.2, -0.1, 0.3)).as_matrix() * [1.5, 2, 3]  # columns


def scan(shape=(7, 6, 5)):
  rng = np.random.default_rng(0)
  array = rng.integers(-1000, 1500, shape).astype(np.int16)
  return array


def save_nrrd(path, array=None, *, directions=DIRECTIONS, space='RAS', **fields):
  array = scan() if array is None else array
  header = {'space': space, 'space directions': directions.T, 'space origin': (3, -4, 5)}
  nrrd.write(str(path), array, header | fields, index_order='F')
  return path


@pytest.mark.parametrize('space', TO_RAS)
@pytest.mark.parametrize('order', [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize('signs', [(1, 1, 1), (-1, 1, -1)])
def test_voxels_keep_their_place_in_the_world(space, order, signs, tmp_path):
  directions = DIRECTIONS[:, order] * signs
  array = scan()
  ct = volume.read_image(save_nrrd(tmp_path / 'a.nrrd', directions=directions, space=space))
  affine = np.eye(4)
  affine[:3, :3] = np.diag(TO_RAS[space]) @ directions
  affine[:3, 3] = np.array(TO_RAS[space]) * (3, -4, 5)
  np.testing.assert_allclose(ct.geometry.affine, affine, atol=1e-12)
  expected = volume.to_canonical(array, affine)
  np.testing.assert_array_equal(ct.array, np.maximum(expected.array, -1024))
  np.testing.assert_allclose(ct.spacing, expected.spacing)


def by_hand(shape, content, **changes):
  fields = {
    'ObjectType': 'Image', 'NDims': 3, 'BinaryData': True, 'BinaryDataByteOrderMSB': False,
    'CompressedData': False, 'TransformMatrix': '0 1 0 -1 0 0 0 0 1', 'Offset': '10 20 30',
    'ElementSpacing': '1 2 3', 'DimSize': ' '.join(map(str, shape)), 'ElementType': 'MET_SHORT',
    'ElementDataFile': 'LOCAL',
  } | changes  # fmt: skip
  text = '\n'.join(f'{key} = {value}' for key, value in fields.items() if value is not None)
  return text.encode() + b'\n' + content


def test_a_metaimage_written_by_hand(tmp_path):
  array = scan((4, 5, 6))
  (tmp_path / 'a.mha').write_bytes(by_hand(array.shape, array.tobytes('F')))
  ct = volume.read_image(tmp_path / 'a.mha')
  # Row i of TransformMatrix is the direction of axis i in LPS: (0,1,0), (-1,0,0), (0,0,1).
  affine = [[0, 2, 0, -10], [-1, 0, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1]]
  np.testing.assert_allclose(ct.geometry.affine, affine)
  np.testing.assert_array_equal(volume.from_canonical(ct.array, ct.geometry), array)


def test_voxels_beside_the_header(tmp_path):
  array = scan((4, 5, 6))
  header = by_hand(array.shape, b'', ElementDataFile='a.raw')
  (tmp_path / 'a.mhd').write_bytes(header)
  [problem] = (file.problem for file in inventory.look(tmp_path, ('itk',)).failed)
  assert problem == f'{tmp_path}/a.mhd: its a.raw file is missing; copy both'
  (tmp_path / 'a.raw').write_bytes(array.tobytes('F'))
  np.testing.assert_array_equal(
    volume.read_image(tmp_path / 'a.mhd').array, volume.read_image(tmp_path / 'a.mhd').array
  )
  assert inventory.halves(tmp_path / 'a.mhd') == [tmp_path / 'a.mhd', tmp_path / 'a.raw']
  nrrd.write(str(tmp_path / 'b.nhdr'), array, {
    'space': 'RAS', 'space directions': np.eye(3), 'space origin': (0, 0, 0)}, index_order='F',
    detached_header=True)  # fmt: skip
  np.testing.assert_array_equal(volume.read_image(tmp_path / 'b.nhdr').array, array)
  [_, beside] = inventory.halves(tmp_path / 'b.nhdr')
  assert beside.parent == tmp_path and beside.exists()
  for name in ('../a.raw', '/etc/passwd'):
    (tmp_path / 'a.mhd').write_bytes(by_hand(array.shape, b'', ElementDataFile=name))
    with pytest.raises(volume.VolumeError, match=f'voxels are said to be in {name}'):
      volume.read_image(tmp_path / 'a.mhd')


def test_files_by_pattern_and_by_list(tmp_path):
  (tmp_path / 'a.mhd').write_bytes(by_hand((4, 4, 3), b'', ElementDataFile='s%03d.raw 2 6 2'))
  (tmp_path / 'b.mhd').write_bytes(by_hand((4, 4, 3), b'x.raw\ny.raw\n', ElementDataFile='LIST'))
  (tmp_path / 'c.nhdr').write_bytes(b'NRRD0004\ntype: short\ndata file: LIST\nx.raw\ny.raw\n')
  names = [[path.name for path in image_headers.data_files(tmp_path / name)]
           for name in ('a.mhd', 'b.mhd', 'c.nhdr')]  # fmt: skip
  assert names == [['s002.raw', 's004.raw', 's006.raw'], ['x.raw', 'y.raw'], ['x.raw', 'y.raw']]


@pytest.mark.parametrize(('name', 'content', 'told'), [
  ('a.nrrd', b'NRRD0004', 'cannot be read as NRRD'),
  ('a.nrrd', b'not at all', 'begins neither as NRRD nor as MetaImage'),
  ('a.mha', b'', 'begins neither'),
  ('a.mha', by_hand((4, 5, 6), b'short'), 'cannot be read as MetaImage'),
  ('a.mha', by_hand((4, 5, 6), bytes(240), TransformMatrix=None), 'sides unknown'),
])  # fmt: skip
def test_what_cannot_be_read_is_told_in_one_line(name, content, told, tmp_path):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(volume.VolumeError, match=told) as caught:
    volume.read_image(tmp_path / name)
  assert '\n' not in str(caught.value) and str(caught.value).startswith(str(tmp_path / name))


@pytest.mark.parametrize('space', ['scanner-xyz', '3D-left-handed'])
def test_a_space_without_sides_is_refused_unless_they_are_assumed(space, tmp_path):
  path = save_nrrd(tmp_path / 'a.nrrd', space=space)
  with pytest.raises(volume.VolumeError, match=f'space is {space}: sides unknown'):
    volume.read_image(path)
  with pytest.warns(UserWarning, match='axes taken for right, anterior, superior'):
    ct = volume.read_image(path, assume_spacing=(1, 2, 4))
  np.testing.assert_array_equal(ct.geometry.affine[:3, :3], np.diag((1, 2, 4)))


def test_lengths_that_are_no_millimetres_are_refused_unless_they_are_assumed(tmp_path):
  for unit in ('mm', 'Millimetre'):
    volume.read_image(save_nrrd(tmp_path / 'a.nrrd', **{'space units': [unit] * 3}))
  path = save_nrrd(tmp_path / 'b.nrrd', **{'space units': ['cm'] * 3})
  with pytest.raises(volume.VolumeError, match='lengths are in cm .space units., not in mm; conv'):
    volume.read_image(path)
  with pytest.warns(UserWarning, match='mm assumed'):
    np.testing.assert_allclose(volume.read_image(path, assume_spacing=(1, 2, 4)).spacing, (1, 2, 4))


def test_axes_without_directions_count_as_right_anterior_superior(tmp_path):
  array = scan((4, 5, 6))
  path = tmp_path / 'a.mha'
  path.write_bytes(by_hand(array.shape, array.tobytes('F'), TransformMatrix=None))
  with pytest.warns(UserWarning, match='axes taken for right, anterior, superior: sides not che'):
    ct = volume.read_image(path, assume_spacing=(1, 2, 4))
  np.testing.assert_array_equal(ct.array, array)
  np.testing.assert_array_equal(ct.geometry.affine[:3, :3], np.diag((1, 2, 4)))


@pytest.mark.parametrize('told', ['Failed to allocate memory for image.', 'std::bad_alloc'])
def test_a_lack_of_memory_is_no_damage(told, tmp_path, monkeypatch):
  def fail(path):
    raise RuntimeError(f'Exception thrown in SimpleITK ImageFileReader_Execute\nITK ERROR: {told}')

  save_nrrd(tmp_path / 'in.nrrd')
  monkeypatch.setattr(sitk, 'ReadImage', fail)
  with pytest.raises(volume.VolumeError, match=f'in.nrrd: not enough memory to read it .{told}'):
    volume.read_image(tmp_path / 'in.nrrd')


def test_one_of_several_volumes(tmp_path):
  array = np.stack([scan(), scan() // 2])
  directions = np.vstack([np.full(3, np.nan), np.eye(3)])
  save_nrrd(tmp_path / 'a.nrrd', array, directions=directions.T,
            kinds=['vector', 'domain', 'domain', 'domain'])  # fmt: skip
  with pytest.raises(volume.VolumeError, match='holds several volumes'):
    volume.read_image(tmp_path / 'a.nrrd')
  ct = volume.read_image(tmp_path / 'a.nrrd', number=1)
  np.testing.assert_array_equal(ct.array, array[1])


@settings(max_examples=20, deadline=None)
@given(
  turn=st.tuples(*[st.floats(-1, 1)] * 3), ending=st.sampled_from(['nrrd', 'mha']),
  order=st.permutations(range(3)), several=st.booleans(),
)  # fmt: skip
def test_what_is_written_lies_where_the_scan_does(turn, ending, order, several):
  import tempfile

  affine = np.eye(4)
  affine[:3, :3] = (Rotation.from_euler('xyz', turn).as_matrix() * [1, 2, 3])[:, order]
  affine[:3, 3] = 7, 8, -9
  grid = volume.to_canonical(scan(), affine).geometry
  array = np.random.default_rng(1).integers(0, 9, grid.canonical_shape + (2,) * several, np.uint8)
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, f'a.{ending}')
    itk_image.write(path, array, grid, {'Key': 'word'})
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    again, place = itk_image.read(path)
    np.testing.assert_allclose(place, affine, atol=1e-9)
    np.testing.assert_array_equal(again, volume.from_canonical(array, grid))
    if ending == 'nrrd':  # and by a reader that shares no code with ITK
      stored, header = nrrd.read(str(path), index_order='F')
      assert header['Key'] == 'word' and header['space'] == 'left-posterior-superior'
      directions = np.asarray(header['space directions'])[several:]
      np.testing.assert_allclose(np.diag([-1, -1, 1]) @ directions.T, affine[:3, :3], atol=1e-9)
      np.testing.assert_array_equal(np.moveaxis(stored, 0, -1) if several else stored, again)


def test_labels_and_the_same_scan_as_nifti(tmp_path):
  array = np.random.default_rng(2).integers(0, 4, (7, 6, 5)).astype(np.uint16)
  labels = volume.read_labels(save_nrrd(tmp_path / 'a.nrrd', array))
  image = sitk.ReadImage(tmp_path / 'a.nrrd')
  sitk.WriteImage(image, tmp_path / 'a.nii.gz')
  other = nib.load(tmp_path / 'a.nii.gz')
  np.testing.assert_allclose(labels.geometry.affine, other.affine, atol=1e-5)
  np.testing.assert_array_equal(volume.from_canonical(labels.array, labels.geometry), other.dataobj)
  with pytest.raises(volume.VolumeError, match='outside 0..255'):
    volume.read_labels(save_nrrd(tmp_path / 'b.nrrd', array * 100))


def test_without_the_extra_it_says_what_to_install(tmp_path):
  path = save_nrrd(tmp_path / 'a.nrrd')
  code = (
    "import sys; sys.modules['SimpleITK'] = None\n"
    'from input_pipeline.ct import volume\n'
    f'try: volume.read_image({str(path)!r})\n'
    'except volume.VolumeError as error: print(error)'
  )
  told = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert told.stdout == (
    f"{path}: NRRD and MetaImage need SimpleITK: pip install 'mome-jax[itk]', or convert it to "
    '.nii.gz\n'
  )
