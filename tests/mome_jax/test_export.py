"""A model folder to hand on: the same parameters, smaller."""

import jax
import numpy as np
import pytest
import yaml
from etils import epath

from mome_jax import checkpoint, export
from mome_jax.checkpoint import checksums, hf_folder, training_cases
from mome_jax.configs import demo
from mome_jax.inference import ensemble
from mome_jax.plausibility import record
from mome_jax.plausibility.measures import MASK, SCAN
from mome_jax.text.vectors import TextVectors

DEVICE = jax.sharding.SingleDeviceSharding(jax.devices()[0])
RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(64, 64)).astype(np.float32)


@pytest.fixture
def model(tmp_path):
  config = demo.get_config()
  config.init.checkpoint, config.init.finetunes = 'runs/elsewhere', True
  config.data_dir = '/home/me/data'
  params = {'model': {'a': {'kernel': KERNEL}}, 'text': {'b': np.ones(3, np.float32)}}
  checkpoint.save_model(tmp_path / 'model', config, params)
  return tmp_path / 'model'


def size(folder):
  return sum(path.stat().st_size for path in (folder / 'params').rglob('*') if path.is_file())


@pytest.mark.parametrize(('dtype', 'tolerance'), [('float32', 0), ('bfloat16', 2**-8)])
def test_parameters_come_back_in_float32(model, tmp_path, dtype, tolerance):
  arguments = ['--checkpoint', str(model), '--output', str(tmp_path / 'out'), '--dtype', dtype]
  assert export.main(arguments) == 0
  exported = checkpoint.load_model(tmp_path / 'out', DEVICE)
  kernel = exported.params['model']['a']['kernel']
  assert kernel.dtype == np.float32
  np.testing.assert_allclose(kernel, KERNEL, rtol=tolerance)
  assert exported.config.init.checkpoint == '' and exported.config.init.finetunes
  assert exported.config.data_dir == 'data'
  assert exported.config.classes == demo.get_config().classes
  assert (tmp_path / 'out' / 'tokenizer.model').is_file()
  if dtype == 'bfloat16':
    assert size(tmp_path / 'out') < 0.75 * size(model)
  files = [path for path in (tmp_path / 'out').rglob('*') if path.is_file()]
  assert files and not any(str(tmp_path).encode() in path.read_bytes() for path in files)
  assert export.main(arguments) == 1  # nothing is overwritten


@pytest.mark.parametrize('form', ['orbax', 'hf'])
def test_parameters_are_written_last(model, tmp_path, monkeypatch, form):
  """A stopped export leaves nothing that counts as a model without what belongs to it."""
  cases = training_cases.TrainingCases(frozenset({('source', 'case', 'digest')}))
  training_cases.write(epath.Path(model), cases)

  def stop(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(checksums, 'write', stop)
  with pytest.raises(KeyboardInterrupt):
    export.export(model, tmp_path / 'out', form=form)
  assert training_cases.read(epath.Path(tmp_path / 'out')) == cases
  with pytest.raises(checkpoint.CheckpointError, match='holds no checkpoint'):
    checkpoint.load_model(tmp_path / 'out', DEVICE)
  monkeypatch.undo()
  export.export(model, tmp_path / 'out', form=form)  # the same command again
  checkpoint.load_model(tmp_path / 'out', DEVICE)


def test_an_export_into_a_model_leaves_its_cases(model, tmp_path):
  other = tmp_path / 'other'
  checkpoint.save_model(other, demo.get_config(), {'model': {'a': KERNEL}})
  training_cases.write(epath.Path(model), training_cases.TrainingCases(frozenset()))
  with pytest.raises(checkpoint.CheckpointError, match='holds a model already'):
    export.export(model, other)
  assert training_cases.read(epath.Path(other)) is None


def test_records_of_another_model_do_not_stay(model, tmp_path):
  """An export that was stopped left them, and the next model has none of its own."""
  folder = epath.Path(tmp_path / 'out')
  folder.mkdir()
  training_cases.write(folder, training_cases.TrainingCases(frozenset()))
  (folder / record.FILE).write_text('[]')
  export.export(model, folder)
  assert training_cases.read(folder) is None and not (folder / record.FILE).exists()


@pytest.mark.parametrize('held', ['checkpoints', 'ensemble.json'])
def test_a_run_or_an_ensemble_is_no_place_for_a_model(model, tmp_path, held, monkeypatch):
  """The run would lose its config and be taken for a model, the ensemble hide the model."""
  place = tmp_path / 'run'
  checkpoint.save_description(place, demo.get_config())
  if held == 'checkpoints':
    (place / held / '5').mkdir(parents=True)
  else:
    checkpoint.write_members(place, ['a', 'b'])
  before = {path: path.read_bytes() for path in place.rglob('*') if path.is_file()}
  with pytest.raises(checkpoint.CheckpointError, match=f'holds {held}, .*choose another'):
    export.export(model, place)
  monkeypatch.setattr(ensemble, 'open_model', lambda _: None)
  with pytest.raises(checkpoint.CheckpointError, match=f'holds {held}, .*choose another'):
    export.export_ensemble([model, model], place)
  assert {path: path.read_bytes() for path in place.rglob('*') if path.is_file()} == before


def test_a_second_export_into_a_folder_leaves_the_first_one_s_members(model, tmp_path, monkeypatch):
  """It took them for those of an export that was killed."""
  monkeypatch.setattr(ensemble, 'open_model', lambda _: None)
  place, write = tmp_path / 'both', export.export
  refused = pytest.raises(checkpoint.CheckpointError, match='both: another export writes there')

  def second(*words, **more):
    with refused:
      export.export_ensemble([model, model], place)
    with refused:
      write(model, place)
    write(*words, **more)

  monkeypatch.setattr(export, 'export', second)
  export.export_ensemble([model, model], place)
  assert [path.name for path in checkpoint.members(place)] == ['model_0', 'model_1']
  assert all((path / 'params').is_dir() for path in checkpoint.members(place))


def test_half_a_safetensors_file_is_none(tmp_path, monkeypatch):
  kind = type(epath.Path(tmp_path))
  write = kind.write_bytes

  def fill(path, data):
    write(path, data[: len(data) // 2])
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(kind, 'write_bytes', fill)
  with pytest.raises(checkpoint.CheckpointError, match='No space left'):
    hf_folder.save_params(tmp_path, {'a': KERNEL})
  assert not list(tmp_path.iterdir())


def test_frozen_text_goes_along(tmp_path):
  config = demo.get_config()
  config.text.mode = 'frozen'
  vectors = TextVectors(('a liver',), np.ones((1, 4), np.float32), {'model': 'tiny'})
  checkpoint.save_model(tmp_path / 'in', config, {'model': {'a': KERNEL}}, vectors=vectors)
  export.export(tmp_path / 'in', tmp_path / 'out')
  exported = TextVectors.load(tmp_path / 'out' / 'text.npz')
  np.testing.assert_array_equal(exported.embeddings, vectors.embeddings)


def test_no_model_is_an_error(tmp_path, capsys):
  assert export.main(['--checkpoint', str(tmp_path), '--output', str(tmp_path / 'out')]) == 1
  assert 'no model there' in capsys.readouterr().err
  assert not (tmp_path / 'out').exists()


def test_a_licence_without_a_card_to_stand_in_is_refused(model, tmp_path, capsys):
  words = ['--checkpoint', str(model), '--output', str(tmp_path / 'out'), '--licence', 'mit']
  assert export.main(words) == 1
  assert 'add --format=hf' in capsys.readouterr().err
  assert not (tmp_path / 'out').exists()


def test_without_experimental_classes(tmp_path, capsys):
  config = demo.get_config()
  config.classes, config.experimental = ('liver', 'spleen', 'pancreas'), ('spleen',)
  checkpoint.save_model(tmp_path / 'in', config, {'model': {'a': KERNEL}})
  span = record.Range(1.0, 2.0, 3.0)
  offsets = dict.fromkeys(('liver', 'spleen'), (span,) * 3)
  look = record.ClassRecord(20, 20, 0, False, dict.fromkeys(MASK, span), offsets)
  looks = dict.fromkeys(config.classes, look)
  absent = ('spleen', 'pancreas')
  known = record.Record((4, 4, 3), 20, 3.5, dict.fromkeys(SCAN, span), looks, absent=absent)
  record.write(tmp_path / 'in', [known])
  words = ['--checkpoint', str(tmp_path / 'in'), '--without-experimental', '--output']
  assert export.main([*words, str(tmp_path / 'out')]) == 0
  config = checkpoint.load_config(tmp_path / 'out')
  assert (config.classes, config.experimental) == (('liver', 'pancreas'), ())
  [rest] = record.read(tmp_path / 'out')
  assert list(rest.classes) == ['liver', 'pancreas'] and rest.absent == ('pancreas',)
  assert list(rest.classes['pancreas'].offsets) == ['liver']
  # A bank reads the embeddings of all classes of training; and something must be left.
  for change in ({'model.bank.scales': (1,)}, {'experimental': ('liver', 'spleen', 'pancreas')}):
    other = demo.get_config()
    other.classes, other.experimental = ('liver', 'spleen', 'pancreas'), ('spleen',)
    other.update_from_flattened_dict(change)
    place = tmp_path / next(iter(change))
    checkpoint.save_model(place, other, {'model': {'a': KERNEL}})
    assert export.main(['--checkpoint', str(place), *words[2:], str(tmp_path / 'no')]) == 1
    assert not (tmp_path / 'no').exists()
  told = capsys.readouterr().err
  assert 'attend to all classes' in told and 'nothing would be left' in told


@pytest.mark.parametrize('count', [1, 2])
def test_a_card_that_lies_in_the_folder_keeps_its_text(model, tmp_path, monkeypatch, count):
  """As in a clone of a repository of the Hub."""
  out = tmp_path / 'clone'
  out.mkdir()
  front = 'license: mit\nlanguage:\n- en\n\n# asked for\nextra_gated_prompt: |\n  One.\n\n  Two.\n'
  (out / 'README.md').write_text(f'---\n{front}---\n# My model\n')
  monkeypatch.setattr(ensemble, 'open_model', lambda paths: None)
  if count == 1:
    export.export(model, out, form='hf')
  else:
    export.export_ensemble([model] * count, out, form='hf')
  card = (out / 'README.md').read_text()
  assert 'library_name: mome-jax' in card and 'license: mit' in card
  assert card.endswith('# My model\n')
  fields = yaml.safe_load(card.split('---\n')[1])
  assert (fields['language'], fields['extra_gated_prompt']) == (['en'], 'One.\n\nTwo.\n')


@pytest.mark.parametrize('count', [1, 2])
@pytest.mark.parametrize(
  ('text', 'beside', 'told'),
  [
    ('# A project\n', 'setup.py', 'README.md: has no front matter .* lies beside setup.py: of ano'),
    ('---\nlibrary_name: "nnunet"\n---\n', '', 'README.md: is the card of a model of nnunet; cho'),
    ('# My model\n', '', ''),
    ('---\nlicense: mit\n---\n# My model\n', 'figure.png', ''),
  ],
)
def test_the_readme_of_something_else_is_no_card(
  model, tmp_path, monkeypatch, count, text, beside, told
):
  out = tmp_path / 'out'
  out.mkdir()
  (out / '.gitattributes').write_text('')
  (out / 'README.md').write_text(text)
  if beside:
    (out / beside).write_text('')
  before = sorted(out.iterdir())
  monkeypatch.setattr(ensemble, 'open_model', lambda paths: None)
  write = export.export if count == 1 else export.export_ensemble
  paths = model if count == 1 else [model] * count
  if not told:
    write(paths, out, form='hf')
    assert (out / 'README.md').read_text().endswith('# My model\n')
    return
  with pytest.raises(checkpoint.CheckpointError, match=told):
    write(paths, out, form='hf')
  assert (out / 'README.md').read_text() == text
  assert sorted(out.iterdir()) == before


@pytest.mark.parametrize('name', ['tokenizer.model', 'text.npz'])
def test_what_is_no_model_s_is_not_replaced(model, tmp_path, name):
  out = tmp_path / 'out'
  out.mkdir()
  (out / name).write_bytes(b'mine')
  with pytest.raises(checkpoint.CheckpointError, match=f'out holds the {name} of something else'):
    export.export(model, out)
  assert [path.name for path in out.iterdir()] == [name]
  assert (out / name).read_bytes() == b'mine'
