import dataclasses
import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from mome_jax.text import t5

# num_heads * d_kv differs from d_model on purpose.
SMALL = t5.T5Config(vocab_size=50, d_model=16, d_kv=6, d_ff=24, num_layers=2, num_heads=2)


@functools.cache
def _small(feed_forward='gated-gelu', dtype='float32'):
  encoder = t5.TextEncoder(dataclasses.replace(SMALL, feed_forward=feed_forward, dtype=dtype))
  return encoder, jax.jit(encoder.init)(jax.random.key(0), *_tokens(8))


@functools.partial(jax.jit, static_argnums=0)
def _embed(encoder, variables, ids, mask):
  return encoder.apply(variables, ids, mask)


def _tokens(length, fill=0):
  """Rows of 5, 8 and 1 real tokens; `fill` stands in the padding."""
  ids = np.full((3, length), fill, np.int32)
  mask = np.zeros((3, length), bool)
  rng = np.random.default_rng(1)
  for row, real in enumerate((5, 8, 1)):
    ids[row, :real] = rng.integers(1, 50, real)
    mask[row, :real] = True
  return ids, mask


def test_buckets_by_hand():
  # Distances below 8 have their own bucket. Bucket 8 + n starts at 8 * 16^(n/8) = 8, 11.3, 16,
  # 22.6, 32, 45.3, 64, 90.5; the last has no end.
  first_of_bucket = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]
  expected = np.searchsorted(first_of_bucket, np.arange(300), side='right') - 1
  buckets = t5.relative_buckets(300)
  np.testing.assert_array_equal(buckets[:, 0], expected)  # key before the query
  np.testing.assert_array_equal(buckets[0, 1:], expected[1:] + 16)  # key after the query
  assert buckets.dtype == np.int32


def test_buckets_depend_on_the_difference_only():
  buckets = t5.relative_buckets(40)
  np.testing.assert_array_equal(buckets[1:, 1:], buckets[:-1, :-1])


def test_number_of_parameters_of_t5_small():
  config = t5.T5Config(32128, 512, 64, 2048, 6, 8, feed_forward='relu')
  spec = jax.ShapeDtypeStruct((1, 4), jnp.int32), jax.ShapeDtypeStruct((1, 4), bool)
  variables = jax.eval_shape(t5.TextEncoder(config).init, jax.random.key(0), *spec)
  assert sum(np.prod(x.shape) for x in jax.tree.leaves(variables)) == 35_330_816


@pytest.mark.parametrize(
  'feed_forward, layers', [('relu', ('wi', 'wo')), ('gated-gelu', ('wi_0', 'wi_1', 'wo'))]
)
def test_parameter_names_and_shapes(feed_forward, layers):
  _, variables = _small(feed_forward)
  shapes = jax.tree.map(jnp.shape, variables['params'])
  flat = flax.traverse_util.flatten_dict(shapes, sep='/', is_leaf=lambda _, x: type(x) is tuple)
  expected = {
    'embed/embedding': (50, 16),
    'relpos/embedding': (32, 2),
    'final_norm/scale': (16,),
  }
  for block in ('block_0', 'block_1'):
    expected |= {f'{block}/attn/{x}/kernel': (16, 12) for x in 'qkv'}
    expected |= {f'{block}/attn/o/kernel': (12, 16)}
    expected |= {f'{block}/{x}/scale': (16,) for x in ('attn_norm', 'mlp_norm')}
    expected |= {f'{block}/mlp/{x}/kernel': (16, 24) for x in layers[:-1]}
    expected |= {f'{block}/mlp/wo/kernel': (24, 16)}
  assert flat == expected


def test_initial_scales_are_those_of_t5():
  config = t5.T5Config(400, 128, 16, 512, 1, 4)
  ids, mask = jnp.ones((1, 4), jnp.int32), jnp.ones((1, 4), bool)
  params = jax.jit(t5.TextEncoder(config).init)(jax.random.key(0), ids, mask)['params']
  block = params['block_0']
  expected = {'q': (128 * 16) ** -0.5, 'k': 128**-0.5, 'v': 128**-0.5, 'o': 64**-0.5}
  for name, stddev in expected.items():
    assert np.std(block['attn'][name]['kernel']) == pytest.approx(stddev, rel=0.05), name
  for name, stddev in {'wi_0': 128**-0.5, 'wi_1': 128**-0.5, 'wo': 512**-0.5}.items():
    assert np.std(block['mlp'][name]['kernel']) == pytest.approx(stddev, rel=0.05), name
  assert np.std(params['embed']['embedding']) == pytest.approx(1, rel=0.05)
  assert np.std(params['relpos']['embedding']) == pytest.approx(128**-0.5, rel=0.25)  # 128 numbers
  np.testing.assert_array_equal(params['final_norm']['scale'], 1)


def test_rms_norm_by_hand():
  # mean(x^2) = (9 + 16) / 2 = 12.5; a mean of 3.5 is not taken off.
  out = t5.RMSNorm().apply({'params': {'scale': jnp.array([1.0, 2.0])}}, jnp.array([[3.0, 4.0]]))
  np.testing.assert_allclose(out, [[3 / 12.5**0.5, 8 / 12.5**0.5]], rtol=1e-6)
  # mean(x^2) = 1e-6, as large as what is added to it.
  out = t5.RMSNorm().apply({'params': {'scale': jnp.ones(2)}}, jnp.array([[1e-3, -1e-3]]))
  np.testing.assert_allclose(out, [[0.5**0.5, -(0.5**0.5)]], rtol=1e-5)


def test_attention_scores_are_not_scaled():
  # Tokens 1 and 3; v is the token. The second query's scores are sums of four equal products,
  # 4 * (0.1 * 3) * (1, 3); a factor 1/sqrt(4) would halve them.
  config = dataclasses.replace(SMALL, d_model=1, d_kv=4, num_heads=1)
  ones = {'kernel': jnp.ones((1, 4))}
  params = {'q': {'kernel': jnp.full((1, 4), 0.1)}, 'k': ones, 'v': ones}
  params['o'] = {'kernel': jnp.full((4, 1), 0.25)}
  x = jnp.array([[[1.0], [3.0]]])
  out = t5.Attention(config).apply({'params': params}, x, jnp.zeros((1, 1, 2, 2)))
  weights = np.exp([1.2, 3.6]) / np.exp([1.2, 3.6]).sum()
  np.testing.assert_allclose(out[0, 1, 0], weights @ [1, 3], rtol=1e-6)


@pytest.mark.parametrize('feed_forward', t5.FEED_FORWARDS)
def test_longer_padding_and_its_content_change_nothing(feed_forward):
  encoder, variables = _small(feed_forward)
  reference = _embed(encoder, variables, *_tokens(8))
  assert reference.shape == (3, 16) and reference.dtype == jnp.float32
  for length, fill in ((8, 7), (30, 0), (30, 49)):
    other = _embed(encoder, variables, *_tokens(length, fill))
    np.testing.assert_allclose(other, reference, atol=2e-6)


def test_other_prompts_change_nothing():
  encoder, variables = _small()
  ids, mask = _tokens(8)
  together = _embed(encoder, variables, ids, mask)
  for row in range(3):
    alone = _embed(encoder, variables, ids[row : row + 1], mask[row : row + 1])
    np.testing.assert_allclose(alone[0], together[row], atol=2e-6)


def test_mean_is_over_real_tokens():
  encoder, variables = _small()
  ids, mask = _tokens(8)
  tokens = encoder.apply(variables, ids, mask, method='encode')
  expected = [np.mean(tokens[row, :real], axis=0) for row, real in enumerate((5, 8, 1))]
  np.testing.assert_allclose(_embed(encoder, variables, ids, mask), expected, atol=1e-6)


def test_padding_has_no_gradient():
  encoder, variables = _small()
  ids, mask = _tokens(8, fill=49)
  ids = np.where(mask, ids % 20 + 1, 49)

  def loss(params):
    return jnp.sum(encoder.apply({'params': params}, ids, mask) ** 3)

  gradient = jax.jit(jax.grad(loss))(variables['params'])
  rows = np.abs(gradient['embed']['embedding']).sum(axis=1)
  assert rows[49] == 0
  assert np.all(rows[np.unique(ids[mask])] > 0)
  # No weight is cut off from the result.
  for path, g in flax.traverse_util.flatten_dict(gradient, sep='/').items():
    assert np.all(np.isfinite(g)) and np.any(g != 0), path


def test_row_without_tokens_is_zero_and_harmless():
  encoder, variables = _small()
  ids, mask = _tokens(8)
  mask[1] = False

  def loss(params):
    out = encoder.apply({'params': params}, ids, mask)
    return jnp.sum(out**2), out

  gradient, out = jax.jit(jax.grad(loss, has_aux=True))(variables['params'])
  np.testing.assert_array_equal(out[1], 0)
  assert np.all(np.any(out[np.array([0, 2])] != 0, axis=1))
  assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradient))


def test_order_of_words_counts():
  encoder, variables = _small()
  ids = np.array([[3, 4, 5, 1], [5, 4, 3, 1]], np.int32)
  out = _embed(encoder, variables, ids, np.ones((2, 4), bool))
  assert np.max(np.abs(out[0] - out[1])) > 1e-2


def test_ids_outside_the_vocabulary_show():
  encoder, variables = _small()
  out = _embed(encoder, variables, np.array([[50, 1]], np.int32), np.ones((1, 2), bool))
  assert np.all(np.isnan(out))


def test_bfloat16_keeps_float32_weights_and_output():
  encoder, variables = _small(dtype='bfloat16')
  assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
  out = _embed(encoder, variables, *_tokens(8))
  exact = _embed(_small()[0], variables, *_tokens(8))
  assert out.dtype == jnp.float32
  assert 0 < np.max(np.abs(out - exact)) < 0.05  # 2^-8 per product, values about 1


def test_build_reads_a_config():
  config = ml_collections.ConfigDict(dataclasses.asdict(SMALL))
  del config.dtype, config.feed_forward
  config.max_length = 16
  assert t5.build_text_encoder(config).config == SMALL
  assert t5.build_text_encoder(dict(config, dtype=None)).config == SMALL
  config.feed_forward = 'relu'
  assert t5.build_text_encoder(config).config.feed_forward == 'relu'


@pytest.mark.parametrize(
  'change, message',
  [
    ({'d_kv': None, 'd_ff': None}, 'lacks d_kv, d_ff'),
    ({'feed_forward': 'swiglu'}, "feed_forward is 'swiglu'; known: relu, gated-gelu"),
    ({'dtype': 'float16'}, "dtype 'float16'"),
  ],
)
def test_build_names_what_is_wrong(change, message):
  with pytest.raises(ValueError, match=message):
    t5.build_text_encoder(dataclasses.asdict(SMALL) | change)


@pytest.mark.parametrize('ids, mask', [((3, 4), (3, 5)), ((4,), (4,))])
def test_shapes_must_agree(ids, mask):
  encoder, variables = _small()
  with pytest.raises(ValueError, match='must both be'):
    encoder.apply(variables, np.ones(ids, np.int32), np.ones(mask, bool))
