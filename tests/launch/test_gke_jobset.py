"""The JobSet of a run, checked as servers would: the fields of the JobSet, and the Job inside."""

import json
import pathlib
import re
import subprocess
import sys

import jsonschema
import kubernetes_validate
import pytest

LAUNCH = pathlib.Path(__file__).resolve().parents[2] / 'launch'
SCHEMA = json.loads(pathlib.Path(__file__).with_name('jobset_schema.json').read_text())
RUN = '--', '--config=sparse_32', "--config.classes=('left kidney',)"


def render(*options):
  done = subprocess.run(
    [sys.executable, LAUNCH / 'gke_jobset.py', '--image=i', '--bucket=b', *options],
    capture_output=True, text=True,
  )  # fmt: skip
  return done


def job_set(*options):
  done = render(*options, *RUN)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


def check(manifest):
  """Raises if a server would refuse it; unknown fields too, which servers drop without a word."""
  jsonschema.validate(manifest, SCHEMA)
  for job in manifest['spec']['replicatedJobs']:
    whole = {'apiVersion': 'batch/v1', 'kind': 'Job', 'metadata': {'name': job['name']}}
    whole |= job['template']
    kubernetes_validate.validate(whole, '1.33', strict=True)


@pytest.mark.parametrize('slices', [1, 2, 4])
@pytest.mark.parametrize(
  ('topology', 'label', 'hosts', 'chips'),
  [
    ('v5e:4x4', 'tpu-v5-lite-podslice', 4, 4),
    ('v5e:2x2', 'tpu-v5-lite-podslice', 1, 4),
    ('v6e:8x8', 'tpu-v6e-slice', 16, 4),
    ('v5p:2x2x4', 'tpu-v5p-slice', 4, 4),
    ('v4:2x2x1', 'tpu-v4-podslice', 1, 4),
    ('v6e:1x1', 'tpu-v6e-slice', 1, 1),
  ],
)
def test_slices_of_hosts(topology, label, hosts, chips, slices):
  manifest = job_set(f'--topology={topology}', f'--slices={slices}')
  check(manifest)
  [job] = manifest['spec']['replicatedJobs']
  assert job['replicas'] == slices
  spec = job['template']['spec']
  assert spec['parallelism'] == spec['completions'] == hosts
  pod = spec['template']['spec']
  assert pod['nodeSelector']['cloud.google.com/gke-tpu-accelerator'] == label
  assert pod['nodeSelector']['cloud.google.com/gke-tpu-topology'] == topology.partition(':')[2]
  [train] = pod['containers']
  assert train['resources']['limits'] == train['resources']['requests'] == {'google.com/tpu': chips}
  assert {'name': 'MOME_DEVICES', 'value': str(chips)} in train['env']


def test_the_run_and_its_bucket():
  manifest = job_set(
    '--topology=v5e:2x4', '--chips-per-host=8', '--spot', '--service-account=me', '--name=first'
  )
  check(manifest)
  pod = manifest['spec']['replicatedJobs'][0]['template']['spec']['template']['spec']
  assert pod['serviceAccountName'] == 'me'
  assert pod['nodeSelector']['cloud.google.com/gke-spot'] == 'true'
  [train] = pod['containers']
  assert train['command'] == [
    'python', '-m', 'mome_jax.main', '--distributed', '--config=sparse_32',
    "--config.classes=('left kidney',)", '--workdir=gs://b/first',
  ]  # fmt: skip
  assert {'name': 'MOME_CACHE', 'value': 'gs://b/cache'} in train['env']
  other = json.loads(render('--topology=v5e:2x2', *RUN, '--workdir=gs://c/d').stdout)
  command = other['spec']['replicatedJobs'][0]['template']['spec']['template']['spec']
  assert command['containers'][0]['command'][-1] == '--workdir=gs://c/d'


def test_a_preemption_costs_no_restart_and_a_failure_does():
  """75 or a node taken away fail the Job by its policy, after which the JobSet starts again."""
  spec = job_set('--topology=v5e:4x4')['spec']
  [rule] = spec['failurePolicy']['rules']
  assert rule['action'] == 'RestartJobSetAndIgnoreMaxRestarts'
  assert rule['onJobFailureReasons'] == ['PodFailurePolicy']
  assert spec['failurePolicy']['maxRestarts'] == 3
  job = spec['replicatedJobs'][0]['template']['spec']
  exit_code, disruption = job['podFailurePolicy']['rules']
  assert exit_code['onExitCodes']['values'] == [75] and exit_code['action'] == 'FailJob'
  assert disruption['onPodConditions'][0]['type'] == 'DisruptionTarget'
  assert job['backoffLimit'] == 0 and job['template']['spec']['restartPolicy'] == 'Never'


@pytest.mark.parametrize(
  'change',
  [
    lambda m: m['spec'].update(failurPolicy={}),
    lambda m: m['spec']['failurePolicy']['rules'][0].pop('name'),
    lambda m: m['spec']['failurePolicy']['rules'][0].update(action='Restart'),
    lambda m: m['spec']['replicatedJobs'][0]['template']['spec'].update(completionmode='Indexed'),
    lambda m: m['spec']['replicatedJobs'][0]['template']['spec'].update(parallelism='4'),
    lambda m: m['spec']['replicatedJobs'][0]['template']['spec']['template']['spec']['containers']
      [0].update(comand=[]),
  ],
)  # fmt: skip
def test_mistakes_in_a_manifest_are_seen(change):
  manifest = job_set('--topology=v5e:4x4')
  change(manifest)
  with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
    check(manifest)


@pytest.mark.parametrize(
  ('options', 'word'),
  [
    (['--topology=v5e'], 'v5e:4x4'),
    (['--topology=v5e:2x2x2'], 'v5e:4x4'),
    (['--topology=v9:4x4'], 'v5e:4x4'),
    (['--topology=v5e:4x4', '--chips-per-host=3'], 'multiple'),
    (['--topology=v5e:4x4', '--chips-per-host=0'], 'multiple'),
    (['--topology=v5e:4x4', '--slices=0'], 'at least 1'),
    (['--topology=v5e:4x4', '--name=Big_Run'], 'a letter first'),
  ],
)
def test_mistakes_take_one_line(options, word):
  done = render(*options, *RUN)
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert line.startswith('error: ') and word in line


def test_the_image_has_what_its_recipe_copies():
  lines = (LAUNCH / 'Dockerfile').read_text().splitlines()
  copied = [word for line in lines if line.startswith('COPY') for word in line.split()[1:-1]]
  ignored = (LAUNCH.parent / '.dockerignore').read_text().splitlines()
  for name in [name for name in copied if name.startswith('requirements')]:
    included = re.findall(r'^-r (\S+)', (LAUNCH.parent / name).read_text(), re.MULTILINE)
    assert set(included) <= set(copied)
  for name in copied:
    assert (LAUNCH.parent / name).exists()
    pattern = '!requirements*.txt' if name.startswith('requirements') else f'!{name}'
    assert pattern in ignored
