"""The JSON API: scans in, masks out, and what is refused."""

import gzip
import io
import json
import pathlib
import re
import shutil
import tarfile
import threading
import zipfile

import anyio
import desks
import dicom_slices
import jsonschema
import nibabel as nib
import numpy as np
import pydicom
import pytest
from desks import ask, follow, send
from starlette.testclient import TestClient
from threshold import Threshold, patch, save_scan

from input_pipeline.ct import volume
from mome_jax import predict
from mome_jax.predict import find_scans
from mome_jax.serve import app, openapi


@pytest.fixture(scope='module')
def series(tmp_path_factory):
  path = tmp_path_factory.mktemp('dicom') / 'series'
  nifti = save_scan(path.with_name('scan.nii.gz'), (20, 24, 8))
  dicom_slices.as_series(path, volume.read_image(nifti))
  return path


def packed(series, kind):
  """The bytes of a tar or zip archive of a series."""
  stream = io.BytesIO()
  if kind == 'tar':
    with tarfile.open(fileobj=stream, mode='w') as archive:
      archive.add(series, '../../series')
  else:
    with zipfile.ZipFile(stream, 'w') as archive:
      for file in series.iterdir():
        archive.write(file, f'series/{file.name}')
  return stream.getvalue()


def bomb():
  """A small archive of a large file."""
  stream = io.BytesIO()
  with zipfile.ZipFile(stream, 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('slice.dcm', b'0' * 200_001)
  assert len(stream.getvalue()) < 1000
  return stream.getvalue()


def loaded(answer):
  assert answer.status_code == 200, answer.text
  content = answer.content
  return nib.Nifti1Image.from_bytes(gzip.decompress(content))


# ---------------------------------------------------------------------------- what comes out
def test_masks_and_files_are_those_of_predict(client, tmp_path):
  path = save_scan(tmp_path / 'scan.nii.gz')
  [result] = predict.predict(Threshold(), [path], tmp_path / 'out', ['liver'], progress=False)
  scan = send(client, path)
  states, one = ask(client, scan, 'liver')
  expected = nib.load(tmp_path / 'out' / 'scan_seg.nii.gz')
  written = loaded(client.get(f'api/scans/{scan}/sets/{one["set"]}/files/seg.nii.gz'))
  assert np.asarray(written.dataobj).any()
  np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(expected.dataobj))
  np.testing.assert_array_equal(written.affine, expected.affine)
  mask = loaded(client.get(f'api/scans/{scan}/sets/{one["set"]}/masks/liver'))
  np.testing.assert_array_equal(np.asarray(mask.dataobj) > 0, np.asarray(expected.dataobj) > 0)
  plain = {k: v for k, v in result.labels[0].items() if k != 'mask'}
  assert one['labels'] == [json.loads(json.dumps(plain))]
  legend = client.get(f'api/scans/{scan}/sets/{one["set"]}/files/seg.json').json()
  before = json.loads((tmp_path / 'out' / 'scan_seg.json').read_text())
  assert legend == {**before, 'input': 'scan'}
  page = client.get(f'api/scans/{scan}/sets/{one["set"]}/files/report.html')
  assert page.text.startswith('<!DOCTYPE html>') and 'attachment' in page.headers[
    'content-disposition']  # fmt: skip
  picture = client.get(f'api/scans/{scan}/sets/{one["set"]}/files/preview.png')
  assert picture.content == (tmp_path / 'out' / 'scan_preview.png').read_bytes()


def test_progress_is_told_by_windows(client, tmp_path):
  scan = send(client, save_scan(tmp_path / 'scan.nii.gz'))
  states, one = ask(client, scan, ['liver'])
  assert states[-1]['state'] == 'done' and states[-1]['ready'] == ['liver']
  assert all(0 <= state['windows_done'] <= state['windows'] for state in states)
  assert client.get(f'api/jobs/{one["job"]}').json() == states[-1]
  assert one['done'] and client.get(f'api/scans/{scan}').json()['sets'] == [one]


def test_the_viewer_is_told_where_scan_and_masks_lie(client, tmp_path):
  path = save_scan(tmp_path / 'scan.nii.gz')
  scan = send(client, path)
  shown = loaded(client.get(f'api/scans/{scan}/image.nii.gz'))
  np.testing.assert_allclose(shown.get_fdata(), nib.load(path).get_fdata(), atol=2)
  head = client.get(f'api/scans/{scan}/view').json()
  assert head['title'] == 'scan' and head['warnings'] == []
  _, one = ask(client, scan, 'liver, spleen')
  view = client.get(f'api/scans/{scan}/sets/{one["set"]}/view').json()
  assert [row['present'] for row in view['classes']] == [True, False]


@pytest.mark.parametrize('kind', ['tar', 'zip'])
def test_dicom_comes_as_an_archive_and_goes_as_dicom(client, series, kind):
  content = packed(series, kind)
  answer = client.post('api/scans', params={'name': f'My study.{kind}'}, content=content)
  [scan] = answer.json()['scans']
  assert scan['title'] == 'My_study' and scan['series_uid'].endswith('.1')
  assert scan['shape'] == [20, 24, 8] and scan['spacing_mm'] == [8, 7, 9]
  _, one = ask(client, scan['scan'], 'liver')
  place = f'api/scans/{scan["scan"]}/sets/{one["set"]}/files'
  for name, modality in (('seg.dcm', 'SEG'), ('rtstruct.dcm', 'RTSTRUCT')):
    dataset = pydicom.dcmread(io.BytesIO(client.get(f'{place}/{name}').content))
    assert dataset.Modality == modality and dataset.StudyInstanceUID in scan['series_uid']
  with zipfile.ZipFile(io.BytesIO(client.get(f'{place}/masks.zip').content)) as archive:
    assert archive.namelist() == ['My_study_masks/liver.nii.gz']


@pytest.mark.parametrize('kind', ['tar', 'zip'])
def test_what_lies_beside_a_series_is_left_out_and_told(client, series, kind, tmp_path):
  shutil.copytree(series, tmp_path / 'series')
  for name in ('DICOMDIR', '.DS_Store', '._0.dcm', 'notes'):
    (tmp_path / 'series' / name).write_bytes(b'x' * (name != 'notes'))
  content = packed(tmp_path / 'series', kind)
  answer = client.post('api/scans', params={'name': f'a.{kind}'}, content=content).json()
  assert [scan['shape'] for scan in answer['scans']] == [[20, 24, 8]]
  [problem] = answer['problems']
  assert problem.startswith('a: left out ')
  for told in ('hidden (2 files)', 'DICOM directory (1 file)', 'empty (1 file)'):
    assert told in problem


def test_scans_of_the_folder_can_be_chosen(folder, tmp_path):
  (tmp_path / 'in').mkdir()
  path = save_scan(tmp_path / 'in' / 'patient.nii.gz')
  inputs, _ = find_scans.find_scans([path.parent])
  with desks.desk(Threshold(), folder, inputs=inputs) as desk, desks.client(desk) as client:
    assert client.get('api/model').json()['inputs'] == ['patient']
    [scan] = client.post('api/scans', json={'input': 'patient'}).json()['scans']
    assert client.delete(f'api/scans/{scan["scan"]}').status_code == 204
    assert path.exists() and not list(folder.iterdir())
    refused = client.post('api/scans', json={'input': '../patient'})
    assert refused.status_code == 404 and 'not in the folder' in refused.json()['error']


# ---------------------------------------------------------------------------- what is refused
def test_a_bad_file_is_explained_as_on_the_command_line(client, folder, tmp_path):
  path = save_scan(tmp_path / 'bad.nii')
  patch(path, 80, np.float32(0).tobytes())  # pixdim[1]
  patch(path, 252, np.int16([0, 0]).tobytes())  # qform_code and sform_code
  [result] = predict.predict(Threshold(), [path], tmp_path / 'out', progress=False)
  answer = client.post('api/scans?name=bad.nii', content=path.read_bytes())
  assert answer.status_code == 400
  told = answer.json()['error']
  assert told == result.message.replace(str(path), 'bad') and 'assume-spacing' in told
  for name, content in (
    ('a.nii.gz', b'nonsense'),
    ('b.zip', b'PK\3\4'),
    ('c', b'?'),
    ('d.nii', b''),
  ):
    answer = client.post('api/scans', params={'name': name}, content=content)
    assert answer.status_code == 400 and str(folder) not in answer.text, answer.text
    assert '\n' not in answer.json()['error'] and name[0] in answer.json()['error']
  assert not list(folder.iterdir())


def test_what_is_too_large_is_not_taken(folder, tmp_path):
  path = save_scan(tmp_path / 'scan.nii.gz', (40, 40, 40))
  with desks.desk(Threshold(), folder, limit=200_000) as desk, desks.client(desk) as client:
    for name, content in (
      ('a', b'0' * 200_001),  # by what its header says
      ('a', iter([b'0' * 150_000] * 2)),  # by what comes
      ('a.nii.gz', path.read_bytes()),  # 64,000 voxels of four bytes
      ('a.zip', bomb()),
      ('a.tar', packed(path, 'tar')),
      ('a', gzip.compress(nib.Nifti2Image(np.zeros((40, 40, 40), np.int16), np.eye(4)).to_bytes())),
    ):
      answer = client.post('api/scans', params={'name': name}, content=content)
      assert answer.status_code == 413 and 'larger than 0.0002 GB' in answer.json()['error'], name
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
  'name', ['../../x.nii.gz', '/etc/x.nii.gz', 'C:\\x.nii.gz', '..', '', '\0']
)
def test_no_path_of_a_client_reaches_the_disk(client, folder, tmp_path, name):
  path = save_scan(tmp_path / 'scan.nii.gz')
  before = {file for file in tmp_path.rglob('*') if folder not in file.parents}
  answer = client.post('api/scans', params={'name': name}, content=path.read_bytes())
  if answer.status_code == 201:
    assert answer.json()['scans'][0]['title'] in ('x', 'scan')
    _, one = ask(client, answer.json()['scans'][0]['scan'], 'liver')
  assert {file for file in tmp_path.rglob('*') if folder not in file.parents} == before
  for path in ('..%2f..%2fpyproject.toml', '..%2fviewer.html', 'openkbp', 'viewer.html'):
    assert client.get(path).status_code == 404


def test_the_oldest_scan_goes_and_so_do_its_files(folder, tmp_path):
  path = save_scan(tmp_path / 'scan.nii.gz')
  with desks.desk(Threshold(), folder, most=2) as desk, desks.client(desk) as client:
    numbers, told = [], []
    for name in ('first.nii.gz', 'second.nii.gz', 'third.nii.gz'):
      answer = client.post('api/scans', params={'name': name}, content=path.read_bytes()).json()
      numbers.append(answer['scans'][0]['scan'])
      told.append(answer['problems'])
    assert told == [[], [], [
      'first: closed for third, as 2 scans are kept; for more, start the server with a larger '
      '--keep-scans'
    ]]  # fmt: skip
    assert [one['scan'] for one in client.get('api/scans').json()['scans']] == numbers[1:]
    gone = client.get(f'api/scans/{numbers[0]}')
    assert gone.status_code == 404 and 'load it again' in gone.json()['error']
    assert len(list(folder.iterdir())) == 4  # of each what was sent, and a folder for results
    for number in numbers[1:]:
      client.delete(f'api/scans/{number}')
    assert not list(folder.iterdir())


def test_as_many_scans_stay_open_as_are_kept(folder, tmp_path):
  path = save_scan(tmp_path / 'scan.nii.gz')
  with desks.desk(Threshold(), folder, most=4) as desk, desks.client(desk) as client:
    numbers = [send(client, path) for _ in range(4)]
    scans = lambda: [scan['scan'] for scan in client.get('api/scans').json()['scans']]
    assert scans() == numbers
    newest = send(client, path)
    assert scans() == [*numbers[1:], newest]


def test_of_more_scans_than_are_kept_the_rest_is_named(folder, tmp_path):
  with zipfile.ZipFile(tmp_path / 'study.zip', 'w') as archive:
    for number in range(3):
      nifti = save_scan(tmp_path / f'{number}.nii.gz', (20, 24, 8), seed=number)
      dicom_slices.as_series(tmp_path / str(number), volume.read_image(nifti))
      for file in (tmp_path / str(number)).iterdir():
        header = pydicom.dcmread(file)
        header.SeriesInstanceUID += f'.{number}'
        header.SOPInstanceUID += f'.{number}'
        header.save_as(file)
        archive.write(file, f'{number}/{file.name}')
  with desks.desk(Threshold(), folder, most=2) as desk, desks.client(desk) as client:
    content = (tmp_path / 'study.zip').read_bytes()
    told = client.post('api/scans?name=study.zip', content=content).json()
    assert [scan['scan'] for scan in told['scans']] == [1, 2]
    assert len(client.get('api/scans').json()['scans']) == 2
    [problem] = told['problems']
    assert problem.startswith('study_') and 'as 2 scans are kept' in problem


def test_who_leaves_while_sending_leaves_nothing(folder):
  async def leave():
    sent = iter([{'type': 'http.request', 'body': b'x', 'more_body': True}])
    answers = []

    async def receive():
      return next(sent, {'type': 'http.disconnect'})

    async def take(message):
      answers.append(message)

    scope = {
      'type': 'http', 'method': 'POST', 'path': '/api/scans', 'query_string': b'name=a.nii',
      'headers': [], 'root_path': '', 'http_version': '1.1', 'scheme': 'http',
    }  # fmt: skip
    await app.make_app(desk)(scope, receive, take)
    return answers[0]['status']

  with desks.desk(Threshold(), folder) as desk:
    assert anyio.run(leave) == 499
  assert not list(folder.iterdir())


def test_what_the_model_does_not_know_is_refused_or_forced(client, tmp_path):
  scan = send(client, save_scan(tmp_path / 'scan.nii.gz'))
  refused = client.post(f'api/scans/{scan}/prompts', json={'prompts': 'pineapple pizza'})
  assert refused.status_code == 400 and refused.json()['can_force'] is True
  assert 'not trained on this; it knows ' in refused.json()['error']
  judged = client.post('api/judge', json={'prompts': ['hepar', 'pineapple pizza']}).json()
  assert [(one['name'], one['verdict']) for one in judged['prompts']] == [
    ('liver', 'known'), ('pineapple pizza', 'unfamiliar')]  # fmt: skip
  _, one = ask(client, scan, 'pineapple pizza', force=True)
  assert one['labels'][0]['verdict'] == 'unfamiliar' and one['notes'][0].startswith('CAUTION')
  assert '--' not in refused.json()['error'] + one['notes'][0]  # no options of a command line
  assert one['labels'][0]['volume_ml'] > 0
  forced = {'prompts': 'liver', 'force': 'true'}
  for body in ({'prompts': 7}, {'prompts': []}, [], {'prompts': ' , '}, forced):
    assert client.post(f'api/scans/{scan}/prompts', json=body).status_code == 400


def test_what_was_forced_before_forces_nothing_else(client, tmp_path):
  scan = send(client, save_scan(tmp_path / 'scan.nii.gz'))
  path, forced = f'api/scans/{scan}/prompts', ['pineapple pizza']
  later = {'prompts': [*forced, 'liver', 'mango'], 'force': forced}
  refused = client.post(path, json=later)
  assert refused.status_code == 400 and refused.json()['can_force']
  assert 'mango' in refused.json()['error'] and 'pizza' not in refused.json()['error']
  _, one = ask(client, scan, [*forced, 'liver'], force=forced)
  assert [row['verdict'] for row in one['labels']] == ['unfamiliar', 'known']
  assert client.post(path, json={'prompts': 'liver', 'force': [1]}).status_code == 400


def test_what_is_sent_wrongly_is_explained(client):
  answer = client.post('api/scans', json={'input': ['scan']})
  assert answer.status_code == 404 and 'folder of --input' in answer.json()['error']
  end = b'PK\5\6' + bytes(4) + b'\2\0\2\0' + b'\xff\0\0\0' + b'\1\0\0\0' + bytes(2)
  for content in (end, b'PK' + end):  # of an archive whose list of files is nowhere
    answer = client.post('api/scans', params={'name': 'x.zip'}, content=content)
    assert answer.status_code == 400 and 'x.zip: a broken archive' in answer.json()['error']
  answer = client.get('api/scans/', follow_redirects=False)  # whose address has no token
  assert answer.status_code == 404 and answer.json()['error']


def test_a_large_scan_in_a_small_nrrd_is_refused(folder):
  itk = pytest.importorskip('SimpleITK')
  path = folder / 'bomb.nrrd'
  itk.WriteImage(itk.Image(60, 60, 60, itk.sitkInt16), str(path), True)
  content = path.read_bytes()
  path.unlink()
  with desks.desk(Threshold(), folder, limit=200_000) as desk, desks.client(desk) as client:
    answer = client.post('api/scans', params={'name': 'bomb.nrrd'}, content=content)
    assert answer.status_code == 413 and 'its scan is larger' in answer.json()['error']
  assert len(content) < 10_000


def test_a_fault_is_told_as_json(folder, monkeypatch):
  def fail(request):
    raise ZeroDivisionError('a\nfault')

  with desks.desk(Threshold(), folder) as desk:
    monkeypatch.setattr(desk.scans, 'all', lambda: fail(None))
    one = TestClient(desks.guarded(desk), desks.ADDRESS, raise_server_exceptions=False)
    answer = one.get('api/scans')
  assert answer.status_code == 500
  assert answer.json() == {'error': 'ZeroDivisionError: a fault'}


def test_scans_that_were_sent_together_share_their_files(folder, tmp_path):
  stream = io.BytesIO()
  with tarfile.open(fileobj=stream, mode='w') as archive:
    for name in ('a', 'b'):
      archive.add(save_scan(tmp_path / f'{name}.nii.gz'), f'{name}.nii.gz')
  with desks.desk(Threshold(), folder) as desk, desks.client(desk) as client:
    answer = client.post('api/scans', params={'name': 'two.tar'}, content=stream.getvalue())
    first, second = (scan['scan'] for scan in answer.json()['scans'])
    client.delete(f'api/scans/{first}')
    assert desk.scans.get(second).files.path.is_file()
    client.delete(f'api/scans/{second}')
    assert not list(folder.iterdir())


def test_prompts_that_are_forgotten_leave_no_files(client, folder, tmp_path):
  scan = send(client, save_scan(tmp_path / 'scan.nii.gz'))
  before = sorted(folder.rglob('*'))
  _, one = ask(client, scan, 'liver')
  place = f'api/scans/{scan}/sets/{one["set"]}'
  assert client.get(f'{place}/files/masks.zip').status_code == 200
  assert client.get(f'{place}/masks/liver').status_code == 200
  assert sorted(folder.rglob('*')) != before
  assert client.delete(place).status_code == 204
  assert sorted(folder.rglob('*')) == before


def test_files_that_cannot_be_made_say_why(client, tmp_path):
  scan = send(client, save_scan(tmp_path / 'scan.nii.gz'))
  _, one = ask(client, scan, 'liver')
  place = f'api/scans/{scan}/sets/{one["set"]}'
  assert 'is not DICOM' in client.get(f'{place}/files/seg.dcm').json()['error']
  assert client.get(f'{place}/files/x.exe').status_code == 404
  assert client.get(f'{place}/masks/spleen').status_code == 404
  assert client.get(f'api/scans/{scan}/sets/99').status_code == 404


# ---------------------------------------------------------------------------- the line of work
class Gate:
  """Holds the network back at its first window until it is opened."""

  def __init__(self):
    self.reached, self.open = threading.Event(), threading.Event()

  def __call__(self, logits):
    self.reached.set()
    assert self.open.wait(30)
    return logits


def test_jobs_wait_in_line_and_can_be_cancelled(folder, tmp_path):
  gate = Gate()
  path = save_scan(tmp_path / 'scan.nii.gz', (20, 24, 40))
  with desks.desk(Threshold(gate), folder) as desk, desks.client(desk) as client:
    scan = send(client, path)
    post = lambda: client.post(f'api/scans/{scan}/prompts', json={'prompts': 'liver'}).json()
    first, second, third = post(), post(), post()
    assert gate.reached.wait(30)
    assert client.get(f'api/jobs/{third["job"]}').json()['before'] == 2
    assert client.delete(f'api/jobs/{second["job"]}').json()['state'] == 'cancelled'
    client.delete(f'api/jobs/{first["job"]}')
    gate.open.set()
    assert follow(client, first['job'])[-1]['state'] == 'cancelled'
    assert follow(client, third['job'])[-1]['state'] == 'done'
    early = client.get(f'api/scans/{scan}/sets/{first["set"]}/files/seg.json')
    assert early.status_code == 400 and 'not finished' in early.json()['error']


def test_closing_a_scan_ends_its_work(folder, tmp_path):
  gate = Gate()
  path = save_scan(tmp_path / 'scan.nii.gz', (20, 24, 40))
  with desks.desk(Threshold(gate), folder) as desk, desks.client(desk) as client:
    scan = send(client, path)
    job = client.post(f'api/scans/{scan}/prompts', json={'prompts': 'liver'}).json()['job']
    assert gate.reached.wait(30)
    client.delete(f'api/scans/{scan}')
    gate.open.set()
    assert follow(client, job)[-1]['state'] == 'cancelled'


def test_a_fault_costs_one_job(folder, tmp_path, capsys):
  faults = iter([True])

  def change(logits):
    if next(faults, False):
      raise RuntimeError('out of memory\nreally')
    return logits

  with desks.desk(Threshold(change), folder) as desk, desks.client(desk) as client:
    scan = send(client, save_scan(tmp_path / 'scan.nii.gz'))
    states, _ = ask(client, scan, 'liver')
    assert states[-1]['message'] == 'RuntimeError: out of memory really'
    assert 'Traceback' in capsys.readouterr().err
    assert ask(client, scan, 'liver')[0][-1]['state'] == 'done'


# ---------------------------------------------------------------------------- the document
def test_the_document_describes_every_route_and_answer(client, tmp_path):
  document = client.get('api/openapi.json').json()
  described = {
    (path, method.upper())
    for path, operations in document['paths'].items()
    for method in operations
    if method != 'parameters'
  }
  served = {
    (re.sub(':int|:path', '', route.path), method)
    for route in app.ROUTES
    for method in route.methods - {'HEAD'}
    if route.path.startswith('/api')
  }
  assert described == served
  scan = send(client, save_scan(tmp_path / 'scan.nii.gz'))
  states, one = ask(client, scan, 'liver')

  def check(kind, value):
    schema = {'$ref': f'#/components/schemas/{kind}', 'components': {'schemas': openapi.SCHEMAS}}
    jsonschema.validate(value, schema, jsonschema.Draft202012Validator)

  check('PromptSet', one)
  check('Scan', client.get(f'api/scans/{scan}').json())
  check('Model', client.get('api/model').json())
  check('Error', client.get('api/scans/99').json())
  for state in states:
    check('Job', state)
  for judged in client.post('api/judge', json={'prompts': 'liver'}).json()['prompts']:
    check('Judgement', judged)


def test_the_page_and_its_files_are_served(client):
  page = client.get('')
  assert page.headers['content-type'].startswith('text/html')
  for name in (
    'niivue.js',
    'viewer.js',
    'archive.js',
    'prompt_line.js',
    'serve.js',
    'viewer.css',
    'serve.css',
  ):
    assert name in page.text
    assert len(client.get(name).content) > 500
  assert (pathlib.Path(app.__file__).parents[1] / 'assets/viewer.js').read_text() == client.get(
    'viewer.js'
  ).text
