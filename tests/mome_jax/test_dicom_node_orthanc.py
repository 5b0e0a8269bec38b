"""The DICOM node and a real archive: Orthanc, where it is installed."""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request

import pydicom
import pytest

from tests.mome_jax.predict.test_dicom import complete
from tests.mome_jax.test_dicom_node import running

ORTHANC = shutil.which('Orthanc', path=f'{os.environ["PATH"]}:/usr/sbin')
pytestmark = pytest.mark.skipif(ORTHANC is None, reason='Orthanc is not installed')


def free_port():
  with socket.socket() as held:
    held.bind(('127.0.0.1', 0))
    return held.getsockname()[1]


class Archive:
  """Orthanc by its REST API."""

  def __init__(self, port):
    self._url = f'http://127.0.0.1:{port}'

  def __call__(self, path, body=None):
    data = json.dumps(body).encode() if isinstance(body, dict | list) else body
    with urllib.request.urlopen(f'{self._url}{path}', data, timeout=30) as answer:
      content = answer.read()
    return content if path.endswith('/file') else json.loads(content)


@pytest.fixture
def orthanc(tmp_path):
  """start(port of the node) -> its Archive, and the port that it takes DICOM at."""
  http, dicom = free_port(), free_port()
  processes = []

  def start(node_port):
    folder = tmp_path / 'orthanc'
    folder.mkdir()
    (folder / 'orthanc.json').write_text(json.dumps({
      'Name': 'test', 'StorageDirectory': str(folder), 'IndexDirectory': str(folder),
      'HttpPort': http, 'DicomPort': dicom, 'DicomAet': 'ORTHANC', 'RemoteAccessAllowed': False,
      'AuthenticationEnabled': False, 'DicomAlwaysAllowStore': True, 'Plugins': [],
      'DicomModalities': {'mome': ['MOME', '127.0.0.1', node_port]},
    }))  # fmt: skip
    log = (folder / 'log.txt').open('w')
    processes.append(subprocess.Popen([ORTHANC, folder / 'orthanc.json'], stdout=log, stderr=log))
    archive = Archive(http)
    end = time.monotonic() + 30
    while True:
      try:
        archive('/system')
        return archive
      except OSError:
        assert processes[0].poll() is None and time.monotonic() < end, (
          folder / 'log.txt'
        ).read_text()
        time.sleep(0.1)

  yield start, dicom
  for process in processes:
    process.terminate()
    process.wait(30)


def test_a_series_of_the_archive_is_answered(orthanc, tmp_path):
  start, dicom = orthanc
  complete(tmp_path / 'ct')
  with running(tmp_path, dicom) as (node, lines):
    archive = start(node.port)
    for path in sorted((tmp_path / 'ct').iterdir()):
      stored = archive('/instances', path.read_bytes())
    sent = archive('/modalities/mome/store', [stored['ParentSeries']])
    assert sent['FailedInstancesCount'] == 0
    end = time.monotonic() + 60
    while len(archive('/series')) < 3:
      assert time.monotonic() < end, lines
      time.sleep(0.1)
  [study] = archive('/studies')  # the results are in the study of the scan
  series = [archive(f'/series/{name}') for name in archive(f'/studies/{study}')['Series']]
  assert sorted(one['MainDicomTags']['Modality'] for one in series) == ['CT', 'RTSTRUCT', 'SEG']
  for one in series:
    if one['MainDicomTags']['Modality'] == 'SEG':
      (tmp_path / 'seg.dcm').write_bytes(archive(f'/instances/{one["Instances"][0]}/file'))
  seg = pydicom.dcmread(tmp_path / 'seg.dcm')
  assert [item.SegmentLabel for item in seg.SegmentSequence] == ['liver']
  assert seg.pixel_array.any()
