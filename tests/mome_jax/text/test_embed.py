"""Text vectors from a T5 checkpoint and from CUM's file, with transformers and torch as oracles."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import torch
import transformers

from mome_jax.text import embed, embedders, prompts, tokenizer
from mome_jax.text.vectors import TextVectorError, TextVectors
from mome_jax.weights import WeightsError

TEXTS = ('A computerized tomography of a liver', 'hepar', 'any other text')


def make_t5(folder, seed=0):
  """A small T5 with the built-in vocabulary, as Hugging Face lays a checkpoint out."""
  torch.manual_seed(seed)
  config = transformers.T5Config(
    vocab_size=2048, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
    feed_forward_proj='gated-gelu',
  )  # fmt: skip
  model = transformers.T5EncoderModel(config).eval()
  model.save_pretrained(folder)
  shutil.copy(tokenizer.DEFAULT_MODEL, folder / 'spiece.model')
  return model


@pytest.fixture(scope='module')
def t5(tmp_path_factory):
  folder = tmp_path_factory.mktemp('t5') / 'tiny-t5'
  return folder, make_t5(folder)


def test_vectors_are_the_mean_over_transformers_tokens(t5):
  folder, theirs = t5
  vectors = embedders.open_model(folder)(TEXTS)
  ids, mask = tokenizer.Tokenizer().encode(TEXTS, 40)
  with torch.no_grad():
    tokens = theirs(torch.tensor(ids).long(), torch.tensor(mask).long()).last_hidden_state.numpy()
  expected = [row[real].mean(0) for row, real in zip(tokens, mask, strict=True)]
  np.testing.assert_allclose(vectors.embeddings, expected, atol=2e-5)
  assert vectors.source['model'] == 'tiny-t5'


def test_the_command_writes_every_training_prompt_once(t5, tmp_path, capsys, monkeypatch):
  prompted = prompts.training_prompts(names=['liver'])
  monkeypatch.setattr(prompts, 'training_prompts', lambda template: prompted)
  output = tmp_path / 'new' / 'text.npz'
  arguments = ['--t5', str(t5[0]), '--output', str(output), '--prompts', 'any other text']
  assert embed.main(arguments) == 0
  vectors = TextVectors.load(output)
  default = prompts.default_prompts(prompts.TEMPLATE.names())
  assert set(vectors.prompts) == {*prompted, *default, 'any other text'}
  before = output.stat().st_mtime_ns
  assert embed.main(arguments) == 0
  assert 'made from the same before' in capsys.readouterr().out
  assert output.stat().st_mtime_ns == before
  assert embed.main([*arguments, 'one more']) == 0
  assert 'one more' in TextVectors.load(output)

  declared = tmp_path / 'dataset.json'
  declared.write_text('{"new_classes": [{"name": "metastasis", "parent": "liver"}]}')
  assert embed.main([*arguments, '--new-classes', str(declared)]) == 0
  assert any('metastasis' in text for text in TextVectors.load(output).prompts)
  assert embed.main([*arguments, '--new-classes', str(output)]) == 1
  assert 'text.npz: no list of new_classes' in capsys.readouterr().err

  # Of the same weights, a corrected config.json makes other vectors.
  changed = tmp_path / 'changed'
  shutil.copytree(t5[0], changed)
  config = json.loads((changed / 'config.json').read_text())
  (changed / 'config.json').write_text(json.dumps(config | {'relative_attention_max_distance': 8}))
  assert embed.main(['--t5', str(changed), *arguments[2:]]) == 0
  again = TextVectors.load(output)
  assert again.key != vectors.key
  with pytest.raises(TextVectorError, match='relative_attention_max_distance differs'):
    embed.extend(again, ['something new'], t5[0])

  other = tmp_path / 'other'
  make_t5(other, seed=1)
  assert embed.main(['--t5', str(other), *arguments[2:]]) == 0
  assert TextVectors.load(output).key != vectors.key


def test_a_t5_with_more_than_the_mean_is_refused(t5, tmp_path):
  folder = tmp_path / 'sentence-t5'
  shutil.copytree(t5[0], folder)
  kinds = 'Transformer', 'Pooling', 'Dense'
  modules = [{'type': f'sentence_transformers.models.{kind}', 'path': kind} for kind in kinds]
  (folder / 'Pooling').mkdir()
  (folder / 'Pooling' / 'config.json').write_text('{"pooling_mode_mean_tokens": true}')
  for count, told in ((2, None), (3, 'asks for Dense')):
    (folder / 'modules.json').write_text(json.dumps(modules[:count]))
    if told is None:
      embedders.open_model(folder)
      continue
    with pytest.raises(TextVectorError, match=told):
      embedders.open_model(folder)


def test_only_the_same_checkpoint_adds_to_its_vectors(t5, tmp_path):
  vectors = embedders.open_model(t5[0])(TEXTS[:1])
  more = embed.extend(vectors, TEXTS, t5[0])
  assert more.prompts == TEXTS
  np.testing.assert_allclose(
    more.embeddings, embedders.open_model(t5[0])(TEXTS).embeddings, atol=1e-6
  )
  assert embed.extend(more, TEXTS, 'not looked at') is more
  with pytest.raises(TextVectorError, match=r"'hepar'.*--text-model.*checkpoint.*\(tiny-t5\)"):
    vectors(['hepar'])
  other = tmp_path / 'other'
  make_t5(other, seed=1)
  with pytest.raises(TextVectorError, match='not the checkpoint .*tiny-t5; weights_sha256 differs'):
    embed.extend(vectors, TEXTS, other)


def test_the_encoder_is_read_once_for_the_same_prompts(t5, monkeypatch):
  vectors = embedders.open_model(t5[0])(TEXTS[:1])
  opened, open_model = [], embedders.open_model
  monkeypatch.setattr(embedders, 'open_model', lambda path: opened.append(path) or open_model(path))
  extending = embed.Extending(vectors, t5[0])
  for _ in range(2):
    np.testing.assert_array_equal(extending(TEXTS[:1]), vectors(TEXTS[:1]))
    np.testing.assert_allclose(extending(TEXTS), open_model(t5[0])(TEXTS).embeddings, atol=1e-6)
  assert len(opened) == 1


def test_an_encoder_is_checked_once_while_it_stays_the_same(t5, tmp_path, monkeypatch):
  """A server has gigabytes of it to read for each new prompt otherwise."""
  folder = tmp_path / 'encoder'
  shutil.copytree(t5[0], folder)
  extending = embed.Extending(embedders.open_model(folder)(TEXTS[:1]), folder)
  read, open_file = [], pathlib.Path.open
  monkeypatch.setattr(
    pathlib.Path, 'open', lambda path, *words, **more: read.append(path.name)
    or open_file(path, *words, **more),
  )  # fmt: skip
  extending(['one more'])
  extending(['and one more'])
  assert not [name for name in read if name.startswith(('model', 'pytorch', 'spiece'))]
  make_t5(folder, seed=1)
  with pytest.raises(TextVectorError, match='weights_sha256 differs'):
    extending(['another'])


@pytest.mark.parametrize('rows', [31, 32])
def test_vectors_of_cum(rows, tmp_path, capsys):
  tensor = torch.randn(rows, 512).half()
  torch.save(tensor, tmp_path / 'txt_encoding.pth')
  vectors = embed.read_cum(tmp_path / 'txt_encoding.pth')
  read = vectors(['A computerized tomography of a liver', 'A computerized tomography of a spleen'])
  np.testing.assert_array_equal(read, tensor[[5, 0]].float().numpy())
  assert len(vectors.prompts) == rows
  arguments = ['--cum', str(tmp_path / 'txt_encoding.pth'), '--output', str(tmp_path / 'cum.npz')]
  assert embed.main(arguments) == 0
  assert TextVectors.load(tmp_path / 'cum.npz').key == vectors.key
  with pytest.raises(SystemExit):  # training would take it for a file of CUM
    embed.main([*arguments[:3], str(tmp_path / 'cum.vectors')])
  assert 'cum.vectors: training would not read it; name it FILE.npz' in capsys.readouterr().err
  for further in (['--prompts', 'a heart'], ['--new-classes', 'dataset.json']):
    with pytest.raises(SystemExit):
      embed.main(arguments + further)
    assert 'go with --model' in capsys.readouterr().err


def test_a_shard_that_is_missing_is_named(t5, tmp_path, capsys):
  folder = tmp_path / 'copy'
  shutil.copytree(t5[0], folder)
  (folder / 'model.safetensors').unlink()
  index = {'weight_map': {'shared.weight': 'part-2.safetensors'}}
  (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
  assert embed.main(['--t5', str(folder), '--output', str(tmp_path / 'x.npz')]) == 1
  assert 'part-2.safetensors: cannot be read (No such file' in capsys.readouterr().err


@pytest.mark.parametrize(
  ('missing', 'message'),
  [
    ('spiece.model', "spiece.model: missing; put the T5 checkpoint's spiece.model there"),
    ('config.json', 'config.json: missing'),
    ('model.safetensors', 'no checkpoint there; expected a folder with model.safetensors'),
    ('', 'no checkpoint there; expected a file or folder'),
  ],
)
def test_what_is_missing_is_named(missing, message, t5, tmp_path, capsys):
  folder = tmp_path / 'copy'
  if missing:
    shutil.copytree(t5[0], folder)
    (folder / missing).unlink()
  assert embed.main(['--t5', str(folder), '--output', str(tmp_path / 'x.npz')]) == 1
  printed = capsys.readouterr().err.strip()
  assert printed.startswith('error: ')
  assert message in printed
  assert '\n' not in printed
  assert not (tmp_path / 'x.npz').exists()


def test_no_other_tensor_is_taken_for_cum(tmp_path):
  for number, content in enumerate((torch.zeros(5, 512), {'net': torch.zeros(32, 512)})):
    torch.save(content, tmp_path / f'{number}.pth')
    with pytest.raises(TextVectorError, match='pth: no tensor of 32 text vectors'):
      embed.read_cum(tmp_path / f'{number}.pth')
  (tmp_path / 'text.pth').write_text('no file of torch')
  with pytest.raises(WeightsError, match=r'text\.pth: not a PyTorch checkpoint'):
    embed.read_cum(tmp_path / 'text.pth')
