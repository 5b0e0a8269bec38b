"""A collection of classes: looked up by name, extended by users, turned into tables of codes."""

import dataclasses
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline.anatomy import classes
from input_pipeline.anatomy.structure import (
  FIRST_SIDED_CODE,
  OUTSIDE_CODE,
  ClassError,
  Structure,
)
from input_pipeline.errors import suggest


class Template:
  """An immutable collection of structures.

  Args:
    structures: in the order of their indices.
    sided_codes: code -> (name of a structure, name of the one of its parents it lies in).

  Raises:
    ClassError: if an index, a name or a synonym is used twice, an index is outside 1..199 or a
      parent is missing.
  """

  def __init__(
    self,
    structures: Iterable[Structure],
    sided_codes: Mapping[int, tuple[str, str]] = types.MappingProxyType({}),
  ):
    self.structures = tuple(structures)
    self.sided_codes = types.MappingProxyType(dict(sided_codes))
    self._by_name = {s.name: s for s in self.structures}
    self._by_phrase: dict[str, Structure] = {}
    self._check()

  def __reduce__(self):  # its read-only views cannot be pickled, and cases may hold a template
    return Template, (self.structures, dict(self.sided_codes))

  def __len__(self) -> int:
    return len(self.structures)

  def __iter__(self) -> Iterator[Structure]:
    return iter(self.structures)

  def names(self) -> tuple[str, ...]:
    """Canonical names in the order of their indices."""
    return tuple(s.name for s in self.structures)

  def get(self, name: str) -> Structure:
    """The structure of a canonical name.

    Raises:
      ClassError: if there is none; the message lists close names.
    """
    if name in self._by_name:
      return self._by_name[name]
    hit = self.find(str(name))
    hint = f'did you mean {hit.name}?' if hit else suggest(_fold(str(name)), self._by_name)
    raise ClassError(f'no class is called {name!r}; {hint}')

  def find(self, text: str) -> Structure | None:
    """The structure whose name or synonym (held-out ones too) is `text`, whatever its case."""
    return self._by_phrase.get(_fold(text))

  def pairs(self) -> dict[str, tuple[str, str]]:
    """Paired organs by their name without a side: 'kidney' -> ('right kidney', 'left kidney')."""
    pairs = {}
    for s in self.structures:
      left, noun = 'left' + s.name.removeprefix('right'), s.name.removeprefix('right ')
      if s.side == 'right' and noun != s.name and left in self._by_name:
        pairs[noun] = (s.name, left)
    return pairs

  def ancestors(self, name: str) -> frozenset[str]:
    """Names of all structures that may contain this one; ClassError as in `get`."""
    ancestors: set[str] = set()
    parents = list(self.get(name).parents)
    while parents:
      parent = parents.pop()
      if parent not in ancestors:
        ancestors.add(parent)
        parents += self.get(parent).parents
    return frozenset(ancestors)

  def contains(self, outer: str, inner: str) -> bool:
    """Whether a structure may contain another; what is not in the template contains nothing."""
    return inner in self._by_name and outer in self.ancestors(inner)

  def extend(self, classes: Iterable[Mapping[str, Any]]) -> 'Template':
    """A longer template; this one stays as it is.

    Args:
      classes: of each new class a mapping with its `name`, and where wanted `prompt` (a sentence),
        `noun` (phrase with article), `synonyms`, `held_out`, `parent` or `parents` (structures that
        contain it), `side`, and `index` (by default the next free one). A name that is there
        already keeps its index, side and parents; its synonyms are joined, and its prompt and noun
        are replaced if they are given. A synonym is held out no more.

    Returns:
      The template with these classes; equal calls give equal indices.

    Raises:
      ClassError: if a field is unknown or no text, a name or synonym is empty, a name is reserved
        or that of a pair, side or parents differ from those that are there, a new class lies in one
        of several organs, an index or synonym is taken, or no index is free.
    """
    structures, new = {s.name: s for s in self.structures}, []
    for entry in classes:
      fields = _read_fields(entry)
      known = structures.get(fields['name'])
      if known is None:
        index = fields.pop('index', 0) or max((s.index for s in structures.values()), default=0) + 1
        taken = [s.name for s in structures.values() if s.index == index]
        if taken or not 0 < index < FIRST_SIDED_CODE:
          reason = f'taken by {taken[0]!r}' if taken else f'outside 1..{FIRST_SIDED_CODE - 1}'
          raise ClassError(f'new class {fields["name"]!r}: index {index} is {reason}')
        article = 'the' if fields['side'] else 'an' if fields['name'][0] in 'aeiou' else 'a'
        fields['noun'] = fields['noun'] or f'{article} {fields["name"]}'
        structures[fields['name']] = Structure(index, **fields)
        new.append(fields['name'])
      else:
        structures[known.name] = _join(known, fields)
    longer = Template(sorted(structures.values(), key=lambda s: s.index), self.sided_codes)
    for name in new:
      longer._check_place(name)
    longer._check_pairs()
    return longer

  def additions(self) -> tuple[dict[str, Any], ...]:
    """What to give to `TEMPLATE.extend` to get this template; plain values, fit for JSON."""
    built_in = {s.name: s for s in TEMPLATE}
    added = []
    for s in self.structures:
      if s != built_in.get(s.name):
        fields = {'index': s.index, 'name': s.name, 'prompt': s.sentence, 'noun': s.noun}
        fields |= {'side': s.side, 'parents': list(s.parents)}
        fields |= {'synonyms': list(s.synonyms), 'held_out': list(s.held_out)}
        added.append({field: value for field, value in fields.items() if value})
    return tuple(added)

  def translation(self, other: 'Template') -> np.ndarray:
    """Codes of this template -> codes of another one that has all its names.

    Returns:
      (256,) uint8.

    Raises:
      ClassError: if the other template lacks a name.
    """
    table = np.arange(256, dtype=np.uint8)
    for s in self.structures:
      table[s.index] = other.get(s.name).index
    return table

  def code_table(self, names: Sequence[str]) -> np.ndarray:
    """Which codes belong to which class.

    Args:
      names: K canonical names.

    Returns:
      (256, K) bool; row c, column k: a voxel with code c is part of class k. The table of an image
      is `code_table(names)[codes]`, (D, H, W, K).

    Raises:
      ClassError: if the template has no such name.
    """
    column = {self.get(name).name: k for k, name in enumerate(names)}
    table = np.zeros((256, len(names)), bool)
    for code, members in self._members().items():
      table[code, [column[name] for name in members if name in column]] = True
    return table

  def _members(self) -> dict[int, set[str]]:
    members = {}
    for s in self.structures:
      # NOTE: with several possible parents the plain index says nothing about which one it is.
      members[s.index] = {s.name, *(self.ancestors(s.name) if len(s.parents) == 1 else ())}
    for code, (name, parent) in self.sided_codes.items():
      members[code] = {name, parent, *self.ancestors(parent)}
    return members

  def _check(self):
    indices = [s.index for s in self.structures]
    if indices != sorted(set(indices)) or not all(0 < i < FIRST_SIDED_CODE for i in indices):
      raise ValueError(f'indices must grow within 1..{FIRST_SIDED_CODE - 1}, got {indices}')
    for s in self.structures:
      for phrase in s.phrases:
        other = self._by_phrase.setdefault(_fold(phrase), s)
        if other is not s:
          raise ClassError(f'{phrase!r} belongs to both {other.name!r} and {s.name!r}; keep one')
      missing = [parent for parent in s.parents if parent not in self._by_name]
      if missing:
        hint = suggest(missing[0], self._by_name).partition('known:')[0]
        raise ClassError(
          f'{s.name!r}: parents {missing} are not in the template; {hint or "add them"}'
        )
    for code, (name, parent) in self.sided_codes.items():
      inside = FIRST_SIDED_CODE <= code < OUTSIDE_CODE
      if not inside or parent not in self.get(name).parents:
        bounds = f'{FIRST_SIDED_CODE}..{OUTSIDE_CODE - 1}'
        raise ValueError(f'code {code} must be in {bounds}, {parent!r} contain {name!r}')

  def _check_place(self, name: str):
    # Codes that say which of two organs a lesion lies in exist for the built-in ones alone.
    ancestors = self.ancestors(name)
    if name in ancestors:
      raise ClassError(f'new class {name!r}: lies in itself; give it the organ that it lies in')
    for inner in (name, *sorted(ancestors)):
      if len(self.get(inner).parents) > 1:
        lies = '' if inner == name else f'lies in {inner!r}, which '
        raise ClassError(
          f'new class {name!r}: {lies}has several parents, and a voxel of it does not tell in '
          'which it lies; make a class of each, as "left ..." and "right ...", with one parent'
        )

  def _check_pairs(self):
    # A label of that name is split into the two sides, and no voxel would be of the class.
    for noun, (right, left) in self.pairs().items():
      if noun in self._by_name:
        raise ClassError(
          f'class {noun!r}: a label of that name is {right!r} and {left!r}; choose another, such '
          f"as '{noun}s together', or leave the class out to have the two sides"
        )


def _fold(text: str) -> str:
  return ' '.join(text.casefold().split())


# What a label map or a side is called that is no class.
_RESERVED = ('background', 'ignore', 'left', 'right')
_TEXTS, _LISTS = ('name', 'prompt', 'noun', 'side', 'parent'), ('parents', 'synonyms', 'held_out')


def _read_fields(entry: Mapping[str, Any]) -> dict[str, Any]:
  """The fields of a new Structure, `index` only where given; ClassError as `Template.extend`."""
  if not isinstance(entry, Mapping):
    raise ClassError(f'new class {entry!r}: expected an object such as {{"name": "metastasis"}}')
  entry = dict(entry)
  name = _fold(str(entry.get('name', '')))
  if not name:
    raise ClassError(f'new class {entry}: it has no name; add "name"')
  if name in _RESERVED:
    raise ClassError(
      f'new class {name!r}: a label of that name is no class; choose another, or leave the class '
      'out'
    )
  known = (*_TEXTS, *_LISTS, 'index')
  unknown = sorted(set(entry) - set(known))
  if unknown:
    hint = suggest(unknown[0], known)
    raise ClassError(f'new class {name!r}: unknown fields {unknown}; {hint}')
  for field in _TEXTS:
    if not isinstance(entry.get(field, ''), str):
      raise ClassError(f'new class {name!r}: {field} is {entry[field]!r}; expected a text')
  for field in _LISTS:
    value = entry.get(field, ())
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
      raise ClassError(f'new class {name!r}: {field} is {value!r}; expected a list of texts')
    if not all(map(_fold, value)):
      raise ClassError(f'new class {name!r}: {field} has an empty text; take it out')
  if entry.get('side', '') not in ('', 'left', 'right'):
    raise ClassError(f'new class {name!r}: side {entry["side"]!r}; expected left or right')
  synonyms = tuple(entry.get('synonyms', ()))
  fields = {
    'name': name,
    'sentence': entry.get('prompt', ''),
    'noun': entry.get('noun', ''),
    'side': entry.get('side', ''),
    'parents': tuple(map(_fold, entry.get('parents', filter(None, [entry.get('parent', '')])))),
    'synonyms': synonyms,
    'held_out': _never_shown(entry.get('held_out', ()), (name, *synonyms)),
  }
  if 'index' in entry:
    if not isinstance(entry['index'], int):
      raise ClassError(f'new class {name!r}: index is {entry["index"]!r}; expected a whole number')
    fields['index'] = entry['index']
  return fields


def _join(known: Structure, fields: Mapping[str, Any]) -> Structure:
  for field in ('index', 'side', 'parents'):
    if fields.get(field) and fields[field] != getattr(known, field):
      has = getattr(known, field) or 'none'
      raise ClassError(
        f'class {known.name!r} is there with {field} {has}, not {fields[field]}; '
        'choose another name'
      )
  synonyms = tuple(dict.fromkeys((*known.synonyms, *fields['synonyms'])))
  held_out = tuple(dict.fromkeys((*known.held_out, *fields['held_out'])))
  return dataclasses.replace(
    known,
    noun=fields['noun'] or known.noun,
    synonyms=synonyms,
    held_out=_never_shown(held_out, synonyms),
    sentence=fields['sentence'] or known.sentence,
  )


def _never_shown(held_out: Iterable[str], taught: Iterable[str]) -> tuple[str, ...]:
  """Held-out phrases without those that training shows, whatever their case."""
  shown = set(map(_fold, taught))
  return tuple(phrase for phrase in held_out if _fold(phrase) not in shown)


TEMPLATE = Template(sorted(classes.STRUCTURES, key=lambda s: s.index), classes.SIDED_CODES)
