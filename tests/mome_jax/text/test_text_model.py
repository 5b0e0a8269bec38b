"""An encoder with its vocabulary: any number of texts, in their order."""

import jax
import numpy as np

from input_pipeline.anatomy import TEMPLATE
from mome_jax.text.t5 import T5Config, TextEncoder
from mome_jax.text.text_model import TextModel
from mome_jax.text.tokenizer import Tokenizer

SMALL = T5Config(vocab_size=2048, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)


def test_more_texts_than_a_batch_are_embedded_as_all_at_once():
  encoder, texts = TextEncoder(SMALL), TEMPLATE.names()[:35]
  ids, mask = Tokenizer().encode(texts, 24)
  vectors, variables = jax.jit(encoder.init_with_output)(jax.random.key(0), ids, mask)
  model = TextModel(encoder, variables['params'], Tokenizer(), 24)
  np.testing.assert_allclose(model(texts), vectors, atol=1e-5)
  np.testing.assert_allclose(model(texts[33:]), vectors[33:], atol=1e-5)
  assert model([]).shape == (0, 16)
