"""A model knows what it was trained on, and that is never scored as held out."""

import json
import types

import nibabel as nib
import numpy as np
import pytest
from etils import epath
from threshold import Threshold

from input_pipeline import bricks, prepare
from input_pipeline.anatomy import TEMPLATE
from mome_jax import checkpoint, evaluate, export
from mome_jax.checkpoint import training_cases
from mome_jax.checkpoint.training_cases import TrainingCases
from mome_jax.configs import base
from mome_jax.errors import UserError
from mome_jax.evaluate import held_out, score_checkpoint, score_files
from mome_jax.training import loop

NAMES = {'train': 'ab', 'validation': 'vw', 'test': 'xyz'}


def write(folder, name, seed):
  image = np.full((16, 16, 16), -1000, np.int16)
  image[4:12, 4:12, 4:12] = np.random.default_rng(seed).integers(20, 200, (8, 8, 8))
  label = (image > -500).astype(np.uint8)
  for kind, array in (('images', image), ('labels', label)):
    (folder / f'{kind}Tr').mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([1.5, 1.5, 1.5, 1])),
             folder / f'{kind}Tr' / f'{name}.nii.gz')  # fmt: skip


def prepared(folder, data, name, cases, splits, **more):
  """Prepares `cases` (name -> seed) as the source `name`."""
  for case, seed in cases.items():
    write(folder, case, seed)
  index = {'labels': {'background': 0, 'liver': 1}, 'splits': splits, **more}
  (folder / 'dataset.json').write_text(json.dumps(index))
  prepare.prepare('nifti_folder', data, manual_dir=str(folder), name=name, spacing=(1.5,) * 3,
                  brick=16)  # fmt: skip


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """Two training, two validation and three test scans."""
  folder = tmp_path_factory.mktemp('splits')
  cases = {name: seed for seed, name in enumerate('abvwxyz')}
  splits = {split: list(names) for split, names in NAMES.items() if split != 'train'}
  prepared(folder / 'mine', folder / 'data', 'mine', cases, splits)
  return folder / 'data'


def trained_on(data, *names, change=lambda source, name, digest: (source, name, digest)):
  """TrainingCases of held-out scans of `data`, by name."""
  cases = {case.name: case for case in bricks.held_out_cases(data, 'mine')}
  rows = (change(c.source, c.name, c.digest) for c in map(cases.get, names))
  return TrainingCases(frozenset(rows))


def test_what_a_run_writes_beside_its_checkpoints_may_not_fit(tmp_path, monkeypatch):
  """One line, as of the checkpoints themselves: the same command goes on."""

  def full(path, *_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(type(epath.Path(tmp_path)), 'write_bytes', full)
  with pytest.raises(UserError, match='training_cases.json: cannot be written .No space left'):
    training_cases.note(epath.Path(tmp_path), [], resumed=False, init='')
  monkeypatch.setattr(loop.learn, 'learn_stores', lambda *_: ())
  monkeypatch.setattr(loop.record, 'write', lambda *_: None)
  monkeypatch.setattr(loop.training_curves, 'training_curves', full)
  log = types.SimpleNamespace(rows=list, expert_rows=list)
  task = types.SimpleNamespace(config=base.get_config(), stores=[])
  with pytest.raises(UserError, match='pictures/training.png: cannot be written .No space left'):
    loop._summarise(task, epath.Path(tmp_path), log)


def find(data, **options):
  return held_out.find(str(data), ['mine'], TEMPLATE, **options)


def names_of(parts):
  return {part.split: [case.name for case in part.read()] for part in parts}


NOTHING = TrainingCases(frozenset())


class TestSplits:
  @pytest.mark.parametrize(
    ('split', 'scored'),
    [
      ('auto', {'validation': ['v', 'w']}),
      ('validation', {'validation': ['v', 'w']}),
      ('test', {'test': ['x', 'y', 'z']}),
      ('all', {'validation': ['v', 'w'], 'test': ['x', 'y', 'z']}),
    ],
  )
  def test_each_is_on_its_own(self, data, split, scored):
    parts = find(data, split=split, trained=NOTHING)
    assert names_of(parts) == scored
    assert {case.split for part in parts for case in part.read()} == set(scored)

  def test_what_is_not_scored_is_said(self, data, capsys):
    (part,) = find(data, trained=NOTHING)
    assert capsys.readouterr().out == (
      'not scored: 3 test scans; --config.evaluation.split=all scores each split\n'
    )
    assert part.title() == '2 held-out scans (validation)'
    find(data, split='all', trained=NOTHING)
    assert capsys.readouterr().out == ''

  def test_hosts_share_the_scans(self, data):
    (part,) = find(data, split='test')
    shares = [[case.name for case in part.read(host, 2)] for host in range(2)]
    assert shares == [['x', 'z'], ['y']]

  def test_patients_of_several_scans_are_known(self, tmp_path):
    cases = {'a': 0, 'u': 1, 'v': 2, 'w': 3, 'x': 3, 'y': 4}  # w and x hold the same voxels
    whose = {'patients': {'v': 'somebody', 'u': 'somebody'}}
    prepared(
      tmp_path / 'in', tmp_path / 'data', 'mine', cases, {'validation': list('uvwxy')}, **whose
    )
    (part,) = find(tmp_path / 'data')
    assert {name: called for (_, name), called in part.patients.items()} == {
      'u': 'mine/u', 'v': 'mine/u', 'w': 'mine/w', 'x': 'mine/w'
    }  # fmt: skip

  def test_test_scans_where_there_is_nothing_else(self, tmp_path):
    prepared(tmp_path / 'in', tmp_path / 'data', 'mine', {'a': 0, 't': 1}, {'test': ['t']})
    assert names_of(find(tmp_path / 'data')) == {'test': ['t']}
    with pytest.raises(held_out.NothingHeldOutError, match=r'split=validation; held out.* 1 test'):
      find(tmp_path / 'data', split='validation')

  def test_mistakes(self, data, tmp_path):
    with pytest.raises(held_out.HeldOutError, match="is 'val'; known: auto, validation, test, all"):
      find(data, split='val')
    prepared(tmp_path / 'in', tmp_path / 'data', 'mine', {'a': 0, 'b': 1}, {'train': ['a', 'b']})
    with pytest.raises(held_out.NothingHeldOutError, match='held out there: none.*dataset.json'):
      find(tmp_path / 'data')


class TestTrainedOn:
  def test_a_scan_under_its_name_is_left_out(self, data, capsys):
    (part,) = find(data, trained=trained_on(data, 'v', 'x'))
    assert names_of([part]) == {'validation': ['w']}
    (left,) = part.origin()['left_out']
    assert (left['source'], left['case']) == ('mine', 'v')
    assert part.title() == (
      '1 held-out scan (validation), 1 more left out since the model was trained on them'
    )
    assert 'left out: mine/v: the same voxels as mine/v' in capsys.readouterr().out

  def test_renamed_and_in_another_cohort(self, data):
    """The content decides."""
    trained = trained_on(data, 'v', change=lambda source, name, digest: ('other', 'p7', digest))
    (part,) = find(data, trained=trained)
    assert names_of([part]) == {'validation': ['w']}
    assert 'the same voxels as other/p7' in part.left_out[0]['reason']

  def test_other_voxels_under_the_same_name(self, data):
    """A header that was corrected is no new patient."""
    trained = trained_on(data, 'v', change=lambda source, name, digest: (source, name, '0'))
    (part,) = find(data, trained=trained)
    assert names_of([part]) == {'validation': ['w']}
    assert '--name' in part.left_out[0]['reason']
    elsewhere = trained_on(data, 'v', change=lambda source, name, digest: ('other', name, '0'))
    assert names_of(find(data, trained=elsewhere)) == {'validation': ['v', 'w']}

  def test_none_left(self, data):
    trained = trained_on(data, 'v', 'w')
    with pytest.raises(held_out.NothingHeldOutError, match='trained on all 2 validation scans'):
      find(data, trained=trained)
    assert names_of(find(data, split='all', trained=trained)) == {'test': ['x', 'y', 'z']}

  @pytest.mark.parametrize('trained', [None, TrainingCases(frozenset(), complete=False)])
  def test_a_model_that_does_not_know_is_scored_with_a_note(self, data, trained):
    (part,) = find(data, trained=trained)
    assert len(part) == 2
    assert 'not checked against all training scans' in part.title()
    assert part.origin()['training_cases_known'] is False


class TestRecord:
  def test_a_run_notes_what_it_can_draw(self, data, tmp_path):
    stores = [bricks.open_bricks(data, 'mine')]
    workdir = epath.Path(tmp_path / 'run')
    training_cases.note(workdir, stores, resumed=False, init='')
    noted = training_cases.read(workdir)
    assert {case[:2] for case in noted.cases} == {('mine', 'a'), ('mine', 'b')}
    assert noted.complete and len({case[2] for case in noted.cases}) == 2

  def test_the_list_grows_when_a_run_goes_on(self, data, tmp_path):
    earlier = TrainingCases(frozenset({('old', 'gone', '1')}))
    training_cases.write(epath.Path(tmp_path), earlier)
    training_cases.note(
      epath.Path(tmp_path), [bricks.open_bricks(data, 'mine')], resumed=True, init=''
    )
    assert {case[:2] for case in training_cases.read(epath.Path(tmp_path)).cases} == {
      ('mine', 'a'), ('mine', 'b'), ('old', 'gone'),
    }  # fmt: skip

  @pytest.fixture
  def model(self, tmp_path):
    checkpoint.save_model(tmp_path / 'model', base.get_config(), {'model': {'a': np.ones(3)}})
    return epath.Path(tmp_path / 'model')

  def test_the_chain_of_fine_tunings(self, data, model, tmp_path):
    stores = [bricks.open_bricks(data, 'mine')]
    training_cases.write(model, TrainingCases(frozenset({('far', 'away', '1')})))
    first, second = epath.Path(tmp_path / 'first'), epath.Path(tmp_path / 'second')
    checkpoint.save_description(first, base.get_config())
    training_cases.note(first, stores, resumed=False, init=str(model))
    training_cases.note(second, [], resumed=False, init=str(first))
    cases = training_cases.read(second)
    assert {case[1] for case in cases.cases} == {'away', 'a', 'b'} and cases.complete

  def test_a_start_from_a_model_that_does_not_know_is_noted(self, data, model, tmp_path):
    workdir = epath.Path(tmp_path / 'run')
    training_cases.note(workdir, [bricks.open_bricks(data, 'mine')], resumed=False, init=str(model))
    cases = training_cases.read(workdir)
    assert len(cases.cases) == 2 and not cases.complete

  def test_export_keeps_it(self, model, tmp_path):
    export.export(model, tmp_path / 'without')
    assert training_cases.read(epath.Path(tmp_path / 'without')) is None
    cases = TrainingCases(frozenset({('mine', 'Müller', '1')}), complete=False)
    training_cases.write(model, cases)
    export.export(model, tmp_path / 'with')
    assert training_cases.read(epath.Path(tmp_path / 'with')) == cases

  def test_a_damaged_list_is_named(self, tmp_path):
    for text in ('{', '{"cases": [["a"]], "complete": true}', '[]'):
      (tmp_path / training_cases.FILE).write_text(text)
      with pytest.raises(training_cases.TrainingCasesError, match='training_cases.json: not a'):
        training_cases.read(epath.Path(tmp_path))


class FakePredictor(Threshold):
  """In place of a network: the bright box is liver."""

  step, vectors = 7, None

  def __init__(self, workdir, config, *, asked=()):
    super().__init__()
    self.config = config

  def segmenter(self, names, prompts, template):
    return super().segmenter(names, prompts)


@pytest.fixture
def run(data, tmp_path, monkeypatch):
  """run(split, trained) -> the workdir after its evaluation."""
  monkeypatch.setattr(score_checkpoint, 'open_model', FakePredictor)
  monkeypatch.setattr(score_checkpoint.router_maps, 'make_explainer', lambda *_: None)

  def call(split, trained=NOTHING, name='run'):
    workdir = epath.Path(tmp_path / name)
    config = base.get_config()
    config.data_dir, config.classes, config.data.sources = str(data), ('liver', 'spleen'), ('mine',)
    config.evaluation.split = split
    config.evaluation.pictures = 1
    checkpoint.save_description(workdir, config)
    if trained is not None:
      training_cases.write(workdir, trained)
    evaluate.evaluate(config, workdir)
    return workdir

  return call


def test_an_evaluation_of_all_splits_mixes_none(run, capsys):
  workdir = run('all')
  printed = capsys.readouterr().out
  for folder, split in (('evaluation', 'validation'), ('evaluation_test', 'test')):
    summary = json.loads((workdir / folder / 'summary.json').read_text())
    rows = score_files.read(workdir / folder)
    assert [row['case'] for row in rows] == list(NAMES[split])
    assert {row['split'] for row in rows} == {split} == {summary['split']}
    assert summary['classes']['liver']['n'] == len(NAMES[split])
    assert f'### {len(NAMES[split])} held-out scans ({split}), step 7' in printed
  assert score_files.read(workdir) == score_files.read(workdir / 'evaluation')
  assert {'v.png', 'x.png'} <= {path.name for path in (workdir / 'pictures').iterdir()}


def test_an_evaluation_says_what_it_left_out(run, data):
  workdir = run('auto', trained_on(data, 'w'))
  summary = json.loads((workdir / 'evaluation' / 'summary.json').read_text())
  assert [case['case'] for case in summary['left_out']] == ['w']
  assert 'same voxels' in summary['left_out'][0]['reason'] and summary['training_cases_known']
  assert '1 more left out' in (workdir / 'evaluation' / 'table.md').read_text().splitlines()[0]
  assert {row['case'] for row in score_files.read(workdir)} == {'v'}


def test_runs_are_compared_on_one_split(run, capsys):
  a, b = str(run('validation', name='a')), str(run('test', name='b'))
  capsys.readouterr()
  assert evaluate.main(['compare', a, b]) == 1
  message = capsys.readouterr().err
  assert f'{a} scores validation scans, {b} scores test scans' in message
  run('all', name='a')
  assert evaluate.main(['compare', f'{a}/evaluation_test', b]) == 0


def test_scores_without_the_column_are_compared_still(run, tmp_path):
  a = run('validation', name='a')
  older = tmp_path / 'older.csv'
  lines = (a / 'evaluation' / 'cases.csv').read_text().splitlines()
  assert lines[0].startswith('source,case,split,class,')
  older.write_text('\n'.join(line.replace(',split,', ',').replace(',validation,', ',')
                             for line in lines))  # fmt: skip
  assert {row['split'] for row in score_files.read(older)} == {''}
  assert evaluate.main(['compare', str(a), str(older)]) == 0


def test_a_file_of_two_splits_is_refused(run, tmp_path, capsys):
  workdir = run('all')
  first, second = (
    (workdir / folder / 'cases.csv').read_text() for folder in ('evaluation', 'evaluation_test')
  )
  (tmp_path / 'both.csv').write_text(first + second.split('\n', 1)[1])
  both = str(tmp_path / 'both.csv')
  assert evaluate.main(['compare', both, both]) == 1
  assert 'scores of test and validation scans; compare one split' in capsys.readouterr().err
  with pytest.raises(ValueError, match='test, validation'):
    score_files.write(tmp_path / 'out', score_files.read(both), title='', origin={})
