"""Mistakes on the command lines of `mome_jax`: one line each, with what to do."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from mistakes import told

from input_pipeline import bricks
from mome_jax import evaluate, export, main, predict
from mome_jax.evaluate import metrics
from mome_jax.serve import command as serve
from mome_jax.text import embed, pretrain, train_tokenizer
from mome_jax.training import loop, multihost
from mome_jax.weights import command as weights

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEMO = ['--config=demo', '--workdir=w', '--config.data_dir=data']
VALUES = [
  ("classes=('liver','splen')", "no class is called 'splen'; did you mean spleen?"),
  ('classes=()', 'config.classes is ()'),
  ("classes=('liver','liver')", 'names of classes, each once'),
  ("experimental=('spleens',)", 'config.experimental: spleens: not in config.classes'),
  ('data.sources=fantom', 'data/fantom: not prepared; did you mean phantom?'),
  ('data.sources=mine', '--source=SOURCE --manual_dir=DOWNLOADED --name=mine'),
  ('data.sources=openkbp,thorax', "sources, each once, as ('phantom',) or ('openkbp', 'thorax')"),
  ('data.sources=openkbp', '--data_dir=data --spacing=6,6,6 --brick=32, or correct data_dir'),
  ('data.patch=(30,32,32)', 'expected multiples of 8'),
  ('data.patch=(32,32)', 'expected three of them'),
  ('data.spacing=(0,1,1)', 'each a number above 0'),
  ('data.windows=((5,1),)', 'low below high'),
  ('data.balance=class', 'did you mean classes?'),
  ('data.foreground=nan', 'expected a number from 0 to 1'),
  ('data.num_parallel=-1', 'config.data.num_parallel is -1'),
  ('data.loader=torch', "config.data.loader is 'torch'; known: tf.data, grain, auto"),
  ('data.augment.p_mirror=2', 'config.data.augment.p_mirror is 2.0; expected a probability'),
  ('text.mode=frosen', 'did you mean frozen?'),
  ('text.mode=frozen', '--config.text.vectors=FILE.npz'),
  ('text.vectors=nowhere.npz', "config.text.vectors is 'nowhere.npz', and joint text reads none"),
  ('text.feed_forward=swiglu', 'text.feed_forward'),
  ('text.vocab_size=10', 'text.vocab_size is 10'),
  ('text.max_length=1', 'a whole number from 2 on'),
  ('text.num_layers=0', 'config.text.num_layers is 0'),
  ('model.experts=both', "model.experts is 'both'; known: pyramid, finest"),
  ('model.backbone.name=unett', 'did you mean unet?'),
  ('model.backbone.size=huge', 'known: tiny, small, base'),
  ('model.dtype=float8', 'known: float32, bfloat16'),
  ('model.bank.scales=(7,)', 'model.bank.scales'),
  ('model.scales=(1,2)', 'model.scales'),
  ('model.top_k=9', 'model.top_k is 9'),
  ('model.class_chunk=0', 'config.model.class_chunk is 0'),
  ('train.steps=0', 'config.train.steps is 0'),
  ('train.log_every=0', 'config.train.log_every is 0'),
  ('train.checkpoint_every=0', 'config.train.checkpoint_every is 0'),
  ('train.batch_size=0', 'config.train.batch_size is 0'),
  ('train.learning_rate=-1', 'config.train.learning_rate is -1.0'),
  ('train.ema_decay=1.5', 'from 0 to 1'),
  ('train.accumulate=0', 'config.train.accumulate is 0'),
  ('train.accumulate=2', 'by 1 devices in train.accumulate=2 parts; set it to a multiple of 2'),
  ('train.optimizer=adam', 'did you mean adamw or nadamw?'),
  ('train.schedule=cosin', 'did you mean cosine?'),
  ('train.skip_nonfinite=-1', 'config.train.skip_nonfinite is -1'),
  ("train.freeze=('model/(',)", 'expected regular expressions of paths'),
  ("train.rates=(('text',),)", 'pairs of a regular expression of paths and a factor'),
  ("data.weights=(('phantom_liver', 0.0),)", 'pairs of a dataset and a number above 0'),
  ("data.augment_of=(('phantom_liver', 0.5),)", 'pairs of a dataset and fields of data.augment'),
  (
    "data.augment_of=(('phantom_liver', {'p_warb': 0.5}),)",
    "data.augment_of: phantom_liver: data.augment has no field 'p_warb'; did you mean p_warp",
  ),
  ("data.augment_of=(('phantom_liver', {'zoom': 1.2}),)", 'zoom is 1.2; expected (lowest, high'),
  ("data.augment_of=(('phantom_liver', {'p_warp': 'x'}),)", "p_warp is 'x'; expected a probabil"),
  ("data.augment_of=(('phantom_liver', {'noise': 'x'}),)", "noise is 'x'; expected a number"),
  ("data.augment_of=(('a', {}), ('a', {}))", 'data.augment_of: a: named twice'),
  ('train.negatives=-1', 'config.train.negatives is -1'),
  ('train.negatives=1000', 'train.negatives is 1000; the vocabulary has'),
  ('mesh.data=3', 'mesh.data=3 x mesh.expert=1 does not fit 1 devices'),
  ('mesh.expert=0', 'does not fit 1 devices'),
  ('mesh.expert=-1', 'does not fit 1 devices'),
  ('evaluation.overlap=1', 'to below 1'),
  ('evaluation.window=(30,30,30)', 'config.evaluation.window is (30, 30, 30)'),
  ('evaluation.split=tset', 'did you mean test?'),
  ('evaluation.prompts=heldout', 'did you mean held_out?'),
  ('evaluation.postprocess=side', 'did you mean sides'),
  ('init.checkpoint=nowhere', 'config.init.checkpoint: '),
  ('init.text=nowhere', 'config.init.text: '),
  ('seed=-1', 'config.seed is -1'),
  ("new_classes=({'nam': 'x'},)", 'it has no name'),
  ("new_classes=({'name': 'x', 'parent': 'livr'},)", 'did you mean liver?'),
]
FLAGS = [
  ('--config.train.steps=many', '--config.train.steps=many: expected a whole number'),
  ('--config.mesh.spatial=maybe', 'expected true or false'),
  ('--config.train.stepz=4', 'did you mean train.steps'),
  ('--config.steps=4', 'did you mean train.steps?'),
  ('--config.data.patch[0]=40', 'give all of it: --config.data.patch="(32, 32, 32)"'),
  ('--config.train.steps', '--config.train.steps'),
  ('--worldir=x', 'did you mean workdir?'),
  ('--mode=trian', '<train|evaluate|compile>'),
  ('extra', 'unknown argument extra'),
]
CONFIGS = [
  ('demos', 'did you mean demo?'),
  ('nowhere.py', '--config=nowhere.py: no such file'),
  ('empty_file.py', 'has no get_config()'),
  ('demo:x', 'takes nothing after a colon'),
  ('finetune:nowhere', '--config=finetune:nowhere: '),
  ('finetune', 'expected a model to start from after a colon, as finetune:shipped'),
  ('finetune:', 'expected a model to start from after a colon, as finetune:shipped'),
  ('router', 'expected another experiment after a colon, as router:openkbp_cpu'),
  ('router:', 'expected another experiment after a colon, as router:openkbp_cpu'),
  ('few_scans', 'expected another experiment after a colon, as few_scans:openkbp_cpu'),
]
LINES = [
  (main, '', 2, '--mode=train needs --config'),
  (main, '--config=demo', 2, '--mode=train needs --workdir'),
  (main, '--config=demo --workdir=', 2, '--mode=train needs --workdir'),
  (main, '--mode=evaluate --workdir=', 2, '--mode=evaluate needs --workdir'),
  (main, '--config=demo --workdir=file', 1, 'file: is a file, no folder'),
  (main, '--workdir=w --config.train.steps=4', 2, 'it needs --config=NAME before it'),
  (main, '--mode=evaluate', 2, '--mode=evaluate needs --workdir'),
  (main, '--mode=evaluate --workdir=empty', 1, 'empty: no model there'),
  (main, '--mode=compile --config=demo', 2, '--mode=compile needs --topology'),
  (main, '--mode=compile --config=demo --topology=v9:2', 1, 'expected here, cpu:N or one of v5e'),
  (main, '--mode=compile --config=demo --topology=here --workdir=w', 2, 'read --workdir; leave it'),
  (main, '--config=demo --workdir=w --topology=here', 2, '--mode=train does not read --topology'),
  (evaluate, 'compare nowhere empty', 1, 'nowhere: no cases.csv there'),
  (evaluate, 'compare file file', 1, "file: no column 'case'"),
  (evaluate, 'score --predictions=empty --references=empty', 1, 'empty: no NAME.nii.gz'),
  (evaluate, 'compare twice twice', 1, 'liver of a has several rows'),
  (evaluate, 'score --predictions=empty --references=empty --output=file', 1, 'file: is a file'),
  (evaluate, 'score --predictions=gs://b/x --references=empty', 2, 'gs://b/x is in a bucket; give'),
  (evaluate, 'nnunet --results=empty --dataset=gs://b/x --output=o', 2, 'gs://b/x is in a bucket'),
  (evaluate, 'scor', 2, "invalid choice: 'scor'"),
  (export, '--checkpoint=nowhere --output=o', 1, 'nowhere: no model there'),
  (export, '--checkpoint=nowhere --output=o --dtype=float', 2, "invalid choice: 'float'"),
  (weights, '--source=t5 --checkpoint=nowhere --output=o', 1, 'nowhere: no checkpoint there'),
  (weights, '--source=universal_unet --checkpoint=file --output=o', 1, 'file: not a PyTorch'),
  (weights, '--source=universal_unet --checkpont=file --output=o', 2, 'did you mean --checkpoint?'),
  (embed, '--t5=nowhere --output=o.npz', 1, 'nowhere: no checkpoint there'),
  (embed, '--t5=empty --output=o.npz', 1, 'spiece.model: missing'),
  (embed, '--cum=file --output=o.npz', 1, 'file: not a PyTorch checkpoint'),
  (embed, '--cum=nowhere --output=o.npz', 1, 'nowhere: cannot be read'),
  (pretrain, '--seed=-1', 2, "'-1': expected a whole number from 0 on"),
  (train_tokenizer, '--output=/dev/full', 1, '/dev/full: cannot be written (No space left'),
  (train_tokenizer, '--output=empty', 1, 'empty: cannot be written'),
  (predict, '--input=nowhere --output=o', 1, 'nowhere: no such file or folder'),
  (predict, '--input=empty --output=o', 1, 'empty: no .nii.gz'),
  (
    predict,
    '--input gs://b/scan.nii --output=o',
    1,
    'gs://b/scan.nii is in a bucket; give a place',
  ),
  (predict, '--input=scan.nii --output=file', 1, 'file: is a file, no folder'),
  (predict, '--input=scan.nii --output=o/seg.nii.gz', 1, 'results are several; give a folder'),
  (serve, '--port=70000', 2, 'expected a number up to 65535'),
  (serve, '--port=x', 2, "'x': expected a whole number from 0 on"),
  (serve, '--keep-scans=0', 2, 'expected a whole number from 1 on'),
  (predict, '--input=scan.nii --output=o --promts=liver', 2, 'did you mean --prompts'),
  (predict, '-i nowhere.nii -o o', 1, 'nowhere.nii: no such file or folder'),
  (predict, '--input=scan.nii --out=o', 2, 'unknown argument --out=o; did you mean --output?'),
  (predict, '--input=scan.nii --output=o --prompts=,', 1, 'an empty one'),
  (predict, '--input=scan.nii --output=o --prompts-file=nowhere', 1, 'nowhere: cannot be read'),
  (predict, '--input=scan.nii --output=o --postprocess=side', 1, 'did you mean sides'),
  (predict, '--input=scan.nii --output=o --checkpoint=nowhere', 1, 'nowhere: no model there'),
  (predict, '--input=scan.nii --output=o --device=xpu', 1, '--device xpu: no such device'),
]


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A folder with what the mistakes are made on; its prepared source has a description alone."""
  folder = tmp_path_factory.mktemp('mistakes')
  for name in ('file', 'empty_file.py', 'scan.nii'):
    (folder / name).write_text('x = 1')
  (folder / 'empty').mkdir()
  columns = ('case', 'class', *metrics.METRICS)
  rows = [columns, *[('a', 'liver', *['1'] * len(metrics.METRICS))] * 2]
  (folder / 'twice').write_text('\n'.join(map(','.join, rows)))
  (folder / 'data' / 'phantom').mkdir(parents=True)
  settings = {'settings': {'version': bricks.VERSION}}
  (folder / 'data' / 'phantom' / bricks.SETTINGS).write_text(json.dumps(settings))
  return folder


@pytest.fixture
def tell(place, monkeypatch, capsys):
  """tell(main, argv) -> exit code and the one line, in that folder."""
  monkeypatch.chdir(place)
  return lambda main, argv: told(main, argv, capsys)


@pytest.mark.parametrize(('value', 'message'), VALUES)
def test_values_of_a_config(tell, value, message):
  code, line = tell(main.main, [*DEMO, f'--config.{value}'])
  assert code == 1
  assert message in line


def test_what_frozen_text_does_not_read_is_refused(tell):
  frozen = [*DEMO, '--config.text.mode=frozen', '--config.text.vectors=text.npz']
  code, line = tell(main.main, [*frozen, '--config.init.text=', '--config.train.text_rate=1'])
  assert code == 1
  assert "config.init.text is '', and frozen text has no encoder" in line
  assert 'config.train.text_rate is 1.0, and frozen text has no encoder' in line
  assert 'text.npz: no such file' in tell(main.main, frozen)[1]


def test_all_wrong_values_are_named_at_once(tell):
  _, line = tell(main.main, [*DEMO, '--config.train.steps=0', '--config.data.balance=class'])
  assert 'config.train.steps is 0' in line and 'config.data.balance' in line


@pytest.mark.parametrize(('flag', 'message'), FLAGS)
def test_flags(tell, flag, message):
  code, line = tell(main.main, [*DEMO, flag])
  assert code == 2
  assert message in line


@pytest.mark.parametrize(('name', 'message'), CONFIGS)
def test_configs(tell, name, message):
  code, line = tell(main.main, [f'--config={name}', '--workdir=w'])
  assert code == 1
  assert message in line


@pytest.mark.parametrize(('command', 'line', 'code', 'message'), LINES)
def test_command_lines(tell, command, line, code, message):
  answer = tell(command.main, line.split())
  assert answer[0] == code
  assert message in answer[1]


@pytest.mark.parametrize('fault', [KeyError('planted'), ValueError('planted')])
def test_a_planted_bug_passes(place, monkeypatch, fault):
  """In the program, and in the code of a config."""

  def planted(*args):
    raise fault

  monkeypatch.chdir(place)
  monkeypatch.setattr(loop, 'train', planted)
  with pytest.raises(type(fault), match='planted'):
    main.main(DEMO)
  (place / 'bug.py').write_text(f'def get_config():\n  raise {fault!r}\n')
  with pytest.raises(type(fault), match='planted'):
    main.main(['--config=bug.py', '--workdir=w'])


def test_help_is_no_mistake(capsys):
  assert main.main(['--help']) == 0
  printed = capsys.readouterr().out
  assert all(word in printed for word in ('--config', 'openkbp_cpu', '--workdir', 'compile', '75'))
  assert str(ROOT) not in printed
  for command in (evaluate, export, weights, embed, train_tokenizer, predict):
    with pytest.raises(SystemExit) as end:
      command.main(['--help'])
    assert end.value.code == 0
    name = command.__name__.removesuffix('.command')
    assert capsys.readouterr().out.startswith(f'usage: python -m {name} ')


def test_processes_that_cannot_find_each_other(place, monkeypatch):
  environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_COORDINATOR_ADDRESS': ''}
  done = subprocess.run(
    [sys.executable, '-m', 'mome_jax.main', '--distributed', *DEMO],
    cwd=place, env=environment, capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == 1
  (line,) = done.stderr.splitlines()
  assert line.startswith('error: --distributed: ') and 'JAX_COORDINATOR_ADDRESS' in line
  monkeypatch.setenv('JAX_NUM_PROCESSES', 'two')
  with pytest.raises(multihost.DistributedError, match="JAX_NUM_PROCESSES='two': expected a whole"):
    multihost.initialize()
