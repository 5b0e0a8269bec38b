"""What the page sends of what is dropped on it, in a real browser."""

import shutil

import browser
import desks
import dicom_slices
import pytest
from threshold import Threshold, save_scan

from input_pipeline.ct import volume


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
