"""The T5 encoder (v1.0: relu; v1.1 and Flan: gated gelu) and the text embedding made from it.

Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer",
JMLR 2020. Weights are float32; `dtype` is that of the matrix products.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mome_jax.errors import ConfigError, suggest
from mome_jax.ops import precision_of

FEED_FORWARDS = ('relu', 'gated-gelu')
MASKED = -1e9  # finite, so that a row without any real token stays free of NaN


@dataclasses.dataclass(frozen=True)
class T5Config:
  """Sizes of a T5 encoder, named as in the `config.json` of published checkpoints.

  `num_heads * d_kv` may differ from `d_model` (t5-v1_1-small: 6 * 64 against 512). `dtype` is
  'float32' or 'bfloat16'; T5's activations overflow float16.
  """

  vocab_size: int
  d_model: int
  d_kv: int
  d_ff: int
  num_layers: int
  num_heads: int
  feed_forward: str = 'gated-gelu'
  relative_attention_num_buckets: int = 32
  relative_attention_max_distance: int = 128
  dtype: str = 'float32'

  def __post_init__(self):
    if self.feed_forward not in FEED_FORWARDS:
      raise ConfigError(
        f'text.feed_forward is {self.feed_forward!r}; {suggest(self.feed_forward, FEED_FORWARDS)}'
      )
    if self.dtype not in ('float32', 'bfloat16'):
      raise ConfigError(f'dtype {self.dtype!r}: T5 runs in float32 or bfloat16')


def relative_buckets(length: int, num_buckets: int = 32, max_distance: int = 128) -> np.ndarray:
  """Bucket of the signed distance from every query to every key (bidirectional form).

  One half of the buckets is for keys after the query. Of each half, one half holds a single
  distance each, the others widen logarithmically; the last holds all from `max_distance` on.

  Args:
    length: T, tokens in the sequence.
    num_buckets: buckets for both directions together.
    max_distance: tokens from which on the distance makes no difference.

  Returns:
    (T, T) int32 numpy array, query by key, in [0, num_buckets).
  """
  distance = np.arange(length)[None, :] - np.arange(length)[:, None]
  half = num_buckets // 2
  exact = half // 2
  far = np.maximum(np.abs(distance), exact).astype(np.float32)
  octave = np.log(far / exact) / np.float32(math.log(max_distance / exact))
  widening = np.minimum(exact + (octave * (half - exact)).astype(np.int32), half - 1)
  magnitude = np.where(np.abs(distance) < exact, np.abs(distance), widening)
  return (magnitude + half * (distance > 0)).astype(np.int32)


class RMSNorm(nn.Module):
  """Divides by the root mean square; unlike LayerNorm it has no mean and no bias."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalises the last axis: (..., d) to (..., d) float32."""
    x = x.astype(jnp.float32)
    scale = self.param('scale', nn.initializers.ones, (x.shape[-1],))
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6) * scale


def _dense(config: T5Config, features: int, stddev: float) -> Callable[..., nn.Dense]:
  return functools.partial(
    nn.Dense,
    features,
    use_bias=False,
    dtype=jnp.dtype(config.dtype),
    precision=precision_of(config.dtype),
    kernel_init=nn.initializers.normal(stddev),
  )


class Attention(nn.Module):
  """Self-attention over tokens with an additive bias on the scores."""

  config: T5Config

  @nn.compact
  def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
    """Attends from every token to every token.

    Args:
      x: (K, T, d_model) float32.
      bias: (K, H, T, T) float32, query by key; relative positions and mask.

    Returns:
      (K, T, d_model) in the config's dtype.
    """
    c = self.config
    width = c.num_heads * c.d_kv
    heads = (*x.shape[:2], c.num_heads, c.d_kv)
    # NOTE: the scores are not divided by sqrt(d_kv): T5 has that factor in the initial scale of
    # q, and published weights rely on it.
    q = _dense(c, width, (c.d_model * c.d_kv) ** -0.5)(name='q')(x).reshape(heads)
    k = _dense(c, width, c.d_model**-0.5)(name='k')(x).reshape(heads)
    v = _dense(c, width, c.d_model**-0.5)(name='v')(x).reshape(heads)
    product = functools.partial(jnp.einsum, precision=precision_of(c.dtype))
    scores = product('bqhd,bkhd->bhqk', q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores + bias, axis=-1).astype(v.dtype)  # (K, H, T, T)
    out = product('bhqk,bkhd->bqhd', weights, v).reshape(*x.shape[:2], width)
    return _dense(c, c.d_model, width**-0.5)(name='o')(out)


class FeedForward(nn.Module):
  """Two layers, with a gelu gate (v1.1, Flan) or a relu (v1.0)."""

  config: T5Config

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps every token: (K, T, d_model) to (K, T, d_model) in the config's dtype."""
    c = self.config
    wi = _dense(c, c.d_ff, c.d_model**-0.5)
    if c.feed_forward == 'relu':
      hidden = nn.relu(wi(name='wi')(x))
    else:
      hidden = nn.gelu(wi(name='wi_0')(x), approximate=True) * wi(name='wi_1')(x)
    return _dense(c, c.d_model, c.d_ff**-0.5)(name='wo')(hidden)


class Block(nn.Module):
  """Pre-norm block: x + attention, then x + feed-forward. The residual stream stays float32."""

  config: T5Config

  @nn.compact
  def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
    """Maps (K, T, d_model) float32 to the same; `bias` is that of `Attention`."""
    x = x + Attention(self.config, name='attn')(RMSNorm(name='attn_norm')(x), bias)
    return x + FeedForward(self.config, name='mlp')(RMSNorm(name='mlp_norm')(x))


class TextEncoder(nn.Module):
  """T5 encoder and the masked mean over its tokens: one vector per prompt.

  Ids from vocab_size on give NaN rather than some other token's row. There is no dropout.
  """

  config: T5Config

  @nn.compact
  def encode(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
    """Embeds every token in its sentence.

    Args:
      ids: (K, T) int32 token ids.
      mask: (K, T) bool, True on real tokens; what stands elsewhere has no effect on real tokens.

    Returns:
      (K, T, d_model) float32; meaningless where the mask is False.

    Raises:
      ValueError: if ids is not of rank 2 or the mask has another shape.
    """
    if ids.ndim != 2 or ids.shape != mask.shape:
      raise ValueError(f'ids {ids.shape} and mask {mask.shape} must both be (K, T)')
    c = self.config
    # NOTE: neither a factor sqrt(d_model) nor position embeddings; only the scores know positions.
    init = nn.initializers.normal(1.0)
    x = nn.Embed(c.vocab_size, c.d_model, embedding_init=init, name='embed')(ids)
    buckets = relative_buckets(
      ids.shape[1], c.relative_attention_num_buckets, c.relative_attention_max_distance
    )
    # NOTE: one table for all blocks.
    init = nn.initializers.normal(c.d_model**-0.5)
    relpos = nn.Embed(
      c.relative_attention_num_buckets, c.num_heads, embedding_init=init, name='relpos'
    )
    bias = relpos(buckets).transpose(2, 0, 1)  # (H, T, T)
    bias = bias + jnp.where(mask, 0.0, MASKED)[:, None, None, :]  # (K, H, T, T)
    for i in range(c.num_layers):
      x = Block(c, name=f'block_{i}')(x, bias)
    return RMSNorm(name='final_norm')(x)

  def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
    """Embeds prompts.

    Args:
      ids: (K, T) int32 token ids.
      mask: (K, T) bool, True on real tokens.

    Returns:
      (K, d_model) float32: mean over real tokens; zeros for a row without any.

    Raises:
      ValueError: if ids is not of rank 2 or the mask has another shape.
    """
    tokens = jnp.where(mask[..., None], self.encode(ids, mask), 0.0)
    count = jnp.maximum(jnp.sum(mask, axis=1, dtype=jnp.float32), 1.0)
    return jnp.sum(tokens, axis=1) / count[:, None]


def build_text_encoder(config: Mapping[str, Any]) -> TextEncoder:
  """Makes the encoder that a config describes.

  Args:
    config: mapping (ml_collections.ConfigDict or dict) with the fields of `T5Config`; those
      with a default may be absent, and other fields (prompts, tokenizer) are not looked at.

  Returns:
    TextEncoder, a Flax module: (K, T) int32 ids and (K, T) bool mask to (K, d_model) float32.

  Raises:
    ConfigError: if a size is missing or a value is not supported.
  """
  fields = dataclasses.fields(T5Config)
  missing = [
    f.name for f in fields if f.default is dataclasses.MISSING and config.get(f.name) is None
  ]
  if missing:
    raise ConfigError(f'config.text lacks {", ".join(missing)}: the sizes of the T5 encoder')
  values = {f.name: config.get(f.name) for f in fields}
  return TextEncoder(T5Config(**{k: v for k, v in values.items() if v is not None}))
