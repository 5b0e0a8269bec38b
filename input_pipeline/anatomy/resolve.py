"""Which classes a user's words mean: names and synonyms however they are spelled.

`Template.find` knows a phrase of the table as it is written there. Here upper and lower case,
underscores, hyphens, missing spaces, British spelling, plurals, the side in any place and the
names of structures in radiotherapy (AAPM TG-263) are one and the same: 'Parotid_L', 'LParotid',
'left parotid glands' and 'parotid (left)' are the left parotid. Words that say more or less than a
phrase of the table, such as 'spinal canal' or 'left', mean no class.
"""

import collections
import functools
import re
import unicodedata

from input_pipeline.anatomy.structure import Structure
from input_pipeline.anatomy.template import TEMPLATE, Template

_SIDES = {
  **dict.fromkeys(('left', 'l', 'lt', 'sin', 'sinister', 'sinistra', 'sinistrum'), 'left'),
  **dict.fromkeys(('right', 'r', 'rt', 'dex', 'dexter', 'dextra', 'dextrum'), 'right'),
}
_BOTH = ('both', 'bilateral', 'bilaterally', 'bilat')
# Words around a name that change nothing about what is meant.
# fmt: off
FILLERS = frozenset({
  'a', 'an', 'the', 'of', 'on', 'in', 'its', 'side', 'sided', 'patient', 'ct',
  'scan', 'image', 'computerized', 'computed', 'tomography', 'axial', 'show', 'showing', 'segment',
  'delineate', 'find', 'contour', 'where', 'is', 'there', 'this', 'please', 'voxels', 'that',
  'belong', 'to',
})
# fmt: on
# They change nothing before a name; 'Rectum_A' and 'liver segment' say less than the organ.
_LEADING = frozenset({'a', 'segment'})
# Organs have several of them, and one is not the organ.
_PARTS = frozenset({'lobes'})
_BRITISH = {
  'œ': 'oe',
  'æ': 'ae',
  'oesoph': 'esoph',
  'tumour': 'tumor',
  'coelia': 'celia',
  'haem': 'hem',
  'oedem': 'edem',
  'caec': 'cec',
  'faec': 'fec',
  'paed': 'ped',
  'gynaec': 'gynec',
  'centre': 'center',
  'fibre': 'fiber',
  'colour': 'color',
  'anaes': 'anes',
  'leucocyt': 'leukocyt',
}  # fmt: skip
# How planning systems and others name what the table calls otherwise; without their side.
_ABBREVIATIONS = {
  'spinal cord': ('cord',),
  'mandible': ('bone mandible',),
  'parotid': ('glnd parotid', 'gland parotid'),
  'adrenal gland': ('glnd adrenal', 'gland adrenal', 'suprarenal', 'adrenals'),
  'femoral head': ('femur head',),
  'celiac trunk': ('celiac',),
  'postcava': ('v venacava i', 'inf vena cava', 'vena cava inf'),
  'colon': ('bowel large',),
  'intestine': ('bowel small',),
  'esophagus': ('esoph',),
  'liver tumor': ('liver metastasis', 'metastasis of the liver'),
}

_JOINTS = re.compile(r'[+&/;|,]|\s[-\u2013\u2014]\s')

Key = tuple[frozenset[str], str]  # the sides that are named, and all other words without spaces


def resolve(text: str, template: Template = TEMPLATE) -> tuple[Structure, ...]:
  """The classes that some words mean.

  A paired organ without its side ('kidney', 'both lungs') means both of its classes, the right one
  first. Where a spelling fits several classes, as it can in a longer template, none is meant.

  Args:
    text: any words.
    template: of the classes.

  Returns:
    None, one, or the two of a pair.
  """
  exact = template.find(text)
  if exact is not None:
    return (exact,)
  sides, words = key(text)
  index = _index(template)
  meant = _lookup(index.get(words, {}), sides)
  if not meant and not sides:  # 'lparotid', 'kidneyright': the side without a space
    for spelling, side in _SIDES.items():
      for rest in (words.removeprefix(spelling), words.removesuffix(spelling)):
        if rest != words and not meant:
          meant = _lookup(index.get(rest, {}), frozenset((side,)))
  return meant


def find_class(text: str, template: Template = TEMPLATE) -> str | None:
  """The class that a name means, or the pair of a paired organ without its side; None if none."""
  meant = [structure.name for structure in resolve(text, template)]
  if len(meant) < 2:
    return meant[0] if meant else None
  pairs = template.pairs()
  return next((noun for noun, sides in pairs.items() if set(sides) == set(meant)), None)


def _lookup(entry: dict[str, set[Structure]], sides: frozenset[str]) -> tuple[Structure, ...]:
  """The classes of one entry of the index that named sides leave."""
  if sides == {'left', 'right'} or (not sides and '' not in entry):
    hits = [entry.get(side, set()) for side in ('right', 'left')]
  else:
    hits = [entry.get(next(iter(sides), ''), set())]
  return tuple(next(iter(hit)) for hit in hits) if all(len(hit) == 1 for hit in hits) else ()


@functools.lru_cache(16)
def _index(template: Template) -> dict[str, dict[str, set[Structure]]]:
  """Words without spaces -> side or '' -> the classes that have such a phrase."""
  index: dict[str, dict[str, set[Structure]]] = collections.defaultdict(
    lambda: collections.defaultdict(set)
  )
  named: list[tuple[Structure, Key]] = []
  others: list[tuple[Structure, Key]] = []
  for structure in template:
    sides, words = key(structure.name)
    more = [f'{" ".join(sides)} {name}' for organ, names in _ABBREVIATIONS.items()
            if words == key(organ)[1] for name in names]  # fmt: skip
    phrases = (*structure.phrases, structure.prompt)
    named += [(structure, key(phrase)) for phrase in phrases]
    others += [(structure, key(phrase, joining=False)) for phrase in (*phrases, *more)]
  # A declared 'liver metastasis' is that class, not what the words mean elsewhere.
  declared = {spelling for _, spelling in named}
  others = [(structure, spelling) for structure, spelling in others if spelling not in declared]
  for structure, (sides, words) in (*named, *others):
    if words and len(sides) < 2:
      index[words][next(iter(sides), '')].add(structure)
  return index


def unpaired(words: str, template: Template = TEMPLATE) -> str:
  """The class without sides that the words of a `key` mean, or ''."""
  entry = _index(template).get(words, {})
  hits = entry.get('', set())
  return next(iter(hits)).name if len(entry) == len(hits) == 1 else ''


def key(text: str, *, joining: bool = True) -> Key:
  """What a text comes down to: the sides that it names, and its other words without spaces.

  Args:
    text: any words.
    joining: whether it counts that 'and' joins words, other than the two sides; 'liver and tumor'
      is no liver tumor.
  """
  tokens = words_of(text)
  sides = {_SIDES[token] for token in tokens if token in _SIDES}
  sides |= {'left', 'right'} if any(token in _BOTH for token in tokens) else set()
  # 'image left' is the patient's right.
  fillers = FILLERS - {'image'} if sides else FILLERS
  tokens = _without_fillers(tokens, fillers)
  joins = [place for place, token in enumerate(tokens) if token == 'and']
  joined = joining and not all(_joins_sides(tokens, place) for place in joins)
  words = ''.join(singular(token) for token in tokens if token != 'and' and not _is_side(token))
  # Once and in front, so that 'head, body and tail' and 'head/body/tail' are the same.
  return frozenset(sides), ('and' if joined and words else '') + words


def _without_fillers(tokens: list[str], fillers: frozenset[str]) -> list[str]:
  nouns = [n for n, token in enumerate(tokens) if not (token in fillers or _is_side(token))]
  kept, after = [], ''
  for place, token in reversed(list(enumerate(tokens))):
    is_filler = token in fillers
    if token in _LEADING:
      is_filler = after not in ('', 'of')
    elif token == 'in':  # 'cord in the canal' is the cord, 'cord canal' is not
      is_filler = not nouns or not nouns[0] < place < nouns[-1]
    if not is_filler:
      kept.append(token)
    if not _is_side(token):
      after = token
  return kept[::-1]


def _joins_sides(tokens: list[str], place: int) -> bool:
  return all(n in _SIDES for n in (*tokens[:place][-1:], *tokens[place + 1 :][:1]))


def words_of(text: str) -> list[str]:
  """The words of a text in lower case and American spelling, 'SpinalCord_PRV' being three.

  What joins two names, as in 'liver + tumor', is the word 'and'; that of 'lung / L' joins none.
  """
  text = re.sub(r'^\s*~', 'partial ', unicodedata.normalize('NFKC', text))  # as TG-263 marks it
  text = re.sub(r'(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])', ' ', text).casefold()
  text = re.sub(r"['\u2019]s?\b", '', text)
  for british, american in _BRITISH.items():
    text = text.replace(british, american)
  words: list[str] = []
  named = False
  for part in _JOINTS.split(text):
    more = re.sub(r'[\W_]+', ' ', part).split()
    telling = says_what(more)
    words += ['and', *more] if named and telling else more
    named = named or telling
  return words


def says_what(words: list[str]) -> bool:
  """Whether some words of a text are more than a side and what may stand around a name."""
  return any(not (word in FILLERS or _is_side(word)) for word in words)


def _is_side(word: str) -> bool:
  return word in _SIDES or word in _BOTH


def singular(word: str) -> str:
  """A stem that a word and its plural share; both go through it, so that it need be no word."""
  if word in _PARTS:
    return word
  for plural, ending in (('stases', 'stasis'), ('sses', 'ss'), ('ies', 'y')):
    word = word.removesuffix(plural) + ending if word.endswith(plural) else word
  return word[:-1] if word.endswith('s') and not word.endswith('ss') and len(word) > 3 else word
