"""Public datasets of scans and label maps, declared as data: which files, what each value means."""

import dataclasses
import functools
import pathlib
import re
import types
import warnings
from collections.abc import Mapping

from input_pipeline import labels
from input_pipeline.sources import files
from input_pipeline.sources.base import Case, Source, SourceError

SHARES = types.MappingProxyType({'train': 0.7, 'validation': 0.1, 'test': 0.2})


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A dataset whose cases are a scan (NIfTI, or a DICOM series) and a NIfTI label map each.

  Attributes:
    name: of the source.
    description, licence, citation: for people.
    expected: number of labelled scans of the complete download.
    image: regular expression of a scan's path, from the end; its group `case` names the case.
    label: regular expressions of the label map's path, the preferred one first.
    meanings: label value -> what it stands for, as `labels.convert`.
    partial: (regular expression of the label map's path, classes): what is labelled there, where
      that is not everything; the first that matches counts.
    splits: (regular expression of the scan's path, split), where the dataset has official ones.
    shares: of the splits that the others are drawn into.
  """

  name: str
  description: str
  licence: str
  citation: str
  expected: int
  image: str
  label: tuple[str, ...]
  meanings: Mapping[int, labels.Meaning]
  partial: tuple[tuple[str, tuple[str, ...]], ...] = ()
  splits: tuple[tuple[str, str], ...] = ()
  shares: Mapping[str, float] = dataclasses.field(default_factory=lambda: SHARES)

  def source(self) -> Source:
    """The source that `prepare` reads."""
    return Source(
      name=self.name,
      description=self.description,
      licence=self.licence,
      citation=self.citation,
      cases=self.cases,
      expected=self.expected,
      classes=labels.classes_of(self.meanings),
    )

  def cases(self, manual_dir: str | None) -> list[Case]:
    """All labelled scans below a folder.

    Raises:
      SourceError: if there is none, or a case is there twice.

    Warns:
      UserWarning: if scans have no label map; they are left out.
    """
    folder = files.folder_of(self.name, manual_dir, f'{self.name} as downloaded')
    images = _match(folder, self.image)
    found = [_match(folder, label) for label in self.label]
    cases, without = [], []
    for name, image in images.items():
      label = next((paths[name] for paths in found if name in paths), None)
      if label is None:
        without.append(image)
      else:
        cases.append(self._case(folder, name, image, label))
    if not cases:
      raise SourceError(
        f'{folder}: no scan of {self.name} with its labels; expected files like {self.image} and '
        f'{self.label[0]} in it or below'
      )
    if without:
      warnings.warn(
        f'{self.name}: {len(without)} scans have no label map and are left out, first {without[0]}',
        stacklevel=2,
      )
    return cases

  def _case(
    self, folder: pathlib.Path, name: str, image: pathlib.Path, label: pathlib.Path
  ) -> Case:
    relative = {path: path.relative_to(folder).as_posix() for path in (image, label)}
    labelled = [names for pattern, names in self.partial if _ends(pattern, relative[label])]
    meanings = labels.restrict(self.meanings, labelled[0]) if labelled else dict(self.meanings)
    official = [split for pattern, split in self.splits if _ends(pattern, relative[image])]
    split = official[0] if official else files.split_of(self.name, name, self.shares)
    load = functools.partial(files.load, image, label, meanings)
    return Case(self.name, name, split, labels.classes_of(meanings), load)


def _ends(pattern: str, path: str) -> re.Match | None:
  return re.search(rf'(?:^|/)(?:{pattern})$', path)


def _match(folder: pathlib.Path, pattern: str) -> dict[str, pathlib.Path]:
  """Case -> the file or folder whose path ends as the pattern says, by name of the case."""
  found: dict[str, pathlib.Path] = {}
  for path in files.walk(folder):
    hit = _ends(pattern, path.relative_to(folder).as_posix())
    if hit:
      name = hit['case']
      if name in found:
        raise SourceError(f'{path}: case {name} is also {found[name]}; keep one of them')
      found[name] = path
  return dict(sorted(found.items()))
