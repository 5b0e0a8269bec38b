"""T5 encoders as Hugging Face publishes them: v1.0, v1.1 and Flan, any size."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping

import flax
import jax
import jax.numpy as jnp
import numpy as np

from mome_jax.text.t5 import FEED_FORWARDS, T5Config, TextEncoder
from mome_jax.weights import files, strict_fill
from mome_jax.weights.errors import WeightsError

_EMBEDDING = 'shared.weight'
_TIED = 'encoder.embed_tokens.weight'
_RELPOS = 'encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight'
# The decoder, and embeddings that other files of the same model repeat.
_IGNORE = (r'decoder\..*', r'lm_head\.weight')
_SIZES = ('vocab_size', 'd_model', 'd_kv', 'd_ff', 'num_layers', 'num_heads')
_POSITIONS = {'relative_attention_num_buckets': 32, 'relative_attention_max_distance': 128}


def infer_config(state: Mapping[str, np.ndarray]) -> T5Config:
  """The sizes that the tensors' names and shapes tell; what they cannot tell is T5's default.

  Raises:
    WeightsError: if a tensor that tells a size is missing.
  """
  first = 'encoder.block.0.layer'
  gated = f'{first}.1.DenseReluDense.wi_0.weight' in state
  hidden = f'{first}.1.DenseReluDense.{"wi_0" if gated else "wi"}.weight'
  query = f'{first}.0.SelfAttention.q.weight'
  needed = (_embedding_key(state), _RELPOS, query, hidden)
  missing = [key for key in needed if key not in state or state[key].ndim != 2]
  if missing:
    raise WeightsError(f'the checkpoint is no t5; it lacks {", ".join(missing)}')
  vocab_size, d_model = state[needed[0]].shape
  buckets, num_heads = state[_RELPOS].shape
  blocks = [re.match(r'encoder\.block\.(\d+)\.', key) for key in state]
  return T5Config(
    vocab_size=vocab_size,
    d_model=d_model,
    d_kv=state[query].shape[0] // num_heads,
    d_ff=state[hidden].shape[0],
    num_layers=1 + max(int(block[1]) for block in blocks if block),
    num_heads=num_heads,
    feed_forward='gated-gelu' if gated else 'relu',
    relative_attention_num_buckets=buckets,
  )


def read_config(path: pathlib.Path) -> T5Config:
  """The T5Config of a published `config.json`.

  Raises:
    WeightsError: if there is none, or it describes no T5 encoder that this package has.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise WeightsError(f'{path}: missing; put the config.json of the model beside its weights')
  try:
    values = json.loads(path.read_text(encoding='utf-8'))
    activation = values.get('feed_forward_proj', 'relu')
    sizes = {name: values[name] for name in _SIZES}
    sizes |= {name: values.get(name, default) for name, default in _POSITIONS.items()}
  except (OSError, ValueError, KeyError, AttributeError) as error:
    raise WeightsError(f'{path}: no config.json of a T5 model ({error!r})') from error
  if wrong := {name: size for name, size in sizes.items() if type(size) is not int or size < 1}:
    raise WeightsError(f'{path}: {wrong}; expected whole numbers above 0')
  if activation not in FEED_FORWARDS:
    raise WeightsError(
      f'{path}: feed_forward_proj is {activation!r}; known: {", ".join(FEED_FORWARDS)}'
    )
  return T5Config(**sizes, feed_forward=activation)


def convert(state: Mapping[str, np.ndarray], config: T5Config | None = None) -> dict:
  """Variables of `TextEncoder(config)`.

  Args:
    state: tensors of a `T5EncoderModel` or of the whole T5, whose decoder is left out.
    config: from `read_config`; None takes what the tensors tell.

  Returns:
    {'params': ...}, float32.

  Raises:
    WeightsError: if the tensors are not exactly those of this encoder.
  """
  config = config or infer_config(state)
  ids = jax.ShapeDtypeStruct((1, 2), jnp.int32)
  mask = jax.ShapeDtypeStruct((1, 2), bool)
  encoder = TextEncoder(dataclasses.replace(config, dtype='float32'))
  shapes = jax.eval_shape(encoder.init, jax.random.key(0), ids, mask)['params']
  embedding = _embedding_key(state)
  if {_EMBEDDING, _TIED} <= state.keys():
    if not np.array_equal(state[_EMBEDDING], state[_TIED]):
      raise WeightsError(f'{_EMBEDDING} and {_TIED} differ; T5 has one embedding of tokens')
    state = {key: value for key, value in state.items() if key != _TIED}
  key_of = lambda path: embedding if path == 'embed/embedding' else _key_of(path)
  filled = strict_fill.fill('t5', state, strict_fill.flatten(shapes), key_of, ignore=_IGNORE)
  return {'params': flax.traverse_util.unflatten_dict(filled, sep='/')}


def load(path: pathlib.Path) -> tuple[T5Config, dict]:
  """Configuration and variables of a published encoder.

  Args:
    path: the weights, with their `config.json` beside them, or the folder of both.

  Raises:
    FileNotFoundError: if a file is missing.
    ValueError: if the files are no T5, or do not belong together.
  """
  path = files.find_checkpoint(path)
  config = read_config(path.with_name('config.json'))
  return config, convert(files.read_tensors(path, '|'.join(_IGNORE)), config)


def _embedding_key(state: Mapping[str, np.ndarray]) -> str:
  return _TIED if _TIED in state and _EMBEDDING not in state else _EMBEDDING


def _key_of(path: str) -> str:
  if path == 'relpos/embedding':
    return _RELPOS
  if path == 'final_norm/scale':
    return 'encoder.final_layer_norm.weight'
  block, part, *name, _ = path.split('/')
  layer = f'encoder.block.{block.removeprefix("block_")}.layer'
  return {
    'attn': f'{layer}.0.SelfAttention.{"".join(name)}.weight',
    'attn_norm': f'{layer}.0.layer_norm.weight',
    'mlp': f'{layer}.1.DenseReluDense.{"".join(name)}.weight',
    'mlp_norm': f'{layer}.1.layer_norm.weight',
  }[part]
