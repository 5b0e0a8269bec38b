"""Going on in a workdir: what a config may change, and what another run must not overwrite."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from mome_jax import checkpoint, shipped
from mome_jax.configs import demo
from mome_jax.text import prompts
from mome_jax.text.vectors import TextVectors
from mome_jax.training.state import TrainState


@pytest.fixture
def workdir(tmp_path):
  """A workdir with a checkpoint, started with the demo's config."""
  checkpoint.save_description(tmp_path, demo.get_config())
  writer = checkpoint.Checkpointer(tmp_path)
  params = {'model': {'kernel': jnp.ones(3)}}
  writer.save(4, TrainState(jnp.int32(4), params, params, {}), {'step': 4, 'seed': 0})
  writer.close()
  return tmp_path


def changed(**changes):
  config = demo.get_config()
  config.update_from_flattened_dict(changes)
  return config


def test_the_same_config_goes_on(workdir):
  assert checkpoint.check_same_run(workdir, demo.get_config()) == []
  spelled = changed(**{'data.spacing': (6, 6, 6)})  # as a command line may write 6.0
  assert checkpoint.check_same_run(workdir, spelled) == []


def test_what_cannot_matter_may_change_and_is_told(workdir):
  free = {
    'train.steps': 9,
    'train.learning_rate': 1e-3,
    'train.log_every': 1,
    'evaluation.overlap': 0.25,
    'mesh.data': 2,
    'data_dir': 'elsewhere',
    'model.remat': True,
    'profile': 3,
  }
  texts = checkpoint.check_same_run(workdir, changed(**free))
  assert 'train.steps: 1200 -> 9' in texts
  assert len(texts) == len(free)


def test_how_many_folds_there_are_is_nothing_to_a_run_of_none(workdir):
  assert checkpoint.check_same_run(workdir, changed(**{'data.folds': 3})) == []
  of_fold = changed(**{'data.fold': 1})
  checkpoint.save_description(workdir, of_fold)
  assert checkpoint.check_same_run(workdir, of_fold) == []
  with pytest.raises(checkpoint.CheckpointError, match='data.folds: 5 -> 3'):
    checkpoint.check_same_run(workdir, changed(**{'data.fold': 1, 'data.folds': 3}))


def test_what_makes_another_experiment(workdir):
  every = {'validation.every': 5, 'validation.smoothing': 0.1}
  free = {'evaluation.batch_size': 2, 'evaluation.pictures': 0, 'mesh.data': 2, **every}
  assert checkpoint.other_values(workdir, changed(**free)) == {}
  other = checkpoint.other_values(workdir, changed(**free, **{'train.steps': 9}))
  assert other == {'train.steps': 'train.steps: 1200 -> 9'}
  best = {'evaluation.checkpoint': 'best'}  # which is found by them
  assert checkpoint.other_values(workdir, changed(**free, **best)).keys() == {*every, *best}


OTHER = {
  'classes': ('liver', 'spleen'),
  'data.sources': ('openkbp',),
  'data.spacing': (5.0, 6.0, 6.0),
  'data.augment.p_mirror': 0.5,
  'new_classes': ({'name': 'metastasis', 'parents': ('liver',)},),
  'seed': 1,
  'model.top_k': 2,
  'train.batch_size': 2,
  'train.mixture_rate': 0.5,
  'train.expert_loss': 0.0,
  'init.checkpoint': 'runs/other',
  'init.text': '',
  'train.text_rate': 1.0,
  'text.max_length': 30,
}


@pytest.mark.parametrize('name', OTHER)
def test_what_decides_what_is_learned_is_refused(workdir, name):
  before = (workdir / 'config.json').read_text()
  with pytest.raises(checkpoint.CheckpointError, match='learns something else') as caught:
    checkpoint.check_same_run(workdir, changed(**{name: OTHER[name], 'train.steps': 9}))
  message = str(caught.value)
  assert f' {name}: ' in message
  assert 'train.steps' not in message
  assert '--workdir' in message
  assert (workdir / 'config.json').read_text() == before


def test_every_field_is_refused_unless_it_is_listed(workdir):
  """Also those that a later version adds: nobody has to think of them."""
  free = [
    'data_dir',
    'data.cache_mb',
    'data.loader',
    'data.num_parallel',
    'init.finetunes',
    'model.class_chunk',
    'model.remat',
    'profile',
    'text.vectors',
    'train.checkpoint_every',
    'train.accumulate',
    'train.keep_checkpoints',
    'train.learning_rate',
    'train.log_every',
    'train.steps',
    'train.warmup_steps',
    'validation.every',
    'validation.patches',
    'validation.patience',
    'validation.picture',
    'validation.smoothing',
  ]
  config = demo.get_config()
  with config.unlocked():
    config.train.of_a_later_version = 1
  with pytest.raises(checkpoint.CheckpointError, match='train.of_a_later_version: absent -> 1'):
    checkpoint.check_same_run(workdir, config)
  written = json.loads((workdir / 'config.json').read_text())
  names = [*flat(written)]
  assert len(names) > 60
  for name in names:
    other = json.loads(json.dumps(written))
    *parents, last = name.split('.')
    place = other
    for parent in parents:
      place = place[parent]
    place[last] = 'another value'
    (workdir / 'config.json').write_text(json.dumps(other))
    if name in free or name.startswith(('evaluation.', 'mesh.')):
      assert len(checkpoint.check_same_run(workdir, demo.get_config())) == 1, name
    elif name == 'data.folds':  # the demo holds out none
      assert checkpoint.check_same_run(workdir, demo.get_config()) == []
    else:
      with pytest.raises(checkpoint.CheckpointError, match=f' {name}: .*another value -> '):
        checkpoint.check_same_run(workdir, demo.get_config())


def flat(tree, prefix=''):
  for name, value in tree.items():
    if isinstance(value, dict):
      yield from flat(value, f'{prefix}{name}.')
    else:
      yield f'{prefix}{name}'


def test_a_field_that_the_run_did_not_know_had_its_default(workdir):
  written = json.loads((workdir / 'config.json').read_text())
  del written['train']['text_loss']
  (workdir / 'config.json').write_text(json.dumps(written))
  assert checkpoint.check_same_run(workdir, demo.get_config()) == []
  with pytest.raises(checkpoint.CheckpointError, match='train.text_loss: 1.0 -> 0.5'):
    checkpoint.check_same_run(workdir, changed(**{'train.text_loss': 0.5}))


def test_where_a_start_lies_may_be_written_otherwise(workdir, monkeypatch):
  monkeypatch.chdir(workdir)
  checkpoint.save_description(workdir, changed(**{'init.checkpoint': 'start'}))
  same = changed(**{'init.checkpoint': str(workdir / 'start') + '/'})
  assert checkpoint.check_same_run(workdir, same) == []


def test_a_start_seen_from_another_folder_is_the_same(workdir, tmp_path_factory, monkeypatch):
  """Nothing is read of it: it may be gone, and the Hub far away."""
  monkeypatch.setattr(checkpoint.hub, 'fetch', lambda path: pytest.fail(path))
  other = tmp_path_factory.mktemp('elsewhere')
  monkeypatch.chdir(other)
  goes_on = lambda now: checkpoint.check_same_run(workdir, changed(**{'init.checkpoint': now}))
  for before in ('runs/start', '../runs/start/'):
    checkpoint.save_description(workdir, changed(**{'init.checkpoint': before}))
    assert goes_on('/gone/runs/start') == goes_on('runs/start') == goes_on(before) == []
    for now in ('/gone/runs/other', '', 'hf:runs/start'):
      with pytest.raises(checkpoint.CheckpointError, match='init.checkpoint: .* -> '):
        goes_on(now)
  for before in ('hf:runs/start', '/gone/runs/start'):
    checkpoint.save_description(workdir, changed(**{'init.checkpoint': before}))
    assert goes_on(before) == []
    with pytest.raises(checkpoint.CheckpointError, match='init.checkpoint: .* -> '):
      goes_on('runs/start')


def test_the_model_of_the_package_is_one_place_in_every_environment(workdir):
  elsewhere = '/other/venv/lib/python3.12/site-packages/mome_jax/assets/openkbp'
  checkpoint.save_description(workdir, changed(**{'init.checkpoint': elsewhere}))
  for name in (str(shipped.MODEL), 'shipped'):
    now = {'init.checkpoint': name}
    assert checkpoint.check_same_run(workdir, changed(**now)) == []
    assert checkpoint.other_values(workdir, changed(**now)) == {}
  with pytest.raises(checkpoint.CheckpointError, match='init.checkpoint: .* -> '):
    other = {'init.checkpoint': '/other/assets/openkbp'}
    checkpoint.check_same_run(workdir, changed(**other))


def test_without_a_checkpoint_anything_may_start(tmp_path):
  checkpoint.save_description(tmp_path, demo.get_config())
  assert checkpoint.check_same_run(tmp_path, changed(classes=('liver',))) == []
  assert checkpoint.check_same_run(tmp_path / 'new', changed(classes=('liver',))) == []


def test_a_model_folder_is_no_workdir(tmp_path):
  checkpoint.save_model(tmp_path, demo.get_config(), {'model': {'kernel': np.ones(3)}})
  with pytest.raises(checkpoint.CheckpointError, match='is a model folder.*init.checkpoint='):
    checkpoint.check_same_run(tmp_path, demo.get_config())


def test_the_config_of_another_program_is_not_replaced(tmp_path):
  """As of a T5, by `weights --checkpoint=T5 --output=T5`; what a kill left halfway is."""
  file = tmp_path / 'config.json'
  for theirs in ('{"model_type": "t5", "d_model": 512}', '[]', '{'):
    file.write_text(theirs)
    with pytest.raises(checkpoint.CheckpointError, match='holds the config.json of another progra'):
      checkpoint.save_model(tmp_path, demo.get_config(), {'model': {'kernel': np.ones(3)}})
    assert [file.read_text(), *tmp_path.iterdir()] == [theirs, file]
  checkpoint.save_description(tmp_path / 'halfway', demo.get_config())
  assert checkpoint.new_folder(tmp_path / 'halfway') == tmp_path / 'halfway'


def test_an_ensemble_or_a_checkpoint_is_no_workdir(workdir, tmp_path_factory):
  pooled = tmp_path_factory.mktemp('pooled')
  checkpoint.write_members(pooled, ['fold_0', 'fold_1'])
  with pytest.raises(checkpoint.CheckpointError, match='holds an ensemble, .*another --workdir'):
    checkpoint.check_same_run(pooled, demo.get_config())
  step = workdir / 'checkpoints' / '4'
  with pytest.raises(checkpoint.CheckpointError, match=rf'go on in --workdir={workdir}$'):
    checkpoint.check_same_run(step, demo.get_config())
  with pytest.raises(checkpoint.CheckpointError, match='is a checkpoint, and no place for a model'):
    checkpoint.new_folder(step)


def test_frozen_vectors_are_compared_not_their_path(workdir):
  vectors = TextVectors(('a', 'b'), np.eye(2, 3, dtype=np.float32), {'model': 'x'})
  config = changed(**{'text.mode': 'frozen', 'text.vectors': 'a.npz'})
  checkpoint.save_description(workdir, config, vectors=vectors)
  config.text.vectors = 'moved.npz'
  assert checkpoint.check_same_run(workdir, config, vectors) == ['text.vectors: a.npz -> moved.npz']
  other = TextVectors(('a', 'b'), 2 * vectors.embeddings, {'model': 'x'})
  with pytest.raises(checkpoint.CheckpointError, match='text.vectors: moved.npz are not those'):
    checkpoint.check_same_run(workdir, config, other)


def test_further_prompts_beside_those_of_a_frozen_run_do_not_matter(workdir):
  """As an evaluation with other names adds them; what the run draws must be there, and equal."""
  config = changed(**{'text.mode': 'frozen', 'classes': ('liver',)})
  drawn = tuple(dict.fromkeys(prompts.training_prompts(names=['liver'])))
  rows = np.random.default_rng(0).normal(size=(len(drawn) + 1, 3)).astype(np.float32)
  learned = TextVectors(drawn, rows[:-1], {'model': 'x'})
  rounded = (rows * np.float32(1 + 1e-6))[::-1]
  more = TextVectors(('hepar', *drawn[::-1]), rounded, {'model': 'x'})
  for before, now in ((more, learned), (learned, more)):
    checkpoint.save_description(workdir, config, vectors=before)
    assert checkpoint.check_same_run(workdir, config, now) == []
  fewer = TextVectors(drawn[1:], rows[1:-1], {'model': 'x'})
  other = TextVectors(drawn, rows[1:], {'model': 'x'})
  for now in (fewer, other):
    with pytest.raises(checkpoint.CheckpointError, match='these are not those of the run'):
      checkpoint.check_same_run(workdir, config, now)


def test_a_frozen_run_may_leave_out_what_it_never_read(workdir):
  """Which is refused now, and was not when it began."""
  vectors = TextVectors(('a',), np.eye(1, dtype=np.float32), {'model': 'x'})
  config = changed(**{'text.mode': 'frozen', 'init.text': '', 'train.text_rate': 1.0})
  checkpoint.save_description(workdir, config, vectors=vectors)
  assert checkpoint.check_same_run(workdir, changed(**{'text.mode': 'frozen'}), vectors) == []


def test_the_data_are_compared_not_their_path(workdir):
  position = {'step': 4, 'seed': 0, 'data': {'phantom': 'abc', 'openkbp': 'def'}}
  checkpoint.check_same_data(workdir, position, {'phantom': 'abc', 'openkbp': 'def'})
  checkpoint.check_same_data(workdir, {'step': 4, 'seed': 0}, {'phantom': 'abc'})  # not noted
  with pytest.raises(checkpoint.CheckpointError, match='other scans, labels or splits of openkbp'):
    checkpoint.check_same_data(workdir, position, {'phantom': 'abc', 'openkbp': 'xyz'})


def test_what_a_run_has_seen_is_read_without_its_arrays(workdir):
  assert checkpoint.read_position(workdir) == {'step': 4, 'seed': 0}
  file = workdir / 'checkpoints/4/data/metadata'
  for text in ('{"step', '[]'):
    file.write_text(text)
    with pytest.raises(checkpoint.CheckpointError, match=f'{file}: damaged .*; copy the run again'):
      checkpoint.read_position(workdir)
  file.unlink()
  with pytest.raises(checkpoint.CheckpointError, match=str(file)):
    checkpoint.read_position(workdir)


def test_a_run_from_before_the_rate_of_the_mixture_trained_it_at_the_generators(workdir):
  file = workdir / 'config.json'
  config = json.loads(file.read_text())
  del config['train']['mixture_rate']
  file.write_text(json.dumps(config))
  with pytest.raises(checkpoint.CheckpointError, match='train.mixture_rate: 0.1 -> 1.0'):
    checkpoint.check_same_run(workdir, demo.get_config())
  assert checkpoint.check_same_run(workdir, changed(**{'train.mixture_rate': 0.1})) == []


def test_a_run_from_before_there_were_negatives_went_without(workdir):
  file = workdir / 'config.json'
  config = json.loads(file.read_text())
  del config['train']['negatives']
  file.write_text(json.dumps(config))
  with pytest.raises(checkpoint.CheckpointError, match='train.negatives: 0 -> 4'):
    checkpoint.check_same_run(workdir, demo.get_config())
  assert checkpoint.check_same_run(workdir, changed(**{'train.negatives': 0})) == []


def test_a_run_from_before_text_could_start_educated_goes_on(workdir):
  file = workdir / 'config.json'
  config = json.loads(file.read_text())
  del config['train']['text_rate'], config['init']['text']
  file.write_text(json.dumps(config))
  with pytest.raises(checkpoint.CheckpointError, match='train.text_rate: 1.0 -> 0.0') as caught:
    checkpoint.check_same_run(workdir, demo.get_config())
  assert 'init.text' not in str(caught.value)
  assert checkpoint.check_same_run(workdir, changed(**{'train.text_rate': 1.0})) == []


def test_a_model_is_scored_whatever_sizes_its_text_encoder_has(workdir):
  config = changed(**{'text.vocab_size': 512, 'text.num_layers': 1})
  (workdir / 'config.json').write_text(config.to_json_best_effort())
  trained = checkpoint.for_evaluation(workdir, demo.get_config())
  assert (trained.text.vocab_size, trained.text.num_layers) == (512, 1)
  with pytest.raises(checkpoint.CheckpointError, match='text.num_layers: 1 -> 5'):
    checkpoint.for_evaluation(workdir, changed(**{'text.num_layers': 5}))


def test_checkpoints_that_nothing_describes_are_not_gone_on_with(workdir):
  (workdir / 'config.json').unlink()
  with pytest.raises(checkpoint.CheckpointError, match='has checkpoints but no config.json'):
    checkpoint.check_same_run(workdir, demo.get_config())


def test_an_evaluation_takes_data_and_scoring_from_another_config(workdir):
  other = changed(
    **{'data.sources': ('openkbp',), 'data_dir': 'elsewhere', 'evaluation.split': 'all',
       'model.router_apart': True, 'train.steps': 9, 'seed': 5}
  )  # fmt: skip
  assert checkpoint.for_evaluation(workdir, None) == checkpoint.load_config(workdir)
  config = checkpoint.for_evaluation(workdir, other)
  assert config.data.sources == ('openkbp',) and config.data_dir == 'elsewhere'
  assert config.evaluation.split == 'all'
  assert (config.seed, config.train.steps) == (0, demo.get_config().train.steps)


@pytest.mark.parametrize('name', ['classes', 'data.spacing', 'model.top_k', 'text.max_length'])
def test_an_evaluation_with_the_config_of_another_model_is_refused(workdir, name):
  with pytest.raises(checkpoint.CheckpointError, match=f'another model than its own: {name}: '):
    checkpoint.for_evaluation(workdir, changed(**{name: OTHER[name]}))
