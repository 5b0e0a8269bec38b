"""The paper's experiment on fabricated downloads: short with three datasets, long with all."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import types

import compiled
import numpy as np
import pytest
from etils import epath

from input_pipeline import sources
from input_pipeline.bricks import records
from mome_jax import checkpoint
from mome_jax.checkpoint import training_cases
from mome_jax.configs import demo, paper_unet
from mome_jax.errors import UserError
from mome_jax.evaluate import metrics, score_checkpoint, score_files
from mome_jax.reproduce import command, families, stages, tables
from mome_jax.text import vectors
from tests.input_pipeline.sources import layouts

ROOT = pathlib.Path(__file__).resolve().parents[3]
GOLDEN = ROOT / 'tests/input_pipeline/sources/golden'
TINY = (
  '--spacing=8', '--brick=16', '--config.data.patch=(16, 16, 16)',
  '--config.evaluation.window=(16, 16, 16)', '--config.model.backbone.size=tiny',
  '--config.model.scales=(0, 1)', '--config.model.remat=False', '--config.model.dtype=float32',
  '--config.text.num_layers=1', '--config.init.text=', '--config.train.steps=2',
  '--config.train.batch_size=2', '--config.train.negatives=0', '--config.train.warmup_steps=1',
  '--config.evaluation.pictures=0',
)  # fmt: skip


def fabricate(root, names, count=6):
  """Downloads in their official layouts; msd_liver has the patients of lits, one scan is broken."""
  for seed, name in enumerate(names):
    values = json.loads((GOLDEN / f'{name}.json').read_text())['codes']
    with layouts.patients(count, 3 if name in ('lits', 'msd_liver') else 100 + seed):
      layouts.LAYOUTS[name](root / name, [int(value) for value in values])
  broken = sorted((root / 'lits').rglob('volume-*'))[0]
  broken.write_bytes(broken.read_bytes()[:2000])
  return broken


def reproduce(*words):
  return subprocess.run(
    [sys.executable, '-m', 'mome_jax.reproduce', *words], capture_output=True, text=True,
    env={**os.environ, **compiled.SOON, 'PYTHONPATH': str(ROOT)}, timeout=3000,
  )  # fmt: skip


def test_from_three_downloads_to_the_tables(tmp_path):
  """Beside a fourth that holds nothing, which is gone without."""
  broken = fabricate(tmp_path / 'downloads', ('lits', 'kits', 'msd_liver'))
  (tmp_path / 'downloads/word').mkdir()
  asked = f'--downloads={tmp_path / "downloads"}', f'--work={tmp_path / "work"}'
  done = reproduce(*asked, '--status', *TINY)
  assert done.returncode == 0, done.stderr
  assert '3 of 18 downloads are here' in done.stdout
  assert re.search(r'without msd_lung: 63 scans .* nothing here labels lung tumor', done.stdout)
  assert re.search(r'next +check +left: lits, kits, msd_liver', done.stdout)
  done = reproduce(*asked, '--models=paper_unet', *TINY)
  assert done.returncode == 1, done.stderr  # for one scan, and a download
  assert done.stderr.count('left out: lits') == 1 and str(broken) in done.stderr
  assert f'left out: word: {tmp_path}/downloads/word: no scan of word' in done.stderr
  work = tmp_path / 'work'
  groups = json.loads((work / 'groups.json').read_text())['groups']
  names = [sorted(name for name, _ in group['members']) for group in groups]
  assert names == [['lits', 'msd_liver']] * 5  # the sixth is the broken one
  text = (work / 'tables/README.md').read_text()
  assert '| lits | liver tumor |' in text and '| kits | kidney cyst |' in text
  for split in ('validation', 'test'):  # each held-out scan is in one of the tables
    part = text.partition(f'### Dice % on held-out {split} scans')[2].partition('###')[0]
    for source in ('lits', 'kits', 'msd_liver'):
      settings = json.loads((work / f'data/{source}/prepare.json').read_text())
      number = settings['cases'].get(split, 0)
      assert f'| {source} | {"right kidney" if source == "kits" else "liver"} | {number} |' in part
  assert '| word | liver | not here | – |' in text
  for source in ('lits', 'kits', 'msd_liver'):  # no patient is trained on and scored
    splits = json.loads((work / f'data/{source}/prepare.json').read_text())['cases']
    assert sum(splits.values()) == (5 if source == 'lits' else 6)
  done = reproduce(*asked, '--models=paper_unet', *TINY)
  assert done.stderr.count('left out:') == 2, done.stderr  # nothing is asked for otherwise
  done = reproduce(*asked, '--status', '--models=paper_unet', *TINY)
  assert 'next' not in done.stdout and done.stdout.count(' done') == 6


@pytest.mark.slow
def test_from_all_downloads_to_every_row_of_the_benchmark(tmp_path):
  """Also what comes later is taken in, and a baseline stands beside the paper's models."""
  root, work = tmp_path / 'downloads', tmp_path / 'work'
  fabricate(root, layouts.LAYOUTS, count=12)
  (root / 'msd_lung').rename(tmp_path / 'lung')
  made = vectors.TextVectors
  prompts = _all_prompts()
  made(tuple(prompts), np.eye(len(prompts), 512, dtype=np.float32), {'model': 'one-hot'}).save(
    tmp_path / 'text.npz'
  )
  asked = (f'--downloads={root}', f'--work={work}', f'--vectors={tmp_path / "text.npz"}',
           '--models=baseline_unet,paper_unet', *TINY)  # fmt: skip
  done = reproduce(*asked, '--until=prepare')
  assert done.returncode == 1 and 'without msd_lung' in done.stdout
  (tmp_path / 'lung').rename(root / 'msd_lung')
  done = reproduce(*asked, '--status')
  assert re.search(r'check +left: msd_lung\n', done.stdout), done.stdout
  assert re.search(r'prepare +left: .*msd_lung', done.stdout)
  done = reproduce(*asked)
  assert done.returncode == 1, done.stderr[-3000:]
  text = (work / 'tables/README.md').read_text()
  classes = paper_unet.get_config().classes
  for name in families.SOURCES:
    for row in families.rows(name, classes):
      assert re.search(rf'^\| {name} \| {row} \| \d+ \|', text, re.MULTILINE), (name, row)
  assert 'baseline_unet' in text and 'paper_unet' in text
  assert 'Detection, paper_unet' in text


def _all_prompts():
  from input_pipeline.anatomy import TEMPLATE
  from mome_jax.text import prompts

  return list(prompts.default_prompts(paper_unet.get_config().classes, TEMPLATE))


def prepared(plan, name, **cases):
  """A source as it counts: how many scans of which split were prepared."""
  folder = plan.data_dir / name
  folder.mkdir(parents=True, exist_ok=True)
  settings = {'settings': {'version': records.VERSION}, 'cases': cases}
  (folder / records.SETTINGS).write_text(json.dumps(settings))
  listed = [
    {
      'source': name,
      'name': f'{split}{number}',
      'split': split,
      'digest': f'{name} {split}{number}',
    }
    for split, count in cases.items()
    for number in range(count)
  ]
  (folder / records.OUTCOMES).write_text(json.dumps(listed))


def scored(folder, *names, step=None, case='a', dice=0.5):
  """An evaluation of a scan of each of some datasets."""
  row = {'split': '', 'class': 'liver', **dict.fromkeys(metrics.METRICS, dice)}
  rows = [row | {'source': name, 'case': case} for name in names]
  score_files.write(folder, rows, title='t', origin={'step': step})


@pytest.fixture
def plan(tmp_path):
  """Of a model that learned from lits for two steps, with lits and chaos prepared."""
  of = lambda name, external: families.Download(name, name, tmp_path / name, external)
  plan = stages.Plan(
    tmp_path, [of('lits', False), of('kits', False), of('chaos', True), of('btcv', True)],
    {'m': ('--config=demo', '--config.train.steps=2')}, ('liver',), (1.5, 1.5, 1.5), 64,
  )  # fmt: skip
  prepared(plan, 'lits', train=3, validation=1)
  prepared(plan, 'chaos', validation=1, test=1)
  config = demo.get_config()
  config.train.steps, config.data.spacing, config.data.sources = 2, plan.spacing, ('lits',)
  checkpoint.save_description(epath.Path(plan.run('m')), config)
  (plan.run('m') / 'checkpoints' / '2').mkdir(parents=True)
  return plan


def test_what_comes_after_a_training_is_told_and_scored(plan):
  scored(plan.run('m') / 'evaluation', 'lits', step=2)
  for folder in ('evaluation', 'evaluation_test'):
    scored(plan.external('m') / folder, 'chaos')
  assert stages.train(plan) == [] == stages.to_score(plan)
  prepared(plan, 'kits', train=3, validation=1)
  prepared(plan, 'btcv', validation=1)
  [line] = stages.train(plan)
  assert line.startswith('m: was trained before kits came; ') and str(plan.run('m')) in line
  assert stages.to_score(plan) == ['m']


def test_a_split_that_was_not_scored_is_scored_again(plan):
  place = plan.external('m')
  assert stages.to_score(plan) == ['m']
  scored(place / 'evaluation', 'chaos')  # killed before the test scans
  assert stages.to_score(plan) == ['m']
  scored(place / 'evaluation_test', 'chaos')
  assert stages.to_score(plan) == []
  summary = place / 'evaluation_test/summary.json'
  summary.write_text(summary.read_text()[:40])
  assert stages.to_score(plan) == ['m']
  assert tables.folders(place) == [place / 'evaluation']
  scored(place / 'evaluation_test', 'chaos')
  prepared(plan, 'btcv', test=1)
  assert stages.to_score(plan) == ['m']
  known = training_cases.TrainingCases(frozenset({('lits', 'x', 'btcv test0')}))
  training_cases.write(epath.Path(place), known)
  assert stages.to_score(plan) == []  # there is no more to score


def test_a_trained_model_scores_the_test_scans_too(plan, monkeypatch):
  programs = []
  monkeypatch.setattr(stages, '_program', lambda *words: programs.append(words))
  prepared(plan, 'lits', train=3, validation=1, test=2)
  stages.train(plan)
  assert '--config.evaluation.split=all' in programs.pop()
  scored(plan.run('m') / 'evaluation', 'lits', step=2)  # elsewhere, or killed between the splits
  assert stages.to_train(plan) == ['m']
  assert stages.train(plan) == []
  assert programs[0][:3] == ('mome_jax.main', '--mode=evaluate', f'--workdir={plan.run("m")}')
  assert programs[0][-2:] == ("--config.data.sources=('lits',)", '--config.evaluation.split=all')
  scored(plan.run('m') / 'evaluation_test', 'lits', step=1)
  assert stages.to_train(plan) == ['m']  # of an earlier step
  scored(plan.run('m') / 'evaluation_test', 'lits', step=2)
  assert stages.to_train(plan) == []


def test_scores_by_other_values_than_the_model_s_own_are_made_again(plan):
  folder = plan.run('m') / 'evaluation'
  scored(folder, 'lits', step=2)
  file = folder / score_files.SUMMARY
  summary = json.loads(file.read_text())
  own = score_checkpoint.settings(checkpoint.load_config(plan.run('m')))
  for more, left in (
    (own, []),
    (own | {'tta': not own['tta']}, ['m']),
    (own | {'overlap': 0.9}, ['m']),
  ):
    file.write_text(json.dumps(summary | {'evaluation': more}))
    assert stages.to_train(plan) == left


def test_a_model_that_was_trained_on_since_it_was_scored_elsewhere_is_told(plan, monkeypatch):
  def program(module, *_):
    if module == 'mome_jax.export':
      (plan.external('m') / 'params').mkdir(parents=True)

  monkeypatch.setattr(stages, '_program', program)
  assert stages.score(plan) == []
  (plan.run('m') / 'checkpoints' / '4').mkdir()
  [line] = stages.score(plan)
  assert line.startswith(f'{plan.external("m")}: m at step 2, which is at 4 now')


def test_it_is_told_of_an_export_that_was_the_last_before_a_kill(plan, monkeypatch):
  def killed(*_):
    (plan.external('m') / 'params').mkdir(parents=True)
    raise KeyboardInterrupt

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(stages, '_program', killed)
    stages.score(plan)
  monkeypatch.setattr(stages, '_program', lambda *_: None)
  (plan.run('m') / 'checkpoints' / '4').mkdir()
  [line] = stages.score(plan)
  assert 'm at step 2, which is at 4 now' in line


def test_tables_are_done_until_there_are_other_scores(plan):
  scored(plan.run('m') / 'evaluation', 'lits', step=2)
  assert stages.to_write_tables(plan) == ['all']
  stages.write_tables(plan)
  assert stages.to_write_tables(plan) == []
  scored(plan.external('m') / 'evaluation', 'chaos')
  assert stages.to_write_tables(plan) == ['all']
  stages.write_tables(plan)
  assert stages.to_write_tables(plan) == []
  (plan.work / 'tables/README.md').unlink()
  assert stages.to_write_tables(plan) == ['all']


@pytest.mark.parametrize('place', ['check', 'reproduce.json', 'tables'])
def test_what_the_disk_refuses_is_told_in_a_line(place, plan, monkeypatch):
  """A traceback, after hours of reading or training."""
  monkeypatch.setattr(stages, '_state', lambda download: '')
  monkeypatch.setattr(stages.checking, 'check_source', lambda *_: ())
  scored(plan.run('m') / 'evaluation', 'lits', step=2)
  if place == 'reproduce.json':
    (plan.work / '.reproduce.json.part').mkdir()  # in the way of what takes its place
  else:
    (plan.work / place).touch()
  with pytest.raises(UserError, match=f'^{plan.work / place}'):
    stages.write_tables(plan) if place == 'tables' else stages.check(plan)


def test_each_split_has_tables_and_a_comparison_of_its_own(tmp_path):
  models = {}
  for model, dice in (('a', 0.5), ('b', 0.6)):
    models[model] = tmp_path / model
    scored(models[model] / 'evaluation', 'lits', dice=dice)
    scored(models[model] / 'evaluation_test', 'lits', 'chaos', case='t', dice=dice + 0.3)
  text = tables.write(tmp_path / 'tables', models, {}, (('lits', 'chaos'), ()), ('liver',))
  validation, test = text.split('### Dice % on held-out validation scans')[1].split(
    '### Dice % on held-out test scans'
  )
  assert '| lits | liver | 1 | 50.0 | 60.0 |' in validation
  assert '| chaos | liver | 0 | – | – |' in validation
  assert '| lits | liver | 1 | 80.0 | 90.0 |' in test and '| chaos | liver | 1 | 80.0 |' in test
  assert '## Comparison on held-out validation scans' in text
  of_test = text.split('## Comparison on held-out test scans')[1]
  assert '| a | 80.0 [80.0, 80.0] |' in of_test and '+10.0 [+10.0, +10.0]' in of_test


def test_other_values_than_those_of_a_trained_model_are_told(plan):
  scored(plan.run('m') / 'evaluation', 'lits', step=2)
  more = {'m': ('--config=demo', '--config.train.steps=4', '--config.train.batch_size=3')}
  changed = dataclasses.replace(plan, models=more)
  assert stages.to_train(changed) == []
  [line] = stages.train(changed)
  assert 'train.batch_size: 1 -> 3, train.steps: 2 -> 4' in line and str(plan.run('m')) in line
  [line] = stages.train(dataclasses.replace(plan, spacing=(2.0, 2.0, 2.0)))
  assert 'data.spacing: [1.5, 1.5, 1.5] -> [2.0, 2.0, 2.0]' in line


def test_a_training_goes_on_with_the_datasets_that_it_began_with(plan, monkeypatch):
  prepared(plan, 'kits', train=3, validation=1)
  programs = []
  monkeypatch.setattr(stages, '_program', lambda *words: programs.append(words))
  [line] = stages.train(plan)
  assert "--config.data.sources=('lits',)" in programs[0]
  assert line.startswith('m: was trained before kits came; ')
  (plan.run('m') / 'checkpoints' / '2').rmdir()  # nothing was learned yet
  stages.train(plan)
  assert "--config.data.sources=('lits', 'kits')" in programs[1]


def test_models_of_other_datasets_are_compared_on_what_both_scored(tmp_path):
  for model, names in (('a', ('lits',)), ('b', ('lits', 'kits')), ('c', ('word',))):
    scored(tmp_path / model / 'evaluation', *names, step=2)
  write = lambda *models: tables.write(
    tmp_path / 'tables', {model: tmp_path / model for model in models}, {}, (('lits',), ()),
    ('liver',),
  )  # fmt: skip
  text = write('a', 'b')
  assert 'Of what all models scored, in 1 of 2 scans' in text and '| lits | liver | 1 |' in text
  assert (tmp_path / 'tables/comparison.md').read_text().count('| 50.0 |') == 4
  assert 'Of what all models scored' not in write('b', 'b')
  text = write('a', 'c')  # nothing in common costs no other table
  assert '### No comparison' in text and 'no scores' in text and '| lits | liver | 1 |' in text


def test_scores_of_other_prompts_are_no_evaluation_of_the_benchmark(tmp_path):
  for folder in ('evaluation', 'evaluation_held_out', 'evaluation_test', 'evaluation_old'):
    scored(tmp_path / folder, 'lits')
  assert tables.folders(tmp_path) == [tmp_path / 'evaluation', tmp_path / 'evaluation_test']


@pytest.mark.parametrize(
  ('checkpoint', 'patience', 'newest', 'scored', 'is_done'),
  [
    ('last', 0, 20, 20, True),
    ('last', 0, 20, 10, False),
    ('last', 0, 10, 10, False),
    ('best', 0, 20, 10, True),
    ('best', 5, 15, 10, True),
  ],
)
def test_when_a_model_has_ended(checkpoint, patience, newest, scored, is_done, tmp_path):
  config = {'train': {'steps': 20}, 'validation': {'patience': patience}}
  config |= {'evaluation': {'checkpoint': checkpoint}}
  (tmp_path / 'config.json').write_text(json.dumps(config))
  for step in (5, newest, f'{newest + 1}.orbax-checkpoint-tmp-0'):  # of a save that was killed
    (tmp_path / 'checkpoints' / str(step)).mkdir(parents=True)
  (tmp_path / 'evaluation').mkdir()
  (tmp_path / 'evaluation/summary.json').write_text(json.dumps({'step': scored}))
  assert stages._has_ended(tmp_path) == is_done
  (tmp_path / 'evaluation').rename(tmp_path / 'evaluation_test')  # no scan is for validation
  assert stages._has_ended(tmp_path) == is_done
  (tmp_path / 'evaluation_test').rename(tmp_path / 'evaluation')
  (tmp_path / 'evaluation/summary.json').write_text('{"step": 20, "mean_d')
  assert not stages._has_ended(tmp_path)


def test_a_download_that_cannot_be_used_costs_only_itself(tmp_path, monkeypatch, capsys):
  root = tmp_path / 'downloads'
  fabricate(root, ('lits', 'chaos'), count=2)
  (root / 'word').mkdir()  # nothing in it
  shutil.copytree(root / 'chaos', tmp_path / 'again')
  (tmp_path / 'again').rename(root / 'chaos/again')  # unpacked twice
  words = [f'--downloads={root}', f'--work={tmp_path / "work"}', '--status']
  assert command.main(words) == 0
  shown = capsys.readouterr().out
  assert '1 of 18 downloads are here' in shown
  assert f'  left out: word: {root}/word: no scan of word with its labels' in shown
  assert '  left out: chaos: chaos: two cases are called' in shown
  assert 'without word: 120 scans' in shown and re.search(r'next +check +left: lits\n', shown)
  nothing = stages.Stage('check', '', lambda plan: [], lambda plan: [])
  monkeypatch.setattr(command, 'STAGES', [nothing])
  assert command.main(words[:-1]) == 1
  assert capsys.readouterr().err.count('left out: ') == 2
  (root / 'lits').rename(tmp_path / 'elsewhere')
  assert command.main(words) == 1
  assert 'chaos, word cannot be used, for the reasons above' in capsys.readouterr().err


def test_a_comparison_that_is_interrupted_is_not_done(tmp_path, monkeypatch):
  plan = types.SimpleNamespace(
    work=tmp_path,
    groups=tmp_path / 'groups.json',
    downloads=[families.Download('lits', 'lits', tmp_path / 'lits', external=False)],
  )
  monkeypatch.setattr(stages, '_state', lambda download: 'as it is')

  def interrupted(downloads, output):
    output.touch()
    raise KeyboardInterrupt

  monkeypatch.setattr(stages.dedupe, 'write_groups', interrupted)
  with pytest.raises(KeyboardInterrupt):
    stages.compare_scans(plan)
  assert stages.to_compare(plan) == ['all']


def test_every_class_of_the_experiment_is_labelled_by_the_ten_families():
  classes = paper_unet.get_config().classes
  assert families.unlabelled(families.SOURCES, classes) == []
  assert families.unlabelled(['lits'], classes) == [
    name for name in classes if name not in ('liver', 'liver tumor')
  ]
  assert len(families.TRAINED) == 10
  for name in families.SOURCES:
    assert sources.get_source(name).expected and families.rows(name, classes)


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (['--downloads=nowhere'], 'none of the folders btcv, '),
    (['--download=ircadb=.'], 'error: --download: none of the folders btcv, '),
    (['--download=litz=.'], 'did you mean lits'),
    (['--download=lits=nowhere'], 'no such folder'),
    (['--download=lits=gs://b/x'], 'lits=gs://b/x is in a bucket; give a place on a disk'),
    (['--download=lits'], 'expected SOURCE=FOLDER'),
    (['--download=lits=.', '--models=paper_net'], 'did you mean'),
    (['--download=lits=.', '--models=baseline_unet'], 'frozen text needs its vectors'),
    (['--download=lits=.', '--vectors=nowhere.npz'], 'no such file; mome embed makes one'),
    (['--download=lits=.', '--config.train.stepz=3'], 'train.steps'),
    (['--download=lits=.', '--config.evaluation.prompts=held_out'], 'score with others afterwards'),
    (['--download=lits=.', '--config.evaluation.split=test'], 'the tables are of every split'),
    (['--download=lits=.', f'--models={demo.__file__}'], 'the run would be called by its path'),
  ],
)
def test_mistakes_take_one_line(words, message, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert command.main(['--work=work', *words]) in (1, 2)
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith('error: ') and message in line
  assert not (tmp_path / 'work').exists()


@pytest.mark.parametrize('name', ['data.spacing', 'data.sources', 'data_dir', 'text.vectors'])
def test_what_the_stages_set_is_not_changed_beside_them(name, tmp_path):
  words = [f'--downloads={tmp_path}', f'--work={tmp_path}']
  args = command.make_parser().parse_args(words)
  with pytest.raises(stages.StageError, match=f'--config.{name}: is set by --'):
    command.make_plan(args, [f'--config.{name}=x'])


def test_a_start_of_the_text_encoder_is_for_the_models_that_have_one(tmp_path):
  (tmp_path / 'lits').mkdir()
  (tmp_path / 'text.npz').touch()
  words = [f'--downloads={tmp_path}', f'--work={tmp_path}', f'--vectors={tmp_path}/text.npz',
           '--models=baseline_unet,paper_unet']  # fmt: skip
  changes = ['--config.init.text=', '--config.train.text_rate=1', '--config.train.steps=2']
  plan = command.make_plan(command.make_parser().parse_args(words), changes)
  assert plan.models['paper_unet'][1:] == tuple(changes)
  vectors_of = f'--config.text.vectors={tmp_path}/text.npz'
  assert plan.models['baseline_unet'][1:] == ('--config.train.steps=2', vectors_of)


def test_another_spacing_is_another_preparation(tmp_path, monkeypatch):
  download = families.Download('lits', 'lits', tmp_path, False)
  plan = stages.Plan(tmp_path, [download], {}, (), (1.5, 1.5, 1.5), 64)
  monkeypatch.setattr(stages.bricks, 'prepared_sources', lambda _: ['lits'])
  monkeypatch.setattr(stages, '_state', lambda _: 'as it was')
  stages._note(plan, 'prepare lits', stages._prepared(plan, download))
  assert stages.to_prepare(plan) == []
  assert stages.to_prepare(dataclasses.replace(plan, spacing=(2.0, 2.0, 2.0))) == ['lits']
