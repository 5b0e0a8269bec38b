"""The model folder: what is saved comes back, from whichever of its places."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from input_pipeline.anatomy import TEMPLATE
from mome_jax import checkpoint, main, shipped
from mome_jax.checkpoint import training_cases
from mome_jax.configs import demo
from mome_jax.crossval import command as crossval
from mome_jax.errors import UserError
from mome_jax.finetune import run
from mome_jax.plausibility import record
from mome_jax.text import tokenizer, vectors
from mome_jax.training.state import TrainState

DEVICE = jax.sharding.SingleDeviceSharding(jax.devices()[0])
PARAMS = {'model': {'a': {'kernel': np.arange(6.0, dtype=np.float32).reshape(2, 3)}}}
JOINT = PARAMS | {'text': {'embed': np.ones((4, 2), np.float32)}}
ROWS = np.eye(2, 3, dtype=np.float32)
VECTORS = vectors.TextVectors(('a liver', 'a spleen'), ROWS, {'model': 'x'})


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)
  assert jax.tree.structure(a) == jax.tree.structure(b)


def test_the_model_of_the_package_has_a_name(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  config = demo.get_config()
  checkpoint.save_model('./shipped', config, JOINT)  # which is a folder of the user's
  assert checkpoint.locate('shipped').folder == epath.Path(shipped.MODEL)
  assert checkpoint.load_config('shipped').classes != config.classes
  assert checkpoint.load_config('./shipped').classes == config.classes
  assert checkpoint.expand(['shipped', './shipped']) == ['shipped', './shipped']
  place = pathlib.Path('./shipped')  # which drops what tells it from the name
  assert checkpoint.expand([place, epath.Path(place)]) == ['./shipped'] * 2
  assert checkpoint.load_config(place).classes == config.classes
  for name in ('shipped', 'hf:org/net'):
    with pytest.raises(checkpoint.CheckpointError, match=f'{name}: is the name of a model, .*cho'):
      checkpoint.new_folder(name)


def test_a_folder_that_is_called_as_the_model_of_the_package_is_not_taken_for_it(
  tmp_path, monkeypatch
):
  """What `crossval --workdir=./shipped` wrote made the package's model an ensemble of nothing."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'shipped').mkdir()
  place = checkpoint.own_folder('./shipped')
  checkpoint.write_members(place, ['fold_0'])
  assert (tmp_path / 'shipped/ensemble.json').exists()
  assert not (shipped.MODEL / 'ensemble.json').exists()
  assert checkpoint.own_folder('runs/shipped') == epath.Path('runs/shipped')


@pytest.mark.parametrize('start', [
  lambda: main._train(demo.get_config(), 'shipped'),
  lambda: run.run('data', 'shipped', 'shipped', 1),
  lambda: crossval.main.__wrapped__(['--config=demo', '--workdir=shipped']),
])  # fmt: skip
def test_no_run_has_the_name_of_a_model(tmp_path, monkeypatch, start):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(checkpoint.CheckpointError, match='^shipped: is the name of a model, no fo'):
    start()
  assert not [*tmp_path.iterdir()]


def test_what_is_measured_of_a_model_with_a_name_has_a_folder_of_its_own():
  for path, place in (
    ('runs/demo', 'runs/demo'),
    ('/a/shipped', '/a/shipped'),
    ('shipped', 'runs/shipped'),
    ('hf:org/net', 'runs/org--net'),
    ('hf:org/net@v1/x', 'runs/org--net--v1--x'),
  ):
    assert str(checkpoint.results_of(path)) == place


@pytest.mark.parametrize('part', ['config.json', 'checkpoints/1', 'ensemble.json'])
def test_results_of_a_run_are_not_replaced_by_those_of_a_name(tmp_path, monkeypatch, part):
  """`finetune --data shipped` makes runs/shipped."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'runs/shipped' / part).mkdir(parents=True)
  with pytest.raises(checkpoint.CheckpointError, match='^runs/shipped holds another model, whose'):
    checkpoint.results_of('shipped')


def test_a_joint_model_comes_back(tmp_path):
  config = demo.get_config()
  config.new_classes = ({'index': 39, 'name': 'metastasis', 'parents': ['liver']},)
  checkpoint.save_model(tmp_path / 'model', config, JOINT)
  loaded = checkpoint.load_model(tmp_path / 'model', DEVICE)
  same(loaded.params, JOINT)
  assert TEMPLATE.extend(loaded.config.new_classes).get('metastasis').index == 39
  loaded.config.new_classes = config.new_classes  # lists inside are tuples now
  assert loaded.config.to_dict() == config.to_dict()
  assert loaded.config.data.patch == (32, 32, 32)
  assert loaded.step is None
  vocabulary = tokenizer.Tokenizer(loaded.folder / checkpoint.TOKENIZER)
  assert vocabulary.vocab_size == tokenizer.Tokenizer().vocab_size


def test_a_frozen_model_carries_its_vectors(tmp_path):
  config = demo.get_config()
  config.text.mode = 'frozen'
  with pytest.raises(checkpoint.CheckpointError, match='frozen text needs its text vectors'):
    checkpoint.save_model(tmp_path, config, PARAMS)
  checkpoint.save_model(tmp_path, config, PARAMS, vectors=VECTORS)
  loaded = checkpoint.load_model(tmp_path, DEVICE)
  same(loaded.params, PARAMS)
  stored = vectors.TextVectors.load(loaded.folder / checkpoint.TEXT_VECTORS)
  np.testing.assert_array_equal(stored(['a spleen']), [[0, 1, 0]])


def test_workdir_and_each_step_are_accepted_without_a_word_of_orbax(tmp_path, caplog):
  checkpoint.save_description(tmp_path, demo.get_config())
  with pytest.raises(checkpoint.CheckpointError, match='holds no checkpoint; train first'):
    checkpoint.load_model(tmp_path, DEVICE)
  writer = checkpoint.Checkpointer(tmp_path)
  for step in (8, 10):
    ema = jax.tree.map(lambda x, step=step: jnp.asarray(x + step), JOINT)
    params = jax.tree.map(jnp.asarray, JOINT)
    writer.save(step, TrainState(jnp.int32(step), params, ema, {}), {'step': step, 'seed': 0})
  writer.close()
  for path, step in ((tmp_path, 10), (tmp_path / 'checkpoints' / '8', 8)):
    loaded = checkpoint.load_model(path, DEVICE)
    assert loaded.step == step
    same(loaded.params, jax.tree.map(lambda x, step=step: x + step, JOINT))
    assert loaded.folder.name == tmp_path.name
  assert not caplog.records


def test_fields_of_a_later_version_get_their_defaults(tmp_path):
  config = demo.get_config()
  config.evaluation.overlap = 0.25
  checkpoint.save_model(tmp_path, config, JOINT)
  path = tmp_path / checkpoint.CONFIG
  path.write_text(path.read_text().replace('"overlap"', '"overlap_of_old"'))
  config = checkpoint.load_config(tmp_path)
  assert config.evaluation.overlap == 0.5
  assert config.evaluation.overlap_of_old == 0.25


def test_a_full_disk_is_told_in_one_line(tmp_path, monkeypatch):
  """TensorStore's error is no OSError."""

  def refuse(*_):
    raise ValueError('RESOURCE_EXHAUSTED: Error writing: No space left on device')

  monkeypatch.setattr(ocp.StandardCheckpointer, 'save', refuse)
  with pytest.raises(checkpoint.CheckpointError, match='cannot be written .*No space left'):
    checkpoint.save_model(tmp_path, demo.get_config(), JOINT)


def test_nothing_is_overwritten(tmp_path):
  checkpoint.save_model(tmp_path, demo.get_config(), JOINT)
  with pytest.raises(checkpoint.CheckpointError, match='holds a model already'):
    checkpoint.save_model(tmp_path, demo.get_config(), JOINT)


def test_mistakes_name_the_folder(tmp_path):
  with pytest.raises(checkpoint.CheckpointError, match=f'{tmp_path.name}: no model there'):
    checkpoint.load_model(tmp_path, DEVICE)
  checkpoint.save_model(tmp_path / 'm', demo.get_config(), JOINT)
  for file in (tmp_path / 'm' / 'params').rglob('*'):
    if file.is_file() and file.name != '_METADATA':
      file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])
  with pytest.raises(checkpoint.CheckpointError, match='params: cannot be read') as error:
    checkpoint.load_model(tmp_path / 'm', DEVICE)
  assert '\n' not in str(error.value)
  (tmp_path / 'm' / 'config.json').write_text('{')
  with pytest.raises(checkpoint.CheckpointError, match='config.json: not a config'):
    checkpoint.load_config(tmp_path / 'm')


@pytest.mark.parametrize('name', [
  'config.json', 'checksums.json', 'ensemble.json', 'training_cases.json', 'class_statistics.json',
])  # fmt: skip
def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch, name):
  """Such as one of another user, or on a disk that fails."""
  checkpoint.save_model(tmp_path, demo.get_config(), JOINT)
  (tmp_path / name).touch()
  kind = type(epath.Path(tmp_path))
  read_bytes = kind.read_bytes

  def refuse(path, *given):
    if path.name == name:
      raise PermissionError(13, 'Permission denied', str(path))
    return read_bytes(path, *given)

  monkeypatch.setattr(kind, 'read_bytes', refuse)
  with pytest.raises(UserError, match=f'{name}: cannot be read .Permission denied.'):
    checkpoint.members(tmp_path)
    checkpoint.load_model(tmp_path, DEVICE)
    training_cases.read(epath.Path(tmp_path))
    record.read(tmp_path)


def test_initialising_takes_what_fits_and_lists_the_rest(tmp_path):
  checkpoint.save_model(tmp_path, demo.get_config(), JOINT)
  fresh = {
    'model': {
      'a': {'kernel': jnp.zeros((2, 3)), 'bias': jnp.full(3, 7.0)},
      'router': {'query': {'kernel': jnp.zeros((2, 2)), 'bias': jnp.zeros(2)}, 'key': jnp.ones(1)},
    },
    'text': {'embed': jnp.zeros((5, 2))},
  }
  params, random = checkpoint.initialise(fresh, tmp_path)
  assert random == ['model/a/bias', 'model/router', 'text']
  same(
    params,
    fresh | {'model': fresh['model'] | {'a': PARAMS['model']['a'] | {'bias': np.full(3, 7.0)}}},
  )
  _, random = checkpoint.initialise(fresh, tmp_path, but='text/.*|model/a/kern')  # whole names
  assert random == ['model/a/bias', 'model/router', 'text']
  with pytest.raises(checkpoint.CheckpointError, match='not one of its parameters fits'):
    checkpoint.initialise(fresh, tmp_path, but='model/a/kernel|text/.*')
  with pytest.raises(checkpoint.CheckpointError, match='not one of its parameters fits'):
    checkpoint.initialise({'model': {'b': jnp.zeros(3)}}, tmp_path)


def test_parameters_of_another_network_are_told():
  checkpoint.check_fit(JOINT, JOINT, 'm')
  expected = {
    'model': {'a': {'kernel': np.zeros((2, 4))}, 'router': {'b': np.zeros(1), 'c': np.zeros(1)}},
  }
  message = (
    'm: its parameters are not those of its config: it lacks model/router; it has unknown text; '
    'it has other shapes of model/a/kernel; use'
  )
  with pytest.raises(checkpoint.CheckpointError, match=message):
    checkpoint.check_fit(JOINT, expected, 'm')
