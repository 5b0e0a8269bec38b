"""What becomes of masks that cannot be what they are called: in files, tables and on screen."""

import csv
import json

import numpy as np
import pytest
from matplotlib.image import imread
from threshold import Threshold, save_scan

from input_pipeline.ct import volume
from mome_jax.inference.segmentation import Segmentation
from mome_jax.plausibility import learn, record
from mome_jax.plausibility.judge import FOREIGN, SPECK
from mome_jax.plausibility.measures import Scene
from mome_jax.predict import plausible_masks
from mome_jax.predict.request import Options

GRID = (8.0, 7.0, 9.0)
BOX = (20, 24, 15)
BIG = (40, 44, 35)


def training_look(folder, seed):
  """A box of tissue, whose dense voxels are liver: what `Threshold` finds, up to its grid."""
  scan = volume.read_image(save_scan(folder / f'{seed}.nii.gz', BOX, seed=seed))
  scene = Scene(scan.array, scan.spacing, GRID)
  looks = {'liver': scene.look(scan.array > 0)}
  return learn.TrainingLook(scene.values, frozenset(looks), looks, frozenset(), f'patient {seed}')


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """A `Threshold` whose folder holds a record of twenty scans."""
  folder = tmp_path_factory.mktemp('model')
  looks = [training_look(folder, seed) for seed in range(20)]
  record.write(folder, [learn.learn(looks, ('liver', 'spleen'), GRID)])
  threshold = Threshold()
  threshold.folder = folder
  return threshold


def legend(folder, name):
  return json.loads((folder / 'out' / f'{name}_seg.json').read_text())


def test_what_is_written_of_them(run, model, tmp_path, capsys):
  good = save_scan(tmp_path / 'good.nii.gz', BOX, seed=50)
  odd = save_scan(tmp_path / 'odd.nii.gz', BIG, seed=50)
  results = run(good, odd, threshold=model, options=Options(report=False))
  told = capsys.readouterr().err
  assert 'note' not in told and f'warning: {odd}: ' in told.replace('\n', ' ')
  rows = {
    name: {r['name']: r for r in legend(tmp_path, name)['labels']} for name in ('good', 'odd')
  }
  liver = rows['good']['liver']
  assert (liver['plausible'], liver['reasons'], liver['present']) == (True, [], True)
  assert rows['good']['spleen']['plausible'] is None  # no voxel, no record
  liver = rows['odd']['liver']
  assert liver['plausible'] is False and 'in training' in ' '.join(liver['reasons'])
  assert liver['volume_ml'] > 0 and liver['present'] is False
  assert [legend(tmp_path, name)['foreign'] for name in ('good', 'odd')] == [False, True]
  assert 'DOES NOT LOOK LIKE THE SCANS THE MODEL WAS TRAINED ON' in results[1].message
  table = list(csv.DictReader((tmp_path / 'out' / 'report.csv').open()))
  assert [row['implausible'] for row in table] == ['', 'liver']
  cases = json.loads((tmp_path / 'out' / 'manifest.json').read_text())['cases']
  assert [case['implausible'] for case in cases] == [{}, {'liver': liver['reasons']}]
  mask = volume.read_labels(tmp_path / 'out' / 'odd_seg.nii.gz').array
  assert mask.any()  # marked, not taken away


def test_the_verdict_does_not_depend_on_what_else_is_asked(run, model, tmp_path):
  odd = save_scan(tmp_path / 'odd.nii.gz', BIG, seed=50)
  verdicts = []
  for prompts in (['liver'], ['spleen', 'liver', 'something on top']):
    run(odd, threshold=model, prompts=prompts, force=True)
    rows = {row['name']: row for row in legend(tmp_path, 'odd')['labels']}
    verdicts.append({key: rows['liver'][key] for key in ('plausible', 'reasons', 'cut', 'present')})
  assert verdicts[0] == verdicts[1] and verdicts[0]['plausible'] is False
  free = rows['something on top']
  assert (free['plausible'], free['reasons'], free['cut']) == (None, [], None)


def test_they_are_hatched_in_the_preview(run, model, tmp_path):
  """Between the stripes the scan shows: less of the mask's colour than where it is filled."""
  odd = save_scan(tmp_path / 'odd.nii.gz', BIG, seed=50)
  coloured = {}
  for name, threshold in (('hatched', model), ('filled', Threshold())):
    run(odd, threshold=threshold, options=Options(preview=True))
    pixels = imread(tmp_path / 'out' / 'odd_preview.png')[..., :3]
    coloured[name] = (np.ptp(pixels, axis=2) > 0.1).mean()
  assert 0.02 < coloured['hatched'] < 0.85 * coloured['filled']


def test_without_a_record_nothing_is_said(run, tmp_path):
  run(save_scan(tmp_path / 'odd.nii.gz', BIG, seed=50))
  content = legend(tmp_path, 'odd')
  assert content['foreign'] is None
  assert [row['plausible'] for row in content['labels']] == [None, None]
  assert content['labels'][0]['present'] is True


def test_a_speck_is_no_organ(model, tmp_path):
  known = record.read(model.folder)
  scan = volume.read_image(save_scan(tmp_path / 's.nii.gz', (40, 48, 30), (4, 3.5, 4.5), seed=3))
  winner = np.zeros(scan.array.shape, np.uint8)
  scene = Scene(scan.array, scan.spacing, known[0].grid)
  taken = scene.sample(np.arange(winner.size).reshape(winner.shape))
  winner[np.unravel_index(np.setdiff1d(np.arange(winner.size), taken)[0], winner.shape)] = 1
  over = np.zeros((*winner.shape, 1), np.uint8)
  judgement = plausible_masks.judge_masks(
    scan, Segmentation(('liver', 'spleen'), winner, over), known
  )
  verdict = judgement.verdicts['liver']
  assert (verdict.plausible, verdict.cut) == (False, None)
  assert verdict.reasons == (FOREIGN, SPECK)  # nothing else is in this scan
