"""What becomes of masks that cannot be what they are called: in files, tables and on screen."""

import csv
import json

import desks
import nibabel as nib
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
  results = run(good, odd, threshold=model, options=Options(report=False), keep_absent=True)
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
  assert [row['removed'] for row in table] == ['', '']
  cases = json.loads((tmp_path / 'out' / 'manifest.json').read_text())['cases']
  assert [case['implausible'] for case in cases] == [{}, {'liver': liver['reasons']}]
  mask = volume.read_labels(tmp_path / 'out' / 'odd_seg.nii.gz').array
  assert mask.any()  # marked, not taken away


def save_legs(path):
  """A scan unlike those of training: a large box of fat, with a little of what is called liver."""
  save_scan(path, BIG)
  scan = nib.load(path)
  array = np.asarray(scan.dataobj).copy()
  array[array > -1000] = -100
  array[20:22, 20:22, 17:19] = 60
  nib.save(nib.Nifti1Image(array, scan.affine), path)
  return path


def test_a_little_that_counts_as_none_is_removed_and_told(run, model, tmp_path, capsys):
  legs = save_legs(tmp_path / 'legs.nii.gz')
  [result] = run(legs, threshold=model, options=Options(preview=True))
  note = 'removed as not there: liver (4 ml); --keep-absent keeps such masks'
  assert note in result.message and note in capsys.readouterr().err
  assert not volume.read_labels(tmp_path / 'out' / 'legs_seg.nii.gz').array.any()
  liver = legend(tmp_path, 'legs')['labels'][0]
  shown = ('volume_ml', 'removed_ml', 'present', 'plausible', 'cut', 'components', 'unsure')
  assert [liver[key] for key in shown] == [0.0, 4.032, False, None, None, 0, None]
  assert liver['reasons'][0] == FOREIGN and len(liver['reasons']) > 1
  [row] = csv.DictReader((tmp_path / 'out' / 'report.csv').open())
  [other] = run(legs, threshold=model, prompts=['liver'], existing='overwrite')
  assert note in other.message and 'nothing was found' not in other.message
  told = ('implausible', 'removed', 'liver (ml)')
  assert [row[column] for column in told] == ['', 'liver', '0.0']


def test_of_what_is_removed_it_is_not_told_that_nothing_was_found(run, model, tmp_path):
  legs = save_legs(tmp_path / 'legs.nii.gz')
  [result] = run(legs, threshold=model, prompts=['liver', 'spleen'])
  assert 'removed as not there: liver (4 ml)' in result.message
  assert 'nothing was found for spleen' in result.message
  assert 'liver' not in result.message.partition('nothing was found')[2]


def test_it_stays_where_it_is_asked_for(run, model, tmp_path):
  legs = save_legs(tmp_path / 'legs.nii.gz')
  [result] = run(legs, threshold=model, keep_absent=True)
  assert 'removed' not in result.message
  liver = legend(tmp_path, 'legs')['labels'][0]
  assert (liver['volume_ml'], liver['removed_ml']) == (4.032, 0.0)
  assert (liver['plausible'], liver['present']) == (False, False)
  [other] = run(legs, threshold=model, existing='skip')
  assert other.status == 'failed' and 'keep_absent true, now false' in other.message
  # Versions that did not know the choice kept such masks.
  path = tmp_path / 'out' / 'legs_seg.json'
  earlier = json.loads(path.read_text())
  del earlier['request']['keep_absent']
  path.write_text(json.dumps(earlier))
  [same] = run(legs, threshold=model, existing='skip', keep_absent=True)
  assert same.status == 'skipped'


def test_the_page_leaves_out_the_same(model, tmp_path):
  legs = save_legs(tmp_path / 'legs.nii.gz')
  with desks.desk(model, tmp_path) as made, desks.client(made) as client:
    scan = desks.send(client, legs)
    _, answer = desks.ask(client, scan, ['liver'])
    view = client.get(f'api/scans/{scan}/sets/1/view').json()
  [liver] = answer['labels']
  assert (liver['volume_ml'], liver['removed_ml'], liver['present']) == (0.0, 4.032, False)
  assert view['classes'][0]['removed_ml'] == 4.032
  assert any('removed as not there: liver (4 ml)' in line for line in view['warnings'])


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
