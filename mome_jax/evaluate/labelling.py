"""What the `dataset.json` of references says of classes that a case lacks."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping

from input_pipeline.anatomy import TEMPLATE, Template
from input_pipeline.anatomy.resolve import resolve
from input_pipeline.sources import absence, dataset_fields, field_of_view, files, patient_ids
from mome_jax.evaluate import mask_folders

_EVERYWHERE = ''  # stands for the cases that are not named


@dataclasses.dataclass(frozen=True)
class Labelling:
  """What was looked for in which case. Names mean here what they mean to `prepare`.

  Attributes:
    missing_is: 'unlabelled', 'absent', or '' where it does not say; as the source nifti_folder.
    supervised: case -> classes that were labelled in it, '' of all others; cases that are not
      there are as `missing_is` says.
    absent: case -> classes that its field of view cannot show, '' of all others.
    patients: case -> patient, of the cases that are named as scans of one.
    template: of the classes.
  """

  missing_is: str = ''
  supervised: Mapping[str, frozenset[str]] = dataclasses.field(default_factory=dict)
  absent: Mapping[str, frozenset[str]] = dataclasses.field(default_factory=dict)
  patients: Mapping[str, str] = dataclasses.field(default_factory=dict)
  template: Template = TEMPLATE

  def out_of_view(self, case: str, name: str) -> bool:
    """Whether the field of view of a case cannot show a class; of a pair, neither side."""
    absent = self.absent.get(case, self.absent.get(_EVERYWHERE, frozenset()))
    return _classes(name, self.template) <= absent

  def out_of_some_view(self, name: str) -> bool:
    """Whether any case cannot show a class."""
    return any(_classes(name, self.template) <= absent for absent in self.absent.values())

  def says(self, case: str) -> bool:
    """Whether it tells what it means where a case lacks a class."""
    return bool(self.missing_is) or not self.supervised.keys().isdisjoint((case, _EVERYWHERE))

  def labels(self, case: str, name: str, *, occurs: bool) -> bool:
    """Whether a class was looked for in a case, so that a mask of it can be right or wrong.

    Args:
      case: its name.
      name: of the class, or of a pair, of which both sides count.
      occurs: whether the reference has a voxel of it.
    """
    listed = self.supervised.get(case, self.supervised.get(_EVERYWHERE))
    if listed is not None:
      return _classes(name, self.template) <= listed
    return occurs or self.missing_is != absence.UNLABELLED


def read(folder: pathlib.Path) -> Labelling:
  """What `dataset.json` in or beside a folder of references says.

  Raises:
    ScoreError, TextFileError, SourceError: if it cannot be read, or says what cannot be.
  """
  places = (folder / 'dataset.json', folder.parent / 'dataset.json')
  path = next(filter(os.path.lexists, places), None)
  if path is None:
    return Labelling()
  content = mask_folders.declaration(path)
  dataset_fields.check_label_maps(content, path)
  template = files.template_of(path.parent, content)
  absent = {
    case: field_of_view.closure(names & {*template.names()}, template) | names
    for case, names in _by_case(content, path, 'absent', template).items()
  }
  supervised = _by_case(content, path, 'supervised', template)
  # References may be some of the cases: one that is named need not be there.
  whose = patient_ids.read(content, path, content.get(patient_ids.FIELD) or ())
  return Labelling(absence.reads(content, path), supervised, absent, whose, template)


def _by_case(
  content: Mapping, path: pathlib.Path, field: str, template: Template
) -> dict[str, frozenset[str]]:
  """Case -> classes that a field lists, '' of all others; nothing where it is not given."""
  if field not in content:
    return {}
  everywhere, by_case = field_of_view.written(content, path, field)
  if not isinstance(content[field], Mapping):
    by_case = {_EVERYWHERE: everywhere}
  meant = lambda names: (_classes(name, template) for name in names)
  return {case: frozenset().union(*meant(names)) for case, names in by_case.items()}


def _classes(name: str, template: Template) -> frozenset[str]:
  """The classes that a name means, both sides of a pair; one that is no class stands for itself."""
  meant = frozenset(structure.name for structure in resolve(name, template))
  return meant or frozenset((mask_folders.canonical(name, template),))
