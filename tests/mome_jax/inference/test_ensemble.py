"""Several models that answer as one, and the mirror image that is asked too."""

import errno
import json
import shutil

import fresh
import jax
import nibabel as nib
import numpy as np
import pytest
from threshold import save_scan

from input_pipeline.anatomy import TEMPLATE
from mome_jax import Ensemble, Predictor, checkpoint
from mome_jax.checkpoint.training_cases import TrainingCases, of_models, write
from mome_jax.errors import UserError
from mome_jax.export import export_ensemble
from mome_jax.inference import router_maps, sliding_window
from mome_jax.inference.ensemble import EnsembleError, open_model
from mome_jax.inference.mirroring import MirrorError, mirrored_prompts
from mome_jax.inference.model import mean
from mome_jax.predict import command, prompted_model
from mome_jax.predict.request import Request
from mome_jax.predict.verdicts import default_classes
from mome_jax.text.prompts import default_prompts

pytestmark = pytest.mark.usefixtures('soon')

CLASSES = ('liver', 'left kidney', 'right kidney')
FREE = ('cyst of the left kidney', 'cyst of the right kidney', 'air')
TEXTS = (*default_prompts(CLASSES), *FREE)
# On the grid of the models, and three windows along it, as far from the one end as from the other.
SHAPE, SPACING = (32, 16, 16), (9.0, 9.0, 9.0)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """Two models: one, and the same with every number changed by about a tenth."""
  root, rng = tmp_path_factory.mktemp('models'), np.random.default_rng(0)
  one = fresh.save_model(root / 'one', CLASSES)
  where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  params = jax.tree.map(
    lambda leaf: leaf * rng.normal(1, 0.1, leaf.shape).astype(np.float32),
    checkpoint.load_model(one, where).params,
  )
  checkpoint.save_model(root / 'two', checkpoint.load_config(one), params)
  return [one, root / 'two']


@pytest.fixture(scope='module')
def models(folders):
  return [Predictor(folder) for folder in folders]


@pytest.fixture(scope='module')
def scan():
  return np.random.default_rng(0).normal(0, 150, SHAPE)


def logits(model, image, **keywords):
  """(*SHAPE, K + F) of a scan, and its masks."""
  segmenter = model.segmenter(CLASSES, TEXTS, free=FREE, rules=(), **keywords)
  maps = np.full((*SHAPE, len(TEXTS)), np.nan)

  def keep(slab):
    maps[slab.planes] = np.stack([slab.logits(k) for k in range(len(TEXTS))], -1)

  return maps, segmenter(image, SPACING, keep)


def test_the_logits_of_two_are_their_mean(models, scan):
  alone = [logits(model, scan)[0] for model in models]
  both, masks = logits(Ensemble(models), scan)
  assert np.abs(alone[0] - alone[1]).max() > 0.1
  np.testing.assert_allclose(both, (alone[0] + alone[1]) / 2, atol=1e-5)
  sure = np.abs(both[..., 3]) > 1e-4
  assert (masks.mask(FREE[0]) == (both[..., 3] > 0))[sure].all()


def test_one_model_with_itself_is_that_model(models, scan):
  alone, _ = logits(models[0], scan)
  twice, _ = logits(Ensemble([models[0]] * 2), scan)
  np.testing.assert_allclose(twice, alone, atol=1e-6)


def test_members_that_differ_are_refused(models, tmp_path):
  other = Predictor(fresh.save_model(tmp_path / 'other', (*CLASSES[:2], 'spleen')))
  with pytest.raises(EnsembleError, match="other: its classes, .*'spleen'.* differ from those of"):
    Ensemble([models[0], other])
  config = checkpoint.load_config(models[1].path)
  config.data.spacing = (9.0, 9.0, 8.0)
  with pytest.raises(EnsembleError, match=r'grid in mm, \(9.0, 9.0, 8.0\)'):
    Ensemble([models[0], Predictor(models[1].path, config)])


def test_a_class_that_one_of_them_hardly_knows_is_experimental(models, tmp_path):
  shutil.copytree(models[1].path, tmp_path / 'other')
  config = checkpoint.load_config(tmp_path / 'other')
  config.experimental = ('liver',)
  checkpoint.save_description(tmp_path / 'other', config)
  other = Predictor(tmp_path / 'other')
  for pair in ([models[0], other], [other, models[0]]):
    assert default_classes(Ensemble(pair)) == ('left kidney', 'right kidney')
  assert default_classes(models[0]) == CLASSES
  with pytest.raises(UserError, match='one: liver are not experimental in it'):
    export_ensemble([models[0].path, other.path], tmp_path / 'both', experimental=False)
  assert not (tmp_path / 'both').exists()


def test_where_all_classes_are_experimental_all_are_asked_for(models):
  """One model hardly knows the liver, the other one the kidneys."""
  members = []
  for model, weak in zip(models, (CLASSES[:1], CLASSES[1:]), strict=True):
    config = checkpoint.load_config(model.path)
    config.experimental = weak
    members.append(Predictor(model.path, config))
  asked = prompted_model.ask(Ensemble(members), Request(()))
  assert tuple(target.name for target in asked.targets) == CLASSES
  assert [note for note in asked.notes if note.startswith('CAUTION: liver, left kidney')]


def test_one_pass_is_over_before_the_next_begins():
  """What a model sees of the windows is its largest array."""
  held, most = set(), []

  def reader(name):
    def read(windows):
      def parts():
        held.add(name)
        most.append(len(held))
        for first in (0, 4):
          shape = len(windows), 4, *windows.shape[1:-1]
          yield np.full(shape, 10.0 * name + first, np.float32)
        held.remove(name)

      return parts()

    return read

  windows = np.ones((8, 8, 8, 1), np.float32)
  tiling = sliding_window.Tiling((8, 8, 8))
  [maps] = sliding_window.sliding_window(
    mean([reader(name) for name in (1, 2, 4)]), windows, tiling, classes=6
  )
  assert most == [1, 1, 1]
  np.testing.assert_allclose(maps[:, 0, 0, 0], 70 / 3 + np.repeat([0, 4], [4, 2]), rtol=1e-6)


# ---------------------------------------------------------------------------- folders
def test_the_folder_of_an_ensemble(models, folders, scan, tmp_path):
  write(folders[0], TrainingCases(frozenset({('a', 'x', '1')})))
  export_ensemble(folders, tmp_path / 'both')
  opened = open_model(tmp_path / 'both')
  assert opened.fingerprint() == Ensemble(models[::-1]).fingerprint()
  np.testing.assert_allclose(logits(opened, scan)[0], logits(Ensemble(models), scan)[0], atol=1e-6)
  names = json.loads((tmp_path / 'both/ensemble.json').read_text())['members']
  assert checkpoint.members(tmp_path / 'both') == [tmp_path / 'both' / name for name in names]
  with pytest.raises(checkpoint.CheckpointError, match='several models, see its ensemble.json'):
    checkpoint.load_config(tmp_path / 'both')
  # One member does not say what it was trained on.
  cases = of_models([tmp_path / 'both' / name for name in names])
  assert not cases.complete and len(cases.cases) == 1


def test_of_an_export_that_fails_no_member_stays(folders, tmp_path, monkeypatch):
  save = checkpoint.save_model

  def fill_the_disk(folder, *arguments, **keywords):
    if folder.name == 'model_1':
      raise OSError(errno.ENOSPC, 'No space left on device')
    save(folder, *arguments, **keywords)

  monkeypatch.setattr(checkpoint, 'save_model', fill_the_disk)
  with pytest.raises(OSError, match='No space left'):
    export_ensemble(folders, tmp_path / 'both')
  assert not list((tmp_path / 'both').iterdir())
  monkeypatch.undo()
  export_ensemble(folders, tmp_path / 'both')
  assert len(checkpoint.members(tmp_path / 'both')) == 2


def test_an_export_that_was_killed_can_be_made_again(folders, tmp_path, monkeypatch):
  save = checkpoint.save_model

  def as_it_is_when_killed(folder, *arguments, **keywords):
    if folder.name == 'model_1':
      shutil.copytree(tmp_path / 'both', tmp_path / 'killed')
    save(folder, *arguments, **keywords)

  monkeypatch.setattr(checkpoint, 'save_model', as_it_is_when_killed)
  export_ensemble(folders, tmp_path / 'both')
  monkeypatch.undo()
  assert (tmp_path / 'killed' / 'model_0').is_dir()
  export_ensemble(folders, tmp_path / 'killed')
  whole = {path.name for path in (tmp_path / 'both').iterdir()}
  assert whole == {path.name for path in (tmp_path / 'killed').iterdir()}
  assert whole == {'ensemble.json', 'model_0', 'model_1'}


def test_each_is_evaluated_as_its_own_config_says(folders, tmp_path):
  """But for what is asked of all, which is what differs from the first one's own."""
  other = tmp_path / 'other'
  shutil.copytree(folders[1], other)
  config = json.loads((other / 'config.json').read_text())
  config['evaluation'] |= {'checkpoint': 'best', 'window': [16, 16, 32]}
  (other / 'config.json').write_text(json.dumps(config))
  asked = checkpoint.load_config(folders[0])
  with pytest.raises(EnsembleError, match=r'window in voxels, \(16, 16, 32\), differ'):
    open_model([folders[0], other], asked)
  asked.evaluation.window = (16, 32, 16)
  models = open_model([folders[0], other], asked).members
  assert [model.config.evaluation.window for model in models] == [(16, 32, 16)] * 2
  assert [model.config.evaluation.checkpoint for model in models] == ['last', 'best']
  models = open_model([folders[0], other], asked, asked=['evaluation.checkpoint']).members
  assert [model.config.evaluation.checkpoint for model in models] == ['last', 'last']


@pytest.mark.parametrize('text', ['{}', '{"members": []}', '{"members": "fold_0"}', 'no JSON'])
def test_a_damaged_one(tmp_path, text):
  (tmp_path / 'ensemble.json').write_text(text)
  with pytest.raises(checkpoint.CheckpointError, match='ensemble.json'):
    open_model(tmp_path)


def test_members_lie_beside_it_or_anywhere(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  places = ['hf:org/model@v1', 'gs://bucket/model', '/models/a', '~/models/b', 'c']
  checkpoint.write_members(tmp_path, places)
  expected = [*places[:3], '/home/me/models/b', str(tmp_path / 'c')]
  assert checkpoint.expand([tmp_path]) == expected


# ---------------------------------------------------------------------------- mirror images
def test_another_one_takes_its_place_in_one_step(tmp_path):
  checkpoint.write_members(tmp_path, ['a'])
  (tmp_path / 'before').hardlink_to(tmp_path / 'ensemble.json')
  checkpoint.write_members(tmp_path, ['a', 'b'])
  assert json.loads((tmp_path / 'before').read_text()) == {'members': ['a']}
  assert checkpoint.members(tmp_path) == [tmp_path / 'a', tmp_path / 'b']


def test_members_that_the_disk_refuses_are_told(tmp_path):
  """After a cross-validation of days it was a traceback."""
  (tmp_path / 'ensemble.json').mkdir()
  with pytest.raises(checkpoint.CheckpointError, match='cannot be written'):
    checkpoint.write_members(tmp_path, ['a'])


def test_sides_change_places():
  names = ('left kidney', 'liver', 'right kidney')
  prompts = mirrored_prompts(names, (*names, 'Cyst of the LEFT kidney, L4, l. 3'), TEMPLATE)
  assert prompts == ['right kidney', 'liver', 'left kidney', 'Cyst of the RIGHT kidney, L4, l. 3']
  with pytest.raises(MirrorError, match="knows 'left kidney' and no class"):
    mirrored_prompts(('left kidney', 'liver'), names, TEMPLATE)


def test_the_mirror_image_is_segmented_as_the_mirror_image(models, scan):
  """Whatever a network makes of sides, the mean knows them no more."""
  plain, _ = logits(models[0], scan)
  maps, _ = logits(models[0], scan, tta=True)
  turned, _ = logits(models[0], scan[::-1], tta=True)
  partner = [0, 2, 1, 4, 3, 5]
  np.testing.assert_allclose(turned[::-1][..., partner], maps, atol=1e-4)
  assert np.abs(plain - maps).max() > 0.01
  alone, _ = logits(models[0], scan[::-1])
  np.testing.assert_allclose(maps, (plain + alone[::-1][..., partner]) / 2, atol=1e-4)


def test_of_a_mean_no_one_router_is_shown(models):
  explainers = [
    router_maps.make_explainer(model, CLASSES, TEXTS, model.segmenter(CLASSES, TEXTS, tta=tta))
    for model, tta in ((models[0], False), (models[0], True), (Ensemble(models), False))
  ]
  assert [explainer is not None for explainer in explainers] == [True, False, False]


# ---------------------------------------------------------------------------- the command
def test_predict_with_several_models(folders, models, tmp_path):
  save_scan(tmp_path / 'a.nii.gz', spacing=(9, 9, 9))
  line = ['--input', tmp_path / 'a.nii.gz', '--no-preview', '--report', '--postprocess', 'none']

  def labels(name, *more):
    assert command.main([*map(str, [*line, '--output', tmp_path / name, *more]), '--quiet']) == 0
    manifest = json.loads((tmp_path / name / 'manifest.json').read_text())
    return np.asarray(nib.load(tmp_path / name / 'a_seg.nii.gz').dataobj), manifest

  both, manifest = labels('both', '--checkpoint', *folders)
  digests = [model.fingerprint() for model in models]
  assert [member['sha256'] for member in manifest['checkpoint']['members']] == digests
  assert any('no one router' in note for note in manifest['notes'])
  export_ensemble(folders, tmp_path / 'ensemble')
  again, _ = labels('again', '--checkpoint', tmp_path / 'ensemble')
  assert (again == both).all() and both.any()
  alone, manifest = labels('alone', '--checkpoint', folders[0])
  assert (alone != both).any() and 'members' not in manifest['checkpoint']
  # The same models in another order have made it already; of another architecture they have not.
  swapped = ['--checkpoint', *folders[::-1], '--skip-done']
  assert command.main([*map(str, [*line, '--output', tmp_path / 'both', *swapped])]) == 0
  other = tmp_path / 'other'
  shutil.copytree(folders[1], other)
  config = json.loads((other / 'config.json').read_text())
  config['model']['top_k'] = 1
  (other / 'config.json').write_text(json.dumps(config))
  sparser = ['--checkpoint', folders[0], other, '--skip-done']
  assert command.main([*map(str, [*line, '--output', tmp_path / 'both', *sparser])]) == 1
  assert 'another network' in (tmp_path / 'both/report.csv').read_text()
  # Made otherwise: the result of one pass is not that of two.
  mirrored = ['--checkpoint', folders[0], '--tta', '--skip-done']
  assert command.main([*map(str, [*line, '--output', tmp_path / 'alone', *mirrored])]) == 1
  report = (tmp_path / 'alone/report.csv').read_text()
  assert 'tta false, now true' in report
