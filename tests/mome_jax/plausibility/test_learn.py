"""The record of prepared training scans, by the command."""

import numpy as np
import pytest
from etils import epath

from input_pipeline import bricks, prepare
from input_pipeline.patients import folds
from mome_jax import checkpoint, export
from mome_jax.checkpoint import training_cases
from mome_jax.configs import demo
from mome_jax.plausibility import __main__ as command
from mome_jax.plausibility import learn, record
from mome_jax.plausibility.measures import Scene


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  folder = tmp_path_factory.mktemp('plausibility')
  words = ['--source=phantom', f'--data_dir={folder}', '--spacing=12', '--brick=16']
  assert prepare.main(words) == 0
  config = demo.get_config()
  kernel = np.ones((2, 2), np.float32)
  checkpoint.save_model(folder / 'model', config, {'model': {'a': kernel}, 'text': {'b': kernel}})
  return folder


def test_the_record_of_the_package_s_model_is_not_the_user_s_to_replace(capsys):
  assert command.main(['--checkpoint=shipped', '--data_dir=none']) == 1
  assert 'shipped: is the name of a model, no folder for one' in capsys.readouterr().err


def test_the_command(prepared, tmp_path, capsys):
  words = ['--checkpoint', str(prepared / 'model'), '--data_dir', str(prepared)]
  assert command.main(words) == 0
  told = capsys.readouterr().out
  [made] = record.read(prepared / 'model')
  assert made.cases == 24 and made.grid == (12, 12, 12)
  store = bricks.open_bricks(prepared, 'phantom')
  for name, known in made.classes.items():
    assert known.supervised == sum(name in case.supervised for case in store.cases)
    assert f'  {name}: {known.cases} labels' in told
  assert made.few and all(f' {name}' in told.partition('few labels')[2] for name in made.few)
  missing = set(demo.get_config().classes) - {*made.classes, *made.few}
  assert all(name in told.partition('too few labels')[2] for name in missing)
  assert made.classes['liver'].values['volume_ml'].median > 100
  export.export(prepared / 'model', tmp_path / 'out')
  assert record.read(tmp_path / 'out') == (made,)


def test_a_folder_that_takes_no_record_is_told_before_anything_is_measured(
  prepared, tmp_path, capsys, monkeypatch
):
  place = tmp_path / 'model'
  checkpoint.save_model(place, demo.get_config(), {'model': {'a': np.ones(2, np.float32)}})
  (place / record.FILE).mkdir()
  monkeypatch.delattr(learn, 'learn_stores')
  assert command.main(['--checkpoint', str(place), '--data_dir', str(prepared)]) == 1
  assert f'{record.FILE}: Is a directory' in capsys.readouterr().err
  with pytest.raises(record.RecordError, match='cannot be written'):
    record.write(place, [])


def test_what_a_fold_holds_out_is_that_of_the_run_whichever_sources_are_measured(
  prepared, tmp_path, monkeypatch
):
  config = demo.get_config()
  config.data.sources, config.data.fold = ('phantom', 'other'), 1
  checkpoint.save_model(tmp_path / 'model', config, {'model': {'a': np.ones(2, np.float32)}})
  asked = []
  monkeypatch.setattr(folds, 'held_out', lambda *given: asked.append(given))
  monkeypatch.setattr(learn, 'learn_stores', lambda *_, **__: [])
  words = ['--checkpoint', str(tmp_path / 'model'), '--data_dir', str(prepared)]
  assert command.main([*words, '--sources', 'phantom']) == 0
  assert asked == [(str(prepared), ('phantom', 'other'), 1, config.data.folds)]
  config.data.sources = ('gone', 'other')
  (tmp_path / 'model/config.json').write_text(config.to_json_best_effort())
  assert command.main([*words, '--sources', 'phantom']) == 0
  assert len(asked) == 1


def test_of_a_source_that_is_not_the_run_s_the_split_of_its_preparation_is_measured(
  tmp_path, monkeypatch
):
  """Whatever is named beside it: nobody dealt it, and it may be prepared without folds."""
  config = demo.get_config()
  config.data.sources, config.data.fold = ('phantom',), 1
  checkpoint.save_model(tmp_path, config, {'model': {'a': np.ones(2, np.float32)}})
  dealt, opened = frozenset({('phantom', 'a')}), {}
  monkeypatch.setattr(folds, 'held_out', lambda *_: dealt)
  monkeypatch.setattr(bricks, 'read_template', lambda *_: None)
  monkeypatch.setattr(bricks, 'open_bricks', lambda _, name, of, fold: opened.update({name: fold}))
  monkeypatch.setattr(learn, 'learn_stores', lambda *_, **__: [])
  words = ['--checkpoint', str(tmp_path), '--data_dir', 'data', '--sources', 'phantom,mine']
  assert command.main(words) == 0
  assert opened == {'phantom': dealt, 'mine': None}


@pytest.mark.parametrize('aside', [2, 0])
def test_scans_that_a_run_set_aside_are_not_measured(aside, prepared, tmp_path, monkeypatch):
  """Of a run without any, other scans than its list names are measured: of other data of the name.

  Those that `validation.cases` took from training are on no list of training cases.
  """
  config = demo.get_config()
  config.validation.cases = aside
  checkpoint.save_model(tmp_path, config, {'model': {'a': np.ones(2, np.float32)}})
  cases = bricks.open_bricks(prepared, 'phantom').cases
  listed = frozenset((case.source, case.name, case.digest) for case in cases[2:])
  training_cases.write(epath.Path(tmp_path), training_cases.TrainingCases(listed))
  opened = {}
  see = lambda stores, *_, **__: opened.update({s.name: s.cases for s in stores}) or []
  monkeypatch.setattr(learn, 'learn_stores', see)
  assert command.main(['--checkpoint', str(tmp_path), '--data_dir', str(prepared)]) == 0
  assert opened == {'phantom': cases[aside:]}


def test_scans_come_together_from_their_bricks(prepared):
  """Volumes are those that the bricks' index counts, whatever the bricks."""
  store = bricks.open_bricks(prepared, 'phantom')
  voxels = store.class_voxels(['liver'])[:, 0]
  number = next(n for n, case in enumerate(store.cases) if 'liver' in case.supervised)
  image, codes = learn._assemble(store, number)
  assert image.shape == codes.shape == store.cases[number].shape
  mask = store.template.code_table(['liver'])[codes][..., 0]
  assert mask.sum() == voxels[store.case == number].sum() > 0
  look = Scene(image, store.spacing).look(mask)
  assert look.values['volume_ml'] == pytest.approx(mask.sum() * 12**3 / 1000)


def test_fewer_scans_are_spread_over_the_source(prepared):
  store = bricks.open_bricks(prepared, 'phantom')
  patients = {(case.source, case.name): f'patient of {case.name}' for case in store.cases}
  looks = list(learn._looks(store, ['liver'], 4, store.spacing, patients))
  chosen = [store.cases[n] for n in (0, 8, 15, 23)]
  assert [look.supervised for look in looks] == [frozenset(c.supervised) for c in chosen]
  assert [look.patient for look in looks] == [f'patient of {c.name}' for c in chosen]


def test_too_few_labels_are_no_record(prepared):
  store = bricks.open_bricks(prepared, 'phantom')
  with pytest.raises(
    record.RecordError, match='labelled in fewer than 10 of the 24 training scans'
  ):
    learn.learn_stores([store], ['brainstem'], prepared)


@pytest.mark.parametrize(
  ('counts', 'most', 'shares'),
  [
    ([158, 4, 1], 300, [158, 4, 1]),
    ([158, 4, 1], 100, [95, 4, 1]),
    ([400, 400, 10], 300, [145, 145, 10]),
    ([900], 300, [300]),
    ([5, 5, 5], 2, [0, 1, 1]),
  ],
)
def test_what_small_sources_leave_goes_to_the_others(counts, most, shares):
  assert learn._shares(counts, most) == shares
