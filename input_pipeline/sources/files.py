"""What the sources share: finding files, splitting cases, reading a scan with its labels."""

import hashlib
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import nibabel as nib
import numpy as np

from input_pipeline import remarks
from input_pipeline.anatomy import TEMPLATE, Template
from input_pipeline.ct import dicom, slicer_segments, volume
from input_pipeline.files import buckets, inventory
from input_pipeline.sources import labels
from input_pipeline.sources.base import Scan, SourceError, loader, restrict_table


def folder_of(source: str, manual_dir: str | None, holds: str) -> pathlib.Path:
  """The folder that the user downloaded.

  Args:
    source: its name, for messages.
    manual_dir: as given on the command line.
    holds: what is in the folder, for messages.

  Raises:
    SourceError: if none was given or it is no folder on a disk.
  """
  if manual_dir is None:
    raise SourceError(f'{source}: pass --manual_dir, the folder that holds {holds}')
  if buckets.is_in_bucket(manual_dir):
    raise SourceError(f'{manual_dir} {buckets.NO_DISK}')
  folder = pathlib.Path(manual_dir)
  if not folder.is_dir():
    raise SourceError(f'{folder}: no such folder; give the one that holds {holds}')
  return folder


@loader('fail')
def fail(problem: str) -> Scan:
  """Loads a case that cannot be read: a case that fails is told of, one that is not there is not.

  Raises:
    SourceError: with the problem.
  """
  raise SourceError(problem)


def template_of(folder: pathlib.Path, index: Mapping[str, Any]) -> Template:
  """The built-in template and the `new_classes` of a user's folder.

  Args:
    folder: of the user.
    index: content of its `dataset.json`.

  Raises:
    SourceError: if they are malformed.
  """
  try:
    return TEMPLATE.extend(index.get('new_classes', ()))
  except (ValueError, TypeError) as error:
    raise SourceError(f'{folder / "dataset.json"}: {error}') from error


def terms_of(folder: pathlib.Path, index: Mapping[str, Any]) -> dict[str, str]:
  """`licence` and `citation` of a user's folder, where it says them; arguments as `template_of`.

  Raises:
    SourceError: if one is no text.
  """
  said: dict[str, str] = {}
  for field, names in (
    ('licence', ('licence', 'license')),
    ('citation', ('citation', 'reference')),
  ):
    for name in names:
      text = index.get(name, '')
      if not isinstance(text, str):
        raise SourceError(f'{folder / "dataset.json"}: "{name}" is {text!r}; expected a text')
      if text.strip():
        said.setdefault(field, text.strip())
  return said


def note(message: str) -> None:
  """Tells what of a folder is left out; `Source.listed` collects it."""
  remarks.tell(message)


def counted(paths: Sequence[pathlib.Path], what: str) -> str:
  """'scans without a label map, left out: 12, first /a/b.nii': a line about several files."""
  return f'{what}, left out: {len(paths)}, first {paths[0]}'


def fraction(key: str) -> float:
  """A number in [0, 1) that depends on the text alone, the same on every machine."""
  code = key.encode(errors='surrogatepass')  # of a file's name in another encoding
  return int.from_bytes(hashlib.sha256(code).digest()[:8], 'big') / 2**64


def split_of(source: str, name: str, shares: Mapping[str, float]) -> str:
  """The split of a case, drawn from its name: it never changes when other cases come or go.

  Args:
    source: name of the dataset.
    name: of the case.
    shares: split -> share of the cases; they add up to 1.
  """
  drawn = fraction(f'{source}/{name}')
  for split, share in shares.items():
    drawn -= share
    if drawn < 0:
      return split
  return next(iter(shares))


def hold_out(names: Iterable[str], share: float) -> set[str]:
  """Some of the names: at least one of two, never all.

  Each is drawn by its own hash with a probability of `share`, so that a name which comes or goes
  moves no other; but where that would hold out none or all of them, the one nearest to it changes
  sides.
  """
  names = sorted(names, key=fraction)
  drawn = sum(fraction(name) < share for name in names)
  return set(names[: min(max(1, drawn), len(names) - 1)]) if len(names) > 1 else set()


@loader('load_nifti')
def load_nifti(
  image: pathlib.Path,
  label: pathlib.Path,
  meanings: Mapping[int, labels.Meaning],
  template: Template = TEMPLATE,
  labelled: Sequence[str] | None = None,
) -> Scan:
  """Reads a scan and one label map on the same grid.

  Args:
    image: NIfTI, NRRD or MetaImage file.
    label: the same.
    meanings: label value -> what it stands for, as `labels.convert`.
    template: of the names.
    labelled: of the classes that the meanings tell, those that are known in the case; all by
      default. A tumor that is not is plain organ, or nothing.

  Raises:
    SourceError: if the grids differ.
    VolumeError: as `volume.read_image` and `volume.read_labels`.
    LabelError: as `labels.convert`.
  """
  scan, organs = volume.read_image(image), volume.read_labels(label)
  return join(image, scan, label, organs, meanings, template, labelled)


def join(
  image: pathlib.Path,
  scan: volume.Volume,
  label: pathlib.Path,
  organs: volume.Volume,
  meanings: Mapping[int, labels.Meaning],
  template: Template = TEMPLATE,
  labelled: Sequence[str] | None = None,
) -> Scan:
  """A scan with its label map converted; errors as `load_nifti`."""
  if slicer_segments.is_segmentation(label):
    organs = slicer_segments.embed(organs, scan.geometry)
  check_grid(label, organs.geometry, image, scan.geometry)
  codes = labels.convert(
    organs.array,
    meanings,
    spacing=scan.spacing,
    name=str(label),
    image=scan.array,
    template=template,
  )
  if labelled is not None:
    codes = restrict_table(labelled, template)[codes]
  return Scan(scan.array, codes, scan.geometry)


def check_grid(
  label: pathlib.Path, grid: volume.Geometry, image: pathlib.Path, scan: volume.Geometry
) -> None:
  """A label map must lie on its scan's grid, in whatever axis order either is stored.

  Args:
    label: file, for messages.
    grid: geometry of the label map.
    image: file, for messages.
    scan: geometry of the scan.

  Raises:
    SourceError: if, both in canonical order, shape, directions or voxel sizes differ; or the place,
      where the axes are stored in another order or direction.

  Warns:
    UserWarning: if only the origin differs; voxels are then taken to correspond by their index.
  """
  other = image if image.name == label.name else image.name
  axes, theirs = (''.join(nib.aff2axcodes(g.affine)) for g in (grid, scan))
  if grid.canonical_shape != scan.canonical_shape:
    raise SourceError(
      f'{label}: shape {grid.shape} along {axes}, but {other} {scan.shape} along {theirs}; '
      'get both anew'
    )
  apart = np.abs(grid.canonical_affine - scan.canonical_affine)
  # Over the whole scan, directions and voxel sizes may move a voxel by half its size.
  turned = (apart[:3, :3] @ np.array(scan.canonical_shape)).max()
  moved = apart[:3, 3].max()
  limit = 0.5 * scan.spacing.min()
  # Other axes and another place: the header alone was rewritten, and the voxels were not.
  if turned > limit or (moved > limit and axes != theirs):
    sizes = [nib.affines.voxel_sizes(g.affine).round(4).tolist() for g in (grid, scan)]
    raise SourceError(
      f'{label}: axes {axes}, voxels of {sizes[0]} mm, but {other} {theirs}, {sizes[1]}, and '
      f'up to {turned + moved:.1f} mm apart; the header of one of them is wrong: get both anew'
    )
  if moved > limit:
    remarks.tell(
      f'{label}: its origin is {moved:.1f} mm from that of {other}; taken to be the same grid'
    )


def walk(folder: pathlib.Path) -> list[pathlib.Path]:
  """Files and folders at any depth, by name; links are followed, and every folder is read once.

  Links to nothing are in it: reading them fails, and is told. Hidden files (of macOS) are not.

  Raises:
    SourceError: if a folder cannot be listed.
  """
  paths: list[pathlib.Path] = []
  seen: set[str] = set()
  for place, folders, names in os.walk(folder, followlinks=True, onerror=_unlisted):
    real = os.path.realpath(place)
    visible = [name for name in folders if not inventory.is_hidden(name)]
    folders[:] = [] if real in seen else sorted(visible)
    if real not in seen:
      shown = (name for name in names if not inventory.is_hidden(name))
      paths += [pathlib.Path(place, name) for name in (*folders, *shown)]
    seen.add(real)
  return sorted(paths)


def entries(folder: pathlib.Path) -> list[pathlib.Path]:
  """Files and folders directly in a folder, by name; SourceError if it cannot be listed."""
  try:
    return [folder / name for name in sorted(os.listdir(folder))]
  except OSError as error:
    return _unlisted(error)


def _unlisted(error: OSError) -> NoReturn:
  raise SourceError(
    f'{error.filename}: cannot be listed ({error.strerror}); change its permissions'
  )


@loader('load')
def load(
  image: pathlib.Path,
  label: pathlib.Path,
  meanings: Mapping[int, labels.Meaning],
  template: Template = TEMPLATE,
  labelled: Sequence[str] | None = None,
) -> Scan:
  """As `load_nifti`; the scan may also be a DICOM series, a folder or zip archive."""
  nifti = image.name.lower().endswith(volume.ENDINGS) and not image.is_dir()
  scan = volume.read_image(image) if nifti else dicom.read_dicom(image)
  return join(image, scan, label, volume.read_labels(label), meanings, template, labelled)
