"""Cross-validation from the command to the pooled table and the ensemble."""

import json
import os
import re
import shlex
import shutil

import compiled
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest
from etils import epath
from tiny import SETTINGS

from input_pipeline import prepare
from mome_jax import checkpoint, cli
from mome_jax.checkpoint import training_cases
from mome_jax.configs import demo
from mome_jax.crossval import pool
from mome_jax.evaluate import score_checkpoint, score_files
from mome_jax.plausibility import learn, record
from mome_jax.training import command_line
from mome_jax.training.state import TrainState

FOLDS = 2


@pytest.mark.parametrize(('field', 'value'), [('split', 'test'), ('prompts', 'held_out')])
def test_other_scans_or_prompts_are_refused_before_anything_is_trained(field, value):
  config = demo.get_config()
  pool.check(config)
  config.evaluation[field] = value
  with pytest.raises(pool.CrossValidationError, match=f'evaluation.{field} is .{value}.: folds'):
    pool.check(config)


@pytest.mark.parametrize('folds', [-1, 0, 1])
def test_there_are_two_folds_at_least(folds):
  config = demo.get_config()
  config.data.folds = folds
  with pytest.raises(pool.CrossValidationError, match=f'data.folds is {folds}; expected 2'):
    pool.check(config)


def test_folds_that_have_begun_go_on_without_what_they_start_from(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(pool, 'is_done', lambda *_: True)
  monkeypatch.setattr(pool, 'has_scores', lambda *_: True)
  monkeypatch.setattr(pool, 'pool', lambda *_: ({'fold_0': 0.5, 'fold_1': 0.7}, 'the table'))
  command = ['crossval', '--config=demo', f'--workdir={tmp_path}', '--config.data.folds=2']
  command.append(f'--config.init.checkpoint={tmp_path / "gone"}')
  (tmp_path / 'fold_0/checkpoints/300').mkdir(parents=True)
  checkpoint.save_description(tmp_path / 'fold_0', demo.get_config())
  assert cli.main(command) == 1  # the other fold has not begun
  assert f'{tmp_path / "gone"}: no model there' in capsys.readouterr().err
  shutil.copytree(tmp_path / 'fold_0', tmp_path / 'fold_1')
  assert cli.main(command) == 0
  assert 'the table' in capsys.readouterr().out


def test_folds_that_cannot_be_trained_are_told_before_others_are(tmp_path, monkeypatch, capsys):
  """Three scans, one of which shows a larynx: its fold would learn from none that does."""
  scans = tmp_path / 'scans'
  for case in range(3):
    image = np.random.default_rng(case).integers(0, 80, (16, 16, 16)).astype(np.int16)
    labels = np.zeros((16, 16, 16), np.uint8)
    labels[2:8, 2:8, 2:8] = case == 0
    for part, array in (('imagesTr', image), ('labelsTr', labels)):
      (scans / part).mkdir(parents=True, exist_ok=True)
      nib.save(nib.Nifti1Image(array, np.diag([6.0] * 3 + [1])), scans / part / f'c{case}.nii.gz')
  content = {'labels': {'background': 0, 'larynx': 1}, 'missing_is': 'absent'}
  (scans / 'dataset.json').write_text(json.dumps(content))
  line = ['--source=nifti_folder', f'--manual_dir={scans}', '--name=mine', '--spacing=6']
  line += [f'--data_dir={tmp_path / "data"}', '--brick=32', '--folds']
  assert prepare.main(line) == 0
  run = 'mome_jax.runtime.program.run'
  monkeypatch.setattr(run, lambda *words: pytest.fail(f'trained: {words}'))
  words = ['crossval', '--config=demo', f'--workdir={tmp_path / "run"}']
  words += [f'--config.data_dir={tmp_path / "data"}', '--config.data.sources=mine']
  words += ['--config.classes=larynx']
  assert cli.main([*words, '--config.data.folds=4']) == 1
  assert 'data.folds is 4, and mine have 3 patients to train on' in capsys.readouterr().err
  assert cli.main([*words, '--config.data.folds=3']) == 1
  told = r'fold_[0-2] of 3 leaves nothing to learn from: no training scan of mine shows larynx'
  assert re.search(told, capsys.readouterr().err)


def test_what_is_not_prepared_is_told_with_what_the_folds_need(tmp_path, capsys):
  words = ['crossval', '--config=demo', f'--workdir={tmp_path / "run"}']
  words += [f'--config.data_dir={tmp_path / "data"}', '--config.data.sources=openkbp']
  assert cli.main(words) == 1
  told = '--spacing=6,6,6 --brick=32 --folds, or correct data_dir'
  assert told in capsys.readouterr().err


@pytest.fixture(scope='module')
def run(tmp_path_factory, programs):
  """The folder of two folds of a few phantoms, each trained for a few steps, and its command."""
  root = tmp_path_factory.mktemp('crossval')
  line = ['--source=phantom', f'--data_dir={root / "data"}', '--spacing=12', '--brick=16']
  assert prepare.main([*line, '--cases=3', '--folds']) == 0
  command = ['crossval', '--config=demo', f'--workdir={root / "run"}', *SETTINGS]
  command += [f'--config.data_dir={root / "data"}', f'--config.data.folds={FOLDS}']
  command += ['--config.evaluation.pictures=0']
  with pytest.MonkeyPatch.context() as patch:  # each fold is a process
    for name, value in compiled.variables(programs).items():
      patch.setenv(name, value)
    assert cli.main(command) == 0
  return root / 'run', command


def test_every_case_is_scored_by_a_model_that_did_not_see_it(run):
  workdir, _ = run
  pooled = score_files.read(workdir)
  cases = {(row['source'], row['case']) for row in pooled}
  names = [f'fold_{fold}' for fold in range(FOLDS)]
  seen = []
  for name in names:
    trained = training_cases.read(workdir / name)
    part = {(row['source'], row['case']) for row in score_files.read(workdir / name)}
    assert part and not part & {(source, case) for source, case, _ in trained.cases}
    assert part | {(source, case) for source, case, _ in trained.cases} == cases
    seen += part
  assert sorted(seen) == sorted(cases)
  summary = json.loads((workdir / 'evaluation/summary.json').read_text())
  assert list(summary['folds']) == names
  part = score_files.read_summary(epath.Path(workdir) / 'fold_0/evaluation')
  config = checkpoint.load_config(workdir / 'fold_0')
  assert part['evaluation'] == score_checkpoint.settings(config)
  table = (workdir / 'evaluation/table.md').read_text()
  assert f'{len(cases)} scans, each by the one of 2 models that was not trained on it' in table
  assert checkpoint.members(workdir) == [workdir / name for name in names]


def test_the_same_command_repeats_nothing(run, capfd):
  workdir, command = run
  before = {path: path.stat().st_mtime_ns for path in workdir.glob('fold_*/**/*') if path.is_file()}
  assert cli.main(command) == 0
  text = capfd.readouterr().out
  assert text.count('trained and scored already') == FOLDS
  assert f'Ensemble: mome predict --checkpoint={workdir}' in text
  assert before == {path: path.stat().st_mtime_ns for path in before}


def test_the_record_of_a_fold_is_of_its_training_scans(run, monkeypatch):
  workdir, command = run
  data = next(word for word in command if word.startswith('--config.data_dir=')).partition('=')[2]
  stores = []

  def learn_stores(given, *_, **__):
    stores.extend(given)
    raise record.RecordError('seen enough')

  monkeypatch.setattr(learn, 'learn_stores', learn_stores)
  assert cli.main(['plausibility', f'--checkpoint={workdir / "fold_1"}', f'--data-dir={data}']) == 1
  measured = {(case.source, case.name) for store in stores for case in store.cases}
  trained = training_cases.read(workdir / 'fold_1').cases
  assert measured == {(source, case) for source, case, _ in trained}


def test_another_fold_is_another_run(run, capfd):
  workdir, command = run
  line = ['train', *command[1:], f'--workdir={workdir / "fold_0"}', '--config.data.fold=1']
  assert cli.main(line) == 1
  assert 'data.fold: 0 -> 1' in capfd.readouterr().err


def test_what_cannot_be_pooled_or_run(run, capsys):
  _, command = run
  assert cli.main([*command, '--mode=evaluate']) == 2
  assert 'folds are trained one after another' in capsys.readouterr().err


def test_folds_of_other_values_are_not_passed_over(run, capfd):
  workdir, command = run
  before = (workdir / 'evaluation/summary.json').read_bytes()
  assert cli.main([*command, '--config.data.folds=3']) == 1
  assert f'{workdir / "fold_0"}: a fold of another experiment: data.folds: 2 -> 3' in _error(capfd)
  assert cli.main([*command, '--config.train.learning_rate=0.5']) == 1
  assert 'train.learning_rate: ' in _error(capfd)
  assert cli.main([*command, '--config.evaluation.overlap=0.75']) == 1
  told = (
    f'{workdir / "fold_0"}: scored with other values of config.evaluation: overlap: 0.5 -> 0.75'
  )
  assert told in _error(capfd)
  assert (workdir / 'evaluation/summary.json').read_bytes() == before


def test_scores_of_another_folds_cases_are_not_pooled(run, tmp_path):
  workdir, command = run
  values = command_line.parse(['crossval', *command[1:]])
  copy = epath.Path(shutil.copytree(workdir, tmp_path / 'copy'))
  scores = (copy / 'fold_1/evaluation' / score_files.CASES).read_bytes()
  (copy / 'fold_0/evaluation' / score_files.CASES).write_bytes(scores)
  with pytest.raises(pool.CrossValidationError, match='which another fold holds out now'):
    pool.pool(copy, values.config)


def test_a_case_that_no_fold_scored_is_told(run, tmp_path):
  workdir, command = run
  values = command_line.parse(['crossval', *command[1:]])
  copy = epath.Path(shutil.copytree(workdir, tmp_path / 'copy'))
  rows = score_files.read(copy / 'fold_0')
  (source, case), *_ = sorted({(row['source'], row['case']) for row in rows})
  others = [row for row in rows if row['case'] != case]
  place, origin = copy / 'fold_0/evaluation', score_files.read_summary(copy / 'fold_0/evaluation')
  kept = {name: origin[name] for name in ('split', 'step', 'evaluation')}
  score_files.write(place, others, title='t', origin=kept)
  told = f'fold_0: did not score {source}/{case}, which it holds out now: the prepared cases'
  with pytest.raises(pool.CrossValidationError, match=told):
    pool.pool(copy, values.config)
  # Its model was trained on it elsewhere: that is known, and said of the pool too.
  left_out = {'source': source, 'case': case, 'reason': 'same name'}
  score_files.write(place, others, title='t', origin=kept | {'left_out': [left_out]})
  _, table = pool.pool(copy, values.config)
  assert ', 1 more left out since the model of their fold was trained on them' in table
  assert score_files.read_summary(copy / 'evaluation')['left_out'] == [left_out]
  # Nor has a case any score that labels no class of the experiment.
  score_files.write(place, others, title='t', origin=kept)
  values.config.classes = ('lung tumor',)
  assert pool.scores(copy / 'fold_0', pool.of_fold(values.config, 0)) == others


def replace_scores(fold, **fields):
  """What `mome evaluate --config.data.sources=...` of a fold leaves; without fields, no rows."""
  place, origin = fold / 'evaluation', score_files.read_summary(fold / 'evaluation')
  rows = [row | fields for row in score_files.read(place)] if fields else []
  kept = {name: origin[name] for name in ('split', 'step', 'evaluation')}
  score_files.write(place, rows, title='t', origin=kept)


@pytest.mark.parametrize('fields', [{'source': 'hospital_b'}, {'case': 'other'}, {}])
def test_scores_of_other_data_are_none_of_a_fold(fields, run, tmp_path):
  workdir, command = run
  copy = epath.Path(shutil.copytree(workdir / 'fold_0', tmp_path / 'fold_0'))
  config = pool.of_fold(command_line.parse(['crossval', *command[1:]]).config, 0)
  assert pool.is_done(copy, config) and pool.has_scores(copy, config)
  replace_scores(copy, **fields)
  assert pool.is_done(copy, config) and not pool.has_scores(copy, config)


def test_a_fold_that_was_evaluated_on_other_data_is_scored_again(
  run, tmp_path, capfd, programs, monkeypatch
):
  workdir, command = run
  copy = epath.Path(shutil.copytree(workdir, tmp_path / 'copy'))
  replace_scores(copy / 'fold_0', source='hospital_b')
  checkpoints = [*(tmp_path / 'copy').glob('fold_*/checkpoints/**/*')]
  before = {path: path.stat().st_mtime_ns for path in checkpoints if path.is_file()}
  for name, value in compiled.variables(programs).items():
    monkeypatch.setenv(name, value)
  assert cli.main([*command, f'--workdir={copy}']) == 0
  text = capfd.readouterr().out
  assert 'fold_0: its scores are not of what it holds out; it is scored again' in text
  assert 'fold_1 of 2: trained and scored already' in text
  assert before == {path: path.stat().st_mtime_ns for path in before}
  pooled = f'evaluation/{score_files.CASES}'
  assert (copy / pooled).read_text() == (workdir / pooled).read_text()


def test_cases_that_came_later_are_told_before_any_work(run, tmp_path, capfd):
  workdir, command = run
  data = next(word for word in command if word.startswith('--config.data_dir=')).partition('=')[2]
  copy = epath.Path(shutil.copytree(workdir, tmp_path / 'copy'))
  shutil.copytree(data, tmp_path / 'data')
  line = ['--source=phantom', f'--data_dir={tmp_path / "data"}', '--spacing=12', '--brick=16']
  assert prepare.main([*line, '--cases=4', '--folds', '--overwrite']) == 0
  shutil.rmtree(copy / 'fold_1/evaluation')  # would be scored again, after the error
  assert cli.main([*command, f'--workdir={copy}', f'--config.data_dir={tmp_path / "data"}']) == 1
  assert 'fold_0 was trained on other scans, labels or splits of phantom' in _error(capfd)
  assert not (copy / 'fold_1/evaluation').exists()


@pytest.fixture
def fold(tmp_path):
  """A fold as training and scoring leave it, better after one of its two steps; its config."""
  folder, config = epath.Path(tmp_path), demo.get_config()
  config.train.steps = 2
  checkpoint.save_description(folder, config)
  params = {'model': {'bias': jnp.ones(3)}}
  writer = checkpoint.Checkpointer(folder)
  for step, dice in ((1, 0.5), (2, 0.4)):
    state = TrainState(jnp.int32(step), params, params, (params,))
    writer.save(step, state, {'step': step}, dice)
  writer.close()
  (folder / 'evaluation').mkdir()
  (folder / 'evaluation/summary.json').write_text('{"step": 2, "mean_dice": 0.4}')
  return folder, config


def test_a_fold_scored_at_the_checkpoint_that_counts_is_done(fold):
  folder, config = fold
  assert pool.is_done(folder, config)
  summary = folder / 'evaluation/summary.json'
  summary.write_text('{"step": 1, "mean_dice": 0.5}')
  assert not pool.is_done(folder, config)
  config.evaluation.checkpoint = 'best'
  checkpoint.save_description(folder, config)
  assert pool.is_done(folder, config)
  summary.write_text('{"step": 1, "mean_d')  # killed while it was written
  assert not pool.is_done(folder, config)
  summary.unlink()
  assert not pool.is_done(folder, config)


def test_a_fold_that_was_scored_with_other_values_is_refused(fold):
  folder, config = fold
  settings = score_checkpoint.settings(config)
  summary = folder / 'evaluation/summary.json'
  summary.write_text(json.dumps({'step': 2, 'evaluation': settings}))
  assert pool.is_done(folder, config)
  for name, value in (('tta', True), ('overlap', 0.75), ('window', [8, 8, 8])):
    summary.write_text(json.dumps({'step': 2, 'evaluation': settings | {name: value}}))
    told = re.escape(f'values of config.evaluation: {name}: {value} -> {settings[name]}; give')
    with pytest.raises(pool.CrossValidationError, match=told) as caught:
      pool.is_done(folder, config)
    # What it says mends it.
    line = shlex.split(str(caught.value).partition('mome ')[2])
    given = command_line.parse([*line, '--mode=evaluate']).config
    assert score_checkpoint.settings(given)[name] == settings[name]


def test_scores_of_earlier_versions_have_the_values_that_the_fold_is_described_with(fold):
  folder, config = fold
  config.evaluation.overlap = 0.75
  with pytest.raises(pool.CrossValidationError, match='overlap: 0.5 -> 0.75; give those'):
    pool.is_done(folder, config)
  settings = score_checkpoint.settings(config)  # as scored again since
  summary = {'step': 2, 'evaluation': settings}
  (folder / 'evaluation/summary.json').write_text(json.dumps(summary))
  assert pool.is_done(folder, config)


def test_what_changes_no_score_makes_no_other_experiment(fold):
  folder, config = fold
  config.evaluation.batch_size, config.evaluation.pictures = 3, 7
  config.evaluation.split = 'validation'
  config.validation.every, config.validation.patches = 1, 2  # nothing is chosen by them
  assert pool.is_done(folder, config)
  config.validation.patience = 5
  with pytest.raises(pool.CrossValidationError, match='validation.every: 400 -> 1'):
    pool.is_done(folder, config)


@pytest.mark.parametrize('file', ['evaluation/summary.json', 'checkpoints/2'])
def test_no_clock_decides_whether_a_fold_is_done(fold, file):
  folder, config = fold
  os.utime(folder / file, (0, 0))
  assert pool.is_done(folder, config)


def _error(capfd) -> str:
  return capfd.readouterr().err
