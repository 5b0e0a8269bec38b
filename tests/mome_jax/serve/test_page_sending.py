"""What the page sends of what is dropped on it, in a real browser."""

import base64
import contextlib
import io
import shutil
import tarfile
import time

import browser
import desks
import dicom_slices
import pydicom
import pytest
from threshold import Threshold, save_scan

from input_pipeline.ct import volume
from mome_jax.serve import command


@pytest.fixture(scope='module')
def address(tmp_path_factory):
  if browser.find_chromium() is None:
    pytest.skip('no Chromium on this machine')
  folder = tmp_path_factory.mktemp('temporary')
  with desks.desk(Threshold(), folder) as desk, desks.serving(desk) as (address, _):
    yield address


@pytest.fixture(scope='module')
def browsed():
  with browser.chromium((1200, 760)) as page:
    yield page


@pytest.fixture
def page(browsed, address):
  """The page without a scan."""
  browsed.open(address)
  yield browsed
  browsed.run('call("scans").then(({ scans }) => Promise.all('
              'scans.map((one) => remove(`scans/${one.scan}`))))')  # fmt: skip


@pytest.fixture
def study(tmp_path):
  """A folder to fill: study(name) adds a series to it."""

  def add(name):
    path = tmp_path / 'study' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    nifti = save_scan(tmp_path / 'scan.nii.gz', (20, 24, 8))
    dicom_slices.as_series(path, volume.read_image(nifti))
    return tmp_path / 'study'

  return add


def drop(page, *paths):
  """Drops files and folders; what the page says of them, once all are read."""
  page.run('window.over = null')
  page.run('window.sent ??= send; send = (...given) => sent(...given).finally(() => (over = true))')
  page.drop(700, 300, *paths)
  page.until('over && !$("hint").textContent || !$("error").hidden')
  return page.run('$("error").textContent')


def titles(page):
  return page.run('call("scans").then(({ scans }) => scans.map((one) => one.title))')


def test_the_file_of_open_leads_to_the_page(browsed, address, tmp_path):
  browsed.send('Page.enable')
  browsed.send('Page.navigate', url=command.redirect(tmp_path, address))
  end = time.monotonic() + browser.PATIENCE
  ready = None
  while ready != 'true':
    assert time.monotonic() < end
    time.sleep(0.1)
    with contextlib.suppress(AssertionError):  # between two pages
      ready = browsed.run('document.body?.dataset.ready')
  assert browsed.run('location.href') == address


def test_a_folder_of_slices_is_a_scan(page, study):
  folder = study('series')
  (folder / 'README.TXT').write_text('Images of one patient. ' * 40)
  assert drop(page, folder) == 'study: left out text (1 file)'
  assert titles(page) == ['study']


def test_what_lies_beside_scans_is_not_sent(page, study):
  folder = study('series')
  shutil.move(folder.parent / 'scan.nii.gz', folder / 'scan.nii.gz')
  (folder / 'scan.json').write_text('{"Modality": "CT", "Manufacturer": "none"}' * 20)
  (folder / '.DS_Store').write_bytes(b'x')
  assert drop(page, folder / 'scan.nii.gz', folder / 'scan.json') == ''
  assert titles(page) == ['scan']
  assert drop(page, folder) == ''
  assert titles(page) == ['scan', 'scan', 'study']


def test_phases_that_folders_tell_apart_are_scans(page, study):
  study('arterial')
  folder = study('venöse Phase')  # of the same identifiers, and other pixels
  headers = {path: pydicom.dcmread(path) for path in sorted(folder.rglob('IM*'))}
  first = next(iter(headers.values()))
  for path, header in headers.items():
    header.StudyInstanceUID, header.SeriesInstanceUID = first.StudyInstanceUID, '1.2.3'
    if path.parent.name != 'arterial':
      header.PixelData = bytes(len(header.PixelData))
    header.save_as(path)
  assert drop(page, folder) == ''
  assert titles(page) == ['study_arterial', 'study_venöse_Phase']


def test_files_are_sent_by_their_paths(page):
  names = ['a/.DS_Store', 'a/ä 1.dcm', f'{"ä" * 50}/{"b" * 70}.dcm', 'plain']
  packed = page.run(f"""archive({names!r}.map((name, n) => Object.assign(
    new File(["x".repeat(511 + n)], name.split("/").pop()), {{ droppedAs: n === 3 ? "" : name }}
  ))).arrayBuffer().then((bytes) => btoa(String.fromCharCode(...new Uint8Array(bytes))))""")
  with tarfile.open(fileobj=io.BytesIO(base64.b64decode(packed)), encoding='utf-8') as archive:
    assert archive.getnames() == names
    assert [item.size for item in archive] == [511, 512, 513, 514]
    assert all(set(archive.extractfile(item).read()) == set(b'x') for item in archive)
