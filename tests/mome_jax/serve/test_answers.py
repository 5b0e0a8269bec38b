"""Masks of a server are those of a plain prediction, also where the backbone does not run again."""

import desks
import fresh
import numpy as np
import pytest
from desks import ask, send
from threshold import save_scan

from mome_jax.inference.loaded_model import Predictor
from mome_jax.predict import find_scans, prompted_model
from mome_jax.predict.request import Request

TRAINED = ('liver', 'liver tumor', 'left kidney')
QUESTIONS = (  # one after the other, on one scan
  ['liver tumor', 'pineapple pizza'],
  ['left kidney', 'liver'],
  ['spleen', 'tumor', 'left', 'bone', 'pineapple pizza', 'fat'],
  ['fat', 'liver'],
)


@pytest.fixture(scope='module')
def network(tmp_path_factory):
  return Predictor(fresh.save_model(tmp_path_factory.mktemp('model') / 'm', TRAINED, bias=-0.5))


@pytest.fixture(scope='module')
def plain(network, tmp_path_factory):
  """plain(path, prompts) -> what a plain prediction makes: name -> (D, H, W) bool."""

  def segment(path, prompts):
    model = prompted_model.ask(network, Request([], prompts, force=True))
    [scan] = find_scans.find_scans([path])[0]
    volume = find_scans.read(scan).volume
    network.sights, kept = None, network.sights
    segmentation = model.segmenter(volume.array, tuple(volume.spacing))
    network.sights = kept
    return {target.name: segmentation.mask(target.name) for target in model.targets}

  return segment


@pytest.mark.parametrize('keep', [1 << 30, 3 << 20, 0])
def test_every_question_has_the_masks_of_a_plain_prediction(network, plain, tmp_path, keep):
  path = save_scan(tmp_path / 'scan.nii.gz', (30, 32, 20))
  folder = tmp_path / 'temporary'
  folder.mkdir()
  with desks.desk(network, folder, keep=keep) as desk, desks.client(desk) as client:
    scan = send(client, path)
    seen = []
    for prompts in QUESTIONS:
      before = network.sights.reused, network.sights.made
      _, one = ask(client, scan, prompts, force=True)
      seen.append((network.sights.reused - before[0], network.sights.made - before[1]))
      made = desk.scans.get(scan).get_set(one['set']).segmented
      for name, mask in plain(path, prompts).items():
        np.testing.assert_array_equal(made.segmentation.mask(name), mask, err_msg=name)
      assert [row['name'] for row in one['labels']] == list(plain(path, prompts))
  windows = sum(seen[0]) // 2  # of a pass: trained classes, then free text
  assert windows > 8
  assert [sum(both) for both in seen] == [2 * windows, 0, 2 * windows, 0]
  if keep == 1 << 30:
    assert seen[0] == (windows, windows) and seen[2] == (2 * windows, 0)
  elif keep:
    assert 0 < seen[2][0] < 2 * windows  # what there was room for
  else:
    assert seen[2] == (0, 2 * windows)


def test_masks_appear_pass_by_pass(network, tmp_path):
  folder = tmp_path / 'temporary'
  folder.mkdir()
  with desks.desk(network, folder) as desk, desks.client(desk) as client:
    scan = send(client, save_scan(tmp_path / 'scan.nii.gz'))
    states, one = ask(client, scan, ['fat', 'liver'], force=True)
    assert states[-1]['ready'] == ['fat', 'liver'] == one['names']  # as they were asked for
    stages = [state['stage'] for state in states if state['stage']]
    assert list(dict.fromkeys(stages)) in (['classes of the model', 'fat'], ['fat'])


def test_routing_is_told_on_demand(network, tmp_path):
  folder = tmp_path / 'temporary'
  folder.mkdir()
  with desks.desk(network, folder) as desk, desks.client(desk) as client:
    scan = send(client, save_scan(tmp_path / 'scan.nii.gz'))
    _, one = ask(client, scan, ['liver', 'left kidney'])
    place = f'api/scans/{scan}/sets/{one["set"]}'
    assert client.get(f'{place}/view').json()['routing'] is None
    made = network.sights.made
    job = client.post(f'{place}/routing').json()['job']
    assert desks.follow(client, job)[-1]['state'] == 'done'
    assert network.sights.made == made  # the backbone did not run again
    routing = client.get(f'{place}/view').json()['routing']
    present = [n for n, row in enumerate(one['labels']) if row['volume_ml']]
    assert present and sorted(map(int, routing['maps'])) == present
    assert sum(routing['share'][present[0]]) == pytest.approx(1, abs=1e-3)
    assert '"routing":{' in client.get(f'{place}/files/report.html').text
