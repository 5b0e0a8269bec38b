"""Cross-validation from the command to the pooled table and the ensemble."""

import json

import pytest
from tiny import SETTINGS

from input_pipeline import prepare
from mome_jax import checkpoint, cli
from mome_jax.checkpoint import training_cases
from mome_jax.evaluate import score_files
from mome_jax.plausibility import learn, record

FOLDS = 2


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The folder of two folds of a few phantoms, each trained for two steps, and its command."""
  root = tmp_path_factory.mktemp('crossval')
  line = ['--source=phantom', f'--data_dir={root / "data"}', '--spacing=12', '--brick=16']
  assert prepare.main([*line, '--cases=3', '--folds']) == 0
  command = ['crossval', '--config=demo', f'--workdir={root / "run"}', *SETTINGS]
  command += [f'--config.data_dir={root / "data"}', f'--config.data.folds={FOLDS}']
  command += ['--config.train.steps=2', '--config.evaluation.pictures=0']
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
