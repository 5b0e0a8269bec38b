"""What free text says beside the name of a structure, for which no mask can be made."""

import difflib
import functools
import itertools
import re
from collections.abc import Iterable

from input_pipeline.anatomy import resolve, vocabulary
from input_pipeline.anatomy.template import TEMPLATE, Template

_NEGATIONS = frozenset({'no', 'not', 'without', 'except', 'excluding', 'exclude', 'but', 'minus'})
# As AAPM TG-263 spells them, with what is primary or nodal, millimetres or dose: 'PRV03', 'GTVp'.
_PLANNING = re.compile(
  r'z?(prv|ptv|i?gtv|i?ctv|itv)[pn]?\d*(c?gy)?|margin|expansion|avoid(ance)?|eval(uation)?'
)
_PLANNING_ENDS = re.compile(r'(opt|sub)\d*')  # elsewhere 'opt' may be optic
_RELATIVE = frozenset({'ipsilateral', 'contralateral'})
_SEEN_FROM = frozenset({'image', 'picture', 'screen', 'viewer'})
_MOST_WORDS = 40  # of a prompt; the encoder of the package reads no more
_TYPING_ERROR = 0.8  # likeness of two words from which on one is meant for the other
_PARTS = re.compile(r'[;/+&\n,.|:]|\s[-\u2013\u2014]\s|\band\b|\bwith\b|\bor\b', re.IGNORECASE)

# Words in names of findings that alone name none: 'bone of the lower jaw on contrast CT'.
# fmt: off
_NO_FINDINGS = frozenset({
  'active', 'acute', 'adjacent', 'adnexal', 'airspace', 'appendiceal', 'attenuation', 'cavernous',
  'cell', 'changes', 'clinic', 'clinical', 'coin', 'contrast', 'convexity', 'disk', 'ductal',
  'dural', 'epidural', 'extraluminal', 'filled', 'focal', 'free', 'gastrointestinal', 'gross',
  'ground', 'hiatal', 'hiatus', 'high', 'interstitial', 'intracerebral', 'intracranial',
  'intraluminal', 'intramural', 'leg', 'line', 'meningeal', 'meninges', 'mucosal', 'n', 'narrow',
  'non', 'or', 'p', 'pertrochanteric', 'planning', 'primary', 'round', 'secondary', 'simple',
  'sinuses', 'sliding', 'solitary', 'squamous', 'stromal', 'subarachnoid', 'subdural', 'type',
  'umbilical', 'urothelial', 'vascular', 'volume',
})
# fmt: on

# Words for parts and neighbours of an organ, and for where something is in it or to it.
# fmt: off
_PARTS_OF = frozenset(map(resolve.singular, (
  'abdominal', 'above', 'adjacent', 'airway', 'angle', 'anterior', 'apex', 'area', 'around',
  'arteries', 'back', 'base', 'bed', 'behind', 'below', 'beneath', 'beside', 'between', 'blood',
  'body', 'border', 'bottom', 'boundary', 'branch', 'branches', 'canal', 'capsule', 'cartilage',
  'caudal', 'cavity', 'central', 'cervical', 'condyle', 'cone', 'content', 'cortex', 'cranial',
  'deep', 'distal', 'dorsal', 'duct', 'edge', 'end', 'external', 'fascia', 'fat', 'floor', 'fluid',
  'fold', 'fossa', 'front', 'ganglion', 'glottic', 'half', 'halves', 'head', 'hemi', 'hilum',
  'hilus', 'inferior', 'inlet', 'inner', 'inside', 'internal', 'lateral', 'level', 'ligament',
  'lobe', 'lobes', 'lower', 'lumbar', 'lumen', 'lymph', 'lymphatic', 'main', 'marrow', 'medial',
  'membrane', 'mid', 'middle', 'mucosa', 'muscle', 'near', 'neck', 'nerve', 'node', 'notch',
  'opening', 'outer', 'outlet', 'outside', 'part', 'partial', 'peripheral', 'plate', 'pole',
  'portion', 'posterior', 'process', 'proximal', 'quarter', 'rami', 'ramus', 'region', 'remaining',
  'rest', 'rim', 'ring', 'root', 'segment', 'sheath', 'shell', 'side', 'skin', 'space', 'sphincter',
  'subglottic', 'superficial', 'superior', 'supraglottic', 'surface', 'surrounding', 'tail',
  'third', 'thoracic', 'tip', 'top', 'tract', 'tree', 'under', 'upper', 'vein', 'ventral', 'vessel',
  'vicinity', 'wall', 'zone',
)))
# fmt: on
_PREPOSITIONS = frozenset({'of', 'in', 'on', 'with', 'at', 'from', 'for', 'to', 'without'})


def objection(
  text: str, trained: frozenset[str], template: Template = TEMPLATE, *, nearest: str = ''
) -> str:
  """Why some words, which name no class, should not be asked for; '' if nothing speaks against it.

  A text encoder hears the organ in 'no mandible', 'spinal cord PRV' and 'parotid tumor', and the
  model then segments the organ: a mask of something else than what was asked for.

  Args:
    text: of a prompt; nothing is said of one that `resolve` takes for a class.
    trained: names of the classes of the model.
    template: of the names.
    nearest: the class of the model that a judge accepts the words for, or ''.
  """
  if resolve.resolve(text, template):
    return ''
  words = resolve.words_of(text)
  sides, rest = resolve.key(text)
  if not rest:
    if sides:
      return 'names a side alone; write "left parotid" in one prompt'
    return 'names no structure; write its English name'
  if len(words) > _MOST_WORDS:
    return f'has {len(words)} words; write the name of one structure'
  if _NEGATIONS.intersection(words):
    return 'says what to leave out; write what to segment'
  taught = _stems(_phrases(trained, template))
  of_classes = {word for phrase in _phrases(trained, template) for word in _planning(phrase)}
  if _planning(text) - of_classes or re.search(r'\d *mm\b', text):
    return 'is of a planning volume, which is no anatomy; ask for the organ and expand its mask'
  either = len(sides) == 2 and 'or' in words
  if either or _RELATIVE.intersection(words) or (sides and _SEEN_FROM.intersection(words)):
    return "leaves the side open; write the patient's left or right"
  parts = [part for part in _PARTS.split(text) if resolve.key(part)[1]]
  apart = len(parts) > 1 and any(resolve.resolve(part, template) for part in parts)
  if apart or len(_names_in_a_row(words, template)) > 1:
    return 'has several names; make each a prompt of its own (commas separate --prompts)'
  # A model of liver tumors hears the kidney in 'mass in right kidney', whose words it was taught.
  of_organ = nearest and _vocabulary(template).get(nearest).kind != 'finding'
  untaught = _finding_stems(template) - (set() if of_organ else taught)
  findings = {word for word in words if resolve.singular(word) in untaught}
  if findings:
    return f'names a finding ({", ".join(sorted(findings))}) that was not taught; ask for the organ'
  name = resolve.unpaired(rest, template) or _without_sides(text, nearest, template)
  if sides and name in trained:
    return f'{name} has no left and right here; ask for {name}'
  meant = _respelled(words, template)
  if meant and trained.issuperset(s.name for s in resolve.resolve(meant, template)):
    return f'has a typing error; write "{meant}"'
  return ''


def _planning(text: str) -> set[str]:
  """The words of a text that make it the name of a planning volume."""
  words = resolve.words_of(text)
  whole = re.split(r'[\W_]+', text.casefold())  # 'GTVp' is no two words
  planning = {word for word in (*words, *whole) if _PLANNING.fullmatch(word)}
  planning.update(word for word in words[:1] if word == 'z')  # of what only an optimizer needs
  return planning.union(word for word in words[-1:] if _PLANNING_ENDS.fullmatch(word))


def _without_sides(text: str, nearest: str, template: Template) -> str:
  """The class without sides that free text stands for; '' for a part, as the left half of it is."""
  if not nearest or template.get(nearest).side:
    return ''
  if _vocabulary(template).get(nearest).kind == 'finding':
    # Lesions of both sides are in one mask, whatever part of an organ they are said to be in.
    return nearest if _finding_stems(template) & _stems((text,)) else ''
  return '' if is_beside(text, nearest, template) else nearest


def is_beside(text: str, nearest: str, template: Template = TEMPLATE) -> bool:
  """Whether free text that is like a class says that it is a part or neighbour of it.

  'mandibular nerve', 'parotid region' and 'aortic wall' share the telling word with the class, so
  that any text encoder finds them near to it. A lone word that is no name ('box', of the voice box)
  says less than the class, and the other side is another organ.

  Args:
    text: of a prompt; a name or synonym of a class is beside none.
    nearest: the class that it is like.
    template: of the names.
  """
  term = _vocabulary(template).get(nearest)
  if resolve.resolve(text, template) or _vocabulary(template).find(text) is term:
    return False
  words = [word for word in resolve.words_of(text) if resolve.says_what([word])]
  sides = resolve.key(text)[0]
  if len(words) < 2 or (sides and term.side not in ('', *sides)):
    return True
  others = _words_of_anatomy(template) - _stems(term.phrases)
  parts = _parts(text)
  is_part = bool(parts) and parts not in map(_parts, term.phrases)
  return is_part or not others.isdisjoint(map(resolve.singular, words))


def _parts(phrase: str) -> frozenset[str]:
  """Words for parts in what a phrase is about: 'wall' of 'colon wall', not 'colon with its wall'.

  A class is its parts only in the company that its names have: 'aortic lumen and wall'.
  """
  words = itertools.dropwhile(resolve.FILLERS.__contains__, resolve.words_of(phrase))
  head = itertools.takewhile(lambda word: word not in _PREPOSITIONS, words)
  return _PARTS_OF.intersection(map(resolve.singular, head))


@functools.lru_cache(4)
def _vocabulary(template: Template) -> vocabulary.Vocabulary:
  return vocabulary.read(template)


@functools.lru_cache(4)
def _words_of_anatomy(template: Template) -> frozenset[str]:
  """Stems of the words of canonical names of structures, and of all names of one word."""
  structures = [term for term in _vocabulary(template) if term.kind == 'structure']
  names = [p for term in structures for p in term.phrases if p == term.name or ' ' not in p]
  return frozenset(stem for stem in _stems(names) if resolve.says_what([stem]))


def _names_in_a_row(words: list[str], template: Template) -> frozenset[str]:
  """The classes that words name one behind the other; empty where some words name none."""
  names: set[str] = set()
  while words:
    runs = (resolve.resolve(' '.join(words[:end]), template) for end in range(len(words), 0, -1))
    passed, run = next(((n, run) for n, run in enumerate(runs) if run), (0, ()))
    if not run:
      return frozenset()
    names.update(structure.name for structure in run)
    words = words[len(words) - passed :]
  return frozenset(names)


def _respelled(words: list[str], template: Template) -> str:
  """What some words name when those of no name are spelled as the most similar one; '' if nothing.

  Of 'rigth parotid' a text encoder hears the parotid, of either side.
  """
  known = _vocabulary_words(template)
  respelled = [
    word
    if word in known
    else next(iter(difflib.get_close_matches(word, known, 1, _TYPING_ERROR)), word)
    for word in words
  ]
  text = ' '.join(respelled)
  return text if respelled != words and resolve.resolve(text, template) else ''


@functools.lru_cache(4)
def _vocabulary_words(template: Template) -> tuple[str, ...]:
  """All words of names, and those that say a side."""
  names = {word for term in _vocabulary(template) for p in term.phrases for word in
           resolve.words_of(p)}  # fmt: skip
  return tuple(sorted(names | {'left', 'right'}))


@functools.lru_cache(4)
def _finding_stems(template: Template) -> frozenset[str]:
  """Stems of words that are in names of tumors and other findings, and in no name of anatomy."""
  of_findings: set[str] = set()
  of_others = _stems((*resolve.FILLERS, *_NO_FINDINGS))
  for term in _vocabulary(template):
    to = of_findings if term.kind == 'finding' else of_others
    to.update(_stems(term.phrases))
  return frozenset(stem for stem in of_findings - of_others if not stem.isdigit())


def _phrases(names: frozenset[str], template: Template) -> list[str]:
  return [phrase for name in names for phrase in template.get(name).phrases]


def _stems(phrases: Iterable[str]) -> set[str]:
  return {resolve.singular(word) for phrase in phrases for word in resolve.words_of(phrase)}
