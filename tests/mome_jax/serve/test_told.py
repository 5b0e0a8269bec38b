"""What a page is told of models, scans and masks, also while others change them."""

import types

import desks
from desks import ask, send
from threshold import Threshold, save_scan


def test_prompts_may_be_forgotten_while_their_scan_is_told(folder, tmp_path, monkeypatch):
  """They go in a thread of their own."""
  with desks.desk(Threshold(), folder) as desk, desks.client(desk) as client:
    number = send(client, save_scan(tmp_path / 'a.nii.gz'))
    for prompts in ('liver', 'spleen'):
      ask(client, number, prompts)
    scan = desk.scans.get(number)
    told = scan.set_told

    def forgotten(one):
      scan.sets.pop(2, None)
      return told(one)

    monkeypatch.setattr(scan, 'set_told', forgotten)
    answer = client.get(f'api/scans/{number}')
  assert [one['set'] for one in answer.json()['sets']] == [1, 2]


def test_a_view_whose_masks_are_still_to_come_is_not_finished(folder, tmp_path):
  with desks.desk(Threshold(), folder) as desk, desks.client(desk) as client:
    number = send(client, save_scan(tmp_path / 'a.nii.gz'))
    ask(client, number, 'liver')
    desk.scans.get(number).get_set(1).segmented = None  # as it is for a moment
    answer = client.get(f'api/scans/{number}/sets/1/view')
  assert answer.status_code == 400 and 'no mask of prompts 1 is finished' in answer.text


def test_of_several_models_all_are_named(folder):
  class Both(Threshold):
    members = tuple(types.SimpleNamespace(path=f'runs/{name}') for name in 'ab')

  with desks.desk(Both(), folder) as desk, desks.client(desk) as client:
    assert client.get('api/model').json()['checkpoint'] == 'a + b'


def test_files_are_named_after_their_scan(client, tmp_path):
  """For curl -J, which reads the plain name alone, and for browsers."""
  scan = send(client, save_scan(tmp_path / 'Müller 1.nii.gz'))
  _, one = ask(client, scan, 'liver')
  answer = client.get(f'api/scans/{scan}/sets/{one["set"]}/files/seg.json')
  assert answer.headers['content-disposition'] == (
    'attachment; filename="M_ller_1_seg.json"; '
    "filename*=UTF-8''M%C3%BCller_1_seg.json"
  )  # fmt: skip
