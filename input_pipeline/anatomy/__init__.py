"""The class template: what can be segmented, how it is called, and which label codes stand for it.

The only place that knows class indices. Right and left are the patient's.

A stored label map holds uint8 *codes*: the most specific structure of each voxel. The code of a
structure is its index, and it also counts as the structures that contain it (a liver tumor voxel is
liver). Where the containing organ depends on the side, each side has a code of its own
(`SIDED_CODES`), and the plain index means that the side is unknown. `IGNORE_CODE` is no structure:
of such a voxel nothing is known.

`TEMPLATE` is the built-in one and never changes. `TEMPLATE.extend(...)` makes a longer one; whoever
works with other classes is given it.
"""

import dataclasses
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline.errors import UserError, suggest

# Indices of structures end below this, so that a longer template never meets a sided code.
FIRST_SIDED_CODE = 200
# Of voxels that nobody labelled: they are neither sampled, trained nor scored, for any class.
IGNORE_CODE = 255


class ClassError(UserError):
  """A class that is unknown or declared wrongly; the message names it and the fix."""


@dataclasses.dataclass(frozen=True)
class Structure:
  """One class.

  Attributes:
    index: label in outputs, 1..38 for the built-in template, 39.. for what extends it.
    name: canonical name, lower case with spaces.
    side: '', 'left' or 'right', of the patient.
    parents: names of the structures that may contain it; with several, each voxel lies in one.
    noun: the name as a noun phrase with its article.
    synonyms: other names, used in training.
    held_out: further names, never used in training: they measure what the text encoder learned.
    sentence: the prompt, where it is not made of the noun phrase.
  """

  index: int
  name: str
  side: str = ''
  parents: tuple[str, ...] = ()
  noun: str = ''
  synonyms: tuple[str, ...] = ()
  held_out: tuple[str, ...] = ()
  sentence: str = ''

  @property
  def prompt(self) -> str:
    """The sentence of evaluation and prediction."""
    return self.sentence or f'A computerized tomography of {self.noun or self.name}'


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
    found = {}
    for s in self.structures:
      left, noun = 'left' + s.name.removeprefix('right'), s.name.removeprefix('right ')
      if s.side == 'right' and noun != s.name and left in self._by_name:
        found[noun] = (s.name, left)
    return found

  def ancestors(self, name: str) -> frozenset[str]:
    """Names of all structures that may contain this one; ClassError as in `get`."""
    parents = self.get(name).parents
    return frozenset(parents).union(*map(self.ancestors, parents))

  def contains(self, outer: str, inner: str) -> bool:
    """Whether a structure may contain another; what is not in the template contains nothing."""
    return inner in self._by_name and outer in self.ancestors(inner)

  def extend(self, classes: Iterable[Mapping[str, Any]]) -> 'Template':
    """A longer template; this one stays as it is.

    Args:
      classes: of each new class a mapping with its `name`, and where wanted `prompt` (a sentence),
        `noun` (phrase with article), `synonyms`, `held_out`, `parent` or `parents` (structures that
        contain it), `side`, and `index` (by default the next free one). A name that is there
        already keeps its index and parents; its synonyms are joined, and its prompt is replaced if
        one is given.

    Returns:
      The template with these classes; equal calls give equal indices.

    Raises:
      ClassError: if a field is unknown or no text, a name is empty, parents differ from those that
        are there, an index or synonym is taken, or no index is free.
    """
    structures = {s.name: s for s in self.structures}
    for entry in classes:
      fields = _read_fields(entry)
      known = structures.get(fields['name'])
      if known is None:
        index = fields.pop('index', 0) or max((s.index for s in structures.values()), default=0) + 1
        taken = [s.name for s in structures.values() if s.index == index]
        if taken or not 0 < index < FIRST_SIDED_CODE:
          reason = f'taken by {taken[0]!r}' if taken else f'outside 1..{FIRST_SIDED_CODE - 1}'
          raise ClassError(f'new class {fields["name"]!r}: index {index} is {reason}')
        structures[fields['name']] = Structure(index, **fields)
      else:
        structures[known.name] = _join(known, fields)
    return Template(sorted(structures.values(), key=lambda s: s.index), self.sided_codes)

  def additions(self) -> tuple[dict[str, Any], ...]:
    """What to give to `TEMPLATE.extend` to get this template; plain values, fit for JSON."""
    built_in = {s.name: s for s in TEMPLATE}
    found = []
    for s in self.structures:
      if s != built_in.get(s.name):
        fields = {'index': s.index, 'name': s.name, 'prompt': s.sentence, 'noun': s.noun}
        fields |= {'side': s.side, 'parents': list(s.parents)}
        fields |= {'synonyms': list(s.synonyms), 'held_out': list(s.held_out)}
        found.append({field: value for field, value in fields.items() if value})
    return tuple(found)

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
      for phrase in (s.name, *s.synonyms, *s.held_out):
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
      inside = FIRST_SIDED_CODE <= code < IGNORE_CODE
      if not inside or parent not in self.get(name).parents:
        bounds = f'{FIRST_SIDED_CODE}..{IGNORE_CODE - 1}'
        raise ValueError(f'code {code} must be in {bounds}, {parent!r} contain {name!r}')


def _fold(text: str) -> str:
  return ' '.join(text.casefold().split())


_TEXTS, _LISTS = ('name', 'prompt', 'noun', 'side', 'parent'), ('parents', 'synonyms', 'held_out')


def _read_fields(entry: Mapping[str, Any]) -> dict[str, Any]:
  """The fields of a new Structure, `index` only where given; ClassError as `Template.extend`."""
  if not isinstance(entry, Mapping):
    raise ClassError(f'new class {entry!r}: expected an object such as {{"name": "metastasis"}}')
  entry = dict(entry)
  name = _fold(str(entry.get('name', '')))
  if not name:
    raise ClassError(f'new class {entry}: it has no name; add "name"')
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
  if entry.get('side', '') not in ('', 'left', 'right'):
    raise ClassError(f'new class {name!r}: side {entry["side"]!r}; expected left or right')
  article = 'the' if entry.get('side') else 'an' if name[0] in 'aeiou' else 'a'
  fields = {
    'name': name,
    'sentence': entry.get('prompt', ''),
    'noun': entry.get('noun', f'{article} {name}'),
    'side': entry.get('side', ''),
    'parents': tuple(map(_fold, entry.get('parents', filter(None, [entry.get('parent', '')])))),
    'synonyms': tuple(entry.get('synonyms', ())),
    'held_out': tuple(entry.get('held_out', ())),
  }
  if 'index' in entry:
    if not isinstance(entry['index'], int):
      raise ClassError(f'new class {name!r}: index is {entry["index"]!r}; expected a whole number')
    fields['index'] = entry['index']
  return fields


def _join(known: Structure, fields: Mapping[str, Any]) -> Structure:
  for field in ('index', 'parents'):
    if fields.get(field) and fields[field] != getattr(known, field):
      raise ClassError(
        f'class {known.name!r} is there with {field} {getattr(known, field)}, not {fields[field]}; '
        'choose another name'
      )
  return dataclasses.replace(
    known,
    synonyms=tuple(dict.fromkeys((*known.synonyms, *fields['synonyms']))),
    held_out=tuple(dict.fromkeys((*known.held_out, *fields['held_out']))),
    sentence=fields['sentence'] or known.sentence,
  )


# What stands for {word} in the phrases of paired organs.
_SIDES = {
  'right': {'side': 'right', 'rt': 'rt', 'r': 'R', 'er': 'dexter', 'ra': 'dextra', 'um': 'dextrum'},
  'left': {
    'side': 'left',
    'rt': 'lt',
    'r': 'L',
    'er': 'sinister',
    'ra': 'sinistra',
    'um': 'sinistrum',
  },
}


def _pair(right: int, left: int, name: str, synonyms: str, held_out: str) -> list[Structure]:
  """The two structures of a paired organ; {side} and the like in the phrases become its side."""
  return [
    Structure(
      index,
      name.format(**words),
      side=side,
      noun=f'the {name.format(**words)}',
      synonyms=_split(synonyms.format(**words)),
      held_out=_split(held_out.format(**words)),
    )
    for index, (side, words) in zip((right, left), _SIDES.items(), strict=True)
  ]


def _one(index: int, noun: str, synonyms: str, held_out: str, *parents: str) -> list[Structure]:
  """An unpaired structure; its name is the noun phrase without the article."""
  name = noun.split(' ', 1)[1]
  return [
    Structure(
      index,
      name,
      parents=parents,
      noun=noun,
      synonyms=_split(synonyms),
      held_out=_split(held_out),
    )
  ]


def _split(phrases: str) -> tuple[str, ...]:
  return tuple(phrase.strip() for phrase in phrases.split('|'))


_KIDNEYS = ('right kidney', 'left kidney')
_LUNGS = ('right lung', 'left lung')

# Synonyms share their words (parenchyma, entire, with its wall, on the right side ...) so that a
# held-out phrase is made of words that training showed in other company.
# fmt: off
_STRUCTURES = [
  *_one(1, 'a spleen',
        'lien | splenic parenchyma | splenic tissue | entire spleen',
        'parenchyma of the spleen | whole spleen'),
  *_pair(2, 3, '{side} kidney',
         'kidney on the {side} side | {side}-sided kidney | {rt} kidney | ren {er} | '
         '{side} renal parenchyma | kidney of the {side} side',
         '{r} kidney | renal parenchyma on the {side} side | parenchyma of the {side} kidney'),
  *_one(4, 'a gallbladder',
        'gall bladder | vesica biliaris | vesica fellea | GB | gallbladder lumen and wall',
        'gallbladder with its wall | lumen and wall of the gall bladder'),
  *_one(5, 'an esophagus',
        'oesophagus | gullet | food pipe | esophageal lumen and wall | entire esophagus',
        'whole oesophagus | oesophagus with its wall'),
  *_one(6, 'a liver',
        'hepar | hepatic parenchyma | liver parenchyma | whole liver | lobes of the liver',
        'hepatic tissue | parenchyma of the liver'),
  *_one(7, 'a stomach',
        'gaster | gastric lumen and wall | whole stomach | stomach with its wall | '
        'gastric fundus body and antrum',
        'entire stomach | lumen and wall of the stomach'),
  *_one(8, 'an aorta',
        'abdominal aorta | thoracic and abdominal aorta | aorta abdominalis | '
        'thoracoabdominal aorta | aortic lumen and wall',
        'abdominal and thoracic aorta | aorta with its wall'),
  *_one(9, 'a postcava',
        'inferior vena cava | IVC | vena cava inferior | inferior caval vein | lower vena cava | '
        'posterior vena cava',
        'lower caval vein | inferior cava'),
  *_one(10, 'a portal and splenic vein',
        'portal vein and splenic vein | vena portae and vena splenica | portal venous system | '
        'portosplenic vein | portal vein with splenic vein | PV and SV | portosplenic confluence',
        'splenic vein and portal vein | portal and splenic venous system'),
  *_one(11, 'a pancreas',
        'pancreatic gland | pancreatic parenchyma | pancreatic tissue | whole pancreas | '
        'head body and tail of pancreas',
        'parenchyma of the pancreas | entire pancreas'),
  *_pair(12, 13, '{side} adrenal gland',
         '{side} suprarenal gland | {side} adrenal | adrenal gland on the {side} side | '
         '{r} adrenal | glandula suprarenalis {ra} | {rt} adrenal gland | '
         'adrenal of the {side} side',
         'suprarenal gland on the {side} side | {rt} suprarenal gland'),
  *_one(14, 'a duodenum',
        'duodenal loop | duodenal C-loop | intestinum duodenum | duodenal lumen and wall | '
        'first part of the small bowel',
        'loop of the duodenum | duodenum with its wall'),
  *_one(15, 'a hepatic vessel',
        'hepatic vessels | liver vessels | intrahepatic vessels | hepatic vasculature | '
        'blood vessels of the liver | hepatic veins and portal branches',
        'vasculature of the liver | intrahepatic blood vessels', 'liver'),
  *_pair(16, 17, '{side} lung',
         'lung on the {side} side | {side}-sided lung | {rt} lung | pulmo {er} | '
         '{side} pulmonary parenchyma | lobes of the {side} lung | lung of the {side} side',
         '{r} lung | pulmonary parenchyma on the {side} side'),
  *_one(18, 'a colon',
        'large bowel | large intestine | intestinum crassum | colonic frame | '
        'ascending transverse and descending colon | colonic lumen and wall | entire colon',
        'whole large bowel | colon with its wall'),
  *_one(19, 'an intestine',
        'small bowel | small intestine | jejunum and ileum | small bowel loops | '
        'intestinum tenue | loops of small intestine',
        'loops of small bowel | ileum and jejunum'),
  *_one(20, 'a rectum',
        'rectal ampulla | intestinum rectum | rectal lumen and wall | entire rectum',
        'ampulla of the rectum | rectum with its wall'),
  *_one(21, 'a bladder',
        'urinary bladder | vesica urinaria | UB | urinary bladder lumen and wall | '
        'bladder with its wall',
        'urinary bladder with its wall | whole urinary bladder'),
  *_one(22, 'a prostate',
        'prostate gland | prostatic gland | glandula prostatica | prostata | prostatic tissue',
        'prostatic parenchyma | whole prostate gland'),
  *_pair(24, 23, '{side} femoral head',
         '{side} head of femur | head of the {side} femur | caput femoris {um} | '
         'femoral head on the {side} side | {r} femoral head | {side} caput femoris',
         '{rt} femoral head | head of femur on the {side} side'),
  *_one(25, 'a celiac trunk',
        'coeliac trunk | celiac axis | truncus coeliacus | celiac artery | coeliac axis | '
        'coeliac arterial trunk',
        'coeliac artery | celiac arterial trunk'),
  *_one(26, 'a kidney tumor',
        'renal tumor | renal tumour | kidney tumour | renal mass | renal neoplasm | '
        'renal cell carcinoma | kidney cancer | tumor of the kidney',
        'kidney neoplasm | renal cancer | mass of the kidney', *_KIDNEYS),
  *_one(27, 'a liver tumor',
        'hepatic tumor | liver tumour | hepatic neoplasm | liver mass | liver cancer | '
        'hepatic metastasis | hepatocellular carcinoma | focal liver lesion | tumor of the liver',
        'hepatic tumour | liver neoplasm | focal hepatic lesion', 'liver'),
  *_one(28, 'a pancreas tumor',
        'pancreatic tumor | pancreatic tumour | pancreatic neoplasm | pancreatic mass | '
        'pancreatic ductal adenocarcinoma | pancreatic cancer | tumor of the pancreas',
        'pancreas tumour | pancreatic carcinoma | mass of the pancreas', 'pancreas'),
  *_one(29, 'a hepatic vessel tumor',
        'hepatic vessel tumour | tumor of the hepatic vessels | liver vessel tumor | '
        'hepatic vascular tumor | tumour adjacent to the liver vessels | hepatic vascular mass',
        'hepatic vascular tumour | tumor adjacent to the hepatic vessels', 'liver'),
  *_one(30, 'a lung tumor',
        'lung tumour | pulmonary tumor | lung cancer | pulmonary neoplasm | pulmonary mass | '
        'bronchogenic carcinoma | lung carcinoma | tumor of the lung',
        'pulmonary tumour | lung neoplasm | mass of the lung', *_LUNGS),
  *_one(31, 'a colon tumor',
        'colonic tumor | colon tumour | colon cancer | colonic neoplasm | colonic mass | '
        'colon carcinoma | large bowel tumor | tumor of the colon',
        'colonic tumour | large bowel cancer | mass of the colon', 'colon'),
  *_one(32, 'a kidney cyst',
        'renal cyst | cyst of the kidney | simple renal cyst | cortical cyst of the kidney | '
        'cystic lesion of the kidney',
        'cystic renal lesion | simple kidney cyst', *_KIDNEYS),
  *_one(33, 'a brainstem',
        'brain stem | truncus encephali | midbrain pons and medulla oblongata | '
        'stem of the brain | entire brainstem',
        'whole brain stem | pons medulla oblongata and midbrain'),
  *_one(34, 'a spinal cord',
        'medulla spinalis | spinal medulla | cord in the spinal canal | cervical spinal cord | '
        'cervical and thoracic cord | myelon',
        'thoracic and cervical spinal cord | spinal cord in the canal'),
  *_pair(35, 36, '{side} parotid',
         '{side} parotid gland | {side} parotid salivary gland | parotid on the {side} side | '
         '{r} parotid | glandula parotidea {ra} | {rt} parotid gland | parotid of the {side} side',
         'parotid gland on the {side} side | {rt} parotid'),
  *_one(37, 'a larynx',
        'voice box | laryngeal airway and cartilage | glottic and supraglottic larynx | '
        'laryngeal structures | entire larynx',
        'supraglottic and glottic larynx | whole larynx'),
  *_one(38, 'a mandible',
        'lower jaw | mandibula | mandibular bone | lower jaw bone | jaw bone',
        'bone of the lower jaw | whole mandible'),
]
# fmt: on

SIDED_CODES = types.MappingProxyType(
  {
    201: ('kidney tumor', 'right kidney'),
    202: ('kidney tumor', 'left kidney'),
    203: ('kidney cyst', 'right kidney'),
    204: ('kidney cyst', 'left kidney'),
    205: ('lung tumor', 'right lung'),
    206: ('lung tumor', 'left lung'),
  }
)

TEMPLATE = Template(sorted(_STRUCTURES, key=lambda s: s.index), SIDED_CODES)
