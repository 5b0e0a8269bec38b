"""Public datasets of scans and label maps, declared as data: which files, what each value means."""

import dataclasses
import functools
import itertools
import pathlib
import re
import types
from collections.abc import Callable, Mapping, Sequence

from input_pipeline.anatomy import TEMPLATE, Template
from input_pipeline.ct import volume
from input_pipeline.files import inventory
from input_pipeline.sources import field_of_view, files, labels
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
    absent: (regular expression of the scan's path, classes or pairs): what the field of view of
      these scans cannot show; all that match count.
    slice_ranges: (regular expression of the scan's path, ranges as of `Case`), where a class was
      not labelled over the whole scan.
    splits: (regular expression of the scan's path, split), where the dataset has official ones.
    shares: of the splits that the others are drawn into.
    same: case -> another one that is the same scan, of the same patient: drawn as it is.
    others: (regular expression of a path, what the download is): of other datasets with such files,
      whose labels mean something else.
    of_men: classes whose label is another organ in women: supervised in scans of men alone.
    sexes: all paths of the download -> case -> 'M' for a man; needed for `of_men`.
    template: of the names.
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
  absent: tuple[tuple[str, tuple[str, ...]], ...] = ()
  slice_ranges: tuple[tuple[str, Mapping[str, tuple[float, float]]], ...] = ()
  splits: tuple[tuple[str, str], ...] = ()
  shares: Mapping[str, float] = dataclasses.field(default_factory=lambda: SHARES)
  same: Mapping[str, str] = dataclasses.field(default_factory=dict)
  others: tuple[tuple[str, str], ...] = ()
  of_men: tuple[str, ...] = ()
  sexes: Callable[[Sequence[pathlib.Path]], Mapping[str, str]] = lambda paths: {}
  template: Template = TEMPLATE

  def source(self) -> Source:
    """The source that `prepare` reads."""
    return Source(
      name=self.name,
      description=self.description,
      licence=self.licence,
      citation=self.citation,
      cases=self.cases,
      expected=self.expected,
      classes=labels.classes_of(self.meanings, self.template),
      template=lambda manual_dir: self.template,
    )

  def cases(self, manual_dir: str | None) -> list[Case]:
    """All labelled scans below a folder.

    Raises:
      SourceError: if there is none, or it is another dataset.

    Warns:
      UserWarning: of NIfTI files that are left out: scans without a label map, label maps without a
        scan, and what is called neither way.
    """
    folder = files.folder_of(self.name, manual_dir, f'{self.name} as downloaded')
    paths = [path for path in files.walk(folder) if not (_is_named_nifti(path) and path.is_dir())]
    for path, (pattern, what) in itertools.product(paths, self.others):
      if _ends(pattern, _place(folder, path)):
        raise SourceError(f'{path}: is of {what}')
    images = _match(folder, paths, self.image)
    maps = [_match(folder, paths, label) for label in self.label]
    sexes = self.sexes(paths)
    cases, without = [], []
    for name, (image, *more) in images.items():
      label, *others = next((paths[name] for paths in maps if name in paths), [None])
      if label is None:
        without.append(image)
        continue
      case = self._case(folder, name, image, label, () if sexes.get(name) == 'M' else self.of_men)
      for twice, first in ((more, image), (others, label)):
        if twice:
          problem = f'{twice[0]}: case {name} is also {first}; keep one of them'
          case = dataclasses.replace(case, load=functools.partial(files.fail, problem))
      cases.append(case)
    if not cases:
      raise SourceError(
        f'{folder}: no scan of {self.name} with its labels; expected files like '
        f'{_readable(self.image)} and {_readable(self.label[0])} in it or below (#: digits)'
      )
    self._tell(paths, images, maps, without)
    return cases

  def _tell(
    self,
    paths: Sequence[pathlib.Path],
    images: Mapping[str, list[pathlib.Path]],
    maps: Sequence[Mapping[str, list[pathlib.Path]]],
    without: Sequence[pathlib.Path],
  ) -> None:
    """Warns of the NIfTI files that belong to no case."""
    known = {path for matches in (images, *maps) for same in matches.values() for path in same}
    nifti = [path for path in paths if _is_named_nifti(path)]
    lonely = [
      p for matches in maps for name, same in matches.items() if name not in images for p in same
    ]
    for left_out, what in (
      (without, 'scans without a label map'),
      (lonely, 'label maps without a scan'),
      ([p for p in nifti if p not in known], 'other NIfTI files'),
    ):
      if left_out:
        files.note(f'{self.name}: {files.counted(left_out, what)}')

  def _case(
    self,
    folder: pathlib.Path,
    name: str,
    image: pathlib.Path,
    label: pathlib.Path,
    unlabelled: Sequence[str],
  ) -> Case:
    relative = {path: _place(folder, path) for path in (image, label)}
    labelled = [names for pattern, names in self.partial if _ends(pattern, relative[label])]
    supervised = labels.classes_of(self.meanings, self.template)
    # Without what holds for all cases, which no key of a prepared case has.
    told: tuple = (self.template,) if self.template is not TEMPLATE else ()
    if labelled or unlabelled:
      names = labelled[0] if labelled else labels.names_of(self.meanings)
      left = [name for name in names if name not in unlabelled]
      known = labels.restrict(self.meanings, left, self.template)
      supervised = labels.classes_of(known, self.template)
      told = (self.template, supervised)
    official = [split for pattern, split in self.splits if _ends(pattern, relative[image])]
    patient = self.same.get(name, '')
    split = official[0] if official else files.split_of(self.name, patient or name, self.shares)
    load = functools.partial(files.load, image, label, dict(self.meanings), *told)
    ranges = {
      label: heights
      for pattern, of_class in self.slice_ranges
      if _ends(pattern, relative[image])
      for label, heights in of_class.items()
    }
    case = Case(self.name, name, split, supervised, load, slice_ranges=ranges, patient=patient)
    absent = [n for pattern, names in self.absent if _ends(pattern, relative[image]) for n in names]
    return field_of_view.declare(case, absent, self.template)


def _is_named_nifti(path: pathlib.Path) -> bool:
  return path.name.lower().endswith(volume.ENDINGS)


def _place(folder: pathlib.Path, path: pathlib.Path) -> str:
  """Where a file lies in a download.

  Programs that unpack it may put it into a folder of its name: volume-1.nii.gz/volume-1.nii.
  """
  around = path.parent
  wrapped = _is_named_nifti(around) and volume.stem(around) == volume.stem(path)
  return (around if wrapped else path).relative_to(folder).as_posix()


def _ends(pattern: str, path: str) -> re.Match | None:
  """Whether a path ends as the pattern says.

  NIfTI may be compressed or not, whichever the pattern says, and letters may be large or small.
  """
  stem = inventory.stem(path)
  endings = volume.ENDINGS if stem != path else ('',)
  hits = (re.search(rf'(?:^|/)(?:{pattern})$', stem + end, re.IGNORECASE) for end in endings)
  return next(filter(None, hits), None)


def _match(
  folder: pathlib.Path, paths: Sequence[pathlib.Path], pattern: str
) -> dict[str, list[pathlib.Path]]:
  """Case -> the files or folders whose path ends as the pattern says, by name of the case."""
  matches: dict[str, list[pathlib.Path]] = {}
  for path in paths:
    if hit := _ends(pattern, _place(folder, path)):
      matches.setdefault(hit['case'], []).append(path)
  return dict(sorted(matches.items()))


def _readable(pattern: str) -> str:
  """What a regular expression of paths stands for: 'imagesTr/liver_#.nii.gz'.

  A # stands for one digit where their number is given, or else for any number of them; of
  alternatives the first is shown.
  """
  text = re.sub(r'\\d\{(\d)\}', lambda count: '#' * int(count[1]), pattern)
  text = re.sub(r'\\d\+?|\[\d-\d\]', '#', text).replace('[^/]+', 'NAME').replace('\\', '')
  text = re.sub(r'\(\?(?:P<\w+>|:)', '(', text)
  while (simpler := re.sub(r'\(([^()|]*)[^()]*\)\??', r'\1', text)) != text:
    text = simpler
  return text
