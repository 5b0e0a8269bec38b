"""Published T5 files, as transformers writes them, in our encoder."""

import json

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from mome_jax import weights
from mome_jax.text.t5 import TextEncoder
from mome_jax.weights import files, t5


def make(feed_forward='gated-gelu', kind=transformers.T5EncoderModel):
  torch.manual_seed(0)
  model = kind(
    transformers.T5Config(
      vocab_size=48,
      d_model=32,
      d_kv=12,
      d_ff=40,
      num_layers=2,
      num_heads=2,
      feed_forward_proj=feed_forward,
      relative_attention_max_distance=64,
    )  # fmt: skip
  ).eval()
  with torch.no_grad():  # norms of 1 and flat position biases would not be tested
    for name, x in model.named_parameters():
      if 'norm' in name:
        x.uniform_(0.5, 1.5)
      elif 'relative_attention_bias' in name:
        x.normal_(0, 2)
  return model


@pytest.mark.parametrize(
  ('feed_forward', 'kind', 'half'),
  [
    ('gated-gelu', transformers.T5EncoderModel, False),
    ('relu', transformers.T5EncoderModel, True),
    ('gated-gelu', transformers.T5ForConditionalGeneration, False),  # the decoder is left out
  ],
)
def test_the_same_text_gives_the_same_vectors(tmp_path, feed_forward, kind, half):
  model = make(feed_forward, kind)
  if half:
    model = model.bfloat16()
  model.save_pretrained(tmp_path)
  assert (tmp_path / 'model.safetensors').is_file()
  config, variables = t5.load(tmp_path)
  ids = np.random.default_rng(0).integers(2, 48, (3, 90)).astype(np.int32)
  mask = np.arange(90) < np.array([90, 40, 3])[:, None]
  apply = jax.jit(lambda v: TextEncoder(config).apply(v, ids, mask, method='encode'))
  ours = apply(variables)
  with torch.no_grad():
    encoder = getattr(model.float(), 'encoder', model)
    theirs = encoder(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
  theirs = theirs.last_hidden_state.numpy()
  np.testing.assert_allclose(ours[mask], theirs[mask], atol=1e-5 * np.abs(theirs).max())


def test_every_kind_of_file_gives_the_same_variables(tmp_path):
  model = make()
  state = model.state_dict()
  expected = weights.convert('t5', {key: value.numpy() for key, value in state.items()})
  torch.save(state, tmp_path / 'pytorch_model.bin')
  names = sorted(key for key in state if key != 'encoder.embed_tokens.weight')
  index = {name: f'part-{i % 2}.safetensors' for i, name in enumerate(names)}
  for part in set(index.values()):
    tensors = {name: state[name].contiguous() for name in names if index[name] == part}
    safetensors.torch.save_file(tensors, tmp_path / part)
  (tmp_path / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': index}))
  for name in ('pytorch_model.bin', 'model.safetensors.index.json'):
    converted = weights.convert('t5', files.read_tensors(tmp_path / name))
    jax.tree.map(np.testing.assert_array_equal, converted, expected)


@pytest.mark.parametrize('suffix', ['safetensors', 'bin'])
def test_the_decoder_of_a_whole_t5_is_not_held(suffix, tmp_path, monkeypatch):
  model = make(kind=transformers.T5ForConditionalGeneration)
  model.save_pretrained(tmp_path)
  if suffix == 'bin':
    (tmp_path / 'model.safetensors').unlink()
    torch.save(model.state_dict(), tmp_path / 'pytorch_model.bin')
  read, held = files.read_tensors, []

  def read_tensors(*given):
    state = read(*given)
    held.extend(state)
    return state

  monkeypatch.setattr(files, 'read_tensors', read_tensors)
  _, variables = t5.load(tmp_path)
  expected = weights.convert('t5', {key: v.numpy() for key, v in model.state_dict().items()})
  jax.tree.map(np.testing.assert_array_equal, variables, expected)
  assert {name.partition('.')[0] for name in held} == {'shared', 'encoder'}


def test_sizes_from_the_tensors_are_those_of_the_config(tmp_path):
  model = make('relu')
  model.config.save_pretrained(tmp_path)
  written = t5.read_config(tmp_path / 'config.json')
  inferred = t5.infer_config({k: v.numpy() for k, v in model.state_dict().items()})
  assert written.relative_attention_max_distance == 64  # no tensor tells it
  assert inferred == t5.dataclasses.replace(written, relative_attention_max_distance=128)


def test_one_error_lists_every_problem():
  state = {key: value.numpy() for key, value in make().state_dict().items()}
  del state['encoder.block.1.layer.0.SelfAttention.k.weight']
  del state['encoder.final_layer_norm.weight']
  state['encoder.block.0.layer.1.DenseReluDense.wo.weight'] = np.zeros((32, 41), np.float32)
  state['encoder.adapter.weight'] = np.zeros(3, np.float32)
  with pytest.raises(weights.WeightsError) as error:
    weights.convert('t5', state)
  message = str(error.value)
  assert '4 problems' in message
  assert 'missing: encoder.block.1.layer.0.SelfAttention.k.weight' in message
  assert 'missing: encoder.final_layer_norm.weight' in message
  assert 'shape: encoder.block.0.layer.1.DenseReluDense.wo.weight is (32, 41)' in message
  assert 'unused: encoder.adapter.weight (3,)' in message


def test_two_different_embeddings_are_refused():
  state = {key: value.numpy() for key, value in make().state_dict().items()}
  tied = {**state, 'encoder.embed_tokens.weight': state['shared.weight']}
  weights.convert('t5', tied)
  only = {k: v for k, v in tied.items() if k != 'shared.weight'}
  converted = weights.convert('t5', only)['params']['embed']['embedding']
  np.testing.assert_array_equal(converted, state['shared.weight'])
  with pytest.raises(weights.WeightsError, match='differ'):
    weights.convert('t5', {**tied, 'encoder.embed_tokens.weight': state['shared.weight'] + 1})


def test_wrong_input_says_what_is_expected(tmp_path):
  with pytest.raises(weights.WeightsError, match="source 't6'; known: .*, t5"):
    weights.convert('t6', {})
  with pytest.raises(weights.WeightsError, match='lacks shared.weight'):
    weights.convert('t5', {})
  with pytest.raises(weights.WeightsError, match='no checkpoint there'):
    t5.load(tmp_path)
  make().save_pretrained(tmp_path)
  values = json.loads((tmp_path / 'config.json').read_text())
  for change, message in [
    ({'feed_forward_proj': 'gated-silu'}, "is 'gated-silu'; known: relu, gated-gelu"),
    ({'feed_forward_proj': ['relu']}, r"is \['relu'\]; known: relu, gated-gelu"),
    ({'d_model': 64}, 'shape: shared.weight'),
    ({'d_model': '32', 'd_ff': None}, "{'d_model': '32', 'd_ff': None}; expected whole numbers"),
    ({'relative_attention_max_distance': 0}, "_distance': 0}; expected whole numbers above 0"),
  ]:
    (tmp_path / 'config.json').write_text(json.dumps({**values, **change}))
    with pytest.raises(weights.WeightsError, match=message):
      t5.load(tmp_path)
  for names in ({'a': 1}, {'a': ['b']}, ['a']):
    (tmp_path / 'x.index.json').write_text(json.dumps({'weight_map': names}))
    with pytest.raises(weights.WeightsError, match='no "weight_map"; fetch the index'):
      files.shards(tmp_path / 'x.index.json')
  (tmp_path / 'config.json').unlink()
  with pytest.raises(weights.WeightsError, match='put the config.json'):
    t5.load(tmp_path)
