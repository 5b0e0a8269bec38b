"""Classes that a scan cannot show, as they lie outside its field of view: known without a label.

A class that nobody labelled is unknown, and neither trained nor scored. One that cannot be there is
background in every voxel: it is trained as that, and a mask of it is wrong.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from input_pipeline.anatomy import TEMPLATE, Template
from input_pipeline.files import text_files
from input_pipeline.sources import absence, labels
from input_pipeline.sources.base import Case, SourceError, in_template_order


def closure(names: Iterable[str], template: Template = TEMPLATE) -> frozenset[str]:
  """The classes of names and pairs, and what lies only in these: no kidneys, no kidney tumor.

  Raises:
    ClassError: if the template has no such class.
  """
  pairs = template.pairs()
  absent = {template.get(side).name for name in names for side in pairs.get(name, (name,))}
  return frozenset(absent.union(*_inside(absent, template)))


def _inside(absent: set[str], template: Template) -> Iterable[set[str]]:
  inner = {s.name for s in template if s.parents and absent.issuperset(s.parents)} - absent
  if inner:
    yield inner
    yield from _inside(absent | inner, template)


def declare(
  case: Case,
  names: Iterable[str],
  template: Template = TEMPLATE,
  heights: tuple[float, float] | None = None,
) -> Case:
  """The case, with classes outside its field of view.

  Args:
    case: of any source.
    names: classes of the template, or pairs: 'kidney' is both.
    template: of the names.
    heights: between which they cannot be, as of `Case.slice_ranges`; nowhere by default.

  Raises:
    SourceError: if the case labels one of them, or what lies in them.
    ClassError: if the template has no such class.
  """
  absent = closure(names, template)
  if both := in_template_order(absent & set(case.labelled), template):
    raise SourceError(
      f'{case.source}/{case.name}: {", ".join(both)} is both labelled and declared absent; decide'
    )
  ranges = {} if heights is None else dict.fromkeys(sorted(absent), heights)
  return dataclasses.replace(
    case,
    supervised=in_template_order({*case.supervised, *absent}, template),
    slice_ranges={**case.slice_ranges, **ranges},
    absent=in_template_order({*case.absent, *absent}, template),
  )


def written(
  index: Mapping[str, Any], path: pathlib.Path, field: str = 'absent'
) -> tuple[Sequence[str], dict[str, Sequence[str]]]:
  """A field of a `dataset.json`: the names for all cases, and those of single ones.

  Args:
    index: content of the file.
    path: of the file.
    field: 'absent', or another that is written so.

  Raises:
    SourceError: if it is neither a list of names nor one a case.
  """
  given = index.get(field, ())
  by_case = given if isinstance(given, Mapping) else {'': given}
  for names in by_case.values():
    if not text_files.are_texts(names):
      raise SourceError(f'{path}: "{field}" must be a list of classes, or map cases to lists')
  return ((), dict(by_case)) if isinstance(given, Mapping) else (given, {})


def read(
  index: Mapping[str, Any],
  path: pathlib.Path,
  cases: Collection[str],
  resolve: Callable[[str], str],
  template: Template,
) -> dict[str, frozenset[str]]:
  """Case -> classes that the field `absent` of a `dataset.json` declares: a list, or one a case.

  Args:
    index: content of the file.
    path: of the file.
    cases: names of all that there are.
    resolve: a name as it is written -> class or pair; UserError if there is none.
    template: of the classes.

  Raises:
    SourceError: if it is neither, or names what is no case or no class; it names all of them.
  """
  everywhere, by_case = written(index, path)
  faults = [
    f'absent names the case {name!r}, which is not there' for name in by_case if name not in cases
  ]
  declared = {}
  for case in cases:
    known = []
    for name in by_case.get(case, everywhere):
      try:
        known.append(resolve(name))
      except ValueError as error:
        faults.append(f'absent: {name!r} {error}')
    if known:
      declared[case] = closure(known, template)
  if faults:
    raise SourceError(f'{path}: {"; ".join(dict.fromkeys(faults))}')
  return declared


def labelled(
  names: Iterable[str], absent: Collection[str], template: Template, path: pathlib.Path
) -> list[str]:
  """The names of a mapping that are not absent.

  Args:
    names: classes and pairs, as `labels.names_of` gives them.
    absent: classes, of `closure`.
    template: of the classes.
    path: that declares both, for messages.

  Raises:
    SourceError: if one side of a pair is absent, and the labels do not tell the sides.
  """
  pairs = template.pairs()
  left = []
  for name in names:
    sides = set(pairs.get(name, (name,)))
    if sides.isdisjoint(absent):
      left.append(name)
    elif not sides <= set(absent):
      raise SourceError(
        f'{path}: "absent" names one side of {name!r}, whose label does not tell the sides; '
        f'label right and left, or name {name!r}'
      )
  return left


def check_empty(
  name: str,
  path: pathlib.Path,
  meanings: Mapping[int, labels.Meaning],
  absent: Collection[str],
  template: Template,
) -> None:
  """SourceError if a label map holds what is declared absent.

  Args:
    name: of the case.
    path: of its label map.
    meanings: label value -> what it stands for.
    absent: classes that the case declares.
    template: of the classes.
  """
  pairs = template.pairs()
  held = absence.occurring({name: path}, meanings).get(name, frozenset())
  # Of a pair with one side absent it may be the other.
  if wrong := [noun for noun in sorted(held) if {*pairs.get(noun, (noun,))} <= {*absent}]:
    raise SourceError(
      f'{path}: holds {", ".join(wrong)}, which "absent" declares outside its field of view; '
      'correct one of the two'
    )
