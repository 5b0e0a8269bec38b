"""Which class an ROI of a structure set stands for, by its name."""

import dataclasses
import fnmatch
import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from input_pipeline.anatomy import Template
from input_pipeline.anatomy.resolve import find_class
from input_pipeline.errors import UserError, suggest
from input_pipeline.files.text_files import are_texts


class RoiNameError(UserError):
  """A table of names that contradicts itself or the template; the message names the entry."""


@dataclasses.dataclass(frozen=True)
class RoiNames:
  """A table of names.

  Upper and lower case, underscores and spaces are alike; `*`, `?` and `[abc]` are wildcards.

  Attributes:
    patterns: class or pair -> the names that stand for it.
    ignored: names that stand for nothing, and are not told of.
    template: of the classes; a name that no pattern fits is looked up in it, as a prompt is.
  """

  patterns: Mapping[str, Sequence[str]]
  ignored: Sequence[str]
  template: Template

  def class_of(self, roi: str, written: str = '') -> str | None:
    """The class or pair of an ROI, or None.

    A name without wildcards goes before those with them; among equals a class before `ignored`.

    Args:
      roi: its name; of a segment whose code alone says its side the label and the side.
      written: the label alone, which patterns may fit as well; '' where it is the name.

    Raises:
      RoiNameError: if patterns of two classes fit.
    """
    for exact, name in itertools.product((True, False), _spellings(roi, written)):
      hits = [noun for noun, patterns in self.patterns.items() if _fits(name, patterns, exact)]
      if len(hits) > 1:
        raise RoiNameError(
          f'the ROI {roi!r} stands for {" and ".join(hits)}; make the patterns of "rois" narrower'
        )
      if hits:
        side = roi.removeprefix(written or roi)
        is_pair = side and hits[0] in self.template.pairs()
        return (find_class(hits[0] + side, self.template) if is_pair else None) or hits[0]
      if _fits(name, self.ignored, exact):
        return None
    return find_class(roi, self.template)

  def is_ignored(self, roi: str, written: str = '') -> bool:
    """Whether an ROI is declared to stand for nothing; see `class_of`."""
    both = itertools.product((True, False), _spellings(roi, written))
    return any(_fits(name, self.ignored, exact) for exact, name in both)


def make(rois: Any, ignored: Any, template: Template) -> RoiNames:
  """The table of a file.

  Args:
    rois: class -> a pattern or a list of them.
    ignored: a list of patterns.
    template: of the classes.

  Raises:
    RoiNameError: if a class is unknown or something is no text; it names all of them.
  """
  if not isinstance(rois, Mapping):
    raise RoiNameError('"rois" must map classes to names, as {"left parotid": ["Parotid_L*"]}')
  if not are_texts(ignored):
    raise RoiNameError('"ignored" must be a list of names of ROIs')
  faults: list[str] = []
  patterns: dict[str, list[str]] = {}
  for noun, names in rois.items():
    names = [names] if isinstance(names, str) else names
    known = find_class(noun, template)
    if not are_texts(names):
      faults.append(f'rois of {noun!r} must be a name or a list of names')
    elif known is None:
      guess = suggest(noun, template.names())
      faults.append(
        f'rois: {noun!r} is no class; {guess}, or declare it: "new_classes": [{{"name": "{noun}"}}]'
      )
    else:
      patterns[known] = [*patterns.get(known, ()), *map(plain, names)]
  if faults:
    raise RoiNameError('; '.join(faults))
  return RoiNames(patterns, [plain(name) for name in ignored], template)


def plain(name: str) -> str:
  """A name without case, underscores and doubled spaces."""
  return ' '.join(name.replace('_', ' ').casefold().split())


def _spellings(roi: str, written: str) -> list[str]:
  return list(dict.fromkeys((plain(roi), plain(written or roi))))


def _fits(name: str, patterns: Collection[str], exact: bool) -> bool:
  if exact:
    return name in patterns
  return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
