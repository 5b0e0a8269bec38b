"""Vectors of sentence encoders, against transformers' own BERT and pooling by hand."""

import json
import sys

import numpy as np
import pytest
import tokenizers
import torch
import transformers

from mome_jax.text import embed, embedders, prompts, sentence_model
from mome_jax.text.vectors import TextVectorError, TextVectors

WORDS = '[PAD] [UNK] [CLS] [SEP] a the of left right kidney liver ct scan computerized tomography'
TEXTS = ('a CT of the left kidney', 'liver')


@pytest.fixture
def bert(tmp_path):
  """A small BERT of random weights in a folder, and the same model in memory."""
  torch.manual_seed(0)
  folder = tmp_path / 'tiny-bert'
  words = WORDS.split()
  model = transformers.BertModel(
    transformers.BertConfig(
      vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
      intermediate_size=24,
    )
  ).eval()  # fmt: skip
  model.save_pretrained(folder)
  (folder / 'vocab.txt').write_text('\n'.join(words))
  (folder / 'tokenizer_config.json').write_text(
    json.dumps({'tokenizer_class': 'BertTokenizer', 'do_lower_case': True})
  )
  return folder, model


def tokens_of(model, words):
  """The vectors of one sentence's tokens, made without any tokenizer: (T, 16)."""
  ids = [WORDS.split().index(word) for word in ('[CLS]', *words.split(), '[SEP]')]
  with torch.no_grad():
    return model(torch.tensor([ids])).last_hidden_state[0].numpy()


def write_modules(folder, *kinds, **pooling):
  paths = {'Transformer': '', 'Pooling': '1_Pooling'}
  modules = [
    {'type': f'sentence_transformers.models.{kind}', 'path': paths.get(kind, kind)}
    for kind in kinds
  ]
  (folder / 'modules.json').write_text(json.dumps(modules))
  (folder / '1_Pooling').mkdir(exist_ok=True)
  (folder / '1_Pooling' / 'config.json').write_text(json.dumps(pooling))


def test_without_modules_the_mean_over_the_tokens(bert):
  folder, model = bert
  vectors = embedders.open_model(folder)(TEXTS)
  expected = [tokens_of(model, text.lower()).mean(0) for text in TEXTS]
  np.testing.assert_allclose(vectors.embeddings, expected, atol=2e-6)
  assert (vectors.source['model'], vectors.source['pooling']) == ('tiny-bert', 'mean')


def test_pooling_and_length_are_as_its_modules_say(bert):
  folder, model = bert
  write_modules(folder, 'Transformer', 'Pooling', 'Normalize', pooling_mode_cls_token=True,
                pooling_mode_mean_tokens=False, word_embedding_dimension=16)  # fmt: skip
  vectors = embedders.open_model(folder)(TEXTS).embeddings
  first = np.stack([tokens_of(model, text.lower())[0] for text in TEXTS])
  expected = first / np.linalg.norm(first, axis=1, keepdims=True)
  np.testing.assert_allclose(vectors, expected, atol=2e-6)
  write_modules(folder, 'Transformer', 'Pooling', pooling_mode='mean')
  means = [tokens_of(model, text.lower()).mean(0) for text in TEXTS]
  np.testing.assert_allclose(embedders.open_model(folder)(TEXTS).embeddings, means, atol=2e-6)


def test_the_command_makes_them_and_prediction_adds_to_them(bert, tmp_path, monkeypatch):
  few = prompts.training_prompts(names=['liver'])[:3]
  monkeypatch.setattr(prompts, 'training_prompts', lambda template: few)
  output = tmp_path / 'text.npz'
  assert embed.main(['--model', str(bert[0]), '--output', str(output)]) == 0
  vectors = TextVectors.load(output)
  more = embed.extend(vectors, ['left liver'], bert[0])
  expected = tokens_of(bert[1], 'left liver').mean(0)
  np.testing.assert_allclose(more(['left liver'])[0], expected, atol=2e-6)
  write_modules(bert[0], 'Transformer', 'Pooling', 'Normalize', pooling_mode='mean')
  with pytest.raises(TextVectorError, match='tiny-bert; normalize differs'):
    embed.extend(vectors, ['right liver'], bert[0])


def test_what_is_no_sentence_encoder_is_told(bert, monkeypatch):
  folder, _ = bert
  write_modules(folder, 'Transformer', 'Pooling', 'Dense', pooling_mode='mean')
  with pytest.raises(TextVectorError, match='asks for Dense; known: Transformer, Pooling, Norm'):
    embedders.open_model(folder)
  write_modules(folder, 'Transformer', 'Pooling', pooling_mode='max')
  with pytest.raises(TextVectorError, match='pooling is max; known: mean, cls'):
    embedders.open_model(folder)
  write_modules(folder, 'Transformer', 'Pooling', pooling_mode=['mean', 'max'])
  with pytest.raises(TextVectorError, match='pooling is mean and max; known: mean, cls'):
    embedders.open_model(folder)
  (folder / 'modules.json').unlink()
  whole = (folder / 'model.safetensors').read_bytes()
  (folder / 'model.safetensors').write_bytes(whole[:100])
  with pytest.raises(TextVectorError, match='not a sentence encoder that transformers reads'):
    embedders.open_model(folder)(TEXTS)
  (folder / 'model.safetensors').write_bytes(whole)

  monkeypatch.setitem(sys.modules, 'torch', None)
  with pytest.raises(TextVectorError, match=r"transformers; pip install 'mome-jax\[sentence\]'"):
    embedders.open_model(folder)(TEXTS)
  monkeypatch.undo()
  (folder / 'vocab.txt').unlink()
  with pytest.raises(TextVectorError, match='no tokenizer.json'):
    embedders.open_model(folder)


@pytest.mark.parametrize('content', ['null', '3', '"bert"', '[1]', '{"path": "x"}'])
def test_json_of_another_kind_is_told(content, tmp_path):
  write_modules(tmp_path, 'Transformer', 'Pooling', pooling_mode='mean')
  modules, pooling = tmp_path / 'modules.json', tmp_path / '1_Pooling' / 'config.json'
  if not content.startswith('{'):
    pooling.write_text(content)
    with pytest.raises(TextVectorError, match="1_Pooling/config.json: is .*, not a model's; fetch"):
      sentence_model.read_modules(tmp_path)
    (tmp_path / 'config.json').write_text(content)
    with pytest.raises(TextVectorError, match="config.json: is .*, not a model's; fetch it again"):
      embedders.open_model(tmp_path)
  for odd in (content, '[{"type": "a.Pooling", "path": null}]'):
    modules.write_text(odd)
    with pytest.raises(TextVectorError, match="modules.json: is .*, not a model's; fetch it again"):
      sentence_model.read_modules(tmp_path)


def save_tokenizer(folder, **more):
  """One that knows WORDS, in the form of fast tokenizers."""
  words = {word: number for number, word in enumerate(WORDS.split())}
  core = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, '[UNK]'))
  core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  transformers.PreTrainedTokenizerFast(tokenizer_object=core, **more).save_pretrained(folder)


def other_model(kind):
  """A small model of transformers that makes no vectors of sentences, or not as it is saved."""
  size = {'vocab_size': 14, 'hidden_size': 16, 'num_hidden_layers': 1, 'num_attention_heads': 2}
  if kind == 'clip':
    vision = {'hidden_size': 16, 'intermediate_size': 16, 'num_hidden_layers': 1,
              'num_attention_heads': 2, 'image_size': 8, 'patch_size': 4}  # fmt: skip
    text = {**size, 'intermediate_size': 16}
    return transformers.CLIPModel(
      transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    )
  if kind == 'umt5':
    return transformers.UMT5Model(
      transformers.UMT5Config(vocab_size=14, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    )
  return transformers.GPT2Model(
    transformers.GPT2Config(vocab_size=14, n_embd=16, n_layer=1, n_head=2)
  )


@pytest.mark.parametrize('kind', ['clip', 'umt5', 'gpt2'])
def test_models_of_other_kinds_are_told(kind, tmp_path):
  other_model(kind).save_pretrained(tmp_path)
  save_tokenizer(tmp_path, **({} if kind == 'gpt2' else {'pad_token': '[PAD]'}))
  with pytest.raises(TextVectorError, match='not a sentence encoder .*; take one such as BERT'):
    embedders.open_model(tmp_path)(TEXTS)


@pytest.mark.parametrize('limit', ['positions', 'tokenizer'])
def test_texts_are_cut_to_what_the_encoder_reads(limit, bert, tmp_path):
  """Five positions, or a tokenizer that says five: [CLS], three words and [SEP]."""
  folder, model = bert
  if limit == 'positions':
    model.config.max_position_embeddings = 5
    model = transformers.BertModel(model.config).eval()
    model.save_pretrained(folder)
  else:
    settings = {'tokenizer_class': 'BertTokenizer', 'model_max_length': 5}
    (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
  with pytest.warns(UserWarning, match='has 8 tokens and is cut'):
    vectors = embedders.open_model(folder)(['a ct of the left kidney', 'left kidney']).embeddings
  expected = [tokens_of(model, text).mean(0) for text in ('a ct of', 'left kidney')]
  np.testing.assert_allclose(vectors, expected, atol=2e-6)
