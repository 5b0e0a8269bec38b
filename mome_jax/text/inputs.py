"""Prompts to what the text branch takes: token ids when it trains, vectors when it is frozen."""

from collections.abc import Callable, Sequence

import numpy as np

from mome_jax.text.embed import TextVectors
from mome_jax.text.tokenizer import Tokenizer

MODES = ('joint', 'frozen')
PromptInputs = Callable[[Sequence[str]], dict[str, np.ndarray]]


def is_frozen(config) -> bool:
  """Whether `config.text` describes vectors made once; ValueError if its mode names nothing."""
  if config.mode not in MODES:
    raise ValueError(f'text.mode is {config.mode!r}; known: {", ".join(MODES)}')
  return config.mode == 'frozen'


def joint(tokenizer: Tokenizer, max_length: int) -> PromptInputs:
  """K prompts -> ids (K, T) int32 and mask (K, T) bool."""

  def inputs(prompts):
    ids, mask = tokenizer.encode(prompts, max_length)
    return {'ids': ids, 'mask': mask}

  return inputs


def frozen(vectors: TextVectors) -> PromptInputs:
  """K prompts -> vectors (K, d_t) float32."""
  return lambda prompts: {'vectors': vectors(prompts)}


def pad(inputs: dict[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
  """Adds empty prompts, whose embedding is zero, up to `rows`."""
  return {
    name: np.pad(array, [(0, rows - len(array)), *[(0, 0)] * (array.ndim - 1)])
    for name, array in inputs.items()
  }
