"""Our T5 encoder and tokenizer against transformers, weights random, nothing fetched."""

import os
import pathlib

import jax
import numpy as np
import pytest
import torch
import transformers

from mome_jax import weights
from mome_jax.configs import demo
from mome_jax.text import embedders, t5, tokenizer
from mome_jax.training import text_start

PHRASES = (
  'A computerized tomography of a liver',
  'A computerized tomography of the left adrenal gland',
  'There is a pancreas in this computerized tomography.',
  'CT of the portal and splenic vein',
  'liver',
  'Right kidney',
  'IVC',
  'hepatocellular carcinoma (HCC), segment IVb',
  'T4N1M0 adenocarcinoma of the sigmoid colon',
  'cholecystolithiasis',
  'post-contrast, arterial phase; 35 HU',
  'spleen  with   repeated spaces ',
  ' leading space',
  'tab\tand\nnewline',
  'Milz, Bauchspeicheldrüse, Nebenniere',
  'foie, vésicule biliaire, rate',
  'lésion de 3 µm² à 37 °C',
  'ﬁne ligature and full-width ＣＴ',
  "Gerota's fascia",
  '肝臓 and печень',
)


@pytest.mark.parametrize('feed_forward', t5.FEED_FORWARDS)
def test_encoder(feed_forward):
  # 200 tokens reach the last bucket; 4 heads of 24 make 96 from a width of 64.
  config = t5.T5Config(120, 64, 24, 160, 3, 4, feed_forward=feed_forward)
  torch.manual_seed(0)
  theirs = transformers.T5EncoderModel(
    transformers.T5Config(
      vocab_size=120,
      d_model=64,
      d_kv=24,
      d_ff=160,
      num_layers=3,
      num_heads=4,
      feed_forward_proj=feed_forward,
    )
  ).eval()
  with torch.no_grad():
    # As initialised, norms are 1 and the biases of distances near 0: they would not be tested.
    for name, x in theirs.named_parameters():
      if 'norm' in name:
        x.uniform_(0.5, 1.5)
      elif 'relative_attention_bias' in name:
        x.normal_(0, 2)
  rng = np.random.default_rng(0)
  ids = rng.integers(0, 120, (4, 200)).astype(np.int32)
  mask = np.arange(200) < np.array([200, 150, 9, 1])[:, None]
  with torch.no_grad():
    expected = theirs(torch.tensor(ids).long(), torch.tensor(mask).long()).last_hidden_state.numpy()
  encoder = t5.TextEncoder(config)
  variables = weights.convert('t5', theirs.state_dict())
  tokens = jax.jit(lambda v: encoder.apply(v, ids, mask, method='encode'))(variables)
  scale = np.max(np.abs(expected[mask]))
  assert np.max(np.abs(tokens - expected)[mask]) <= 1e-5 * scale
  pooled = np.stack([row[real].mean(axis=0) for row, real in zip(expected, mask, strict=True)])
  assert np.max(np.abs(encoder.apply(variables, ids, mask) - pooled)) <= 1e-5 * scale


def test_buckets():
  from transformers.models.t5.modeling_t5 import T5Attention

  distance = torch.arange(700)[None, :] - torch.arange(700)[:, None]
  for buckets, farthest in ((32, 128), (16, 64)):
    expected = T5Attention._relative_position_bucket(
      distance, bidirectional=True, num_buckets=buckets, max_distance=farthest
    )
    np.testing.assert_array_equal(t5.relative_buckets(700, buckets, farthest), expected.numpy())


def test_token_ids(real_data, monkeypatch):
  monkeypatch.setenv('HF_HUB_OFFLINE', '1')
  folder = real_data / 't5'
  theirs = transformers.T5Tokenizer.from_pretrained(folder)
  ours = tokenizer.Tokenizer(folder / 'spiece.model')
  assert ours.vocab_size == 32000
  ids, mask = ours.encode(PHRASES, 32)
  expected = theirs(list(PHRASES), padding='max_length', max_length=32)
  for phrase, our_ids, theirs_ids in zip(PHRASES, ids, expected.input_ids, strict=True):
    assert our_ids.tolist() == theirs_ids, phrase
  np.testing.assert_array_equal(mask, np.array(expected.attention_mask, bool))
  # Cut before the end of sentence.
  with pytest.warns(UserWarning, match='is cut to 4'):
    ids, _ = ours.encode(PHRASES[:4], 5)
  cut = theirs(list(PHRASES[:4]), truncation=True, padding='max_length', max_length=5)
  assert ids.tolist() == cut.input_ids


def pooled_by_transformers(folder, texts):
  """The mean over each text's tokens, by transformers alone, one text at a time."""
  pieces = transformers.T5Tokenizer.from_pretrained(folder)
  model = transformers.T5EncoderModel.from_pretrained(folder).float().eval()
  with torch.no_grad():
    tokens = [model(**pieces(text, return_tensors='pt')).last_hidden_state[0] for text in texts]
  return np.stack([sentence.numpy().mean(0) for sentence in tokens])


def check_start(folder, texts):
  """A run that starts from a published T5 embeds prompts as transformers does, in any spelling."""
  config = demo.get_config()
  config.init.text = str(folder)
  start = text_start.find(config)
  text_start.fit(config, start)
  ids, mask = tokenizer.Tokenizer(start.tokenizer).encode(texts, config.text.max_length)
  encoder = t5.build_text_encoder(config.text)
  ours = jax.jit(encoder.apply)({'params': start.load()}, ids, mask)
  expected = pooled_by_transformers(folder, texts)
  assert np.max(np.abs(ours - expected)) <= 1e-4 * np.max(np.abs(expected))
  frozen = embedders.open_model(folder)(texts).embeddings
  assert np.max(np.abs(frozen - expected)) <= 1e-4 * np.max(np.abs(expected))


def test_a_run_starts_from_a_t5_with_the_published_vocabulary(real_data, tmp_path, monkeypatch):
  monkeypatch.setenv('HF_HUB_OFFLINE', '1')
  torch.manual_seed(0)
  sizes = {'vocab_size': 32128, 'd_model': 32, 'd_kv': 8, 'd_ff': 48, 'num_layers': 2}
  config = transformers.T5Config(**sizes, num_heads=3, feed_forward_proj='gated-gelu')
  transformers.T5EncoderModel(config).save_pretrained(tmp_path)
  (tmp_path / 'spiece.model').write_bytes((real_data / 't5' / 'spiece.model').read_bytes())
  check_start(tmp_path, PHRASES)


@pytest.mark.skipif('MOME_T5' not in os.environ, reason='MOME_T5 names no folder of a T5')
def test_the_t5_that_is_here(monkeypatch):
  monkeypatch.setenv('HF_HUB_OFFLINE', '1')
  check_start(pathlib.Path(os.environ['MOME_T5']), PHRASES[:8])
