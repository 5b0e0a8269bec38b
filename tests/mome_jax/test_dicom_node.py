"""The DICOM node, between a sender and an archive that run pynetdicom on this machine."""

import contextlib
import dataclasses
import pathlib
import resource
import shutil
import socket
import sys
import threading
import time
import types

import pydicom
import pytest
from pynetdicom import AE, evt, sop_class
from threshold import Threshold

from mome_jax.dicom_node import network, node
from mome_jax.dicom_node.command import main
from mome_jax.dicom_node.node import Node
from mome_jax.dicom_node.settings import Destination, Settings
from mome_jax.errors import UserError
from tests.mome_jax.predict.test_dicom import complete

RESULTS = (sop_class.SegmentationStorage, sop_class.RTStructureSetStorage)


@contextlib.contextmanager
def archive(status=0x0000):
  """(port, what it was sent): takes segmentations and structure sets."""
  taken = []

  def store(event):
    dataset = event.dataset
    dataset.file_meta = event.file_meta
    taken.append(dataset)
    return status

  entity = AE('ARCHIVE')
  for uid in RESULTS:
    entity.add_supported_context(uid)
  server = entity.start_server(('127.0.0.1', 0), block=False,
                               evt_handlers=[(evt.EVT_C_STORE, store)])  # fmt: skip
  try:
    yield server.server_address[1], taken
  finally:
    server.shutdown()


def send(port, paths, *, caller='SENDER', called='MOME', uid=sop_class.CTImageStorage):
  """Status of each file, or None where the association was refused."""
  entity = AE(caller)
  datasets = [pydicom.dcmread(path) for path in paths]
  for syntax in {dataset.file_meta.TransferSyntaxUID for dataset in datasets}:
    entity.add_requested_context(uid, syntax)
  entity.add_requested_context(sop_class.Verification)
  link = entity.associate('127.0.0.1', port, ae_title=called)
  if not link.is_established:
    return None
  try:
    assert link.send_c_echo().Status == 0
    return [link.send_c_store(dataset).Status for dataset in datasets]
  finally:
    link.release()


@pytest.fixture
def series(tmp_path):
  """Files of a CT series that can be referred to."""
  complete(tmp_path / 'ct')
  return sorted((tmp_path / 'ct').iterdir())


@contextlib.contextmanager
def running(tmp_path, port, **changes):
  """(node, its lines) while it works in a thread."""
  lines = []
  fields = {'wait': 0.3, 'port': 0, 'results': ('dicom_seg', 'rtstruct'), 'prompts': 'liver',
            'attempts': 2, 'folder': str(tmp_path / 'node')} | changes  # fmt: skip
  node = Node(Settings((Destination('ARCHIVE', '127.0.0.1', port),), **fields), Threshold(),
              lines.append)  # fmt: skip
  thread = threading.Thread(target=node.run)
  thread.start()
  try:
    yield node, lines
  finally:
    node.stopped.set()
    thread.join(60)
    assert not thread.is_alive()


def until(true, seconds=60):
  end = time.monotonic() + seconds
  while not true():
    assert time.monotonic() < end
    time.sleep(0.05)


def left(folder):
  return sorted(path.relative_to(folder).as_posix() for path in pathlib.Path(folder).glob('*/*'))


def test_a_series_comes_back_segmented(series, tmp_path):
  with archive() as (port, taken), running(tmp_path, port) as (node, lines):
    assert send(node.port, series) == [0] * len(series)
    until(lambda: any('sent to ARCHIVE' in line for line in lines))
    until(lambda: left(tmp_path / 'node') == [])
  ct = pydicom.dcmread(series[0])
  assert {dataset.SOPClassUID for dataset in taken} == set(RESULTS)
  for dataset in taken:
    assert dataset.StudyInstanceUID == ct.StudyInstanceUID
    assert dataset.PatientID == ct.PatientID
  [seg] = [dataset for dataset in taken if dataset.Modality == 'SEG']
  [reference] = seg.ReferencedSeriesSequence
  assert reference.SeriesInstanceUID == ct.SeriesInstanceUID
  assert [item.SegmentLabel for item in seg.SegmentSequence] == ['liver']
  assert seg.pixel_array.any()
  assert lines[0] == f'{ct.SeriesInstanceUID}: {len(series)} images'


def test_who_is_not_meant_is_refused(series, tmp_path):
  with archive() as (port, _), running(tmp_path, port, callers=('FRIEND',)) as (node, _):
    assert send(node.port, series[:1], caller='STRANGER') is None
    assert send(node.port, series[:1], caller='FRIEND', called='OTHER') is None
    assert send(node.port, series[:1], caller='FRIEND') == [0]
    with pytest.raises(ValueError, match='presentation context'):  # MR is not taken
      dataset = pydicom.dcmread(series[0])
      dataset.SOPClassUID = sop_class.MRImageStorage
      dataset.save_as(tmp_path / 'mr.dcm')
      send(node.port, [tmp_path / 'mr.dcm'], caller='FRIEND', uid=sop_class.MRImageStorage)


def test_many_results_are_sent_in_one_association(series, tmp_path):
  dataset = pydicom.dcmread(series[0])
  dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = RESULTS[0]
  dataset.save_as(tmp_path / 'result.dcm')
  with archive() as (port, taken):
    files = [tmp_path / 'result.dcm'] * 130
    network.send(files, Destination('ARCHIVE', '127.0.0.1', port), 'NODE')
  assert len(taken) == 130


@contextlib.contextmanager
def slow_line(port, rate):
  """The port of a line to another port that takes so many bytes a second."""

  def pass_on(source, target, pause):
    with contextlib.suppress(OSError):
      while data := source.recv(1 << 14):
        time.sleep(pause * len(data))
        target.sendall(data)
      target.shutdown(socket.SHUT_WR)

  def serve():
    sender, _ = listener.accept()
    with sender, socket.create_connection(('127.0.0.1', port)) as receiver:
      back = threading.Thread(target=pass_on, args=(receiver, sender, 0))
      back.start()
      pass_on(sender, receiver, 1 / rate)
      back.join()

  with socket.create_server(('127.0.0.1', 0)) as listener:
    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()[1]
    thread.join()


def test_a_large_result_may_take_long_over_a_slow_line(series, tmp_path, monkeypatch):
  monkeypatch.setattr(network, '_SECONDS', 1)
  dataset = pydicom.dcmread(series[0])
  dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = RESULTS[0]
  dataset.PixelData = bytes(3 << 20)
  dataset.save_as(tmp_path / 'result.dcm')
  with archive() as (port, taken), slow_line(port, 1 << 20) as line:
    network.send([tmp_path / 'result.dcm'], Destination('ARCHIVE', '127.0.0.1', line), 'NODE')
  assert len(taken[0].PixelData) == 3 << 20


def test_an_archive_that_is_away_is_asked_again(series, tmp_path):
  with archive() as (port, _):
    pass  # a port that nobody listens on any more
  with running(tmp_path, port) as (node, lines):
    send(node.port, series)
    until(lambda: any('does not answer' in line for line in lines))
  [folder] = (tmp_path / 'node' / 'outgoing').iterdir()
  assert len(list(folder.glob('*.dcm'))) == 2
  with archive() as (port, taken), running(tmp_path, port) as (node, lines):
    until(lambda: any('sent to ARCHIVE' in line for line in lines))
  assert len(taken) == 2


def test_what_is_refused_to_the_end_is_kept_with_the_reason(series, tmp_path):
  with archive(status=0xA700) as (port, _), running(tmp_path, port, attempts=1) as (node, lines):
    send(node.port, series)
    until(lambda: any('failed' in line for line in lines))
  [folder] = (tmp_path / 'node' / 'failed').glob('*/results')
  assert 'status 0xA700' in (folder / 'reason.txt').read_text()
  assert len(list(folder.glob('*.dcm'))) == 2


def test_identifiers_that_are_none_name_no_folder(tmp_path):
  """A sender chooses them: they must not lead out of the folder of what comes in."""
  (tmp_path / 'node').mkdir()
  receiver = network.Receiver(Settings((), port=0), tmp_path / 'node')
  try:
    for uid in ('..', '.', '1..2', '1.2.', '../x', '1' * 65, '1.2\n', ''):
      for series, image in ((uid, '1.2.3'), ('1.2.3', uid)):
        event = types.SimpleNamespace(
          dataset={'SeriesInstanceUID': series},
          request=types.SimpleNamespace(AffectedSOPInstanceUID=image),
          encoded_dataset=lambda: b'x',
        )
        assert receiver._store(event) == 0xC000, uid
  finally:
    receiver.close()
  assert [path.name for path in tmp_path.rglob('*')] == ['node'] and receiver.whole() == []


def test_a_pause_in_an_open_association_is_no_end(series, tmp_path):
  with archive() as (port, taken), running(tmp_path, port) as (node, lines):
    entity = AE('SENDER')
    datasets = [pydicom.dcmread(path) for path in series]
    entity.add_requested_context(sop_class.CTImageStorage,
                                 datasets[0].file_meta.TransferSyntaxUID)  # fmt: skip
    link = entity.associate('127.0.0.1', node.port, ae_title='MOME')
    for dataset in datasets[:-2]:
      link.send_c_store(dataset)
    time.sleep(1)  # more than three times `wait`
    assert lines == []
    for dataset in datasets[-2:]:
      link.send_c_store(dataset)
    link.release()
    until(lambda: any('sent to ARCHIVE' in line for line in lines))
    assert lines[0].endswith(f': {len(series)} images')
    # What comes afterwards is another result, and is told.
    send(node.port, series[:4])
    until(lambda: any(': 4 images, later than those segmented before' in line for line in lines))


def test_localizers_are_no_failure(series, tmp_path):
  for path in series:
    dataset = pydicom.dcmread(path)
    dataset.ImageType = ['ORIGINAL', 'PRIMARY', 'LOCALIZER']
    dataset.save_as(path)
  with archive() as (port, _), running(tmp_path, port) as (node, lines):
    send(node.port, series)
    until(lambda: len(lines) == 2)
    until(lambda: left(tmp_path / 'node') == [])
  assert ': nothing to segment: ' in lines[1] and 'localizer' in lines[1]


def test_a_scan_that_is_not_read_is_a_failure_also_beside_localizers(series, tmp_path):
  for path in series:
    dataset = pydicom.dcmread(path)
    if path == series[0]:
      dataset.SOPClassUID = pydicom.uid.EnhancedCTImageStorage
    else:
      dataset.ImageType = ['ORIGINAL', 'PRIMARY', 'LOCALIZER']
    dataset.save_as(path)
  assert not node._left_out(tmp_path / 'ct')


def test_what_cannot_be_decoded_is_not_taken():
  plain = pydicom.uid.ImplicitVRLittleEndian, pydicom.uid.DeflatedExplicitVRLittleEndian
  taken = network._readable([*plain, pydicom.uid.MPEG2MPML, pydicom.uid.RLELossless])
  assert taken == [*plain, pydicom.uid.RLELossless]


def test_a_second_node_leaves_the_folder_of_the_first_alone(tmp_path):
  with archive() as (port, _), running(tmp_path, port) as (node, _):
    (node.working / '1.2').mkdir()  # the first is at it
    with pytest.raises(UserError, match='another node works in it'), running(tmp_path, port):
      pass
    assert (node.working / '1.2').is_dir()


def test_its_folder_may_begin_at_home(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  made = Node(Settings((), port=0, folder='~/node'), Threshold())
  made.stopped.set()
  made.run()
  assert made.incoming == tmp_path / 'node' / 'incoming'


def test_a_connection_that_ends_between_files_is_told(series):
  def leave(event):
    event.assoc.abort()
    return 0

  entity = AE('ARCHIVE')
  entity.add_supported_context(sop_class.CTImageStorage)
  server = entity.start_server(
    ('127.0.0.1', 0), block=False, evt_handlers=[(evt.EVT_C_STORE, leave)]
  )
  try:
    destination = Destination('ARCHIVE', '127.0.0.1', server.server_address[1])
    with pytest.raises(network.SendError, match='does not take'):
      network.send(series[:2], destination, 'MOME')
  finally:
    server.shutdown()


def test_images_that_are_no_scan_fail_and_are_kept(series, tmp_path):
  with archive() as (port, taken), running(tmp_path, port) as (node, lines):
    send(node.port, series[:1])
    until(lambda: any('failed' in line for line in lines))
  assert not taken
  [folder] = (tmp_path / 'node' / 'failed').glob('*/images')
  assert (folder / f'{pydicom.dcmread(series[0]).SOPInstanceUID}.dcm').exists()


def test_a_stop_between_loses_nothing(series, tmp_path):
  """Images that were there, and a series that was being segmented, are gone on with."""
  name = pydicom.dcmread(series[0]).SeriesInstanceUID
  with archive() as (port, taken):
    with running(tmp_path, port, wait=600) as (node, _):
      send(node.port, series)
    assert left(tmp_path / 'node') == [f'incoming/{name}']
    shutil.move(tmp_path / 'node' / 'incoming' / name, tmp_path / 'node' / 'working' / name)
    with running(tmp_path, port, keep=True) as (_, lines):
      until(lambda: any('sent to ARCHIVE' in line for line in lines))
    assert len(taken) == 2
  kept = tmp_path / 'node' / 'done' / name
  assert len(list((kept / 'images').iterdir())) == len(series)
  assert any(path.name.endswith('_seg.json') for path in (kept / 'results').iterdir())


@contextlib.contextmanager
def full_disk():
  """No file of this process grows any more: what a full disk refuses."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def waiting(tmp_path, series, port=1, **changes):
  """A node in which a series is whole, its lines, and the series; it does not run."""
  name = pydicom.dcmread(series[0]).SeriesInstanceUID
  shutil.copytree(series[0].parent, tmp_path / 'node' / 'incoming' / name)
  lines = []
  fields = {'wait': 0.0, 'port': 0, 'prompts': 'liver', 'folder': str(tmp_path / 'node')}
  archives = (Destination('ARCHIVE', '127.0.0.1', port),)
  return Node(Settings(archives, **fields | changes), Threshold(), lines.append), lines, name


def end(node):
  node.stopped.set()
  node.run()


def test_a_full_disk_costs_one_series_and_the_node_goes_on(series, tmp_path):
  with archive() as (port, taken):
    node, lines, name = waiting(tmp_path, series, port)
    with full_disk():
      assert node.step() and not node.step()
    assert lines[-1].startswith(f'{name}: failed: ') and 'File too large' in lines[-1]
    assert left(tmp_path / 'node') == [f'failed/{name}']
    images = tmp_path / 'node' / 'failed' / name / 'images'
    assert {path.name for path in series} <= {path.name for path in images.iterdir()}
    assert send(node.port, series) == [0] * len(series)
    assert node.step() and node.step()
    assert lines[-1] == f'{name}: 1 results sent to ARCHIVE' and len(taken) == 1
    end(node)


def test_what_cannot_be_put_away_stays(series, tmp_path):
  with archive() as (port, taken):
    node, lines, name = waiting(tmp_path, series, port, keep=True, attempts=1)
    for folder in (node.done, node.failed):
      folder.rmdir()
      folder.write_text('in the way')
    assert node.step() and node.step() and not node.step()
    assert len(taken) == 1 and any('Not a directory' in line for line in lines)
    assert left(tmp_path / 'node') == [f'outgoing/{name}', f'working/{name}']
    assert len(list((node.working / name).iterdir())) == len(series)
    end(node)


def test_images_that_fail_and_cannot_be_moved_stay(series, tmp_path):
  node, lines, name = waiting(tmp_path, series)
  for path in series[1:]:
    (node.incoming / name / path.name).unlink()  # one image is no scan
  node.failed.rmdir()
  node.failed.write_text('in the way')
  assert node.step() and 'failed' in lines[-1]
  assert [path.name for path in (node.working / name).iterdir()] == [series[0].name]
  end(node)


def test_a_series_that_ends_the_process_is_given_up(series, tmp_path, monkeypatch):
  node, lines, name = waiting(tmp_path, series)
  for start in range(3):
    with monkeypatch.context() as patch:
      patch.setattr(Node, '_segment', lambda *_: sys.exit(137))
      with pytest.raises(SystemExit):
        node.step()
    end(node)
    node = Node(node.settings, Threshold(), lines.append)
    assert (node.incoming / name).is_dir() == (start < 2)
  assert 'ended 3 times' in lines[-1] and left(tmp_path / 'node') == [f'failed/{name}']
  assert len(list((node.failed / name / 'images').glob('*.dcm'))) == len(series)
  end(node)


def test_a_node_may_be_stopped_in_a_series_as_often_as_one_likes(series, tmp_path, monkeypatch):
  """After three times the series counted as one that ends the process."""

  def stop(*_):
    raise KeyboardInterrupt

  node, lines, name = waiting(tmp_path, series)
  monkeypatch.setattr(Node, '_segment', stop)
  for _ in range(4):
    with pytest.raises(KeyboardInterrupt):
      node.step()
    end(node)
    node = Node(node.settings, Threshold(), lines.append)
    assert (node.incoming / name).is_dir()
  end(node)


def test_a_title_may_hold_anything_and_a_host_may_not_exist(series, tmp_path, monkeypatch):
  node, lines, name = waiting(tmp_path, series)
  (node.outgoing / 'empty').mkdir()  # what a removal left that was interrupted
  assert node.step() and not list(node.outgoing.iterdir())
  node.settings = dataclasses.replace(
    node.settings, destinations=(Destination('A/B', 'no-such-host.invalid', 104),)
  )
  assert node.step() and node.step()
  assert 'A/B at no-such-host.invalid:104 cannot be reached' in lines[-1]
  monkeypatch.setattr(network, 'send', lambda *_, **__: None)
  node._retries.clear()
  assert node.step()
  assert lines[-1] == f'{name}: 1 results sent to A/B' and not list(node.outgoing.iterdir())
  end(node)


def test_images_of_a_series_that_comes_twice_are_all_kept(series, tmp_path):
  """Its first images had failed, or were left when the node was stopped."""
  node, lines, name = waiting(tmp_path, series[:1], prompts='liver')
  places = node.incoming / name, node.failed / name / 'images'
  for place in places:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
  shutil.copy(series[0], places[0])
  shutil.copy(series[1], places[1])
  assert node.step() and 'failed' in lines[-1]
  assert [path.name for path in places[1].iterdir()] == [series[1].name]
  later = {path.name for path in places[1].with_name('images-2').iterdir()}
  assert later == {series[0].name, 'reason.txt'}
  end(node)
  (node.working / name).mkdir()
  shutil.copy(series[0], node.working / name)
  places[0].mkdir()
  shutil.copy(series[1], places[0])
  (node.outgoing / f'.{name}').mkdir()  # half of a result
  again = Node(node.settings, Threshold())
  assert {path.name for path in places[0].iterdir()} == {series[0].name, series[1].name}
  assert not list(again.outgoing.iterdir())
  end(again)


def test_a_port_that_is_taken_frees_the_folder(tmp_path):
  with archive() as (port, _):
    taken = Settings((), port=port, folder=str(tmp_path))
    with pytest.raises(UserError, match='cannot be listened on') as caught:
      Node(taken, Threshold())
    end(Node(dataclasses.replace(taken, port=0), Threshold()))  # while the error is still held
    assert caught.tb


def test_a_port_that_is_taken_is_told(tmp_path):
  with archive() as (port, _), pytest.raises(UserError, match='cannot be listened on'):
    network.Receiver(Settings((), port=port), tmp_path)


def test_the_command_explains_a_config_that_is_not_there(tmp_path, capsys):
  assert main(['--config', str(tmp_path / 'none.toml')]) == 1
  assert 'none.toml: cannot be read' in capsys.readouterr().err
