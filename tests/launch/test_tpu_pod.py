"""The pod script against a make-believe cloud: whole runs, and what goes wrong in them."""

import contextlib
import json
import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
RUN = '--config=demo', '--workdir=gs://bucket/a run', "--config.classes=('liver', 'left kidney')"


class Cloud:
  """A folder that stands for a project of Google's, and the script run against it."""

  def __init__(self, folder, **plan):
    self.folder = folder / 'cloud'
    (self.folder / 'bin').mkdir(parents=True)
    shutil.copy(ROOT / 'tests/helpers/fake_gcloud.py', self.folder / 'bin/gcloud')
    (self.folder / 'bin/gcloud').chmod(0o755)
    # A checkout as small as the script allows.
    shutil.copytree(ROOT / 'launch', folder / 'checkout/launch')
    self.script = folder / 'checkout/launch/tpu_pod.sh'
    plan = {'workers': 2, 'codes': [0], 'seconds': 0.3, 'events': []} | plan
    (self.folder / 'plan.json').write_text(json.dumps(plan))

  def __call__(self, *words, **environment):
    return subprocess.run(
      ['bash', str(self.script), *words],
      env={
        'PATH': f'{self.folder / "bin"}:{os.environ["PATH"]}', 'HOME': str(self.folder),
        'CLOUD': str(self.folder), 'NAME': 'mome', 'ZONE': 'us-east5-b', 'POLL': '0.2',
        'MISSES': '3', **environment,
      },
      capture_output=True, text=True, timeout=180,
    )  # fmt: skip

  def calls(self, *parts):
    """Argument lists of the calls of gcloud that have all of these words in their command lines."""
    lines = (self.folder / 'calls.jsonl').read_text().splitlines()
    return [words for words in map(json.loads, lines) if all(p in ' '.join(words) for p in parts)]

  def starts(self, worker, node='mome'):
    """Arguments, platforms and cache of each start of the program on a worker."""
    path = self.folder / f'starts-node-{node}-w{worker}'
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

  def processes(self):
    """Ids of the processes that still run on workers."""
    home = f'\0HOME={self.folder}/node-'.encode()
    found = []
    for path in pathlib.Path('/proc').glob('[0-9]*/environ'):
      with contextlib.suppress(OSError):  # it has ended meanwhile, or is another user's
        if home in b'\0' + path.read_bytes():
          found.append(int(path.parent.name))
    return found

  def ready(self, *flags, **environment):
    """Creates and sets up."""
    assert self('create', *flags, **environment).returncode == 0
    done = self('setup')
    assert done.returncode == 0, done.stderr
    return self


def test_from_nothing_to_a_finished_run(tmp_path):
  cloud = Cloud(tmp_path).ready('--spot', '--network=n', '--metadata=a=b c', TYPE='v6e-16')
  (created,) = cloud.calls('queued-resources create')
  assert created == [
    'compute', 'tpus', 'queued-resources', 'create', 'mome', '--zone=us-east5-b',
    '--accelerator-type=v6e-16', '--runtime-version=v2-alpha-tpuv6e', '--node-id=mome',
    '--spot', '--network=n', '--metadata=a=b c',
  ]  # fmt: skip
  done = cloud('run', *RUN, SSH_FLAGS='--internal-ip', MOME_CACHE='gs://bucket/cache')
  assert done.returncode == 0, done.stderr
  assert 'mome: done' in done.stderr
  for worker in (0, 1):  # once each, in an own Python, with the arguments as they were given
    [[words, platforms, cache]] = cloud.starts(worker)
    assert words == ['-m', 'mome_jax.main', '--distributed', *RUN]
    assert (platforms, cache) == ('tpu,cpu', 'gs://bucket/cache')
    lines = (cloud.folder / f'node-mome/w{worker}/uv').read_text().splitlines()
    assert lines[0] == 'venv --quiet --python 3.12 .venv'
    assert 'requirements-aot.txt jax[tpu]' in lines[1]
  assert all('--internal-ip' in words for words in cloud.calls('tpu_worker.sh start'))
  assert all('--worker=all' in words for words in cloud.calls('tpu-vm ssh'))
  assert 'step 1 of 2' in cloud('logs').stdout
  status = cloud('status').stdout
  assert status.startswith('ACTIVE\n') and status.count(' exit 0') == 2
  assert cloud('delete').returncode == 0
  assert not (cloud.folder / '.local/state/mome_jax/pods/us-east5-b/mome').exists()


@pytest.mark.parametrize(
  ('kind', 'version'),
  [
    ('v4-8', 'tpu-ubuntu2204-base'),
    ('v5p-8', 'v2-alpha-tpuv5'),
    ('v5litepod-16', 'v2-alpha-tpuv5-lite'),
    ('v6e-8', 'v2-alpha-tpuv6e'),
  ],
)
def test_the_runtime_of_a_type(tmp_path, kind, version):
  done = Cloud(tmp_path)('create', TYPE=kind, DRY_RUN='1')
  assert f'--accelerator-type={kind} --runtime-version={version} ' in done.stdout


def test_an_unknown_type_asks_for_its_runtime(tmp_path):
  cloud = Cloud(tmp_path)
  done = cloud('create', TYPE='v9-8')
  assert done.returncode == 1 and 'VERSION names one' in done.stderr
  done = cloud('create', TYPE='v9-8', VERSION='v9-base', DRY_RUN='1')
  assert '--runtime-version=v9-base' in done.stdout


def test_setup_copies_the_program_alone(tmp_path):
  cloud = Cloud(tmp_path)
  root = cloud.script.parents[1]
  for name in ('data/phantom/0.bricks', 'runs/a/metrics.jsonl', 'input_pipeline/data/table.csv'):
    (root / name).parent.mkdir(parents=True)
    (root / name).write_text('x')
  cloud.ready()
  copied = cloud.folder / 'node-mome/w0/mome'
  assert (copied / 'input_pipeline/data/table.csv').is_file()
  assert not (copied / 'data').exists() and not (copied / 'runs').exists()


def test_a_run_that_saved_is_started_again(tmp_path):
  cloud = Cloud(tmp_path, codes=[75, 75, 0]).ready()
  done = cloud('run', *RUN)
  assert done.returncode == 0, done.stderr
  assert 'asked to end, and saved: restart 2 of 20' in done.stderr
  starts = cloud.starts(1)
  assert len(starts) == 3 and all(words == starts[0] for words in starts)
  assert len(cloud.calls('queued-resources create')) == 1


def test_restarts_have_an_end(tmp_path):
  cloud = Cloud(tmp_path, codes=[75]).ready()
  done = cloud('run', '--config=x', RESTARTS='1')
  assert done.returncode == 75
  assert 'not started again after 1 restarts' in done.stderr
  assert len(cloud.starts(0)) == 2


def test_a_preempted_tpu_is_created_set_up_and_resumed(tmp_path):
  events = [['tpu_worker.sh status', 2, 'preempt']]
  cloud = Cloud(tmp_path, codes=['long', 0], events=events).ready('--spot', '--subnetwork=s')
  done = cloud('run', *RUN)
  assert done.returncode == 0, done.stderr
  assert 'mome is SUSPENDED: restart 1 of 20' in done.stderr
  first, second = cloud.calls('queued-resources create')
  assert first == second and '--spot' in second and '--subnetwork=s' in second
  assert len(cloud.calls('queued-resources delete', '--force')) == 1
  assert [words for words, *_ in cloud.starts(1)] == [
    ['-m', 'mome_jax.main', '--distributed', *RUN]] * 2  # fmt: skip


def test_a_tpu_that_is_taken_right_after_the_run_saved_is_created_again(tmp_path):
  """By its signal the run has saved: nothing seems lost, until the restart meets nobody."""
  events = [['worker-is-here', 3, 'preempt']]  # setup, run, and then the restart
  cloud = Cloud(tmp_path, codes=[75, 0], events=events).ready('--spot')
  done = cloud('run', *RUN)
  assert done.returncode == 0, done.stderr
  assert 'asked to end, and saved: restart 1 of 20' in done.stderr
  assert 'mome is SUSPENDED: restart 2 of 20' in done.stderr
  assert len(cloud.calls('queued-resources create')) == 2
  assert cloud.starts(1)[-1][0][-len(RUN) :] == list(RUN)


def test_such_restarts_have_an_end_too(tmp_path):
  events = [['worker-is-here', 3, 'preempt']]
  cloud = Cloud(tmp_path, codes=[75, 0], events=events).ready()
  done = cloud('run', '--config=x', RESTARTS='1')
  assert done.returncode == 75
  assert 'mome is SUSPENDED: not started again after 1 restarts' in done.stderr


@pytest.mark.parametrize('meanwhile', ['tpu-vm scp', 'tpu_worker.sh setup', 'tpu_worker.sh start'])
def test_a_tpu_that_is_taken_while_it_is_set_up_again_is_created_once_more(tmp_path, meanwhile):
  events = [['tpu_worker.sh status', 1, 'preempt'], [meanwhile, 2, 'preempt']]
  cloud = Cloud(tmp_path, codes=['long', 0], events=events).ready()
  done = cloud('run', *RUN)
  assert done.returncode == 0, done.stderr
  assert 'mome is SUSPENDED: restart 2 of 20' in done.stderr and 'mome: done' in done.stderr
  assert len(cloud.calls('queued-resources create')) == 3
  assert cloud.starts(1)[-1][0][-len(RUN) :] == list(RUN)


def test_a_tpu_that_is_taken_before_the_first_run_is_an_error(tmp_path):
  cloud = Cloud(tmp_path, events=[['tpu_worker.sh setup', 1, 'preempt']])
  assert cloud('create').returncode == 0
  done = cloud('setup')
  assert done.returncode == 1
  assert 'error: mome is SUSPENDED; gcloud compute tpus queued-resources describe' in done.stderr
  assert len(cloud.calls('queued-resources create')) == 1


@pytest.mark.parametrize('seen_by', ['tpu_worker.sh status', 'worker-is-here'])
def test_a_tpu_that_takes_long_to_go_is_not_given_up(tmp_path, seen_by):
  nth = {'tpu_worker.sh status': 1, 'worker-is-here': 3}[seen_by]
  events = [[seen_by, nth, 'preempt 5']]  # more looks than MISSES
  cloud = Cloud(tmp_path, codes=[75, 0], events=events).ready()
  done = cloud('run', '--config=x')
  assert done.returncode == 0, done.stderr
  assert 'mome is SUSPENDING' in done.stderr and 'mome is SUSPENDED: restart' in done.stderr


@pytest.mark.parametrize('seen_by', ['tpu_worker.sh status', 'worker-is-here'])
def test_a_tpu_that_never_goes_is_not_waited_for_forever(tmp_path, seen_by):
  nth = {'tpu_worker.sh status': 1, 'worker-is-here': 3}[seen_by]
  cloud = Cloud(tmp_path, codes=[75, 0], events=[[seen_by, nth, 'preempt 999']]).ready()
  done = cloud('run', '--config=x', MISSES='2')
  assert done.returncode == 0, done.stderr
  assert 'mome is SUSPENDING: restart' in done.stderr
  assert len(cloud.calls('queued-resources delete', '--force')) == 1


def test_a_failed_run_ends_the_others_and_shows_its_output(tmp_path):
  cloud = Cloud(tmp_path, codes=[['long', 3]]).ready()
  done = cloud('run', '--config=x')
  assert done.returncode == 3
  assert 'the run failed' in done.stderr and 'exit 3' in done.stderr
  assert 'step 1 of 2' in done.stderr
  assert ' exit 75' in cloud('status').stdout  # worker 0 was asked to save and end


def test_a_missing_worker_is_an_error_before_anything_starts(tmp_path):
  cloud = Cloud(tmp_path, events=[['worker-is-here', 2, 'mute 1']] * 3).ready()
  done = cloud('run', '--config=x')
  assert done.returncode == 1
  assert '1 of 2 workers of mome answer' in done.stderr
  assert not cloud.starts(0)


def test_a_worker_that_answers_late_is_waited_for(tmp_path):
  cloud = Cloud(tmp_path, events=[['worker-is-here', 1, 'mute 1']] * 2).ready()
  done = cloud('run', '--config=x')
  assert done.returncode == 0, done.stderr


def test_a_tpu_that_went_while_nobody_looked_is_created_again(tmp_path):
  events = [['tpu_worker.sh status', 1, 'deaf'] for _ in range(3)]
  cloud = Cloud(tmp_path, codes=['long', 0], events=events).ready()
  assert cloud('run', *RUN).returncode == 1  # gave up looking
  plan = json.loads((cloud.folder / 'plan.json').read_text())
  plan['events'] = [['queued-resources describe', 1, 'preempt']]
  (cloud.folder / 'plan.json').write_text(json.dumps(plan))
  done = cloud('watch')
  assert done.returncode == 0, done.stderr
  assert 'mome is SUSPENDED: restart 1 of 20' in done.stderr and 'mome: done' in done.stderr
  assert cloud.starts(1)[-1][0][-len(RUN) :] == list(RUN)


def test_another_type_is_asked_for_as_given(tmp_path):
  cloud = Cloud(tmp_path, events=[['queued-resources create', 1, 'offline']])
  assert cloud('create', TYPE='v5litepod-16').returncode == 1
  assert cloud('create', TYPE='v6e-8').returncode == 0
  assert '--accelerator-type=v6e-8' in cloud.calls('queued-resources create')[-1]


def test_broken_connections_start_no_second_run(tmp_path):
  """Of ssh, while the run goes on: a look that fails is taken again."""
  events = [['tpu_worker.sh status', 1, 'deaf'], ['tpu_worker.sh status', 2, 'mute 0']]
  cloud = Cloud(tmp_path, seconds=2, events=events).ready()
  done = cloud('run', '--config=x')
  assert done.returncode == 0, done.stderr
  assert '0 of 2 workers answer, mome is ACTIVE (1 of 3)' in done.stderr
  assert len(cloud.starts(0)) == len(cloud.starts(1)) == 1


def test_a_cloud_out_of_reach_is_no_lost_tpu(tmp_path):
  """Where gcloud itself fails, nothing is deleted or created."""
  events = [['queued-resources describe', 5, 'offline']]  # the first look at the run
  cloud = Cloud(tmp_path, seconds=1, events=events).ready()
  done = cloud('run', '--config=x')
  assert done.returncode == 0, done.stderr
  assert not cloud.calls('queued-resources delete')
  assert len(cloud.starts(0)) == 1


def test_a_silent_tpu_is_given_up_and_looked_at_again(tmp_path):
  events = [['tpu_worker.sh status', 1, 'deaf'] for _ in range(3)]
  cloud = Cloud(tmp_path, seconds=1.5, events=events).ready()
  done = cloud('run', '--config=x')
  assert done.returncode == 1
  assert 'does not answer; the run may still be going' in done.stderr
  done = cloud('watch')
  assert done.returncode == 0 and 'mome: done' in done.stderr
  assert len(cloud.starts(0)) == 1


def test_rebooted_workers_resume(tmp_path):
  cloud = Cloud(tmp_path, codes=['long', 0], events=[['tpu_worker.sh status', 2, 'reboot']]).ready()
  done = cloud('run', '--config=x')
  assert done.returncode == 0, done.stderr
  assert 'a worker lost its process: restart 1 of 20' in done.stderr


@pytest.mark.parametrize(('deaf_for', 'patience'), [(1.5, 60), (60, 2)])
def test_a_rebooted_worker_restarts_the_run_once_the_others_ended(tmp_path, deaf_for, patience):
  """These hear no signal while they wait for it in a collective."""
  events = [['tpu_worker.sh status', 2, 'reboot 0']]
  cloud = Cloud(tmp_path, codes=['long', 0], events=events, deaf_for=deaf_for).ready()
  done = cloud('run', '--config=x', PATIENCE=str(patience))
  assert done.returncode == 0, done.stderr
  assert 'a worker lost its process: restart 1 of 20' in done.stderr
  assert ('it is killed there' in done.stderr) == (deaf_for > patience)
  assert [len(cloud.starts(worker)) for worker in (0, 1)] == [2, 2]
  assert not cloud.processes()


def test_a_run_that_starts_on_some_workers_alone_is_stopped_there(tmp_path):
  events = [['tpu_worker.sh start', 1, 'mute 1']]
  cloud = Cloud(tmp_path, codes=['long'], events=events).ready()
  done = cloud('run', '--config=x')
  assert done.returncode == 1
  assert 'error: the run was not started on all workers' in done.stderr
  assert not cloud.processes()
  first, second = (line.split()[3] for line in cloud('status').stdout.splitlines()[1:])
  assert first in ('exit', 'lost') and second == 'none'


def test_a_start_that_gcloud_repeats_starts_once(tmp_path):
  cloud = Cloud(tmp_path, seconds=1).ready()
  assert cloud('run', '--config=x').returncode == 0
  (call,) = cloud.calls('tpu_worker.sh start')
  (command,) = (word for word in call if word.startswith('--command='))
  home = cloud.folder / 'node-mome/w0'
  done = subprocess.run(
    ['bash', '-c', command.removeprefix('--command=')], cwd=home, capture_output=True, text=True
  )
  assert done.returncode == 0 and 'was started before' in done.stdout
  assert len(cloud.starts(0)) == 1


def test_a_second_run_beside_the_first_is_refused(tmp_path):
  cloud = Cloud(tmp_path, codes=['long']).ready()
  events = {'MISSES': '1', 'POLL': '0.1'}
  plan = json.loads((cloud.folder / 'plan.json').read_text())
  plan['events'] = [['tpu_worker.sh status', 1, 'deaf']]
  (cloud.folder / 'plan.json').write_text(json.dumps(plan))
  assert cloud('run', '--config=x', **events).returncode == 1  # gave up looking; the run goes on
  done = cloud('run', '--config=y')
  assert done.returncode == 1
  assert 'is still going; stop it first' in done.stderr
  assert len(cloud.starts(0)) == 1
  [remembered] = (cloud.folder / '.local/state').rglob('run')
  assert '--config=x' in remembered.read_text()  # a preemption would start that one again
  assert cloud('stop').returncode == 0
  assert cloud('delete').returncode == 0


def test_several_slices(tmp_path):
  cloud = Cloud(tmp_path).ready(TYPE='v5litepod-16', SLICES='2')
  (created,) = cloud.calls('queued-resources create')
  assert '--node-count=2' in created and '--node-prefix=mome' in created
  done = cloud('run', *RUN)
  assert done.returncode == 0, done.stderr
  assert 'started on 4 workers' in done.stderr
  for node in ('mome-0', 'mome-1'):
    assert [len(cloud.starts(worker, node)) for worker in (0, 1)] == [1, 1]


def test_a_dry_run_prints_commands_and_calls_nobody(tmp_path):
  cloud = Cloud(tmp_path)
  for verb in ('create', 'setup', 'logs', 'stop', 'delete'):
    done = cloud(verb, DRY_RUN='1')
    assert done.returncode == 0, done.stderr
    assert 'gcloud compute tpus ' in done.stdout
  done = cloud('run', *RUN, DRY_RUN='1')
  assert done.returncode == 0 and '--worker=all' in done.stdout
  assert not (cloud.folder / 'calls.jsonl').exists()


def test_a_wrong_verb_says_what_is_known(tmp_path):
  done = Cloud(tmp_path)('destroy')
  assert done.returncode == 2
  assert 'create|setup|run|watch|logs|status|stop|delete' in done.stderr
