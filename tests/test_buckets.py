"""Data and workdirs in a bucket, against a server of Google Cloud Storage's API on this machine."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import bucket
import bucket_gate
import nibabel as nib
import numpy as np
import pytest

from input_pipeline import bricks

DATA, RUN = f'gs://{bucket.NAME}/data', f'gs://{bucket.NAME}/run'
PHANTOM = ('input_pipeline.prepare', '--source=phantom', '--spacing=12', '--brick=16')
SETTINGS = (
  'mome_jax.main', '--config=demo', f'--config.data_dir={DATA}', f'--workdir={RUN}',
  '--config.data.spacing=(12.0, 12.0, 12.0)', '--config.data.patch=(16, 16, 16)',
  '--config.evaluation.window=(32, 32, 32)', '--config.evaluation.pictures=1',
  '--config.model.backbone.size=tiny', '--config.model.scales=(0, 1)',
  '--config.text.num_layers=1', '--config.init.text=', '--config.train.negatives=0',
  '--config.train.steps=20', '--config.train.batch_size=2', '--config.train.log_every=1',
  '--config.train.checkpoint_every=5', '--config.train.warmup_steps=1',
  '--config.validation.every=0',
)  # fmt: skip
# Saves twice, marks the second as unfinished, as a killed process leaves it, and reads.
BEGIN = """
import jax, jax.numpy as jnp, numpy as np, ml_collections
from etils import epath
from input_pipeline import bricks
from mome_jax import checkpoint
from mome_jax.configs import demo
from mome_jax.training.state import TrainState

params = {'model': {'kernel': jnp.arange(6000.0).reshape(60, 100)}}
state = lambda step: TrainState(jnp.int32(step), params, params, (params,))
abstract = jax.tree.map(
  lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0))
"""
LOG = """
from etils import epath
from mome_jax.training.log import MetricsLog
for start, steps in ((0, (1, 2, 3)), (2, (4,))):
  log = MetricsLog(epath.Path('gs://bucket/log'), start)
  for step in steps:
    log.write(step, {'loss': 0.5}, vectors=False)
  log.close()
  print([row['step'] for row in log.rows()])
"""
CHECKPOINTS = f"""{BEGIN}
store = bricks.open_bricks('gs://bucket/data', 'phantom')
print('digest', store.digest(), len(bricks.open_volumes('gs://bucket/data', 'phantom')))
print('voxels', sum(int(store.read(i)[0].astype(int).sum()) for i in range(len(store))))

folder = epath.Path('gs://bucket/saved')
checkpointer = checkpoint.Checkpointer(folder)
for step in (1, 2):
  checkpointer.save(step, state(step), dict(step=step))
checkpointer.close()
(folder / 'checkpoints/2/commit_success.txt').unlink()
checkpointer = checkpoint.Checkpointer(folder)
restored, position = checkpointer.restore(abstract, ml_collections.ConfigDict())
print('went on from', position['step'], int(restored.step))
checkpointer.save(2, state(2), dict(step=2))
checkpointer.close()
checkpoint.save_model(epath.Path('gs://bucket/model'), demo.get_config(), params)
place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
loaded = checkpoint.load_model('gs://bucket/model', place)
np.testing.assert_array_equal(loaded.params['model']['kernel'], params['model']['kernel'])
"""
# Waits for a line before it saves again, and for another before it reads and saves once more.
FULL = f"""{BEGIN}
folder = epath.Path('gs://bucket/full')
for step in (1, 2, 2):
  try:
    checkpointer = checkpoint.Checkpointer(folder)
    restored = checkpointer.restore(abstract, ml_collections.ConfigDict())
    print('at', restored and restored[1]['step'], flush=True)
    checkpointer.save(step, state(step), dict(step=step))
    checkpointer.close()
  except checkpoint.CheckpointError as error:
    print('error:', error, flush=True)
  print('next?', flush=True)
  input()
"""
# Flips a bit in the largest object of the second checkpoint, and reads.
DAMAGED = f"""{BEGIN}
import bucket, os
folder = epath.Path('gs://bucket/damaged')
checkpointer = checkpoint.Checkpointer(folder)
for step in (1, 2):
  checkpointer.save(step, state(step), dict(step=step))
checkpointer.close()
objects = bucket.names(os.environ, 'damaged/checkpoints/2/')
path = max((epath.Path(f'gs://bucket/{{name}}') for name in objects), key=lambda p: p.stat().length)
content = bytearray(path.read_bytes())
content[len(content) // 2] ^= 16
path.write_bytes(bytes(content))
checkpointer = checkpoint.Checkpointer(folder)
restored, position = checkpointer.restore(abstract, ml_collections.ConfigDict())
print('went on from', position['step'], int(restored.step))
checkpointer.save(2, state(2), dict(step=2))
checkpointer.close()
"""
# Its machine goes after it has copied one file to the place of the earlier source.
KILLED = f"""
import os
from etils import epath
from input_pipeline import prepare
from input_pipeline.bricks import staging

bucket_path, publish = type(epath.Path('gs://bucket')), staging.publish
copy = bucket_path.copy

def killed(path, target):
  copy(path, target)
  os._exit(9)

def publish_until_killed(*args):
  bucket_path.copy = killed
  publish(*args)

staging.publish = publish_until_killed
prepare.main([{', '.join(map(repr, PHANTOM[1:]))}, '--data_dir=gs://bucket/killed', '--cases=1',
              '--overwrite', '--folds'])
"""


@pytest.fixture(scope='module')
def gate():
  with bucket_gate.gate() as gate:
    yield gate


@pytest.fixture(scope='module')
def environment(gate, tmp_path_factory):
  with bucket.served(tmp_path_factory.mktemp('bucket') / 'log', gate) as environment:
    yield environment


def run(environment, *words, code=0):
  """Runs a module of the project, or a program text; what it printed."""
  words = ['-c', words[0]] if len(words) == 1 else ['-m', *words]
  done = subprocess.run(
    [sys.executable, *words], env=bucket.inherited(environment), capture_output=True, text=True,
    timeout=600,
  )  # fmt: skip
  assert done.returncode == code, done.stderr[-4000:]
  return done.stdout


@pytest.fixture(scope='module')
def prepared(environment):
  out = run(environment, *PHANTOM, f'--data_dir={DATA}', '--cases=1')
  assert f'{DATA}/phantom: 1 train, 1 validation cases' in out
  return environment


def test_prepared_data_and_checkpoints(prepared, tmp_path):
  """As on a disk; nothing is left of what it was made from; only finished checkpoints count."""
  assert not bucket.names(prepared, 'data/.phantom')
  here = tmp_path / 'data'
  run({}, *PHANTOM, f'--data_dir={here}', '--cases=1')
  store = bricks.open_bricks(here, 'phantom')
  voxels = sum(int(store.read(i)[0].astype(int).sum()) for i in range(len(store)))
  out = run(prepared, CHECKPOINTS)
  assert f'digest {store.digest()} 1' in out and f'voxels {voxels}' in out
  assert 'went on from 1 1' in out
  assert {name.split('/')[2] for name in bucket.names(prepared, 'saved/checkpoints/')} == {'1', '2'}


def test_a_kill_while_a_source_is_copied_to_its_place_costs_no_folds(environment):
  words = *PHANTOM, f'--data_dir=gs://{bucket.NAME}/killed', '--cases=1'
  run(environment, *words, '--folds')
  run(environment, KILLED, code=9)
  assert 'killed/phantom/prepare.json' not in bucket.names(environment, 'killed/')
  assert '2 pool, 2 train cases' in run(environment, *words)
  assert not bucket.names(environment, 'killed/.phantom')


def test_a_bucket_that_takes_nothing_more(environment, gate, tmp_path):
  """One line says so, the earlier checkpoint stays, and saving goes on once it takes more."""
  with (
    (tmp_path / 'errors').open('w') as errors,
    subprocess.Popen(
      [sys.executable, '-c', FULL], env=bucket.inherited(environment), stdin=subprocess.PIPE,
      stdout=subprocess.PIPE, stderr=errors, text=True,
    ) as process,
  ):  # fmt: skip
    alarm = threading.Timer(300, process.kill)
    alarm.start()
    told = []
    try:
      for refuses in (True, False, False):
        told.append(list(itertools.takewhile(lambda line: line != 'next?\n', process.stdout)))
        gate.refuses = refuses
        print(file=process.stdin, flush=True)
    finally:
      gate.refuses = False
      alarm.cancel()
      process.kill()
  assert told[0] == ['at None\n'] and told[2] == ['at 1\n']
  where, error = told[1]
  assert where == 'at 1\n'
  assert (
    'billing account' in error and 'gs://bucket/full/checkpoints/1 is complete. See to' in error
  )
  # TensorStore complains that nobody waits for its other files any more, where they end late.
  assert not re.search(r'File ".*(mome_jax|orbax)', (tmp_path / 'errors').read_text())
  steps = {name.split('/')[2] for name in bucket.names(environment, 'full/checkpoints/')}
  assert steps == {'1', '2'}


def test_a_damaged_checkpoint_in_a_bucket_is_set_aside(environment):
  out = run(environment, DAMAGED)
  assert 'went on from 1 1' in out
  names = bucket.names(environment, 'damaged/')
  assert {tuple(name.split('/')[1:3]) for name in names} == {
    ('checkpoints', '1'),
    ('checkpoints', '2'),
    ('damaged', '2'),
  }


SAME = """
import numpy as np
from input_pipeline import bricks

data, beam = (f'gs://bucket/{name}' for name in ('data', 'beam'))
one, other = (bricks.open_bricks(place, 'phantom') for place in (data, beam))
assert one.digest() == other.digest() and len(one) == len(other) > 0
for pair in zip(one.read_all(range(len(one))), other.read_all(range(len(one)))):
  np.testing.assert_array_equal(*pair)
(one,), (other,) = (bricks.open_volumes(place, 'phantom') for place in (data, beam))
np.testing.assert_array_equal(one.image, other.image)
np.testing.assert_array_equal(one.codes, other.codes)
"""


def test_a_log_in_a_bucket_keeps_every_row(environment):
  out = run(environment, LOG)
  assert out.split() == ['[1,', '2,', '3]', '[1,', '2,', '4]']


@pytest.mark.slow
def test_beam_prepares_the_same(prepared):
  pytest.importorskip('apache_beam')
  place = f'--data_dir=gs://{bucket.NAME}/beam'
  options = '--beam=--runner=DirectRunner --direct_num_workers=2'
  out = run(prepared, *PHANTOM, place, '--cases=1', options)
  assert 'phantom: 1 train, 1 validation cases' in out
  assert not bucket.names(prepared, 'beam/.phantom')
  run(prepared, SAME)


@pytest.mark.slow
def test_what_is_prepared_is_drawn_and_measured(prepared):
  run(prepared, 'input_pipeline.inspect', f'--data_dir={DATA}')
  assert 'data/inspect/phantom_augmentations.png' in bucket.names(prepared, 'data/inspect')
  words = '--patch=16', '--seconds=1', '--parallel=1', '--loader=tf.data'
  out = run(prepared, 'input_pipeline.throughput', f'--data_dir={DATA}', *words)
  assert '| tf.data | 1 |' in out


@pytest.mark.slow
def test_training_is_preempted_resumed_scored_and_predicts(prepared, tmp_path):
  environment = {**prepared, 'MOME_CACHE': f'gs://{bucket.NAME}/cache'}
  log = tmp_path / 'log'
  with log.open('w') as out:
    process = subprocess.Popen(
      [sys.executable, '-m', *SETTINGS], env=bucket.inherited(environment), stdout=out, stderr=out
    )
    deadline = time.monotonic() + 600
    while 'compiling the train step' not in log.read_text():
      assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
      time.sleep(0.2)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(300) == 75, log.read_text()[-3000:]
  out = run(environment, *SETTINGS)
  assert f'resuming {RUN} at step' in out
  objects = bucket.names(environment, 'run/')
  for name in ('config.json', 'metrics.jsonl', 'evaluation/table.md', 'pictures/training.png'):
    assert f'run/{name}' in objects
  assert bucket.names(environment, 'cache/')
  assert {name.split('/')[2] for name in objects if '/checkpoints/' in name} == {'15', '20'}
  run(environment, 'mome_jax.main', '--mode=evaluate', f'--workdir={RUN}')
  scan = bucket.pathlib.Path(__file__).parents[1] / 'mome_jax/assets/demo'
  run(environment, 'mome_jax.predict', '--checkpoint', RUN, '--input', str(scan), '--output',
      str(tmp_path / 'out'))  # fmt: skip
  (written,) = (tmp_path / 'out').glob('*_seg.json')
  assert json.loads(written.read_text())['labels']

  # Its weights go on with scans of this machine, in a workdir of the bucket; twice the same.
  trained = f'gs://{bucket.NAME}/mine'
  words = ('mome_jax.finetune', f'--data={own_scans(tmp_path)}', f'--from={RUN}', '--steps=2')
  for _ in range(2):
    out = run(environment, *words, f'--workdir={trained}')
    assert f'Model: {trained}/model' in out
  run(environment, 'mome_jax.predict', '--checkpoint', f'{trained}/model', '--input', str(scan),
      '--output', str(tmp_path / 'finetuned'))  # fmt: skip
  assert (tmp_path / 'finetuned' / 'manifest.json').exists()


def own_scans(folder):
  """Three scans of a liver, as nnU-Net wants them; one is held out."""
  place = folder / 'own'
  for part in ('imagesTr', 'labelsTr'):
    (place / part).mkdir(parents=True)
  rng = np.random.default_rng(0)
  for name in 'abc':
    label = np.zeros((16, 16, 16), np.uint8)
    label[4:12, 4:12, 4:12] = 1
    image = (rng.integers(-40, 40, label.shape) + 60 * label).astype(np.int16)
    for part, array, end in (('imagesTr', image, '_0000'), ('labelsTr', label, '')):
      nib.save(
        nib.Nifti1Image(array, np.diag([12.0, 12.0, 12.0, 1.0])),
        place / part / f'{name}{end}.nii.gz',
      )
  content = {'labels': {'background': 0, 'liver': 1}, 'splits': {'validation': ['c']}}
  (place / 'dataset.json').write_text(json.dumps(content))
  return place
