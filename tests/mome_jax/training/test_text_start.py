"""Where a text encoder begins, and that the config of a run fits it."""

import jax
import numpy as np
import pytest
import torch
import transformers
from etils import epath

from mome_jax import checkpoint
from mome_jax.checkpoint import CheckpointError
from mome_jax.configs import base, demo
from mome_jax.errors import ConfigError
from mome_jax.text import t5, tokenizer
from mome_jax.training import start, text_start
from mome_jax.training.state import TrainState
from mome_jax.weights.command import main as weights_main
from mome_jax.weights.t5 import load as load_published

SMALL = {'vocab_size': 2048, 'd_model': 16, 'd_kv': 8, 'd_ff': 24, 'num_layers': 1, 'num_heads': 2}


@pytest.fixture(scope='module')
def published(tmp_path_factory):
  """A folder as Hugging Face publishes a T5 v1.0, and transformers' own model of it."""
  folder = tmp_path_factory.mktemp('hub') / 't5-tiny'
  torch.manual_seed(0)
  model = transformers.T5EncoderModel(transformers.T5Config(**SMALL)).eval()  # relu
  model.save_pretrained(folder)
  (folder / 'spiece.model').write_bytes(tokenizer.DEFAULT_MODEL.read_bytes())
  return folder, model


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A model folder with a text encoder of sizes that are not the default ones."""
  folder = tmp_path_factory.mktemp('model')
  config = demo.get_config()
  config.text.update(SMALL)
  encoder = t5.build_text_encoder(config.text)
  shapes = jax.eval_shape(
    encoder.init, jax.random.key(0), np.ones((1, 2), int), np.ones((1, 2)) > 0
  )
  rng = np.random.default_rng(0)
  text = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes['params'])
  params = {'model': {'a': np.ones(3, np.float32)}, 'text': text}
  checkpoint.save_model(folder / 'joint', config, params)
  checkpoint.save_model(folder / 'network', config, {'model': params['model']})
  return folder, params


def config_of(**init):
  config = demo.get_config()
  config.init.update(init)
  return config


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_shipped_encoder_is_the_default_and_fits_every_default():
  config = config_of()
  begins = text_start.find(config)
  assert begins.tokenizer == epath.Path(tokenizer.DEFAULT_MODEL)
  before = config.to_dict()
  text_start.fit(config, begins)
  assert config.to_dict() == before  # configs/base.py has its sizes
  assert checkpoint.text_sizes(base.get_config().text).items() <= config.text.to_dict().items()


def test_which_start_comes_first(trained, published):
  joint, network = (str(trained[0] / name) for name in ('joint', 'network'))
  names = lambda **init: text_start.find(config_of(**init)).name
  assert names() == 'the package'
  assert names(checkpoint=joint) == joint
  assert names(checkpoint=network) == 'the package'
  assert names(checkpoint=joint, text=str(published[0])) == str(published[0])
  assert names(text=joint) == joint
  random = text_start.find(config_of(checkpoint=joint, text=''))
  assert (random.name, random.load, random.sizes) == ('', None, {})


def test_the_config_takes_over_the_sizes_of_a_published_t5(published):
  config = config_of(text=str(published[0]))
  begins = text_start.find(config)
  text_start.fit(config, begins)
  assert {name: config.text[name] for name in SMALL} == SMALL
  assert config.text.feed_forward == 'relu'
  texts = ['A computerized tomography of the left kidney', 'hepar']
  ids, mask = tokenizer.Tokenizer(begins.tokenizer).encode(texts, 20)
  ours = t5.build_text_encoder(config.text).apply({'params': begins.load()}, ids, mask)
  with torch.no_grad():
    tokens = published[1](torch.tensor(ids).long(), torch.tensor(mask).long()).last_hidden_state
  expected = [row[real].mean(0) for row, real in zip(tokens.numpy(), mask, strict=True)]
  np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_sizes_that_somebody_asked_for_are_not_passed_over(published, trained):
  config = config_of()
  config.text.num_layers = 5
  with pytest.raises(
    ConfigError, match='text.num_layers is 5, not 2: of .* of the package.*text_rate=1$'
  ):
    text_start.complete(config)
  config.init.text = str(published[0])
  with pytest.raises(ConfigError, match='text.num_layers is 5, not 1: of .*t5-tiny, which'):
    text_start.complete(config)
  config.init.text = ''
  text_start.complete(config)
  assert config.text.num_layers == 5
  frozen = config_of()
  frozen.text.update({'mode': 'frozen', 'num_layers': 5})
  text_start.complete(frozen)


def test_folders_without_a_text_encoder_are_told(trained, tmp_path):
  with pytest.raises(ConfigError, match='network: that model has no text encoder'):
    text_start.find(config_of(text=str(trained[0] / 'network')))
  with pytest.raises(CheckpointError, match='no model there'):
    text_start.find(config_of(text=str(tmp_path)))


def task_of(config, begins):
  return start.Task(config, None, [], {}, None, begins, begins and begins.tokenizer, [], None)


def fresh_of(trained, value=0.0):
  """Parameters of a network with one leaf more than the trained one."""
  text = jax.tree.map(lambda leaf: jax.numpy.full(leaf.shape, value), trained[1]['text'])
  return {'model': {'a': jax.numpy.zeros(3), 'b': jax.numpy.zeros(2)}, 'text': text}


def test_a_run_starts_from_network_and_text_as_it_was_told(trained, published, capsys):
  joint = str(trained[0] / 'joint')
  fresh = fresh_of(trained)
  cases = {
    'joint': (config_of(checkpoint=joint), trained[1]['text'], 'random: model/b\n'),
    'random text': (config_of(checkpoint=joint, text=''), fresh['text'], 'random: model/b, text\n'),
  }
  for name, (config, text, printed) in cases.items():
    params = start._initial(task_of(config, text_start.find(config)), fresh)
    same(params['text'], text)
    same(params['model'], {'a': np.ones(3), 'b': np.zeros(2)})
    assert printed in capsys.readouterr().out, name
  config = config_of(text=joint)
  params = start._initial(task_of(config, text_start.find(config)), fresh)
  same(params['text'], trained[1]['text'])
  same(params['model'], fresh['model'])
  assert capsys.readouterr().out == f'text encoder of {joint}\n'
  frozen = {'model': fresh['model']}
  same(start._initial(task_of(config_of(), None), frozen), frozen)


@pytest.mark.parametrize(
  ('origin', 'freeze', 'random'),
  [
    ('', 'model/a', 'model/a'),
    ('joint', 'model', 'model/b'),
    ('joint', 'model/a', ''),
    ('', 'text', ''),
  ],
)
def test_random_parameters_are_not_kept(trained, origin, freeze, random):
  config = config_of(
    checkpoint=str(trained[0] / origin) if origin else '', text=str(trained[0] / 'joint')
  )
  config.train.freeze = (freeze,)
  begin = lambda: start._initial(task_of(config, text_start.find(config)), fresh_of(trained))
  if random:
    with pytest.raises(ConfigError, match=f'train.freeze: {random} is random and would stay so'):
      begin()
  else:
    begin()


@pytest.mark.parametrize(
  ('theirs', 'ours', 'fresh'),
  [
    ((), (0, 2, 3), (1, 2)),  # second and third of four scales are not those of three
    ((), (0, 1), ()),
    ((0, 1, 3), (0, 1, 2, 3), (2, 3)),
    ((0, 2), (0, 2), ()),
  ],
)
def test_the_router_of_another_scale_is_not_taken(theirs, ours, fresh, tmp_path, capsys):
  def parameters(number, value):
    leaf = lambda: np.full(2, value, np.float32)
    router = {'query': leaf()} | {f'bias_{i}': leaf() for i in range(number)}
    return {'router': router | {f'norm_{i}': {'scale': leaf()} for i in range(number)}}

  origin = demo.get_config()
  origin.model.scales = theirs
  checkpoint.save_model(tmp_path, origin, {'model': parameters(len(theirs) or 4, 1)})
  config = config_of(checkpoint=str(tmp_path))
  config.model.scales = ours
  random = jax.tree.map(jax.numpy.asarray, {'model': parameters(len(ours), 0)})
  router = start._initial(task_of(config, None), random)['model']['router']
  names = [f'model/router/{part}_{i}' for part in ('bias', 'norm') for i in fresh]
  assert f'random: {", ".join(names) or "nothing"}\n' in capsys.readouterr().out
  for place in range(len(ours)):
    value = float(place not in fresh)
    same(router[f'bias_{place}'], np.full(2, value))
    same(router[f'norm_{place}'], {'scale': np.full(2, value)})
  same(router['query'], np.ones(2))


def test_a_converted_t5_is_a_start_for_the_text_alone(trained, published, tmp_path, capsys):
  output = str(tmp_path / 't5')
  command = ['--source', 't5', '--checkpoint', str(published[0]), '--output', output]
  assert weights_main(command) == 0
  config = config_of(checkpoint=output)
  begins = text_start.find(config)
  text_start.fit(config, begins)
  assert config.text.feed_forward == 'relu'
  text = begins.load()
  same(text, load_published(published[0])[1]['params'])
  fresh = {'model': {'a': jax.numpy.zeros(3)}, 'text': jax.tree.map(jax.numpy.zeros_like, text)}
  capsys.readouterr()
  params = start._initial(task_of(config, begins), fresh)
  same(params, {'model': fresh['model'], 'text': text})
  assert capsys.readouterr().out == f'starting from {output}; random: model\n'


def test_a_run_goes_on_with_its_own_text(trained, tmp_path):
  """Whatever the defaults are by then."""
  workdir = epath.Path(tmp_path)
  config = demo.get_config()
  config.text.update(SMALL)
  checkpoint.save_description(workdir, config)
  writer = checkpoint.Checkpointer(workdir)
  params = {'model': {'a': jax.numpy.ones(3)}}
  writer.save(1, TrainState(jax.numpy.int32(1), params, params, {}), {'step': 1, 'seed': 0})
  writer.close()
  again = demo.get_config()
  begins, vocabulary = start._find_text(again, workdir)
  assert begins is None
  assert vocabulary == workdir / 'tokenizer.model'
  assert again.text.to_dict() == config.text.to_dict()
  assert checkpoint.check_same_run(workdir, again) == []
