"""A text encoder with its parameters and vocabulary: texts in, vectors out."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from input_pipeline import progress
from mome_jax.text.t5 import TextEncoder
from mome_jax.text.tokenizer import Tokenizer

_BATCH = 32


class TextModel:
  """K texts -> (K, d_t) float32.

  Args:
    encoder: from `build_text_encoder`.
    params: of the encoder.
    tokenizer: its vocabulary.
    max_length: tokens; longer texts are cut, with a warning.
  """

  def __init__(
    self, encoder: TextEncoder, params: Mapping[str, Any], tokenizer: Tokenizer, max_length: int
  ):
    self.encoder, self.tokenizer, self.max_length = encoder, tokenizer, max_length
    self._apply, self._params = jax.jit(encoder.apply), jax.device_put(params)

  def __call__(self, texts: Sequence[str]) -> np.ndarray:
    """Embeds some texts."""
    rows = []
    starts = range(0, len(texts), _BATCH)
    for start in progress.bar(starts, desc='embed', disable=len(starts) <= 32):
      batch = texts[start : start + _BATCH]
      ids, mask = self.tokenizer.encode(batch, self.max_length)
      pad = [(0, _BATCH - len(batch)), (0, 0)]  # one shape: nothing compiles twice
      vectors = self._apply({'params': self._params}, np.pad(ids, pad), np.pad(mask, pad))
      rows.append(np.asarray(vectors)[: len(batch)])
    return np.concatenate(rows) if rows else np.zeros((0, self.encoder.config.d_model), np.float32)
