"""Folders of masks, as nnU-Net, TotalSegmentator and `mome_jax.predict` write them."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np

from input_pipeline import remarks
from input_pipeline.anatomy import TEMPLATE, Template
from input_pipeline.anatomy.resolve import find_class
from input_pipeline.ct import slicer_segments, volume
from input_pipeline.files import file_kinds, inventory, text_files
from input_pipeline.sources import nifti_folder
from mome_jax.errors import UserError, few

_SUFFIXES = ('_seg', '_masks', '_totalsegmentator')  # of what `predict` writes
_PROBABILITIES = '_probabilities'
_UNSCORED = ('background', 'ignore')
CLASS_TABLE = 'the class table'  # what values mean where nothing declares them
LegendRow = tuple[str, int, str | None]  # name, label, file of the whole mask
_LEGENDS = '{}/NAME_seg.json'
_NO_MASKS = ('text', 'picture')  # legends, tables and previews beside masks are nothing to tell of


class ScoreError(UserError):
  """Folders that cannot be scored; the message names the folder or file and the fix."""


@dataclasses.dataclass(frozen=True)
class Masks:
  """The masks of one case.

  Attributes:
    path: of the label map, or of the folder of masks.
    names: its classes.
    read: class name -> mask, a Volume of bool.
    ignored: () -> mask of the voxels that are not scored; or None.
    declared_in: what says what values mean, or `CLASS_TABLE`; '' where masks are no values.
    undeclared: () -> values of the label map that it does not say, and that are in no mask.
    pairs: paired organ without its side -> both sides, where these are its classes and it is none.
  """

  path: pathlib.Path
  names: tuple[str, ...]
  read: Callable[[str], volume.Volume]
  ignored: Callable[[], volume.Volume] | None = None
  declared_in: str = ''
  undeclared: Callable[[], list[int]] = list
  pairs: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)

  def holds(self, name: str) -> bool:
    """Whether there is a mask of a class, or of both sides of a pair."""
    return name in self.names or name in self.pairs

  def mask(self, name: str) -> volume.Volume:
    """The mask of a class that it holds: of a pair, both sides."""
    if name not in self.pairs:
      return self.read(name)
    right, left = map(self.read, self.pairs[name])
    if right.array.shape != left.array.shape:
      raise ScoreError(f'{self.path}: the sides of {name!r} are on two grids; predict anew')
    return volume.Volume(right.array | left.array, right.geometry)


@dataclasses.dataclass(frozen=True)
class Meaning:
  """What the values of label maps mean.

  Attributes:
    values: class -> values; of an organ those beside its tumours, cysts and vessels.
    place: file or files that say so, or `CLASS_TABLE`.
  """

  values: Mapping[str, Sequence[int]]
  place: str


@dataclasses.dataclass(frozen=True)
class MaskFolder:
  """What a folder holds.

  Attributes:
    path: the folder.
    masks: case -> its masks.
    failed: (case, reason) of cases that are there twice or cannot be listed, and in no `masks`.
    notes: what was left out, for people.
  """

  path: pathlib.Path
  masks: dict[str, Masks]
  failed: list[tuple[str, str]]
  notes: list[str]

  @property
  def by_class_table(self) -> bool:
    """Whether nothing declares what values of its label maps mean."""
    return any(masks.declared_in == CLASS_TABLE for masks in self.masks.values())


def read_folder(
  folder: pathlib.Path, meaning: Meaning | None, template: Template = TEMPLATE
) -> MaskFolder:
  """The masks of a folder: of label maps, or of folders of masks. Nothing but names is read yet.

  Args:
    folder: to look into.
    meaning: of the values in label maps; None is the built-in template.
    template: of the classes, which says what names mean and what contains what.

  Raises:
    ScoreError: if the folder is missing or holds neither.
    FolderError: if it cannot be listed.
  """
  for cache in (_read_labels, _layers):  # files may have changed since the last call
    cache.cache_clear()
  if not folder.is_dir():
    raise ScoreError(f'{folder}: no such folder; correct its path')
  held = inventory.look(folder, file_kinds.VOLUMES, deep=False)
  labels_of = [path.name for path in held.folders if path.name in ('labelsTr', 'labelsTs')]
  if labels_of and not held.used:  # imagesTr would be a case, and its scans masks
    raise ScoreError(f'{folder}: a whole dataset; give {" or ".join(labels_of)} in it')
  # As in `label_values`: what a dataset.json says goes before what `predict` noted.
  legends = {} if os.path.lexists(folder / 'dataset.json') else _read_legends(folder, template)
  maps = list(_label_maps(held, meaning, legends, template))
  # What `predict` wrote beside NAME_seg.nii.gz is the same once more.
  names = {case for case, _ in maps}
  labels = {file.name for file in held.used if file.name.endswith('_seg.nii.gz')}
  maps = [
    (case, masks)
    for case, masks in maps
    if masks.path.name in labels or f'{case}_seg.nii.gz' not in labels
  ]
  folders = [pair for pair in _mask_folders(held, legends, template) if pair[0] not in names]
  failed = {case: str(masks) for case, masks in folders if isinstance(masks, UserError)}
  maps += [(case, masks) for case, masks in folders if isinstance(masks, Masks)]
  if not maps:
    nothing = 'no NAME.nii.gz with labels and no NAME/CLASS.nii.gz with masks directly in it'
    raise ScoreError(next(iter(failed.values()), f'{folder}: {nothing}'))
  by_case: dict[str, Masks] = {}
  for case, masks in maps:
    masks = dataclasses.replace(masks, pairs=_pairs(masks.names, template))
    if by_case.setdefault(case, masks) is not masks:
      failed[case] = f'{masks.path} and {by_case[case].path.name} are both of this case; keep one'
  for case in failed:
    by_case.pop(case, None)
  left_out = [file for file in held.left_out if file.reason not in _NO_MASKS]
  notes = [f'{folder}: left out: {phrase}' for phrase in inventory.phrases(left_out)]
  return MaskFolder(folder, by_case, list(failed.items()), notes)


def label_values(folder: pathlib.Path, template: Template = TEMPLATE) -> Meaning | None:
  """What values mean, from what lies in a folder or beside it; None where nothing says.

  Args:
    folder: of label maps.
    template: of the classes.

  Raises:
    ScoreError, TextFileError, SourceError: if what says so cannot be read.
  """
  inside, beside = folder / 'dataset.json', folder.parent / 'dataset.json'
  if os.path.lexists(inside):  # a link to nothing means something else than no file
    return _declared(inside, template)
  if legends := _legends(folder, template):
    return Meaning(legends, _LEGENDS.format(folder))
  return _declared(beside, template) if os.path.lexists(beside) else None


def canonical(name: str, template: Template = TEMPLATE) -> str:
  """The class or pair that is meant, as in kidney_left and Kidneys; else lower case with spaces."""
  return find_class(name, template) or ' '.join(name.replace('_', ' ').casefold().split())


def _label_maps(
  held: inventory.Inventory,
  meaning: Meaning | None,
  legends: Mapping[str, Sequence[LegendRow]],
  template: Template,
) -> Iterator[tuple[str, Masks]]:
  meaning = meaning or _of_template()
  names = tuple(name for name in meaning.values if name not in _UNSCORED)
  for file in (*held.used, *held.failed):
    case = _case(inventory.stem(file.name))
    if segments := _segments(file, template):
      read = functools.partial(_read_segment, file, segments, template)
      yield case, Masks(file.path, tuple(segments), read)
      continue
    if case in legends and file.name == f'{case}_seg.nii.gz':
      # Other cases may have been asked for other classes, and give a label another meaning.
      values = {name: [label] for name, label, _ in legends[case]}
      whole = {name: file.path.parent / mask for name, _, mask in legends[case] if mask}
      read = functools.partial(_read_label, file, values, template)
      read = functools.partial(_read_whole, whole, read)
      undeclared = functools.partial(_undeclared, file, values)
      place = _LEGENDS.format(file.path.parent)
      yield case, Masks(file.path, tuple(values), read, None, place, undeclared)
      continue
    read = functools.partial(_read_label, file, meaning.values, template)
    ignored = functools.partial(read, 'ignore') if 'ignore' in meaning.values else None
    undeclared = functools.partial(_undeclared, file, meaning.values)
    yield case, Masks(file.path, names, read, ignored, meaning.place, undeclared)


def _of_template() -> Meaning:
  table = TEMPLATE.code_table(TEMPLATE.names())
  values = {name: np.flatnonzero(table[:, k]).tolist() for k, name in enumerate(TEMPLATE.names())}
  return Meaning(values, CLASS_TABLE)


def _pairs(names: Collection[str], template: Template) -> dict[str, tuple[str, str]]:
  """Pairs of which both sides are among the names, and they themselves are not."""
  pairs = template.pairs().items()
  return {noun: sides for noun, sides in pairs if noun not in names and {*sides} <= {*names}}


def contains(outer: str, inner: str, template: Template) -> bool:
  """Whether a class may contain another; a pair contains what either of its sides does."""
  return any(template.contains(organ, inner) for organ in _sides(outer, template))


def _sides(name: str, template: Template) -> tuple[str, ...]:
  return template.pairs().get(name, (name,))


def _read_whole(
  whole: Mapping[str, pathlib.Path], read_label: Callable[[str], volume.Volume], name: str
) -> volume.Volume:
  """The mask of a class: what overlaps others has a file, and is in the label map only in part."""
  if name not in whole:
    return read_label(name)
  if not whole[name].exists():
    raise ScoreError(
      f'{whole[name]}: not there, and the label map has {name!r} only where no class is; bring it '
      'along, or leave it out with --classes'
    )
  mask = volume.read_labels(whole[name])
  return volume.Volume(mask.array > 0, mask.geometry)


def _segments(file: inventory.File, template: Template) -> dict[str, list[slicer_segments.Segment]]:
  """Class -> its segments in a file of 3D Slicer that names them."""
  if file.problem or not slicer_segments.is_segmentation(file.path):
    return {}
  by_class: dict[str, list[slicer_segments.Segment]] = {}
  try:
    for segment in slicer_segments.segments(file.path):
      by_class.setdefault(canonical(segment.name, template), []).append(segment)
  except volume.VolumeError:  # told where it is read
    return {}
  return by_class


@functools.lru_cache(2)
def _layers(path: pathlib.Path) -> volume.Volume | UserError:
  """As `_read_labels`, all layers of a file of 3D Slicer."""
  try:
    return slicer_segments.read(path)
  except UserError as error:
    return error


def _read_segment(
  file: inventory.File,
  segments: Mapping[str, Sequence[slicer_segments.Segment]],
  template: Template,
  name: str,
) -> volume.Volume:
  """The mask of a class, with what lies in it: segments of one layer cannot overlap."""
  layers = _layers(file.path)
  if isinstance(layers, UserError):
    raise layers
  count = layers.array.shape[3]
  if missing := [segment.layer for segment in segments[name] if segment.layer >= count]:
    raise ScoreError(f'{file.path}: {name!r} is in layer {missing[0]} of {count}; save it again')
  of = lambda name: np.any([layers.array[..., s.layer] == s.value for s in segments[name]], 0)
  return volume.Volume(_whole(of, segments, template, name), layers.geometry)


def _labels(path: pathlib.Path, values: Mapping[str, Sequence[int]]) -> volume.Volume | UserError:
  """A label map whose values are declared, or why there is none."""
  wide = max((max(held, default=0) for held in values.values()), default=0) > 255
  return _read_labels(path, 65535 if wide else 255)  # `predict` numbers free text from 200 on


@functools.lru_cache(2)
def _read_labels(path: pathlib.Path, most: int) -> volume.Volume | UserError:
  """A label map with values up to `most`, or why there is none.

  A prediction and its reference stay in memory while their classes are scored; a damaged one is
  tried once and not for each class.
  """
  try:
    return volume.read_labels(path, most=most)
  except UserError as error:
    return error


def _read_label(
  file: inventory.File,
  meaning: Mapping[str, Sequence[int]],
  template: Template,
  name: str,
) -> volume.Volume:
  """The mask of a class, with what lies in it and has values of its own."""
  if file.problem:
    raise ScoreError(file.problem)
  labels = _labels(file.path, meaning)
  if isinstance(labels, UserError):
    raise labels
  of = lambda name: np.isin(labels.array, meaning[name])
  return volume.Volume(_whole(of, meaning, template, name), labels.geometry)


def _undeclared(file: inventory.File, values: Mapping[str, Sequence[int]]) -> list[int]:
  """The values of a label map that mean nothing; of one that cannot be read, none."""
  labels = None if file.problem else _labels(file.path, values)
  if not isinstance(labels, volume.Volume):
    return []
  declared = {0}.union(*values.values())
  return [value for value in np.unique(labels.array).tolist() if value not in declared]


def undeclared_notes(folder: pathlib.Path, cases: Mapping[str, tuple[str, list[int]]]) -> list[str]:
  """Of values that mean nothing: a mask of them would be missing without a word.

  Args:
    folder: of the label maps.
    cases: case -> what declares the values of its label map, and those that it does not.
  """
  by_place: dict[str, dict[str, list[int]]] = {}
  for case, (place, values) in cases.items():
    by_place.setdefault(place, {})[case] = values
  notes = []
  for place, of_case in by_place.items():
    shown = ', '.join(map(str, sorted(set().union(*of_case.values()))))
    notes.append(
      f'{folder}: values {shown} in {few(of_case)} are not declared in {place}, and in no '
      'mask; declare them there, or put a dataset.json of its own into that folder'
    )
  return notes


def class_table_note(folders: Sequence[MaskFolder]) -> str:
  """Of label maps whose values nothing declares, in these folders."""
  paths = [str(folder.path) for folder in folders]
  return (
    f'{" and ".join(paths)}: nothing says what the values of label maps mean; they are taken for '
    f'those of {CLASS_TABLE}, where 1 is {TEMPLATE.names()[0]}; if they are others, '
    f'put a dataset.json with "labels" into {paths[0]}'
  )


def _whole(
  of: Callable[[str], np.ndarray], names: Collection[str], template: Template, name: str
) -> np.ndarray:
  """The mask of a class, with those of the others that lie in it.

  Args:
    of: the mask (D, H, W) bool of a class alone.
    names: of all classes.
    template: of the classes.
    name: of the one.
  """
  alone = of(name)
  whole = alone.copy()
  inside = lambda parent: parent in _sides(name, template) or contains(name, parent, template)
  for part in (part for part in names if contains(name, part, template)):
    others = [parent for parent in template.get(part).parents if not inside(parent)]
    known = [of(other) for other in others if other in names]
    whole |= _nearer(of(part), alone, known) if others else of(part)
  return whole


def _nearer(part: np.ndarray, organ: np.ndarray, others: Sequence[np.ndarray]) -> np.ndarray:
  """The voxels of a lesion in one of a pair of organs that are nearer to this one.

  What lies midway belongs to the left one, as `prepare` has it.
  """
  spans = [np.flatnonzero(one.any((1, 2))) for one in (organ, *others) if one.any()]
  if not organ.any():
    return np.zeros_like(part)
  if len(spans) == 1:  # all of it is where the one organ is
    return part
  this, other = (span.mean() for span in spans)
  to_the_right = np.arange(len(part))[:, None, None] > (this + other) / 2
  return part & (to_the_right if this > other else ~to_the_right)


def _mask_folders(
  held: inventory.Inventory, legends: Mapping[str, Sequence[LegendRow]], template: Template
) -> Iterator[tuple[str, Masks | UserError]]:
  """The folders with masks, and those that cannot be used with the reason."""
  for folder in held.folders:
    if folder.name.endswith(_PROBABILITIES):
      continue
    case, inner = _case(folder.name), folder / 'segmentations'
    called = {os.path.basename(mask): name for name, _, mask in legends.get(case, ()) if mask}
    try:
      masks = inventory.look(
        inner if os.path.isdir(inner) else folder, file_kinds.VOLUMES, deep=False
      )
    except inventory.FolderError as error:  # costs only this case
      yield case, error
      continue
    by_class, twice = dict[str, inventory.File](), ''
    for file in (*masks.used, *masks.failed):
      name = file.path.name
      noun = called.get(name) or canonical(inventory.stem(name), template)
      other = by_class.setdefault(noun, file)
      if other is not file:
        twice = f'{folder}: {other.path.name} and {name} are one class; keep one'
    if twice:
      yield case, ScoreError(twice)
    elif by_class:
      read = functools.partial(_read_mask, by_class)
      yield case, Masks(folder, tuple(by_class), read)


def _read_mask(by_class: Mapping[str, inventory.File], name: str) -> volume.Volume:
  file = by_class[name]
  if file.problem:
    raise ScoreError(file.problem)
  labels = volume.read_labels(file.path)
  return volume.Volume(labels.array > 0, labels.geometry)


def _legends(folder: pathlib.Path, template: Template) -> dict[str, list[int]] | None:
  """Class -> values, from the legends of `predict`; for cases without one of their own."""
  meaning: dict[str, list[int]] = {}
  for rows in _read_legends(folder, template).values():
    for name, label, _ in rows:
      meaning.setdefault(name, [label])
  return meaning or None


def _read_legends(folder: pathlib.Path, template: Template) -> dict[str, list[LegendRow]]:
  """Case -> rows of its legend; ScoreError where all are damaged, else a note on those that are."""
  legends: dict[str, list[LegendRow]] = {}
  damaged = None
  for path in sorted(folder.glob('*_seg.json')):
    try:
      rows = text_files.read_json(path)['labels']
      if odd := [row for row in rows if not _is_legend_row(row)]:
        raise TypeError(f'{odd[0]} is no label')
      case = path.name.removesuffix('_seg.json')
      by_name = {canonical(row['name'], template): row for row in rows}
      if len(by_name) < len(rows):  # one class in several words, asked as written
        by_name = {row['name']: row for row in rows}
      legends[case] = [(n, row['label'], _whole_file(folder, row)) for n, row in by_name.items()]
    except (OSError, UserError, KeyError, TypeError, AttributeError) as error:
      damaged = ScoreError(f'{path}: no legend of labels ({error}); predict anew')
      remarks.tell(str(damaged))  # those of other cases say the same
  if damaged and not legends:
    raise damaged
  return legends


def _whole_file(folder: pathlib.Path, row: Mapping) -> str | None:
  """The file of a mask that the label map may hold in part; of classes that compete it may lack."""
  competes = row.get('taken_as') in ('class', 'synonym') and row.get('verdict') == 'known'
  mask = row.get('mask')
  return None if competes and mask and not (folder / mask).exists() else mask


def _is_legend_row(row: Mapping) -> bool:
  is_label = isinstance(row['name'], str) and type(row['label']) is int
  return is_label and isinstance(row.get('mask'), str | None)


def _declared(path: pathlib.Path, template: Template) -> Meaning:
  content = declaration(path)
  named = nifti_folder.by_name(content['labels'], path)
  unused = [*filter(nifti_folder.unused(content, path), named)]
  background = [value for name in unused for value in named.pop(name)]
  by_class = {canonical(name, template): values for name, values in named.items()}
  if len(by_class) < len(named):
    raise ScoreError(f'{path}: two of the labels {", ".join(named)} are one class; rename one')
  by_class['background'] = [*by_class.get('background', ()), *background]
  return Meaning(by_class, str(path))


def declaration(path: pathlib.Path) -> Mapping:
  """A `dataset.json` that declares labels."""
  try:
    content = text_files.read_json(path)
  except OSError as error:
    raise ScoreError(inventory.unreadable(path, error)) from error
  declared = content.get('labels') if isinstance(content, Mapping) else None
  if not isinstance(declared, Mapping):
    raise ScoreError(f'{path}: no "labels"; it must hold an object of name -> value')
  return content


def _case(stem: str) -> str:
  for suffix in _SUFFIXES:
    stem = stem.removesuffix(suffix)
  return stem
