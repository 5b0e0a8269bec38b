"""The vocabulary of anatomy: structures and findings far beyond the classes of the template.

It teaches the text encoder what words mean, names what a model can be asked for by mistake, and
gives training prompts whose mask is empty. `vocabulary.csv` is the source: one term a row, lists
separated by '|'. A class of the template is not repeated there; `read` gives both.
"""

import dataclasses
import functools
import importlib.resources
import re
from collections.abc import Iterable, Iterator, Sequence

from input_pipeline.anatomy.structure import Structure
from input_pipeline.anatomy.template import TEMPLATE, Template
from input_pipeline.files import text_files

FILE = importlib.resources.files('input_pipeline.anatomy') / 'vocabulary.csv'
KINDS = ('structure', 'finding')
REGIONS = ('head', 'neck', 'chest', 'abdomen', 'pelvis', 'spine', 'limbs', 'body')

# Of the template's classes, what the class table does not say: region, and in which larger things
# they lie. Sides are left out.
_PLACES = {
  'spleen': ('abdomen', 'peritoneal cavity'),
  'kidney': ('abdomen', 'retroperitoneum'),
  'gallbladder': ('abdomen', 'peritoneal cavity'),
  'esophagus': ('chest', 'mediastinum'),
  'liver': ('abdomen', 'peritoneal cavity'),
  'stomach': ('abdomen', 'peritoneal cavity'),
  'aorta': ('chest', 'mediastinum', 'retroperitoneum'),
  'postcava': ('abdomen', 'retroperitoneum'),
  'portal and splenic vein': ('abdomen', 'peritoneal cavity'),
  'pancreas': ('abdomen', 'retroperitoneum'),
  'adrenal gland': ('abdomen', 'retroperitoneum'),
  'duodenum': ('abdomen', 'bowel bag'),
  'hepatic vessel': ('abdomen',),
  'lung': ('chest',),
  'colon': ('abdomen', 'bowel bag'),
  'intestine': ('abdomen', 'bowel bag'),
  'rectum': ('pelvis', 'peritoneal cavity'),
  'bladder': ('pelvis', 'peritoneal cavity'),
  'prostate': ('pelvis', 'peritoneal cavity'),
  'femoral head': ('limbs', '{side} femur'),
  'celiac trunk': ('abdomen', 'retroperitoneum'),
  'kidney tumor': ('abdomen',),
  'liver tumor': ('abdomen',),
  'pancreas tumor': ('abdomen',),
  'hepatic vessel tumor': ('abdomen',),
  'lung tumor': ('chest',),
  'colon tumor': ('abdomen',),
  'kidney cyst': ('abdomen',),
  'brainstem': ('head', 'brain'),
  'spinal cord': ('spine', 'spinal canal'),
  'parotid': ('head',),
  'larynx': ('neck',),
  'mandible': ('head', 'skull'),
}
_FINDINGS = re.compile(r'\b(tumou?r|cyst|cancer|carcinoma|lesion|metastas[ie]s|nodule)s?\b')


@dataclasses.dataclass(frozen=True)
class Term:
  """One structure or finding.

  Attributes:
    name: canonical, lower case: 'left kidney'.
    kind: one of KINDS.
    side: '', 'left' or 'right', of the patient.
    organ: the name without its side.
    parents: names of terms that contain it; with several, it lies in one of them.
    region: one of REGIONS, where most of it lies; 'body' is anywhere.
    synonyms: other names, which a text encoder may learn.
    held_out: further names, never learned from.
  """

  name: str
  kind: str
  side: str = ''
  organ: str = ''
  parents: tuple[str, ...] = ()
  region: str = 'body'
  synonyms: tuple[str, ...] = ()
  held_out: tuple[str, ...] = ()

  @property
  def parent(self) -> str:
    """The term that contains it, or '' where there is none or one of several."""
    return self.parents[0] if len(self.parents) == 1 else ''

  @property
  def phrases(self) -> tuple[str, ...]:
    """Name, synonyms and held-out names."""
    return (self.name, *self.synonyms, *self.held_out)


class Vocabulary:
  """Terms by name and phrase, and what lies in what.

  Args:
    terms: of different names. A phrase that two of them have is the first one's.
  """

  def __init__(self, terms: Iterable[Term]):
    self.terms = tuple(terms)
    self._by_name = {term.name: term for term in self.terms}
    self._by_phrase: dict[str, Term] = {}
    for term in self.terms:
      for phrase in term.phrases:
        self._by_phrase.setdefault(fold(phrase), term)

  def __len__(self) -> int:
    return len(self.terms)

  def __iter__(self) -> Iterator[Term]:
    return iter(self.terms)

  def get(self, name: str) -> Term:
    """The term of a canonical name; KeyError if there is none."""
    return self._by_name[name]

  def find(self, text: str) -> Term | None:
    """The term of which `text` is a phrase, whatever its case, hyphens and underscores."""
    return self._by_phrase.get(fold(text))

  def ancestors(self, name: str) -> frozenset[str]:
    """Names of all terms that may contain this one."""
    outer: set[str] = set()
    open_names = list(self.get(name).parents)
    while open_names:  # not recursive: declared classes may contain each other by way of a term
      parent = open_names.pop()
      if parent not in outer:
        outer.add(parent)
        open_names.extend(self.get(parent).parents)
    return frozenset(outer)


def fold(text: str) -> str:
  """A phrase as phrases are compared: lower case, words and numbers with single spaces between."""
  return ' '.join(re.findall(r'[^\W_]+', text.casefold()))


def terms(template: Template = TEMPLATE) -> tuple[Term, ...]:
  """The classes of a template, in its order, and then the other terms of the file; see `read`."""
  return read(template).terms


def read(template: Template = TEMPLATE) -> Vocabulary:
  """The vocabulary together with the classes of a template.

  A class that has a name in common with a term of the file takes that term's place, and its other
  names too.
  """
  known = {fold(phrase): term for term in _file() for phrase in term.phrases}
  replaced: dict[str, str] = {}
  classes = []
  for structure in template:
    hits = [known.get(fold(phrase)) for phrase in structure.phrases]
    same = [term for term in dict.fromkeys(filter(None, hits)) if term.name not in replaced]
    replaced |= {term.name: structure.name for term in same}
    classes.append(_of_class(structure, same))
  declared = {fold(phrase): s.name for s in template for phrase in s.phrases}
  return Vocabulary(
    dataclasses.replace(
      term,
      parents=tuple(dict.fromkeys(replaced.get(name, name) for name in term.parents)),
      synonyms=_free(term.synonyms, declared, term.name),
      held_out=_free(term.held_out, declared, term.name),
    )
    for term in (*classes, *(term for term in _file() if term.name not in replaced))
  )


def _free(phrases: Iterable[str], declared: dict[str, str], name: str) -> tuple[str, ...]:
  """The phrases that no class of another name declares: what users say comes first."""
  return tuple(phrase for phrase in phrases if declared.get(fold(phrase), name) == name)


def _of_class(structure: Structure, same: Sequence[Term]) -> Term:
  """The term of a class that takes the place of some terms of the file."""
  organ = structure.name
  if structure.side:
    organ = organ.removeprefix(f'{structure.side} ')
  region, *places = _PLACES.get(organ, (same[0].region if same else 'body',))
  outer = [parent for term in same for parent in term.parents]
  parents = structure.parents or (*(place.format(side=structure.side) for place in places), *outer)
  finding = _FINDINGS.search(structure.name) or 'finding' in [term.kind for term in same]
  declared = {fold(phrase) for phrase in structure.phrases}
  synonyms = [phrase for term in same for phrase in (term.name, *term.synonyms)]
  held_out = [phrase for term in same for phrase in term.held_out]
  return Term(
    structure.name,
    'finding' if finding else 'structure',
    structure.side,
    organ,
    tuple(dict.fromkeys(parents)),
    region,
    (*structure.synonyms, *(phrase for phrase in synonyms if fold(phrase) not in declared)),
    (*structure.held_out, *(phrase for phrase in held_out if fold(phrase) not in declared)),
  )


@functools.cache
def _file() -> tuple[Term, ...]:
  """The rows of the file."""
  _, rows = text_files.read_csv(str(FILE), separators=',')
  return tuple(
    Term(
      row['name'],
      row['kind'],
      row['side'],
      row['organ'],
      _split(row['parent']),
      row['region'],
      _split(row['synonyms']),
      _split(row['held_out']),
    )
    for row in rows
  )


def _split(cell: str) -> tuple[str, ...]:
  return tuple(filter(None, cell.split('|')))
