"""The command, from scans to a config that training takes; test_trial asks the real compiler."""

import argparse
import json
import shlex

import nibabel as nib
import numpy as np
import pytest

from input_pipeline import dedupe, prepare
from mome_jax import cli
from mome_jax.plan import cohort, command, target, trial
from mome_jax.training import config_check, config_flag

GIB = 2**30


@pytest.fixture(scope='module')
def scans(tmp_path_factory):
  """Ten anisotropic scans of liver and spleen, 0.7 x 0.7 x 5 mm."""
  folder = tmp_path_factory.mktemp('scans')
  for part in ('imagesTr', 'labelsTr'):
    (folder / part).mkdir()
  rng = np.random.default_rng(0)
  for i in range(10):
    image = rng.normal(60, 30, (96, 90, 24)).astype(np.int16)
    codes = np.zeros(image.shape, np.uint8)
    codes[50:90, 20:70, 4:18], codes[10:20, 30:50, 6:12] = 1, 2
    for part, array in (('imagesTr', image), ('labelsTr', codes)):
      nib.save(nib.Nifti1Image(array, np.diag([0.7, 0.7, 5, 1])), folder / part / f'c{i}.nii.gz')
  labels = {'background': 0, 'liver': 1, 'spleen': 2}
  (folder / 'dataset.json').write_text(json.dumps({'labels': labels}))
  return folder


@pytest.fixture
def compiler(monkeypatch):
  """In place of the compiler: 3,400 bytes and 4 microseconds a voxel; returns what it is asked."""
  asked = []

  def run(config, machine, *, execute, folder, again):
    config_check.check(config)
    asked.append(config)
    voxels = config.train.batch_size * int(np.prod(config.data.patch))
    peak = 5 * 10**7 + 3400 * voxels
    seen = (peak, 4e-6 * voxels) if execute else (None, None)
    return trial.Trial(peak, 2.4e5 * voxels, 1_760_773, 20.0, *seen, 'jax 1')

  def find_machine(topology):
    if topology == trial.HERE:
      return trial.Machine(topology, 'cpu', 'cpu', 1, 16 * GIB)
    return trial.Machine(topology, 'tpu', 'TPU v5 lite', 4, 16 * GIB)

  monkeypatch.setattr(trial, 'run', run)
  monkeypatch.setattr(trial, 'find_machine', find_machine)
  return asked


def plan(scans, folder, *options):
  words = [
    '--sources=nifti_folder', f'--manual_dir={scans}', '--name=mine',
    f'--data_dir={folder / "data"}', f'--output={folder / "planned.py"}',
  ]  # fmt: skip
  return command.main([*words, *options])


def test_from_scans_to_a_config(scans, compiler, tmp_path, capsys):
  assert plan(scans, tmp_path, '--hours=1', '--memory=8GiB') == 0
  page = capsys.readouterr().out
  config = config_flag.load(str(tmp_path / 'planned.py'))
  config_check.check(config)
  assert config.classes == ('spleen', 'liver')
  assert config.data.sources == ('mine',)
  # 67 x 63 x 120 mm: 0.7 x 0.7 x 5 brought to 2 : 1, where the median scan fits into a patch.
  assert config.data.spacing == (1.1, 1.1, 2.1)
  assert config.data.patch == config.evaluation.window
  # 0.75 h of 4 microseconds a voxel.
  voxels = np.prod(config.data.patch) * config.train.batch_size
  assert config.train.steps == int(float(f'{0.75 * 3600 / (4e-6 * voxels):.2g}'))
  for name in ('spacing', 'patch', 'windows'):
    line = next(line for line in page.splitlines() if line.startswith(f'data.{name} '))
    assert repr(config.data[name]) in line and '  # ' in line


def test_the_commands_prepare_what_the_config_reads(scans, compiler, tmp_path, capsys):
  plan(scans, tmp_path, '--hours=1')
  text = capsys.readouterr().out.split('Next:')[1].replace('\\\n', ' ')
  first, second = (shlex.split(line) for line in text.strip().splitlines())
  args = prepare.make_parser().parse_args([w.replace('_dir', '-dir') for w in first[3:]])
  config = config_flag.load(str(tmp_path / 'planned.py'))
  assert args.spacing == config.data.spacing and args.name == 'mine'
  assert args.data_dir == config.data_dir and args.manual_dir == str(scans)
  assert second[:3] == ['python', '-m', 'mome_jax.main']
  assert f'--config={tmp_path / "planned.py"}' in second
  head = (tmp_path / 'planned.py').read_text().split('"""')[1].replace('\\\n', ' ')
  assert [shlex.split(line) for line in head.splitlines()[2:]] == [first, second]


def test_commands_are_spelled_as_the_user_does(scans, compiler, tmp_path, capsys):
  words = ['--sources', f'nifti_folder={scans}', '--data_dir', str(tmp_path), '--hours=1']
  assert cli.main(['plan', *words]) == 0
  page = capsys.readouterr().out
  assert '  mome prepare --source=nifti_folder' in page and '  mome train --config=NAME.py' in page
  assert 'Nothing was written' in page


def test_what_is_prepared_otherwise_stays(scans, compiler, tmp_path, capsys):
  data = tmp_path / 'data'
  prepare.prepare('nifti_folder', data, manual_dir=str(scans), name='mine', spacing=(3, 3, 3))
  plan(scans, tmp_path, '--hours=1')
  page = capsys.readouterr().out
  config = config_flag.load(str(tmp_path / 'planned.py'))
  assert config.data.sources == ('mine_1p1x1p1x2p1',)
  assert '--name=mine_1p1x1p1x2p1' in page and '--overwrite' not in page


def test_a_further_preparation_takes_the_same_cases(scans, compiler, tmp_path, capsys):
  data, groups = tmp_path / 'data', tmp_path / 'my groups.json'
  dedupe.write_groups([('nifti_folder', str(scans))], groups)
  prepare.prepare(
    'nifti_folder', data, manual_dir=str(scans), name='mine', spacing=(3, 3, 3), limit=2,
    groups=str(groups),
  )  # fmt: skip
  origin = cohort.read_cohort([('mine', None)], data, 100).origins[0]
  assert origin.options == ('--cases=2', f"--groups='{groups}'")


def test_what_is_prepared_nearly_so_is_taken(scans, compiler, tmp_path, capsys):
  data = tmp_path / 'data'
  prepare.prepare('nifti_folder', data, manual_dir=str(scans), name='mine', spacing=(1.1, 1.1, 2))
  assert command.main(['--sources=mine', f'--data_dir={data}', '--hours=1']) == 0
  page = capsys.readouterr().out
  assert 'prepared so; the rules give 1.1 x 1.1 x 2.1' in page
  assert 'prepare --source' not in page and 'input_pipeline.prepare' not in page


def test_an_accelerator_of_a_memory(scans, compiler, tmp_path):
  plan(scans, tmp_path, '--memory=24GiB')
  config = config_flag.load(str(tmp_path / 'planned.py'))
  assert config.model.backbone.size == 'base' and config.model.dtype == 'bfloat16'
  assert config.train.batch_size >= 2
  assert config.train.steps == int(float(f'{500_000 / config.train.batch_size:.2g}'))


def test_tpus_share_a_batch(scans, compiler, tmp_path, capsys):
  plan(scans, tmp_path, '--topology=v5e:4')
  config = config_flag.load(str(tmp_path / 'planned.py'))
  assert config.train.batch_size % 4 == 0
  assert '4 x TPU v5 lite (v5e:4), 16.00 GiB each' in capsys.readouterr().out


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (['--topology=v5e:4', '--hours=1'], '--hours: how fast a step is on chips that are not here'),
    (['--memory=100MiB', '--hours=1'], 'even a patch of '),
    (['--output=plan.txt'], 'expected a name like plan.py'),
    (['--sources=a,b'], '--name=mine: there are 2 sources'),
  ],
)
def test_mistakes_take_one_line(options, message, scans, compiler, tmp_path, capsys):
  assert plan(scans, tmp_path, *options) == 1
  error = capsys.readouterr().err.splitlines()[-1]
  assert error.startswith('error: ') and message in error
  assert not (tmp_path / 'planned.py').exists()


def test_a_name_that_prepare_would_refuse_is_refused(scans, compiler, tmp_path, capsys):
  with pytest.raises(SystemExit):
    plan(scans, tmp_path, '--name=My-Scans', '--hours=1')
  assert "'My-Scans': expected small letters, digits and _" in capsys.readouterr().err
  assert not (tmp_path / 'planned.py').exists()


def test_a_config_that_is_there_stays(scans, compiler, tmp_path, capsys):
  (tmp_path / 'planned.py').write_text('mine')
  assert plan(scans, tmp_path) == 1
  assert 'is there already; pass --force' in capsys.readouterr().err
  assert (tmp_path / 'planned.py').read_text() == 'mine' and not compiler
  assert plan(scans, tmp_path, '--force', '--hours=1') == 0
  assert 'get_config' in (tmp_path / 'planned.py').read_text()


@pytest.mark.parametrize(
  ('text', 'number'),
  [('24GiB', 24 * 2**30), ('1.5 TiB', 3 * 2**39), ('16gb', 16 * 10**9), ('500M', 5 * 10**8)],
)
def test_memory_with_its_unit(text, number):
  assert command._bytes(text) == number


@pytest.mark.parametrize('text', ['24', '24 apples', 'GiB', '-1GiB'])
def test_memory_without_a_unit_is_refused(text):
  with pytest.raises(argparse.ArgumentTypeError, match='as 24GiB'):
    command._bytes(text)


def test_what_else_lies_in_memory_is_left_out(compiler):
  cpu = target.find_target(None, 8 * GIB, 1.0, None)
  assert cpu.budget.memory == 8 * GIB - GIB - cpu.cache_mb * 2**20 and cpu.cache_mb == 1024
  assert cpu.budget.seconds == pytest.approx(0.75 * 3600)
  other = target.find_target(None, 24 * GIB, None, None)
  assert other.budget.memory == pytest.approx(0.9 * 24 * GIB) and other.budget.seconds is None
  assert not other.here and cpu.here and target.find_target(None, None, None, None).here


@pytest.mark.parametrize('memory', [None, 24 * GIB])
def test_here_is_this_machine(memory, compiler):
  here = target.find_target('here', memory, None, None)
  assert here.here and here.on_cpu and here.size == 'small'
  assert here == target.find_target('here', memory, 8.0, None)
