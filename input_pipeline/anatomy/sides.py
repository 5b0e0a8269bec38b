"""Left and right exchanged, in names and in free text."""

import re

_OPPOSITE = {'left': 'right', 'l': 'r', 'lt': 'rt', 'sinister': 'dexter', 'sinistra': 'dextra'}
_OPPOSITE |= {b: a for a, b in _OPPOSITE.items()}
# Words alone, or beside an underscore: 'Parotid_L', but not the vertebra 'L4' or 'L 4'.
_WORD = re.compile(rf'(?<![^\W_])(?![lr]\W*\d)(?:{"|".join(_OPPOSITE)})(?![^\W_])', re.IGNORECASE)


def exchanged(text: str) -> str:
  """What a text says of the mirror image of a patient: 'Left kidney' -> 'Right kidney'."""
  return _WORD.sub(_turn, text)


def _turn(match: re.Match) -> str:
  word = match[0]
  other = _OPPOSITE[word.lower()]
  if word.isupper():
    return other.upper()
  return other.capitalize() if word[0].isupper() else other
