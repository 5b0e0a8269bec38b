"""What is sent: DICOM among other files, scans that hide a size, and folders of folders."""

import io
import tarfile
import zipfile

import desks
import dicom_slices
import pydicom
import pytest
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from threshold import Threshold, save_scan

from input_pipeline.ct import volume

README = b'This disc holds images of one patient. Start the viewer to look at them.\r\n' * 12


@pytest.fixture
def folder(tmp_path):
  path = tmp_path / 'temporary'
  path.mkdir()
  return path


@pytest.fixture
def client(folder):
  with desks.desk(Threshold(), folder) as desk, desks.client(desk) as client:
    yield client


@pytest.fixture(scope='module')
def slices(tmp_path_factory):
  """Name -> content of the files of a series."""
  path = tmp_path_factory.mktemp('dicom') / 'series'
  nifti = save_scan(path.with_name('scan.nii.gz'), (20, 24, 8))
  dicom_slices.as_series(path, volume.read_image(nifti))
  return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def tar(files):
  """A tar archive of name -> content."""
  stream = io.BytesIO()
  with tarfile.open(fileobj=stream, mode='w') as archive:
    for name, content in files.items():
      item = tarfile.TarInfo(name)
      item.size = len(content)
      archive.addfile(item, io.BytesIO(content))
  return stream.getvalue()


def zipped(files):
  stream = io.BytesIO()
  with zipfile.ZipFile(stream, 'w', zipfile.ZIP_DEFLATED) as archive:
    for name, content in files.items():
      archive.writestr(name, content)
  return stream.getvalue()


def post(client, files, name='study.tar'):
  """The answer to files that are sent in one archive."""
  return client.post('api/scans', params={'name': name}, content=tar(files))


def titles(answer):
  assert answer.status_code == 201, answer.text
  assert all(scan['shape'] == [20, 24, 8] for scan in answer.json()['scans'])
  return [scan['title'] for scan in answer.json()['scans']]


# ---------------------------------------------------------------------------- sizes
@pytest.mark.parametrize(
  ('name', 'content', 'reason'),
  [
    ('README.TXT', README, 'text'),
    ('viewer.exe', b'MZ\x90\0\3' + bytes(range(256)) * 20, 'unknown format'),
    ('report.pdf', b'%PDF-1.4\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<< /Type /Catalog >>\n' * 10, 'picture'),
    ('index.html', b'<!DOCTYPE html>\n<html><head><title>Images</title></head>' * 20, 'text'),
  ],
)
def test_what_is_no_scan_has_no_size(client, slices, name, content, reason):
  answer = post(client, {**slices, name: content})
  assert titles(answer) == ['study']
  [problem] = answer.json()['problems']
  assert problem.startswith('study') and f'left out {reason} (1 file)' in problem


def without_preamble(content):
  return content[132:]


def with_text_before(content):
  return b'Written by some vendor '.ljust(128, b'.') + content[128:]


def bare(content):
  dataset = pydicom.Dataset()
  dataset.update(dict(pydicom.dcmread(io.BytesIO(content)).items()))
  stream = DicomBytesIO()
  stream.is_little_endian = stream.is_implicit_VR = True
  write_dataset(stream, dataset)
  return stream.getvalue()


@pytest.mark.parametrize('change', [without_preamble, with_text_before, bare])
def test_slices_are_no_headers_of_nifti(client, slices, change):
  assert titles(post(client, {k: change(v) for k, v in slices.items()})) == ['study']


def test_a_zip_in_a_tar_is_measured_unpacked(folder, slices):
  files = {
    'study.zip': zipped({**slices, 'README.TXT': b' ' * 300_000}),
    'broken.zip': b'PK\3\4' + bytes(40),
  }
  assert len(tar(files)) < 100_000
  for limit, status in ((200_000, 413), (1 << 20, 201)):
    with desks.desk(Threshold(), folder, limit=limit) as desk, desks.client(desk) as client:
      answer = post(client, files)
      assert answer.status_code == status, answer.text
  assert titles(answer) and 'a zip archive (' in ' '.join(answer.json()['problems'])


def test_a_page_that_was_saved_as_a_scan_is_not_too_large(client):
  for name in ('scan.nii', 'scan.nii.gz'):
    answer = client.post('api/scans', params={'name': name}, content=b'<html>Sign in</html>' * 50)
    assert answer.status_code == 400 and 'cannot be read as NIfTI' in answer.json()['error']


# ---------------------------------------------------------------------------- names
def test_slices_may_be_called_img(client, slices):
  files = {f'{name}.IMG': content for name, content in slices.items()}
  assert titles(post(client, {**files, '._IM0000.IMG': b'of macOS'})) == ['study']
  answer = client.post('api/scans', params={'name': '0.img'}, content=slices['IM0000'])
  assert answer.status_code == 400 and 'one DICOM file; pass the folder' in answer.json()['error']


@pytest.mark.parametrize('name', ['a.hdr', 'A.IMG', 'b.mhd'])
def test_half_of_a_scan_is_refused(client, folder, name):
  for title, content in ((name, b'x'), ('both.tar', tar({name: b'x'}))):
    answer = client.post('api/scans', params={'name': title}, content=content)
    assert answer.status_code == 400
    assert answer.json()['error'].startswith(f'{title}: a scan in two files')
  assert not list(folder.iterdir())
