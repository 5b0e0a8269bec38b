"""What is sent: DICOM among other files, scans that hide a size, and folders of folders."""

import io
import pathlib
import tarfile
import tempfile
import zipfile

import desks
import dicom_slices
import hypothesis
import numpy as np
import pydicom
import pytest
from hypothesis import strategies as st
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from threshold import Threshold, save_scan

from input_pipeline.ct import volume
from mome_jax.serve import uploads

README = b'This disc holds images of one patient. Start the viewer to look at them.\r\n' * 12


@pytest.fixture(scope='module')
def slices(tmp_path_factory):
  """Name -> content of the files of a series."""
  path = tmp_path_factory.mktemp('dicom') / 'series'
  nifti = save_scan(path.with_name('scan.nii.gz'), (20, 24, 8))
  dicom_slices.as_series(path, volume.read_image(nifti))
  return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def tar(files):
  """A tar archive of name -> content, or of pairs."""
  stream = io.BytesIO()
  with tarfile.open(fileobj=stream, mode='w', encoding='utf-8') as archive:
    for name, content in files.items() if isinstance(files, dict) else files:
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
  assert titles(answer) and 'study_broken: ' in ' '.join(answer.json()['problems'])


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
    within = f'both.tar: {name}' if title == 'both.tar' else name
    assert answer.json()['error'].startswith(f'{within}: a scan in two files')
  assert not list(folder.iterdir())


def phase(slices):
  """Slices of the same series and places with other pixels."""
  changed = {}
  for name, content in slices.items():
    header = pydicom.dcmread(io.BytesIO(content))
    header.SOPInstanceUID += '.1'
    header.PixelData = (np.frombuffer(header.PixelData, '<i2') + np.int16(50)).tobytes()
    stream = io.BytesIO()
    header.save_as(stream)
    changed[name] = stream.getvalue()
  return changed


def test_phases_that_folders_tell_apart_are_scans(client, slices):
  phases = {'arterial': slices, 'venous': phase(slices)}
  files = {
    f'./disc/{folder}/{name}': content
    for folder, held in phases.items()
    for name, content in held.items()
  }
  assert titles(post(client, files)) == ['study_arterial', 'study_venous']


def test_messages_name_the_files_that_were_sent(client, slices, tmp_path):
  later = {f'{name} (2)': content for name, content in phase(slices).items()}
  answer = post(client, {**slices, **later})
  assert answer.status_code == 400
  assert answer.json()['error'].startswith('study: IM0000 and IM0000 (2) lie at the same place')
  scan = save_scan(tmp_path / 'scan.nii.gz').read_bytes()
  answer = post(client, {'a/scan.nii.gz': scan, 'b/scan.nii.gz': scan, 'b/bad.nii': README})
  assert [one['title'] for one in answer.json()['scans']] == ['study_a_scan', 'study_b_scan']
  [problem] = answer.json()['problems']
  assert problem.startswith('study_bad: cannot be read as NIfTI')


@hypothesis.given(
  st.lists(st.text(st.characters(codec='utf-8', exclude_characters='\0')).filter(
    lambda name: not name.endswith('/')), min_size=1, max_size=8)
)  # fmt: skip
@hypothesis.example(['../../x', '/etc/x', 'C:\\x', '..', 'a/../../../x', '.', ''])
@hypothesis.example(['a', 'a', 'a/b', 'c/d', 'c', 'A'])
@hypothesis.example(['ä' * 300, f'{"b" * 300}.dcm', 'a\x01\n\u2028', '~', '-rf', '%s'])
def test_no_name_leads_out_of_the_folder_or_costs_a_file(names):
  with tempfile.TemporaryDirectory() as place:
    files = pathlib.Path(place, 'sent')
    files.mkdir()
    path = files / 'scan.tar'
    path.write_bytes(tar([(name, b'%d' % n) for n, name in enumerate(names)]))
    folder = uploads.unpack(path, 'study.tar', 1000)
    held = [file for file in pathlib.Path(place).rglob('*') if file.is_file()]
    assert all(folder in file.parents for file in held)
    assert sorted(int(file.read_bytes()) for file in held) == list(range(len(names)))
    assert all(file.name.isprintable() for file in held)
