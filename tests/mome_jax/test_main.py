"""The command line, end to end: prepare, train, kill, resume, evaluate."""

import csv
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import compiled
import jax
import numpy as np
import pytest
import tiny

from mome_jax import checkpoint, main

ROOT = pathlib.Path(__file__).resolve().parents[2]
SETTINGS = (
  *tiny.SETTINGS,
  '--config.evaluation.pictures=1',
  '--config.train.log_every=1',
  '--config.train.checkpoint_every=2',
  '--config.validation.every=4',
  '--config.validation.patches=4',
)


def test_sigterm_before_a_run_has_begun_asks_for_a_new_start(monkeypatch, tmp_path):
  """While modules are imported and values checked: launchers gave the run up at 143."""
  asked = lambda *_, **__: signal.raise_signal(signal.SIGTERM)
  monkeypatch.setattr('mome_jax.training.config_check.check', asked)
  assert main.main(['--config=demo', f'--workdir={tmp_path / "run"}']) == 75


@pytest.fixture(scope='module')
def workplace(tmp_path_factory, programs):
  """A folder with prepared phantoms, and an environment whose compilations are shared."""
  folder = tmp_path_factory.mktemp('main')
  environment = {**os.environ, **compiled.variables(programs), 'PYTHONPATH': str(ROOT)}
  run(folder, environment, 'input_pipeline.prepare', '--source=phantom', '--data_dir=data',
      '--spacing=12', '--brick=16', '--cases=3')  # fmt: skip
  return folder, environment


def command(module, *arguments):
  return [sys.executable, '-m', module, *arguments]


def run(folder, environment, module, *arguments):
  done = subprocess.run(
    command(module, *arguments), cwd=folder, env=environment, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
  return done.stdout


def training(workdir, *changes):
  config = f'--config={ROOT / "mome_jax/configs/demo.py"}'
  return config, f'--workdir={workdir}', '--config.data_dir=data', *SETTINGS, *changes


def rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope='module')
def trained(workplace):
  folder, environment = workplace
  printed = run(folder, environment, 'mome_jax.main', *training('whole'))
  return folder / 'whole', printed


def test_a_run_leaves_what_users_look_for(trained):
  workdir, printed = trained
  for name in ('config.json', 'parameters.txt', 'evaluation/table.md', 'pictures/training.png',
               'pictures/routing.png'):  # fmt: skip
    assert (workdir / name).stat().st_size > 100, name
  assert list((workdir / 'tensorboard').glob('events*'))
  assert len(list((workdir / 'pictures').glob('phantom_*.png'))) == 2  # and its routing
  log = rows(workdir / 'metrics.jsonl')
  assert [row['step'] for row in log] == list(range(1, tiny.STEPS + 1))
  assert {'loss', 'loss_bce', 'loss_dice', 'learning_rate', 'grad_norm', 'data_wait'} <= set(log[0])
  times = [row['seconds_per_step'] for row in log]
  assert times[0] > np.median(times) / 10  # a step was timed, though it was the one compiled for
  assert 0 <= log[0]['data_wait'] < 1
  validated = [row for row in log if 'validation/dice' in row]
  assert [row['step'] for row in validated] == [4, tiny.STEPS]
  assert all(np.isfinite(row['validation/loss']) for row in validated)
  assert 'validation scans, only watched: 3 of 3 phantom' in printed
  assert f'{tiny.STEPS} steps: how long they take is told after the first ones' in printed
  assert (workdir / 'pictures/validation_000004.png').stat().st_size > 10_000
  moved = [name for name in log[0] if name.startswith('moved/')]
  assert len(moved) == 7, moved  # backbone, text encoder, generator, experts, three of the router
  assert [log[0][name] for name in moved] == [0] * len(moved)  # warm-up starts at a rate of 0
  still = 'moved/text_encoder'  # as it was taught
  assert log[-1][still] == 0
  assert all(log[-1][name] > log[2][name] > 0 for name in moved if name != still)

  summary = json.loads((workdir / 'evaluation/summary.json').read_text())
  assert summary['step'] == tiny.STEPS
  assert len(summary['classes']) == 12
  assert summary['datasets'].keys() == {'phantom'}
  detection = summary['classes']['liver tumor']['detection']
  assert detection['n_diseased'] + detection['n_healthy'] == 3
  assert 'all,liver tumor,' in (workdir / 'evaluation/table.csv').read_text()
  with (workdir / 'evaluation/cases.csv').open() as file:
    cases = list(csv.DictReader(file))
  assert len(cases) == 3 * 12  # every held-out phantom labels every class
  dice = [float(row['dice']) for row in cases if row['class'] == 'liver']
  assert summary['classes']['liver']['dice'] == pytest.approx(np.mean(dice))
  assert '| liver ' in printed


# What a run that a signal ends says it is, and its exit code.
ENDS = {signal.SIGTERM: ('preempted', 75), signal.SIGINT: ('interrupted', 130)}


def is_logged(workdir):
  """Training goes on, beyond a checkpoint that is no round number."""
  log = workdir / 'metrics.jsonl'
  return log.exists() and len(rows(log)) >= 5


def is_validating(workdir):
  """Shortly after the step before a validation, which has programs to load and a scan to draw."""
  log, saved = workdir / 'metrics.jsonl', (workdir / 'checkpoints').glob('[0-9]*')
  if not (log.exists() and len(rows(log)) >= 3 and any(path.name.isdigit() for path in saved)):
    return False
  time.sleep(0.3)
  return True


def is_saving(workdir):
  """A checkpoint after the first is being written."""
  names = [path.name for path in workdir.glob('checkpoints/*')]
  return '2' in names and any('tmp' in name for name in names)


def end(folder, environment, name, ready, sent):
  """Starts a run, or goes on with it, and ends it by a signal."""
  workdir, began = folder / name, time.time()
  log = workdir / 'metrics.jsonl'
  process = subprocess.Popen(
    command('mome_jax.main', *training(name)), cwd=folder, env=environment,
    stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # whatever the tests run under
  )  # fmt: skip
  deadline = time.monotonic() + 300
  while not (log.exists() and log.stat().st_mtime > began and ready(workdir)):
    assert process.poll() is None, 'the run ended before it could be ended'
    assert time.monotonic() < deadline
    time.sleep(0.01)  # the run needs the processor
  process.send_signal(sent)
  message = process.communicate()[1]
  if sent == signal.SIGKILL:
    assert process.returncode == -sent
    return
  word, code = ENDS[sent]
  assert process.returncode == code
  last = rows(log)[-1]['step']  # nothing is lost: it is saved
  assert f'saved at step {last}; the same command' in message
  assert message.splitlines()[-1].startswith(f'{word}: ')
  assert 'Traceback' not in message
  assert (workdir / 'checkpoints' / str(last)).is_dir()


@pytest.mark.slow  # it saves as a preempted run does
def test_an_interrupted_run_saves(trained, workplace):
  end(*workplace, 'interrupted', is_logged, signal.SIGINT)


@pytest.mark.parametrize(
  ('name', 'endings'),
  [
    # The second end is of a run that went on.
    ('ended', ((is_saving, signal.SIGKILL), (is_logged, signal.SIGTERM))),
    pytest.param('validating', ((is_validating, signal.SIGKILL),), marks=pytest.mark.slow),
  ],
)
def test_an_ended_run_resumes_to_the_same_losses(trained, workplace, name, endings):
  folder, environment = workplace
  workdir = folder / name
  for ready, sent in endings:
    end(folder, environment, name, ready, sent)
  printed = run(folder, environment, 'mome_jax.main', *training(name))
  assert f'resuming {name} at step' in printed
  assert ' s a step, as last time' in printed
  resumed, whole = rows(workdir / 'metrics.jsonl'), rows(trained[0] / 'metrics.jsonl')
  assert [row['step'] for row in resumed] == list(range(1, tiny.STEPS + 1))
  np.testing.assert_allclose(
    [row['loss'] for row in resumed], [row['loss'] for row in whole], rtol=1e-5
  )
  keys = 'validation/loss', 'validation/dice', 'validation/dice_smooth', 'validation/dice/liver'
  measured = [
    [[row[key] for key in keys] for row in log if keys[0] in row] for log in (resumed, whole)
  ]
  np.testing.assert_allclose(*measured, rtol=1e-4)
  distances = [[row['moved/backbone'] for row in log] for log in (resumed, whole)]
  np.testing.assert_allclose(*distances, rtol=1e-3)
  table = 'evaluation/table.md'
  assert (workdir / table).read_text() == (trained[0] / table).read_text()


@pytest.fixture
def here(workplace, monkeypatch, capsys):
  """here(*words) -> exit code, and what was printed, of the command in this process."""
  folder, environment = workplace
  monkeypatch.chdir(folder)

  def call(*words):
    with compiled.kept(environment['JAX_COMPILATION_CACHE_DIR']), compiled.soon():
      code = main.main(words)
    return code, capsys.readouterr()

  return call


def test_the_same_command_again_trains_nothing_and_overwrites_nothing(trained, here):
  names = ('config.json', 'metrics.jsonl', 'tokenizer.model', 'evaluation/cases.csv')
  before = {name: (trained[0] / name).read_bytes() for name in names}
  code, printed = here(*training('whole', '--config.train.steps=5'))
  assert code == 0
  assert f'whole is trained: {tiny.STEPS} of 5 steps are done' in printed.out
  assert {name: (trained[0] / name).read_bytes() for name in names} == before


def test_the_same_command_makes_what_a_run_killed_at_its_end_lacks(trained, here):
  picture = trained[0] / 'pictures/training.png'
  before = picture.read_bytes()
  picture.unlink()
  code, printed = here(*training('whole', '--config.train.steps=5'))
  assert code == 0
  assert 'no class_statistics.json' in printed.out  # too few scans
  assert picture.read_bytes() == before


@pytest.fixture
def refused(here):
  """refused(*words) -> the one line of a command that fails."""

  def call(*words):
    code, printed = here(*words)
    assert code == 1
    return printed.err.strip().splitlines()[-1]

  return call


def test_going_on_with_another_task_is_refused(trained, refused):
  """Nothing of the run that is there changes, its tables included."""
  files = lambda: {
    path.relative_to(trained[0]): path.read_bytes()
    for path in trained[0].rglob('*')
    if path.is_file()
  }
  before = files()
  changes = "--config.classes=('liver', 'spleen')", '--config.train.steps=20'
  message = refused(*training('whole', *changes))
  assert message.startswith('error: ')
  assert "classes: ['spleen', 'right kidney'," in message
  assert "-> ['liver', 'spleen']" in message
  assert files() == before


def test_evaluation_alone_repeats_the_table(trained, here):
  before = (trained[0] / 'evaluation/cases.csv').read_text()
  (trained[0] / 'evaluation/cases.csv').unlink()
  assert here('--mode=evaluate', '--workdir=whole')[0] == 0  # no --config
  assert (trained[0] / 'evaluation/cases.csv').read_text() == before


def test_evaluation_with_names_never_trained_on(trained, here):
  config = '--config.evaluation.prompts=held_out'
  assert here('--mode=evaluate', *training('whole', config))[0] == 0
  summary = json.loads((trained[0] / 'evaluation_held_out/summary.json').read_text())
  assert 'hepatic tissue' in summary['prompts']
  assert (trained[0] / 'evaluation/summary.json').is_file()


def test_a_loss_that_is_not_finite_stops_the_run(trained, workplace, refused):
  """The step is named, and the checkpoints before it stay."""
  folder, _ = workplace
  shutil.copytree(trained[0], folder / 'diverged')
  changes = '--config.train.learning_rate=1e30', '--config.train.steps=20'
  message = refused(*training('diverged', *changes))
  assert message.startswith('error: the loss is ')
  # Step 9 made the parameters useless; the ten from there on were left out, and no more may be.
  assert ' at step 20 and at 10 before it;' in message
  assert 'config.train.learning_rate' in message
  assert sorted(p.name for p in (folder / 'diverged/checkpoints').iterdir()) == ['6', '8']


def test_a_full_disk_stops_the_run_with_the_last_checkpoint_intact(trained, workplace):
  """A file system with room for two checkpoints, where the third needs room for three."""
  folder, environment = workplace
  workdir = folder / 'full'
  workdir.mkdir()
  size = sum(p.stat().st_size for p in trained[0].glob('checkpoints/8/**/*') if p.is_file())
  mounted = subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', f'size={int(2.5 * size)}', 'tmpfs', str(workdir)],
    capture_output=True,
  )
  if mounted.returncode:
    pytest.skip('mounting a small file system needs root')
  try:
    done = subprocess.run(
      command('mome_jax.main', *training('full'), '--config.validation.picture=False'),
      cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    # Threads of the storage library that were writing may add lines of their own.
    lines = [line for line in done.stderr.splitlines() if line.startswith('error: cannot write')]
    assert len(lines) == 1, done.stderr[-3000:]
    assert 'Free space and run the same command again' in lines[0]
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    good = checkpoint.load_model(workdir / 'checkpoints/4', where)
    whole = checkpoint.load_model(trained[0] / 'checkpoints/8', where)
    assert jax.tree.structure(good.params) == jax.tree.structure(whole.params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(good.params))
  finally:
    subprocess.run(['umount', '-l', str(workdir)], check=True)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (['--config.data_dir=nowhere'], 'input_pipeline.prepare --source=phantom'),
    (['--config.model.experts=both'], "model.experts is 'both'; known: pyramid, finest"),
    (['--mode=evaluate', '--workdir=empty'], 'empty: no model there; expected a model folder'),
  ],
)
def test_mistakes_are_explained_in_one_line(refused, changes, message):
  assert message in refused(*training('mistake'), *changes)
