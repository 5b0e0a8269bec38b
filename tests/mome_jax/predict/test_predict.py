"""Prediction: geometry, labels, prompts and compiled programs."""

import itertools
import json
import os
import subprocess
import sys

import fresh
import jax
import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from threshold import Threshold, patch, save_scan

from input_pipeline.anatomy import TEMPLATE
from mome_jax import checkpoint, predict, shipped
from mome_jax.errors import UserError
from mome_jax.inference import router_maps
from mome_jax.inference.loaded_model import Predictor
from mome_jax.predict import command, prompted_model
from mome_jax.predict.request import Options, make_targets

NAMES = ('liver', 'spleen', 'left kidney')


# ---------------------------------------------------------------------------- a real network
@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return fresh.save_model(tmp_path_factory.mktemp('model') / 'm', NAMES)


@pytest.fixture(scope='module')
def network(model):
  return Predictor(model)


def test_prediction_imports_nothing_of_training():
  program = (
    'import sys, mome_jax.predict, mome_jax.predictor, mome_jax.export, mome_jax.evaluate\n'
    'print(*sorted({name.split(".")[0] for name in sys.modules}))'
  )
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True)
  training = {'optax', 'clu', 'tensorflow', 'tensorflow_datasets', 'tensorboard', 'array_record'}
  assert not training & set(done.stdout.split())


def test_the_command_line_without_what_trains(model, tmp_path):
  (tmp_path / 'scans').mkdir()
  affine = np.array([[0, 0, -8, 90], [-7, 0, 0, 80], [0, 9, 0, -500], [0, 0, 0, 1.0]])
  save_scan(tmp_path / 'scans' / 'a.nii.gz', affine=affine)
  save_scan(tmp_path / 'scans' / 'b.nii', shape=(30, 30, 30), seed=1)
  (tmp_path / 'scans' / 'notes.txt').write_text('not a scan')
  program = (
    'import sys\n'
    'for name in ("tensorflow", "tensorflow_datasets", "array_record", "clu", "optax"):\n'
    '  sys.modules[name] = None\n'
    'from mome_jax.predict import main\n'
    'sys.exit(main())'
  )
  done = subprocess.run(
    [sys.executable, '-c', program, '--checkpoint', model, '--input', tmp_path / 'scans',
     '--output', tmp_path / 'out', '--masks', '--probabilities', '--report',
     '--force', '--prompts', 'Left  Kidney, hepar,LIVER, the thing on top, mandible'],
    capture_output=True, text=True, cwd=os.getcwd(),
    env={**os.environ, 'JAX_COMPILATION_CACHE_DIR': str(tmp_path / 'compiled')},
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-3000:]
  assert '2 of 2 scans segmented' in done.stdout
  out = tmp_path / 'out'
  assert sorted(path.name for path in out.iterdir()) == sorted(
    ['manifest.json', 'report.csv', 'volumes.csv', *(f'{n}_{end}' for n in 'ab' for end in
                     ('masks', 'preview.png', 'probabilities', 'report.html', 'seg.json',
                      'seg.nii.gz'))]
  )  # fmt: skip
  page = (out / 'a_report.html').read_text()
  assert '"scales":["9 mm",' in page and 'the thing on top' in page
  source, mask = nib.load(tmp_path / 'scans' / 'a.nii.gz'), nib.load(out / 'a_seg.nii.gz')
  np.testing.assert_array_equal(mask.affine, source.affine)
  assert mask.shape == source.shape
  labels = np.asarray(mask.dataobj)
  assert labels.dtype == np.uint8
  assert set(np.unique(labels)) <= {0, 3, 6, 38, 200}
  assert len(np.unique(labels)) > 2
  legend = json.loads((out / 'a_seg.json').read_text())['labels']
  assert [(row['label'], row['name'], row['prompt'], row['also']) for row in legend] == [
    (3, 'left kidney', 'Left Kidney', []), (6, 'liver', 'hepar', ['LIVER']),
    (200, 'the thing on top', 'the thing on top', []), (38, 'mandible', 'mandible', []),
  ]  # fmt: skip
  assert [row['taken_as'] for row in legend] == ['class', 'synonym', 'free', 'class']
  assert legend[1]['text'] == 'A computerized tomography of a liver'
  assert legend[2]['text'] == 'the thing on top'
  record = json.loads((out / 'manifest.json').read_text())
  fields = (
    'label',
    'name',
    'prompt',
    'text',
    'taken_as',
    'also',
    'familiarity',
    'verdict',
    'nearest',
  )
  assert record['prompts'] == [{field: row[field] for field in fields} for row in legend]
  assert '"hepar" and "LIVER": the class liver, label 6' in done.stderr
  assert 'asked for as hepar' in page and 'free text' in page
  for row, slug in zip(
    legend, ('left_kidney', 'liver', '200_the_thing_on_top', 'mandible'), strict=True
  ):
    assert row['mask'] == f'a_masks/{slug}.nii.gz'
    binary = nib.load(out / 'a_masks' / f'{slug}.nii.gz')
    probability = nib.load(out / 'a_probabilities' / f'{slug}.nii.gz')
    for image in (binary, probability):
      np.testing.assert_array_equal(image.affine, source.affine)
    inside = np.asarray(binary.dataobj) > 0
    shown = labels == row['label']
    if slug in ('left_kidney', 'liver'):
      np.testing.assert_array_equal(inside, shown)
    else:  # painted only where nothing before it is
      assert inside[shown].all() and np.isin(labels[inside], [3, 6, 200, row['label']]).all()
    assert row['volume_ml'] == pytest.approx(inside.sum() * 8 * 7 * 9 / 1000, abs=1e-3)
    assert row['present'] == inside.any()
    chance = probability.get_fdata()
    assert (chance[inside] >= 0.499).all()
    if slug == '200_the_thing_on_top':  # whatever else is there
      np.testing.assert_array_equal(inside[chance > 0.501], True)
    assert 0 <= chance.min() <= chance.max() < 1 + 1e-6  # the slope 1 / 255 is a float32


def test_further_scans_and_prompts_compile_nothing(network, tmp_path):
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: compiled.append(event) if 'backend_compile' in event else None
  )
  save_scan(tmp_path / 'first.nii.gz')
  free = ['something else']  # the encoder that judges familiarity compiles once, too
  predict.predict(network, [tmp_path / 'first.nii.gz'], tmp_path / 'out', free, force=True)
  report = Options(preview=False, report=True)
  predict.predict(network, [tmp_path / 'first.nii.gz'], tmp_path / 'report', options=report)
  before = len(compiled)
  assert before  # the listener works
  save_scan(tmp_path / 'second.nii.gz', shape=(33, 17, 40), spacing=(5, 9, 6))
  scans = [tmp_path / 'second.nii.gz']
  for prompts in (None, ['liver'], ['aorta', 'hepar', 'spleen', 'any other text']):
    results = predict.predict(
      network, scans, tmp_path / 'out', prompts, existing='overwrite', force=True
    )
    assert [r.status for r in results] == ['ok']
    results = predict.predict(
      network, scans, tmp_path / 'out', prompts, existing='overwrite', force=True, options=report
    )
    assert [r.status for r in results] == ['ok']
  assert len(compiled) == before
  assert network.routing_step._cache_size() == 1


def test_routing_maps_of_many_prompts_are_those_of_a_few(network):
  """Five prompts are two buckets; a batch of two windows lies in one plane of them."""
  image = np.random.default_rng(0).normal(0, 150, (40, 20, 24)).astype(np.float32)
  texts = [f'prompt {n}' for n in range(5)]

  def explain(number, watched):
    segmenter = network.segmenter((), texts[:number], free=texts[:number])
    explainer = router_maps.make_explainer(network, texts[:number], texts[:number], segmenter)
    watch, logits = explainer.watch(), []
    keep = lambda slab: logits.append(np.stack([slab.logits(k) for k in range(number)]))
    segmenter(image, (9.0, 9.0, 9.0), keep, watch=watch if watched else None)
    return np.concatenate(logits, 1), watch.maps() if watched else None

  (plain, _), (many, maps), (few, part) = explain(5, False), explain(5, True), explain(2, True)
  np.testing.assert_array_equal(many, plain)
  np.testing.assert_array_equal(few, many[:2])
  for name in ('weights', 'entropy', 'weight_sum', 'voxels'):
    np.testing.assert_array_equal(getattr(maps, name)[:2], getattr(part, name))
  shares = maps.weights.astype(int).sum(1)
  assert len(shares) == 5 and abs(shares - 255).max() <= 2


def test_the_second_case_of_a_folder_loads_and_compiles_nothing(network, tmp_path, monkeypatch):
  events, loads = [], []
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: events.append(event) if 'backend_compile' in event else None
  )
  monkeypatch.setattr(prompted_model, 'open_model', lambda *_, **__: loads.append(1) or network)
  monkeypatch.setattr(checkpoint, 'load_model', lambda *_: loads.append('again'))
  (tmp_path / 'scans').mkdir()
  save_scan(tmp_path / 'scans' / 'a.nii.gz')
  save_scan(tmp_path / 'scans' / 'b.nii.gz', shape=(31, 18, 22), seed=1)
  predict.predict('m', [tmp_path / 'scans' / 'a.nii.gz'], tmp_path / 'first', progress=False)
  before = len(events)
  results = predict.predict('m', [tmp_path / 'scans'], tmp_path / 'out', fast=True, progress=False)
  assert [result.status for result in results] == ['ok', 'ok']
  assert loads == [1, 1]  # once a call, however many scans
  assert len(events) == before
  assert network._see._cache_size() == network._read._cache_size() == 1
  record = json.loads((tmp_path / 'out' / 'manifest.json').read_text())
  assert record['checkpoint']['sha256'] == network.fingerprint()
  assert record['options']['fast']
  assert {'read', 'resample', 'network', 'blend', 'write'} <= set(record['cases'][1]['timings'])


def test_synonyms_go_through_the_text_encoder(network):
  rows = network.embed(['hepar', 'liver', 'A computerized tomography of a liver'])
  assert np.abs(rows[0] - rows[1]).max() > 1e-3
  assert np.abs(rows[2] - rows[1]).max() > 1e-3
  np.testing.assert_array_equal(rows[3], 0)  # fills the bucket


def axis_affines():
  for axes in itertools.permutations(['LR', 'PA', 'IS']):
    for codes in itertools.product(*axes):
      affine = np.zeros((4, 4))
      for axis, (world, sign) in enumerate(nib.orientations.axcodes2ornt(codes)):
        affine[int(world), axis] = sign * (0.9, 1.2, 2.0)[axis]
      yield ''.join(codes), affine


def oblique_affines():
  for seed in range(20):
    rng = np.random.default_rng(seed)
    affine = np.zeros((4, 4))
    affine[:3, :3] = Rotation.random(rng=rng).as_matrix() * rng.uniform(0.8, 2.5, 3)
    yield f'oblique{seed}', affine


def test_every_orientation_keeps_shape_affine_and_place(run, tmp_path):
  affines = dict([*axis_affines(), *oblique_affines()])
  assert len(affines) == 68
  (tmp_path / 'in').mkdir()
  truths = {}
  for name, affine in affines.items():
    affine[:, 3] = (-31.5, 12.25, 700, 1)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    shape = np.rint(54 / spacing).astype(int)
    # Off the centre and longer than wide: a wrong axis or sign would show.
    place = (np.stack(np.indices(shape), -1) - (shape - 1) / 2) * spacing - (4, -3, 5)
    distance = np.linalg.norm(place * (1, 1.15, 0.85), axis=-1)
    hu = np.clip((18 - distance) * 100, -100, 100).astype(np.int16)
    truths[name] = distance < 18
    nib.save(nib.Nifti1Image(hu, affine), tmp_path / 'in' / f'{name}.nii')
  assert {result.status for result in run(tmp_path / 'in')} == {'ok'}
  for name, truth in truths.items():
    mask = nib.load(tmp_path / 'out' / f'{name}_seg.nii.gz')
    np.testing.assert_array_equal(mask.affine, nib.load(tmp_path / 'in' / f'{name}.nii').affine)
    assert mask.shape == truth.shape
    liver = np.asarray(mask.dataobj) == 6
    assert 2 * (liver & truth).sum() / (liver.sum() + truth.sum()) > 0.99, name


def test_rules_clean_the_masks(run, tmp_path):
  scan = np.full((24, 24, 24), -1000, np.int16)
  scan[4:12, 4:20, 4:20] = 100
  small = scan.copy()
  scan[18:22, 6:10, 6:10] = 100
  nib.save(nib.Nifti1Image(scan, np.diag([1.5, 1.5, 1.5, 1])), tmp_path / 'a.nii.gz')
  masks = []
  for rules in (None, ('largest',)):
    run(tmp_path / 'a.nii.gz', rules=rules)
    masks.append(np.asarray(nib.load(tmp_path / 'out/a_seg.nii.gz').dataobj))
  np.testing.assert_array_equal(masks[0] > 0, scan > 0)
  np.testing.assert_array_equal(masks[1] > 0, small > 0)


def test_an_empty_prediction_is_zeros_and_not_present(run, tmp_path):
  told = f'{tmp_path / "a.nii.gz"}: nothing was found for spleen, liver'
  for prompts in (None, ['spleen', 'liver']):  # by default it is asked for all there is
    [result] = run(
      save_scan(tmp_path / 'a.nii.gz'),
      prompts=prompts,
      threshold=Threshold(lambda x: x - 50),
      existing='overwrite',
    )
    assert (told in result.message) == (prompts is not None)
    [again] = run(tmp_path / 'a.nii.gz', prompts=prompts, threshold=Threshold(lambda x: x - 50),
                  existing='skip')  # fmt: skip
    assert (again.status, told in again.message) == ('skipped', prompts is not None)
  assert not np.asarray(nib.load(tmp_path / 'out' / 'a_seg.nii.gz').dataobj).any()
  legend = json.loads((tmp_path / 'out' / 'a_seg.json').read_text())['labels']
  assert [(row['present'], row['volume_ml']) for row in legend] == [(False, 0), (False, 0)]


def test_many_prompts_get_labels_beyond_a_byte(run, tmp_path):
  prompts = [f'text {i}' for i in range(60)]
  last = lambda x: np.concatenate([x[:, 1:], x[:, :1]], 1)  # the box is the last text
  [result] = run(
    save_scan(tmp_path / 'a.nii.gz'), prompts=prompts, threshold=Threshold(last), force=True
  )
  assert result.labels[-1]['label'] == 259
  labels = np.asarray(nib.load(tmp_path / 'out' / 'a_seg.nii.gz').dataobj)
  assert labels.dtype == np.uint16
  assert np.unique(labels).tolist() == [0, 259]


def test_a_class_that_came_with_the_model_keeps_its_label():
  template = TEMPLATE.extend([{'name': 'metastasis', 'parent': 'liver'}])
  targets = make_targets(['Metastasis', 'liver', 'secondary'], template)
  assert [target.label for target in targets] == [39, 6, 200]


# ---------------------------------------------------------------------------- bad inputs
def test_assumed_spacing_replaces_the_header(tmp_path, run):
  affines = {}
  for name, (offset, content) in {
    'pixdim': (84, np.float32(0).tobytes()), 'no_form': (252, bytes(4)), 'zero': (280, bytes(48)),
  }.items():  # fmt: skip
    path = save_scan(tmp_path / f'{name}.nii')
    patch(path, offset, content)
    affines[name] = nib.load(path).affine
    [result] = run(path, assume_spacing=(2, 3, 4))
    assert result.status == 'ok'
    assert 'spacing (2.0, 3.0, 4.0) mm assumed' in result.message
    mask = nib.load(tmp_path / 'out' / f'{name}_seg.nii.gz')
    np.testing.assert_array_equal(mask.affine, affines[name])  # it lies on its scan
    liver = json.loads((tmp_path / 'out' / f'{name}_seg.json').read_text())['labels'][0]
    voxels = (np.asarray(mask.dataobj) == 6).sum()
    assert voxels > 100
    assert liver['volume_ml'] == pytest.approx(voxels * 24 / 1000, abs=1e-3)


def test_one_of_several_volumes(tmp_path, run):
  array = np.full((20, 24, 15, 2), -1000, np.int16)
  array[5:15, 5:15, 3:12, 1] = 100
  nib.save(nib.Nifti1Image(array, np.diag([3.0, 3, 3, 1])), tmp_path / 'a.nii.gz')
  for number, expected in ((0, False), (1, True)):
    [result] = run(tmp_path / 'a.nii.gz', volume_number=number)
    assert result.status == 'ok'
    mask = nib.load(tmp_path / 'out' / 'a_seg.nii.gz')
    assert mask.shape == (20, 24, 15)
    assert np.asarray(mask.dataobj).any() == expected
  [result] = run(tmp_path / 'a.nii.gz', volume_number=2)
  assert 'has no volume 2; --volume can be 0..1' in result.message


def test_few_thick_and_small_scans_are_segmented(tmp_path, run):
  save_scan(tmp_path / 'two_slices.nii', shape=(40, 40, 2), spacing=(2, 2, 8))
  save_scan(tmp_path / 'thick.nii', shape=(40, 40, 12), spacing=(2, 2, 10))
  save_scan(tmp_path / 'tiny.nii', shape=(7, 5, 6), spacing=(4, 4, 4))
  results = run(*(tmp_path / f'{name}.nii' for name in ('two_slices', 'thick', 'tiny')))
  assert [result.status for result in results] == ['ok'] * 3
  assert 'two_slices.nii: only 2 slices' in results[0].message
  for result in results:
    mask = nib.load(tmp_path / 'out' / f'{result.case}_seg.nii.gz')
    assert mask.shape == nib.load(result.input).shape
    assert np.asarray(mask.dataobj).any()


def test_odd_values_are_noted_in_report_and_legend(tmp_path, run):
  array = np.full((20, 20, 20), 50, np.float32)
  array[0, 0, :4] = (np.nan, np.inf, -2000, -3024)
  array[1] = -900
  nib.save(nib.Nifti1Image(array, np.diag([3.0, 3, 3, 1])), tmp_path / 'odd.nii')
  unsigned = np.full((20, 20, 20), 1074, np.uint16)
  nib.save(nib.Nifti1Image(unsigned, np.diag([3.0, 3, 3, 1])), tmp_path / 'unsigned.nii')
  sheared = np.diag([3.0, 3, 3, 1])
  sheared[0, 1] = 1
  save_scan(tmp_path / 'sheared.nii', affine=sheared)
  two = nib.Nifti1Image(array, np.diag([3.0, 3, 3, 1]))
  two.set_qform(np.diag([3.0, 3, 2, 1]), code=1)
  nib.save(two, tmp_path / 'two_forms.nii')
  expected = {
    'odd': '2 voxels not finite and 2 voxels below -1024 HU taken as air',
    'unsigned': 'do not look like HU; check scl_slope',
    'sheared': 'axes are not at right angles',
    'two_forms': 'sform and qform are up to',
  }
  for result in run(*(tmp_path / f'{name}.nii' for name in expected)):
    assert result.status == 'ok'
    assert expected[result.case] in result.message
    legend = json.loads((tmp_path / 'out' / f'{result.case}_seg.json').read_text())
    assert expected[result.case] in ' '.join(legend['warnings'])
    written = nib.load(tmp_path / 'out' / f'{result.case}_seg.nii.gz')
    np.testing.assert_array_equal(written.affine, nib.load(result.input).affine)


def test_an_option_that_takes_several_may_be_given_again(capsys):
  words = ['--output', 'o', '--input', 'a', '--input', 'b', 'c']
  args = command.make_parser().parse_args([*words, '--checkpoint', 'x', '--checkpoint', 'y'])
  assert (args.input, args.checkpoint) == (['a', 'b', 'c'], ['x', 'y'])
  assert command.make_parser().parse_args(words).checkpoint == [shipped.MODEL]
  with pytest.raises(SystemExit):
    command.make_parser().parse_args([*words, '--prompts', 'liver', '--prompts', 'spleen'])
  assert '--prompts is given twice; give it once, with commas' in capsys.readouterr().err


def test_a_text_model_is_for_models_with_frozen_text():
  with pytest.raises(UserError, match='has a text encoder of its own; --text-model t5 is for'):
    Predictor(shipped.MODEL, text_model='t5')


def test_mirrored_scans_are_told(tmp_path, monkeypatch, capsys):
  array = np.full((40, 20, 20), -1000, np.int16)
  array[24:36, 4:16, 4:16] = 100  # liver, on the patient's right
  array[5:10, 4:16, 4:16] = -200  # spleen
  for name, sign in (('right', 1), ('wrong', -1)):
    nib.save(nib.Nifti1Image(array, np.diag([3.0 * sign, 3, 3, 1])), tmp_path / f'{name}.nii')

  def spleen(logits):
    window = logits[:, 0] / 40 + 0.5  # back to the channel
    return np.stack([logits[:, 0], 5 - np.abs(window - 0.3) * 100], 1)

  monkeypatch.setattr(prompted_model, 'open_model', lambda path, **_: Threshold(spleen))
  arguments = ['--checkpoint', 'x', '--output', str(tmp_path / 'out'), '--input']
  right, wrong = str(tmp_path / 'right.nii'), str(tmp_path / 'wrong.nii')
  arguments.insert(0, '--overwrite')
  assert predict.main([*arguments, right, '--check-sides']) == 0
  assert predict.main([*arguments, wrong]) == 0
  assert predict.main([*arguments, right, wrong, '--check_sides']) == 3
  legend = json.loads((tmp_path / 'out' / 'wrong_seg.json').read_text())
  assert 'liver lies left of spleen' in legend['warnings'][0]
  (tmp_path / 'broken.nii').write_bytes(b'')
  assert predict.main([*arguments, wrong, str(tmp_path / 'broken.nii'), '--check-sides']) == 1
  for more, code in (('--prompts=liver', 0), ('--as-written', 1)):
    assert predict.main([*arguments, right, '--check-sides', more]) == code
  array[5:10] = -1000
  nib.save(nib.Nifti1Image(array, np.diag([3.0, 3, 3, 1])), tmp_path / 'none.nii')
  assert predict.main([*arguments, str(tmp_path / 'none.nii'), '--check-sides']) == 0
  assert 'note: sides not checked: that needs a liver and a spleen' in capsys.readouterr().err
