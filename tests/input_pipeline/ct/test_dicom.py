import io

import numpy as np
import pydicom
import pytest
from nibabel.nicom import dicomwrappers
from scipy import stats
from scipy.spatial.transform import Rotation

from input_pipeline.ct import dicom, volume
from tests.input_pipeline.sources import layouts

SLICES = 6


def scan():
  image = layouts.body([1, 2])[0][..., :SLICES].copy()
  image[18, 3, 2], image[5, 12, 4] = 300, -500
  return image


def series(folder, rotation=None, **changes):
  """A series of the scan, its axes turned by a rotation; returns the datasets by file name."""
  folder.mkdir(parents=True, exist_ok=True)
  datasets = {}
  for name, data in layouts.dicom_files(scan(), 'i{:03d}.dcm').items():
    ds = pydicom.dcmread(io.BytesIO(data))
    if rotation is not None:
      rows, columns, normal = rotation.as_matrix().T
      ds.ImageOrientationPatient = [round(float(v), 8) for v in (*rows, *columns)]
      height = float(ds.ImagePositionPatient[2])
      ds.ImagePositionPatient = [float(v) for v in np.array([-100, -50, 7]) + height * normal]
    for field, value in changes.items():
      if field == 'PixelPaddingValue':
        ds.add_new('PixelPaddingValue', 'US', value)
      else:
        setattr(ds, field, value)
    ds.save_as(folder / name)
    datasets[name] = ds
  return datasets


def test_folder_and_zip_are_the_scan(tmp_path):
  files = layouts.dicom_files(scan(), 'a/b/i{:03d}')
  layouts.write_files(tmp_path / 'folder', {**files, 'README.txt': b'no DICOM', 'DICOMDIR': b'x'})
  layouts.write_zip(tmp_path / 'scan.zip', {**files, '__MACOSX/a/._i000': b'x'})
  for path in (tmp_path / 'folder', tmp_path / 'scan.zip'):
    result = dicom.read_dicom(path)
    np.testing.assert_array_equal(result.array, scan())
    assert result.array.dtype == np.float32
    np.testing.assert_allclose(result.spacing, layouts.SPACING)
    assert result.geometry.shape == scan().shape


@pytest.mark.parametrize('seed', range(8))
def test_every_voxel_lies_where_nibabel_puts_it(seed, tmp_path):
  rotation = Rotation.random(random_state=seed) if seed else None
  datasets = series(tmp_path / 's', rotation)
  result = dicom.read_series(tmp_path / 's')
  restored = volume.from_canonical(result.volume.array, result.volume.geometry)
  for k, name in enumerate(result.names):
    wrapper = dicomwrappers.wrapper_from_data(datasets[name])
    np.testing.assert_allclose(restored[..., k], wrapper.get_data().T)
    for column, row in ([0, 0], [23, 0], [5, 15]):
      # nibabel's affine of one slice: (row, column, 0) to LPS mm.
      x, y, z, _ = wrapper.affine @ [row, column, 0, 1]
      ours = result.volume.geometry.affine @ [column, row, k, 1]
      np.testing.assert_allclose(ours[:3], (-x, -y, z), atol=1e-4)


@pytest.mark.parametrize(
  ('owner', 'name', 'value'),
  [(pydicom.Dataset, 'pixel_array', property), (np, 'stack', lambda fail: fail)],
)
def test_a_lack_of_memory_is_no_damage(owner, name, value, tmp_path, monkeypatch):
  def fail(*arguments, **options):
    raise MemoryError('Unable to allocate 40 GiB')

  series(tmp_path / 's')
  monkeypatch.setattr(owner, name, value(fail))
  with pytest.raises(volume.VolumeError, match=r's: not enough memory to read it \(Unable'):
    dicom.read_dicom(tmp_path / 's')


def test_padding_becomes_air(tmp_path):
  air = int(scan().min())
  assert air > -1024
  series(tmp_path / 's', PixelPaddingValue=(air + 1024) // 2)
  result = dicom.read_dicom(tmp_path / 's')
  np.testing.assert_array_equal(result.array == -1024, scan() == air)


def test_padding_that_stands_for_tissue_is_not_heeded(tmp_path):
  series(tmp_path / 's', PixelPaddingValue=(40 + 1024) // 2)
  with pytest.warns(UserWarning, match='PixelPaddingValue stands for 40 HU'):
    result = dicom.read_dicom(tmp_path / 's')
  np.testing.assert_array_equal(result.array, scan())


def move(folder, heights):
  """Gives the slices, from the lowest on, other heights in mm."""
  paths = sorted(folder.iterdir(), reverse=True)
  for path, height in zip(paths, heights, strict=True):
    ds = pydicom.dcmread(path)
    ds.ImagePositionPatient = [-100, -50, height]
    ds.save_as(path)


@pytest.mark.parametrize('step', [0.75, 0.625, 2.25, 6.0])
def test_positions_of_one_decimal(step, tmp_path):
  series(tmp_path / 's')
  move(tmp_path / 's', [round(step * k, 1) for k in range(SLICES)])
  result = dicom.read_dicom(tmp_path / 's')
  np.testing.assert_array_equal(result.array, scan())
  # An independent line: the median of the slopes between all pairs (Theil and Sen).
  heights = np.round(step * np.arange(SLICES), 1)
  assert result.spacing[2] == pytest.approx(stats.theilslopes(heights)[0], abs=0.02)
  assert result.spacing[2] == pytest.approx(step, abs=0.02)


@pytest.mark.parametrize(
  ('heights', 'message'),
  [
    (
      [0, 6, 12, 24, 30, 36],
      r'i003\.dcm and i002\.dcm lie 12\.00 mm apart, others 6\.00 mm.*missing',
    ),
    ([0, 6, 12, 24, 30, 36], r'slices are 6\.00 to 12\.00 mm apart.*unevenly spaced'),
    ([0, 1, 3, 4, 6, 7], 'slices are 1.00 to 2.00 mm apart'),
    ([0, 5, 10, 15, 16.25, 17.5], r'slices are 1\.25 to 5\.00 mm apart.*dcm2niix'),
    ([0, 6, 12, 12, 18, 24], 'at the same place'),
    ([0, 6, 12, 19.5, 24, 30], 'unevenly spaced'),
  ],
)
def test_uneven_steps_are_told_as_what_they_are(heights, message, tmp_path):
  series(tmp_path / 's')
  move(tmp_path / 's', heights)
  if 'missing' in message:  # numbers that do not follow each other: something is missing
    for path in list((tmp_path / 's').iterdir()):
      ds = pydicom.dcmread(path)
      ds.InstanceNumber = int(ds.ImagePositionPatient[2] // 6)
      ds.save_as(path)
  with pytest.raises(volume.VolumeError, match=message):
    dicom.read_dicom(tmp_path / 's')


def test_copies_of_files_are_left_out(tmp_path):
  series(tmp_path / 's')
  for path in list((tmp_path / 's').iterdir()):
    (tmp_path / 's' / f'{path.stem} (1).dcm').write_bytes(path.read_bytes())
  with pytest.warns(UserWarning, match=r'left out copies of slices \(6 files\)'):
    result = dicom.read_series(tmp_path / 's')
  np.testing.assert_array_equal(result.volume.array, scan())
  assert len(result.headers) == SLICES


def test_files_without_preamble(tmp_path):
  series(tmp_path / 's')
  for number, path in enumerate(sorted((tmp_path / 's').iterdir())[:4]):
    ds = pydicom.dcmread(path)
    del ds.file_meta
    (tmp_path / 's' / f'IM{number}').write_bytes(b'')
    ds.save_as(tmp_path / 's' / f'IM{number}', implicit_vr=number % 2 == 0, little_endian=True)
    path.unlink()
  np.testing.assert_array_equal(dicom.read_dicom(tmp_path / 's').array, scan())


def test_fields_that_are_there_and_empty(tmp_path):
  folder = tmp_path / 's'
  empty = dict.fromkeys(('Modality', 'ImageType', 'SeriesNumber', 'AcquisitionNumber',
                         'SeriesInstanceUID', 'RescaleSlope', 'RescaleIntercept'))  # fmt: skip
  series(folder, **empty, PixelPaddingValue=None)
  np.testing.assert_array_equal(dicom.read_dicom(folder).array, (scan() + 1024) // 2)
  series(folder, PixelSpacing=None)
  with pytest.raises(volume.VolumeError, match=r'i\d+\.dcm: no PixelSpacing; export'):
    dicom.read_dicom(folder)


def test_directions_that_are_none(tmp_path):
  series(tmp_path / 's', ImageOrientationPatient=[1, 0, 0, 1, 0, 0])
  with pytest.raises(volume.VolumeError, match='is not two directions at right angles'):
    dicom.read_dicom(tmp_path / 's')


@pytest.mark.parametrize('spacing', [(0, 2), (2, -2)])
def test_pixels_without_a_size(spacing, tmp_path):
  """A negative size would mirror the scan."""
  series(tmp_path / 's', PixelSpacing=list(spacing))
  with pytest.raises(
    volume.VolumeError, match=r'i000\.dcm: PixelSpacing \[.*\] must be above 0 mm'
  ):
    dicom.read_dicom(tmp_path / 's')


def test_sizes_that_no_scanner_makes(tmp_path):
  """The fix is none for NIfTI."""
  series(tmp_path / 's', PixelSpacing=[200, 200])
  with pytest.raises(volume.VolumeError, match='outside 0.01 to 100 mm; export the series again$'):
    dicom.read_dicom(tmp_path / 's')


class TestRefused:
  def message(self, folder, match):
    with pytest.raises(volume.VolumeError, match=match):
      dicom.read_dicom(folder)

  def test_missing_doubled_and_single_slices(self, tmp_path):
    folder = tmp_path / 's'
    series(folder)
    content = (folder / 'i002.dcm').read_bytes()
    (folder / 'i002.dcm').unlink()
    self.message(folder, r'i003\.dcm and i001\.dcm lie 12\.00 mm apart')
    (folder / 'i002.dcm').write_bytes(content)
    other = pydicom.dcmread(io.BytesIO(content))
    other.PixelData = bytes(len(other.PixelData))
    other.save_as(folder / 'copy.dcm')
    self.message(folder, r'copy\.dcm and i002\.dcm lie at the same place and differ')
    for path in list(folder.glob('*')):
      path.unlink()
    self.message(folder, 'no DICOM CT slices')
    (folder / 'i002.dcm').write_bytes(content)
    self.message(folder, 'one slice only')

  def test_several_series_are_listed_and_one_can_be_named(self, tmp_path):
    series(tmp_path / 's' / 'one')
    series(tmp_path / 's' / 'two', SeriesInstanceUID='1.2.9')
    self.message(tmp_path / 's', r'several series: 1\.2\.3 \(6 slices\), 1\.2\.9 \(6 slices\)')
    one = dicom.read_dicom(tmp_path / 's', series='1.2.9')
    np.testing.assert_array_equal(one.array, scan())
    with pytest.raises(volume.VolumeError, match=r'no series 1\.2\.4'):
      dicom.read_dicom(tmp_path / 's', series='1.2.4')

  def test_localiser_fields_and_damage(self, tmp_path):
    folder = tmp_path / 's'
    series(folder)
    good = (folder / 'i003.dcm').read_bytes()
    ds = pydicom.dcmread(io.BytesIO(good))
    ds.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    ds.save_as(folder / 'i003.dcm')
    self.message(folder, r'i003\.dcm: other direction')
    del ds.ImagePositionPatient
    ds.save_as(folder / 'i003.dcm')
    self.message(folder, r'i003\.dcm: no ImagePositionPatient')
    (folder / 'i003.dcm').write_bytes(good[: len(good) // 2])
    self.message(folder, r'i003\.dcm: (pixels cannot be decoded|damaged)')

  def test_neither_folder_nor_zip(self, tmp_path):
    (tmp_path / 'x.zip').write_bytes(b'PK')
    self.message(tmp_path / 'x.zip', 'neither a folder nor a zip')
    self.message(tmp_path / 'absent', 'neither a folder nor a zip')
