"""Source labels to template codes."""

from collections.abc import Mapping

import numpy as np


def map_codes(array: np.ndarray, mapping: Mapping[int, int], *, name: str) -> np.ndarray:
  """Translates a source's label values into template codes.

  Args:
    array: (D, H, W) integers, label values of the source; 0 is background unless mapped.
    mapping: label value -> code of `anatomy`, 0..255; a value mapped to 0 is declared as ignored.
    name: file or case, for messages.

  Returns:
    (D, H, W) uint8 codes.

  Raises:
    TypeError: if the array holds no integers.
    ValueError: if a value is neither 0 nor in the mapping, or a code is outside 0..255.
  """
  if array.dtype.kind not in 'iu':
    raise TypeError(f'{name}: labels are {array.dtype}; read them with volume.read_labels')
  wrong = {value: code for value, code in mapping.items() if not 0 <= code <= 255}
  if wrong:
    raise ValueError(f'{name}: codes of {wrong} are outside 0..255; correct the mapping')
  known = {0: 0, **mapping}
  values = np.unique(array).tolist()
  unknown = [value for value in values if value not in known]
  if unknown:
    raise ValueError(
      f'{name}: label values {unknown} are not in the mapping (known: {sorted(known)}); '
      'add them, with code 0 to ignore one'
    )
  # Counting from the smallest value, so that negative ones do not index from the end.
  low = min(known)
  table = np.zeros(max(known) - low + 1, np.uint8)
  for value, code in known.items():
    table[value - low] = code
  return table[array if low == 0 else array.astype(np.intp) - low]
