"""Words that name no structure of the vocabulary: everyday ones, other languages, drugs, nonsense.

`assets/other_words.csv`, a kind and a text a row, is what familiarity is calibrated and measured
on, together with held-out names. Half of either, by their hash, calibrates, the other half tests.
"""

import functools
import hashlib

from input_pipeline.files import text_files
from mome_jax import shipped


@functools.cache
def read() -> tuple[tuple[str, str], ...]:
  """(kind, text) of all of them."""
  _, rows = text_files.read_csv(shipped.OTHER_WORDS, separators=',')
  return tuple((row['kind'], row['text']) for row in rows)


def is_for_testing(text: str) -> bool:
  """Whether a text is of the half that calibration never sees; upper and lower case alike."""
  return hashlib.sha256(text.casefold().encode()).digest()[0] % 2 == 1
