"""What `--config` names, wherever one is."""

import importlib
import inspect
import json
import sys

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mome_jax import checkpoint, evaluate, main, shipped
from mome_jax.configs import base, demo, few_scans, finetune, router
from mome_jax.errors import ConfigError
from mome_jax.models import build_model
from mome_jax.text import vectors
from mome_jax.training import command_line, config_check, config_flag, loop, optimizer


@pytest.mark.parametrize('folder', ['mome_jax/configs', './mome_jax/configs', '/mome_jax/configs'])
def test_package_configs_are_found_from_any_folder(folder, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for text in ('demo', f'{folder}/demo.py'):
    file, argument = config_flag.resolve(text)
    assert file.read_text().startswith('"""The demo')
    assert argument == []


def test_what_stands_after_the_colon(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for text in ('finetune:gs://bucket/run', 'mome_jax/configs/finetune.py:gs://bucket/run'):
    file, argument = config_flag.resolve(text)
    assert file.name == 'finetune.py'
    assert argument == ['gs://bucket/run']


def test_fine_tuning_the_model_of_the_package():
  config = config_flag.load('finetune:shipped')
  assert config.init.checkpoint == 'shipped'
  assert config.data.spacing == checkpoint.load_config(shipped.MODEL).data.spacing


def test_what_was_of_the_datasets_of_the_start_is_left_behind():
  assert checkpoint.load_config(shipped.MODEL).data.weights
  config = config_flag.load('finetune:shipped')
  assert (config.data.weights, config.data.augment_of, config.data.fold) == ((), (), -1)


@pytest.mark.parametrize('mode', ['joint', 'frozen'])
def test_what_the_text_of_the_start_never_read_is_left_behind(mode, tmp_path):
  start = demo.get_config()
  start.text.mode, start.text.vectors, start.train.text_rate = mode, 'lost.npz', 1.0
  made = vectors.TextVectors(('a liver',), np.ones((1, 4), np.float32), {'model': 'x'})
  checkpoint.save_model(tmp_path, start, {'model': {'kernel': np.ones(3)}}, vectors=made)
  config = config_flag.start_from(str(tmp_path))
  assert config.text.vectors == (str(tmp_path / 'text.npz') if mode == 'frozen' else '')
  assert config.train.text_rate == (0.0 if mode == 'frozen' else 1.0)


def test_what_the_start_chose_on_scans_set_aside_is_not_chosen_again():
  start = demo.get_config()
  start.validation.update({'cases': 3, 'patience': 5, 'every': 20})
  start.evaluation.checkpoint = 'best'
  config = finetune.get_config(start)
  assert (config.validation.cases, config.validation.patience) == (0, 0)
  assert config.evaluation.checkpoint == 'last'


def test_all_of_a_start_is_fine_tuned_that_trained_a_part_alone():
  config = finetune.get_config(router.get_config(demo.get_config()))
  assert config.train.freeze == ()
  assert config.train.negatives == base.get_config().train.negatives
  assert config.model.router_apart
  assert not finetune.get_config(demo.get_config()).model.router_apart


def test_the_machine_and_the_rates_of_a_start_are_forgotten():
  start, usual = demo.get_config(), base.get_config()
  start.mesh.expert, start.profile = 4, 5
  start.data.loader, start.data.num_parallel, start.data.cache_mb = 'grain', 16, 100_000
  start.evaluation.batch_size = 64
  start.train.rates = (('model/backbone', 0.0),)
  start.evaluation.split, start.evaluation.prompts = 'test', 'held_out'
  config = finetune.get_config(start)
  assert config.mesh == usual.mesh and config.profile == usual.profile
  assert (config.data.loader, config.data.num_parallel) == ('auto', 0)
  assert (config.data.cache_mb, config.evaluation.batch_size) == (1024, 0)
  assert config.train.rates == ()
  assert (config.evaluation.split, config.evaluation.prompts) == (usual.evaluation.split, 'default')


def test_a_start_that_is_itself_fine_tuned_keeps_its_learning_rate():
  once = finetune.get_config(demo.get_config())
  assert once.train.learning_rate == demo.get_config().train.learning_rate / 4
  assert finetune.get_config(once).train.learning_rate == once.train.learning_rate


def test_a_file_comes_before_a_name(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'demo').mkdir()  # a folder is no config
  assert config_flag.resolve('demo')[0].parent.name == 'configs'
  (tmp_path / 'mine.py').write_text('')
  assert config_flag.resolve('mine.py')[0].resolve() == tmp_path / 'mine.py'
  with pytest.raises(ConfigError, match='no such experiment; known: .*demo'):
    config_flag.resolve('base')


def test_a_file_may_start_from_another_one_beside_it(tmp_path, monkeypatch):
  """As `python -m` has it in the folder one is in; the command `mome` has no such folder."""
  monkeypatch.setattr(sys, 'path', [place for place in sys.path if place])
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'own').mkdir()
  (tmp_path / 'own/first_of_two.py').write_text('from mome_jax.configs.demo import get_config\n')
  (tmp_path / 'own/second_of_two.py').write_text(
    'import first_of_two\n'
    'def get_config():\n'
    '  config = first_of_two.get_config()\n'
    '  config.train.steps = 7\n'
    '  return config\n'
  )
  before = len(sys.path)
  for _ in range(2):
    assert config_flag.load('own/second_of_two.py').train.steps == 7
  config_flag.load('demo')
  assert sys.path[before:] == [str(tmp_path / 'own')]


def test_paths_in_a_file_may_begin_with_the_home(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  (tmp_path / 'mine.py').write_text(
    'from mome_jax.configs import demo\n'
    'def get_config():\n'
    '  config = demo.get_config()\n'
    "  config.data_dir, config.init.checkpoint = '~/data', '~/runs/start'\n"
    "  config.text.vectors = '~/text.npz'\n"
    '  return config\n'
  )
  config = config_flag.load(str(tmp_path / 'mine.py'))
  assert (config.data_dir, config.text.vectors) == ('/home/me/data', '/home/me/text.npz')
  assert (config.init.checkpoint, config.init.text) == ('/home/me/runs/start', 'shipped')


def test_help_says_what_takes_something_after_a_colon():
  for name in config_flag.names():
    module = importlib.import_module(f'mome_jax.configs.{name}')
    takes = list(inspect.signature(module.get_config).parameters)
    expected = {'experiment': 'NAME', 'start': 'MODEL'}.get(''.join(takes))
    assert config_flag.AFTER_COLON.get(name) == expected
  assert 'finetune:MODEL' in command_line.help_of_mode(command_line.parse(['main', '--help']))


def test_every_experiment_passes_the_check():
  for name in set(config_flag.names()) - {*config_flag.AFTER_COLON}:
    file, _ = config_flag.resolve(name)
    config = config_flag.load(name)
    assert file.stem == name
    config.init.checkpoint = ''  # a model that the user has to make first
    config_check.check(config, data=config.data.sources is not None)


@pytest.mark.parametrize('name', ['demo', 'finetune:shipped'])
def test_few_scans_change_the_augmentation_of_another_experiment_alone(name):
  plain, strong = config_flag.load(name).to_dict(), config_flag.load(f'few_scans:{name}').to_dict()
  assert strong['data']['augment'].items() >= few_scans.AUGMENTATION.items()
  assert strong['data'].pop('augment') != plain['data'].pop('augment')
  assert strong == plain
  with pytest.raises(ConfigError, match='no such experiment'):
    config_flag.load('few_scans:dem')


@pytest.mark.parametrize('name', ['demo', 'sparse_8'])
def test_the_router_alone_is_trained(name):
  config = config_flag.load(f'router:{name}')
  model = build_model(config.model)
  image, text = jnp.zeros((1, *config.data.patch, len(config.data.windows))), jnp.zeros((2, 12))
  params = jax.eval_shape(model.init, jax.random.key(0), image, text)['params']
  paths = flax.traverse_util.flatten_dict({'model': params}, sep='/')
  trained = {path for path in paths if not optimizer.is_kept(path, config.train.freeze)}
  assert trained == {p for p in paths if p.startswith(('model/router/', 'model/mixture_share'))}
  assert len(trained) > 1
  assert optimizer.is_kept('text/encoder/embed', config.train.freeze)


def test_a_value_that_nothing_reads_is_refused():
  config = demo.get_config()
  config.train.stepz = 3
  with pytest.raises(ConfigError, match=r'config\.train\.stepz: no such value; did you mean train'):
    config_check.check(config)
  config.init.checkpoint = str(shipped.MODEL)
  with pytest.raises(ConfigError, match='stepz: no such value'):
    config_check.check(config)
  with pytest.MonkeyPatch.context() as patch:  # a model may be of a version that had it
    patch.setattr(checkpoint, 'load_config', lambda _: config)
    config_check.check(config)
  config.init.checkpoint = 'nowhere'
  with pytest.raises(ConfigError, match='nowhere'):
    config_check.check(config)


def test_training_in_float16_is_refused():
  config = demo.get_config()
  config.model.dtype = 'float16'
  with pytest.raises(ConfigError, match=r'config\.model\.dtype is float16, .*; train in bfloat16'):
    config_check.check(config)


def test_every_value_of_the_base_config_has_a_name():
  flat = json.loads(base.get_config().to_json_best_effort())
  names = list(config_flag.keys(base.get_config()))
  assert {'train', 'train.steps', 'data.augment.p_mirror', 'classes'} <= set(names)
  assert [name for name in names if '.' not in name] == sorted(flat, key=names.index)


def test_an_evaluation_changes_the_config_of_its_model(tmp_path):
  trained = demo.get_config()
  trained.classes, trained.train.steps = ('liver', 'spleen'), 7
  checkpoint.save_description(tmp_path, trained)
  value = '--config.evaluation.split=all'
  spellings = [
    ['--mode=evaluate', f'--workdir={tmp_path}', value],
    [value, '--workdir', str(tmp_path), '--mode', 'evaluate'],
  ]
  for words in spellings:
    config = main.parse(['main', *words]).config
    assert (config.classes, config.train.steps) == (('liver', 'spleen'), 7)
    assert config.evaluation.split == 'all'


def test_an_evaluation_refuses_values_that_it_would_not_read(tmp_path):
  checkpoint.save_description(tmp_path, demo.get_config())
  words = ['main', '--mode=evaluate', f'--workdir={tmp_path}']
  for value in ('train.batch_size=1', 'init.checkpoint=runs/other', 'mesh.data=1'):
    with pytest.raises(config_flag.FlagError, match=f'{value.partition("=")[0]}: the trained'):
      main.parse([*words, f'--config.{value}'])
    main.parse([*words, '--config=demo', f'--config.{value}'])  # the command of the training
  for value in ('data_dir=d', 'data.fold=2', 'evaluation.tta=true'):
    main.parse([*words, f'--config.{value}'])


def test_a_model_is_evaluated_without_its_start_and_whatever_version_made_it(tmp_path, monkeypatch):
  trained = demo.get_config()
  trained.init.checkpoint, trained.init.text = 'runs/gone', 'runs/gone'
  trained.train.of_another_version = 1
  checkpoint.save_description(tmp_path, trained)
  monkeypatch.setattr(evaluate, 'evaluate', lambda *_: None)
  words = ['--mode=evaluate', f'--workdir={tmp_path}', '--config.evaluation.split=all']
  assert main.main(words) == 0
  with pytest.raises(ConfigError, match='runs/gone: no model there'):
    config_check.check(main.parse(['main', *words]).config)


def test_a_run_goes_on_without_its_start(tmp_path, monkeypatch):
  monkeypatch.setattr(loop, 'train', lambda config, _: config)
  monkeypatch.setattr(evaluate, 'evaluate', lambda *_: None)
  words = ['--config=demo', f'--workdir={tmp_path}', '--config.init.checkpoint=runs/gone']
  with pytest.raises(ConfigError, match='runs/gone: no model there'):
    main.main.__wrapped__(words)
  (tmp_path / 'checkpoints' / '4').mkdir(parents=True)
  checkpoint.save_description(tmp_path, main.parse(['main', *words]).config)
  assert main.main(words) == 0


def test_what_is_asked_of_an_ensemble_is_known_by_its_name(tmp_path, monkeypatch):
  """The first model's config says 'last' too; no fold of its own comes with it."""
  for fold, choice in enumerate(('last', 'best')):
    trained = demo.get_config()
    trained.data.fold, trained.evaluation.checkpoint = fold, choice
    checkpoint.save_description(tmp_path / f'fold_{fold}', trained)
  checkpoint.write_members(tmp_path, ['fold_0', 'fold_1'])
  told = []
  monkeypatch.setattr(evaluate, 'evaluate', lambda *given: told.append(given))
  words = [f'--workdir={tmp_path}', '--config.evaluation.checkpoint=last']
  assert main.main(['--mode=evaluate', *words]) == main.main(['--mode=evaluate', words[0]]) == 0
  assert [asked for *_, asked in told] == [['evaluation.checkpoint'], []]
  assert [config.data.fold for config, *_ in told] == [-1, -1]


def test_of_a_value_that_is_given_twice_the_last_one_counts():
  words = ['--config=demo', '--config.data.spacing=1,2,3', '--config.train.steps', '-7',
           '--config.data.sources=a', '--config.train.steps=5', "--config.data.sources=('b','c')",
           '--config.data.spacing', '(4.0,4.0,3.0)', '--workdir=x']  # fmt: skip
  values = main.parse(['main', *words])
  config = values.config
  assert (config.data.spacing, config.data.sources) == ((4.0, 4.0, 3.0), ('b', 'c'))
  assert (config.train.steps, values.workdir) == (5, 'x')


def test_a_training_does_not_take_the_config_of_the_workdir(tmp_path):
  checkpoint.save_description(tmp_path, demo.get_config())
  with pytest.raises(config_flag.FlagError, match='it needs --config=NAME before it'):
    main.parse(['main', f'--workdir={tmp_path}', '--config.train.steps=9'])
