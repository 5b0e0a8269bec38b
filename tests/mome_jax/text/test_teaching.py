"""Pre-training of the text encoder, and what the one that comes with the package knows."""

import jax
import numpy as np
import pytest

from input_pipeline.anatomy import TEMPLATE
from input_pipeline.anatomy.vocabulary import Term, terms
from mome_jax import checkpoint
from mome_jax.text import prompts, retrieval, teaching
from mome_jax.text.t5 import T5Config, TextEncoder
from mome_jax.text.text_model import TextModel
from mome_jax.text.tokenizer import Tokenizer

SMALL = T5Config(vocab_size=2048, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
FEW = [
  Term('liver', 'structure', '', 'liver', (), 'abdomen', ('hepar',)),
  Term('left kidney', 'structure', 'left', 'kidney', (), 'abdomen', ('ren sinister',)),
  Term('right kidney', 'structure', 'right', 'kidney', (), 'abdomen', ('ren dexter',)),
  Term('larynx', 'structure', '', 'larynx', (), 'neck', ('voice box',)),
]


@pytest.fixture(scope='module')
def shipped():
  """The text encoder of the package."""
  return checkpoint.load_text_encoder()


def test_a_few_steps_tell_a_few_structures_apart_and_are_the_same_again():
  pieces, encoder = Tokenizer(), TextEncoder(SMALL)
  params = teaching.pretrain(FEW, pieces, encoder, steps=40)
  again = teaching.pretrain(FEW, pieces, encoder, steps=40)
  jax.tree.map(np.testing.assert_array_equal, params, again)
  model = TextModel(encoder, params, pieces, 24)
  names = [name for term in FEW for name in (term.name, *term.synonyms)]
  owners = [row for row, term in enumerate(FEW) for _ in range(2)]
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  similarity = unit(model(names)) @ unit(model(retrieval.prompts(FEW))).T
  assert similarity.argmax(1).tolist() == owners


def test_vectors_get_the_length_that_a_network_expects():
  params = {'final_norm': {'scale': np.ones(2)}, 'embed': 1}
  scaled = teaching._scaled(params, np.array([[3.0, 4.0], [0.0, -5.0]]))
  np.testing.assert_allclose(scaled['final_norm']['scale'], 4.3 / 5)
  assert scaled['embed'] == 1


def test_most_names_never_shown_are_nearest_to_their_own_structure(shipped):
  rows = retrieval.held_out(shipped, terms())
  assert len(rows) > 900
  assert np.mean([name == nearest for _, name, nearest in rows]) > 0.85


def test_left_is_one_direction(shipped):
  """Of 30 pairs, each step from right to left is near the mean of all others."""
  pairs = [term.organ for term in terms() if term.side == 'left'][:30]
  left, right = (shipped([f'the {side} {organ}' for organ in pairs]) for side in ('left', 'right'))
  steps = left - right
  others = (steps.sum(0) - steps) / (len(pairs) - 1)
  cosine = (
    np.sum(steps * others, 1) / np.linalg.norm(steps, axis=1) / np.linalg.norm(others, axis=1)
  )
  assert cosine.mean() > 0.8


def test_classes_are_far_apart_and_centred(shipped):
  values = retrieval.geometry(shipped(prompts.default_prompts(TEMPLATE.names())))
  assert abs(values['mean_cosine']) < 0.1
  assert values['greatest_cosine'] < 0.85
  assert 3.5 < values['norm'] < 5


def test_a_text_encoder_is_told_from_frozen_text(tmp_path):
  with pytest.raises(checkpoint.CheckpointError, match='no model there'):
    checkpoint.load_text_encoder(tmp_path)
