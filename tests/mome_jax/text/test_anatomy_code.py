"""The vectors that pre-training teaches, and the loss that teaches them."""

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.anatomy.vocabulary import Term
from mome_jax.text import anatomy_code

TERMS = [
  Term('left kidney', 'structure', 'left', 'kidney', (), 'abdomen'),
  Term('right kidney', 'structure', 'right', 'kidney', (), 'abdomen'),
  Term('left kidney cyst', 'finding', 'left', 'kidney cyst', ('left kidney',), 'abdomen'),
  Term('larynx', 'structure', '', 'larynx', (), 'neck'),
]


def tables():
  code = anatomy_code.Code.of(TERMS)
  return code, code.init(jax.random.key(0), 16)


def test_a_code_is_the_sum_of_what_is_said():
  code, values = tables()
  rows = {name: np.asarray(table) for name, table in values.items()}
  # Tables are in alphabetical order: kidney, kidney cyst, larynx; '', left, right; abdomen, neck;
  # finding, structure.
  expected = [
    rows['organ'][0] + rows['side'][1] + rows['region'][0] + rows['kind'][1],
    rows['organ'][0] + rows['side'][2] + rows['region'][0] + rows['kind'][1],
    rows['organ'][1] + rows['side'][1] + rows['region'][0] + rows['kind'][0]
    + 0.5 * rows['organ'][0],
    rows['organ'][2] + rows['side'][0] + rows['region'][1] + rows['kind'][1],
  ]  # fmt: skip
  np.testing.assert_allclose(code(values), expected, rtol=1e-5)


def test_left_is_one_direction():
  code, values = tables()
  codes = np.asarray(code(values))
  other = dict(values, organ=jax.random.normal(jax.random.key(1), values['organ'].shape))
  moved = np.asarray(code(other))
  np.testing.assert_allclose(codes[0] - codes[1], moved[0] - moved[1], atol=1e-5)


def test_the_loss_by_hand():
  """Codes at right angles with the norm 6 whose mean is zero: only the softmax is left."""
  codes = jnp.array([[6.0, 0], [0, 6], [-6, 0], [0, -6]])
  rows = jnp.array([0, 1])
  phrases = codes[jnp.array([0, 1, 0, 1])]
  entropy = lambda right, others: -right + np.log(np.sum(np.exp([right, *others])))
  chosen = entropy(2.0, [0, 0, -2.0])  # cosines 1, 0, 0, -1 over a temperature of 0.5
  matched = 2 * entropy(2.0, [0])
  loss = anatomy_code.loss(phrases, codes, rows, 0.5)
  np.testing.assert_allclose(loss, chosen + 0.25 * matched, rtol=1e-5)
  swapped = anatomy_code.loss(phrases[jnp.array([1, 0, 1, 0])], codes, rows, 0.5)
  # Of the other code: cosine 0 in place of 1, and at a squared distance of 72.
  worse = np.log(np.exp(2.0) + 2 + np.exp(-2.0))
  np.testing.assert_allclose(swapped, worse + 0.25 * matched + 2, rtol=1e-5)


def test_phrases_find_each_other_in_both_directions():
  codes = jnp.array([[6.0, 0], [0, 6], [-6, 0], [0, -6]])
  phrases = codes[jnp.array([0, 1, 0, 0])]  # the second one of the second term is the first's
  loss = anatomy_code.loss(phrases, codes, jnp.array([0, 1]), 0.5)
  # Similarities are ((2, 2), (0, 0)): a first phrase has no choice, a second one a wrong one.
  among_first = np.log(np.exp(2.0) + 1)
  matched = np.log(2) + (among_first - 2 + among_first) / 2
  # Three of four are their codes, the last is at a squared distance of 72.
  chosen = np.log(np.exp(2.0) + 2 + np.exp(-2.0)) - 2 * 3 / 4
  np.testing.assert_allclose(loss, chosen + 0.25 * matched + 72 / 36 / 4, rtol=1e-5)


def test_codes_of_other_lengths_and_off_the_centre_cost():
  codes = jnp.array([[3.0, 0], [3.0, 0]])
  rows = jnp.array([0])
  loss = anatomy_code.loss(codes, codes, rows, 1.0)
  # Two codes alike: log 2. One pair alone: 0. Half the length: 1/4. The mean is 3 of 6 away: 1/4.
  np.testing.assert_allclose(loss, np.log(2) + 0.25 + 0.25, rtol=1e-5)
