"""Scores of a segmentation against a stored label map."""

import dataclasses
import errno
import types

import numpy as np
import pytest
from etils import epath

from input_pipeline import bricks
from input_pipeline.anatomy import IGNORE_CODE, TEMPLATE
from input_pipeline.cli import called_as
from input_pipeline.ct import volume
from input_pipeline.patients import folds
from mome_jax import checkpoint, cli, evaluate, main, shipped
from mome_jax.checkpoint import training_cases
from mome_jax.configs import demo
from mome_jax.errors import UserError
from mome_jax.evaluate import froc, held_out, score_checkpoint, score_files
from mome_jax.text.vectors import TextVectorError, TextVectors

LIVER, TUMOR = (TEMPLATE.get(name).index for name in ('liver', 'liver tumor'))


@pytest.fixture
def case():
  codes = np.zeros((8, 8, 8), np.uint8)
  codes[2:6, 2:6, 2:6] = LIVER
  codes[2:5, 2:5, 2:5] = TUMOR
  codes[6] = IGNORE_CODE
  geometry = volume.to_canonical(codes, np.diag([2.0, 2, 2, 1])).geometry
  return bricks.VolumeRecord(
    'a', 's', 'validation', ('liver', 'liver tumor'), {}, codes, codes, geometry
  )


def test_ignored_voxels_are_not_scored(case):
  """A prediction that goes on where nobody looked is perfect, one that goes on elsewhere is not."""
  masks = {'liver': np.zeros(case.codes.shape, bool), 'liver tumor': case.codes == TUMOR}
  masks['liver'][2:7, 2:6, 2:6] = True
  masks['liver tumor'][6, 2:6, 2:6] = True
  segmentation = types.SimpleNamespace(names=tuple(masks), template=TEMPLATE, mask=masks.get)
  liver, tumor = score_checkpoint.score_case(case, segmentation)
  assert (liver['dice'], liver['hd95_mm'], tumor['dice']) == (1.0, 0.0, 1.0)
  assert (tumor['lesions'], tumor['found'], tumor['predicted']) == (1, 1, 1)
  masks['liver'][7, 2:6, 2:6] = True  # 16 voxels beside 64
  assert score_checkpoint.score_case(case, segmentation)[0]['dice'] == pytest.approx(128 / 144)


def test_a_row_tells_whose_scan_it_is(case):
  segmentation = types.SimpleNamespace(
    names=('liver',), template=TEMPLATE, mask=lambda _: case.codes > 0
  )
  rows = score_checkpoint.score_case(case, segmentation, 's/a')
  assert [(row['split'], row['patient']) for row in rows] == [('validation', 's/a')]


def test_ignored_voxels_hold_no_lesion_at_any_threshold(case):
  levels = froc.Levels(('liver tumor',), case.codes.shape)
  levels.of('liver tumor')[(case.codes == TUMOR) | (case.codes == IGNORE_CODE)] = len(
    froc.THRESHOLDS
  )
  rows = score_checkpoint.count_lesions(case, levels, TEMPLATE)
  assert {(row['lesions'], row['found'], row['predicted']) for row in rows} == {(1, 1, 1)}


def test_a_scan_that_cannot_show_a_lesion_is_no_healthy_one(case):
  absent = dataclasses.replace(case, codes=np.zeros_like(case.codes), absent=('liver tumor',))
  levels = froc.Levels(('liver tumor',), case.codes.shape)
  assert score_checkpoint.count_lesions(absent, levels, TEMPLATE) == []


def test_a_picture_that_cannot_be_written_costs_no_score(monkeypatch, tmp_path):
  def full(*_):
    raise OSError(errno.ENOSPC, 'No space left on device', str(tmp_path / 'pictures/a.png'))

  monkeypatch.setattr(score_checkpoint.CasePictures, 'finish', full)
  names, mask = ('liver',), np.ones((4, 4, 4), bool)
  row = score_files.score('s', 'a', 'liver', mask, mask, (1, 1, 1)) | {'split': 'validation'}
  monkeypatch.setattr(score_checkpoint._Evaluation, '_segment', lambda *_: ([row], []))
  segmenter = types.SimpleNamespace(settings=types.SimpleNamespace(rules=()))
  place = epath.Path(tmp_path)
  run = score_checkpoint._Evaluation(place, demo.get_config(), 7, TEMPLATE, names, segmenter, None)
  with pytest.raises(UserError, match='pictures: cannot be written .*No space left on device'):
    run.score(held_out.HeldOut('validation', (), None, ()))
  assert [row['dice'] for row in score_files.read(tmp_path)] == [1.0]


@pytest.mark.parametrize('sources', [('a',), ('a', 'b')])
def test_pictures_of_several_sources_are_named_by_them(monkeypatch, tmp_path, sources):
  asked = []

  def pictures(folder, *_, several):
    asked.append(several)
    return types.SimpleNamespace(folder=folder, finish=lambda *_: None)

  monkeypatch.setattr(score_checkpoint, 'CasePictures', pictures)
  mask = np.ones((4, 4, 4), bool)
  row = score_files.score('a', 'x', 'liver', mask, mask, (1, 1, 1)) | {'split': 'validation'}
  monkeypatch.setattr(score_checkpoint._Evaluation, '_segment', lambda *_: ([row], []))
  segmenter = types.SimpleNamespace(settings=types.SimpleNamespace(rules=()))
  config = demo.get_config()
  config.data.sources = sources
  place = epath.Path(tmp_path)
  run = score_checkpoint._Evaluation(place, config, 7, TEMPLATE, ('liver',), segmenter, None)
  run.score(held_out.HeldOut('validation', (), None, ()))
  assert asked == [len(sources) > 1]


def test_names_that_training_never_showed_leave_no_pictures(monkeypatch, tmp_path, capsys):
  mask = np.ones((4, 4, 4), bool)
  row = score_files.score('s', 'a', 'liver', mask, mask, (1, 1, 1)) | {'split': 'validation'}
  monkeypatch.setattr(score_checkpoint._Evaluation, '_segment', lambda *_: ([row], []))
  segmenter = types.SimpleNamespace(settings=types.SimpleNamespace(rules=()))
  config = demo.get_config()
  config.evaluation.prompts = 'held_out'
  place = epath.Path(tmp_path)
  run = score_checkpoint._Evaluation(place, config, 7, TEMPLATE, ('hepar',), segmenter, None)
  run.score(held_out.HeldOut('validation', (), None, ()))
  told = capsys.readouterr().out
  assert f'Table and scores: {place / "evaluation_held_out"}' in told and 'Pictures' not in told
  assert not (place / 'pictures').exists()


def test_the_model_of_the_package_is_scored_by_its_name(monkeypatch, tmp_path):
  """Where it lies, nobody may be able to write."""
  monkeypatch.chdir(tmp_path)
  mask = np.ones((4, 4, 4), bool)
  row = score_files.score('s', 'a', 'liver', mask, mask, (1, 1, 1)) | {'split': 'validation'}
  monkeypatch.setattr(score_checkpoint._Evaluation, '_segment', lambda *_: ([row], []))
  monkeypatch.setattr(bricks, 'read_template', lambda *_: TEMPLATE)
  part = held_out.HeldOut('validation', (), None, ())
  monkeypatch.setattr(held_out, 'find', lambda *_, **__: [part])
  monkeypatch.setattr(score_checkpoint.router_maps, 'make_explainer', lambda *_: None)
  segmenter = types.SimpleNamespace(settings=types.SimpleNamespace(rules=()))
  model = types.SimpleNamespace(members=(), step=7, segmenter=lambda *_: segmenter)
  monkeypatch.setattr(score_checkpoint, 'open_model', lambda *_, **__: model)
  before = sorted(shipped.MODEL.iterdir())
  main._evaluate(None, 'shipped')
  assert [row['dice'] for row in score_files.read('runs/shipped')] == [1.0]
  assert sorted(shipped.MODEL.iterdir()) == before


def test_a_missing_vector_names_what_evaluation_has(monkeypatch, tmp_path):
  """It has no --text-model: the vectors of the run get those of the held-out names."""
  known = TextVectors(('a liver',), np.zeros((1, 4), np.float32), {'weights_sha256': 'x'})
  config = demo.get_config()
  config.evaluation.prompts = 'held_out'
  for module, name in (
    (checkpoint, 'folder_of'),
    (training_cases, 'of_models'),
    (held_out, 'find'),
  ):
    monkeypatch.setattr(module, name, lambda *_, **__: tmp_path)
  monkeypatch.setattr(checkpoint, 'load_config', lambda _: config)
  monkeypatch.setattr(bricks, 'read_template', lambda *_: TEMPLATE)
  member = types.SimpleNamespace(vectors=known, folder=tmp_path)
  model = types.SimpleNamespace(members=(member,))
  monkeypatch.setattr(score_checkpoint, 'open_model', lambda *_, **__: model)
  with called_as('mome evaluate', cli.spelled()), pytest.raises(TextVectorError) as error:
    evaluate.evaluate(config, epath.Path(tmp_path))
  assert f'add them with mome embed --output={tmp_path}/text.npz' in str(error.value)
  assert '--text-model' not in str(error.value)


@pytest.mark.parametrize(
  ('scored', 'asked', 'dealt'),
  [
    (('a',), 2, ('a', 'b')),
    (('a', 'b'), 2, ('a', 'b')),
    (('a', 'c'), 2, ('a', 'b')),
    (('c',), 2, None),
    (('a', 'c'), 1, ('a', 'c')),  # another fold than the model's
    (('c',), 1, ('c',)),
  ],
)
def test_a_fold_is_dealt_over_the_sources_of_its_training(
  scored, asked, dealt, monkeypatch, tmp_path
):
  """Scored on one of them, a model is asked for the scans that it was not trained on.

  Of a source that is none of them, what its preparation held out is scored.
  """
  trained, config = demo.get_config(), demo.get_config()
  trained.data.sources, trained.data.fold = ('a', 'b'), 2
  config.data.sources, config.data.fold = scored, asked
  monkeypatch.setattr(checkpoint, 'load_config', lambda _: trained)
  cases = lambda source: [bricks.HeldOutCase(f'{source}{n}', source, 'pool', '') for n in range(20)]
  monkeypatch.setattr(bricks, 'pool_cases', lambda _, source: cases(source))
  monkeypatch.setattr(bricks, 'read_patients', lambda *_: {})
  found = score_checkpoint._held_out_by_fold(config, epath.Path(tmp_path))
  expected = folds.held_out('', dealt, asked, config.data.folds) if dealt else None
  assert found == {source: expected if source in (dealt or ()) else None for source in scored}
  if scored == ('a',):  # dealt over it alone, others would be in the fold
    assert folds.held_out('', scored, asked, config.data.folds) - expected


def test_a_source_that_a_fold_was_dealt_over_and_is_missing_is_explained(monkeypatch):
  def pool(_, source):
    if source == 'b':
      raise bricks.NotPreparedError('data/b: not prepared')
    return []

  monkeypatch.setattr(bricks, 'pool_cases', pool)
  message = 'data/b: not prepared; what fold 2 holds out of a was dealt over a, b, all of which'
  with pytest.raises(bricks.NotPreparedError, match=message):
    folds.by_source('data', ('a', 'c'), ('a', 'b'), 2, 5)
  with pytest.raises(bricks.NotPreparedError, match='data/b: not prepared$'):
    folds.by_source('data', ('a', 'b'), ('a', 'b'), 2, 5)
