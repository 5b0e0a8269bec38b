"""What can be written of a scan besides labels and legend: a table of formats.

Maps of probabilities are none of them: they are written while the scan is segmented.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from mome_jax.errors import suggest
from mome_jax.predict import output_names
from mome_jax.predict.request import DEFAULTS, Options, PredictError, Target

if TYPE_CHECKING:  # the table is read for help, too: what writes a format is imported by it
  from input_pipeline.ct.dicom import Series
  from mome_jax.inference.router_maps import RoutingMaps
  from mome_jax.inference.segmentation import Segmentation
  from mome_jax.plausibility.judge import Judgement
  from mome_jax.predict.dicom_source import Doubts
  from mome_jax.predict.find_scans import LoadedScan


@dataclasses.dataclass(frozen=True, eq=False)
class SegmentedScan:
  """What is known of a scan that was segmented.

  Attributes:
    name: NAME in the file names.
    scan: the CT.
    segmentation: of the targets, and of the classes that they compete with.
    targets: K.
    options: what is written besides labels and legend.
    labels: (D, H, W), what the label map holds; made by `segmentation.label_map`.
    routing: for the page, or None.
    judgement: of the masks, or None.
    unsure: by name, the share of a mask that is; see `uncertainty.Uncertainty`.
    rows: of the legend, one a target; see `class_statistics.statistics`.
    origin: the other fields of the legend; see `write_results.origin_of`.
  """

  name: str
  scan: 'LoadedScan'
  segmentation: 'Segmentation'
  targets: Sequence[Target]
  options: Options = DEFAULTS
  routing: 'RoutingMaps | None' = None
  labels: np.ndarray | None = None
  judgement: 'Judgement | None' = None
  unsure: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
  rows: Sequence[Mapping[str, Any]] = ()
  origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def series(self) -> 'Series':
    """Of DICOM; formats that need one are refused of anything else before."""
    return cast('Series', self.scan.series)

  @property
  def doubts(self) -> 'Doubts':
    """What speaks against the masks."""
    from mome_jax.predict.dicom_source import Doubts

    return Doubts.of(self.rows, self.origin)

  @property
  def single(self) -> list[Target]:
    """The targets that get a file of their own: all, or those that the label map cannot hold."""
    return single(self.targets, self.options, self.segmentation.free)

  @property
  def present(self) -> list[str]:
    """Names of the targets that have voxels."""
    boxes = self.segmentation.boxes
    return [target.name for target in self.targets if boxes[target.name] is not None]

  @property
  def colours(self) -> dict[str, Any]:
    """Of every target by name, the same in all outputs."""
    from mome_jax.pictures.colours import palette

    return palette([target.name for target in self.targets])


def single(targets: Sequence[Target], options: Options, free: Collection[str]) -> list[Target]:
  """The targets that get a file of their own, in NAME_masks/; `free` are names that always do."""
  return [target for target in targets if options.masks or target.name in free]


class Format(NamedTuple):
  """A kind of output.

  Attributes:
    end: of the file's or folder's name, after `NAME_`.
    write: (path, scan) -> None. What it raises costs this output alone, and is told.
    switch: that asks for it on the command line, or that leaves it out if `Options` asks for it.
    help: of the switch.
    needs_voxels: not written of a scan where no class has a voxel.
    needs_series: refused unless every scan is a DICOM series.
    require: (switch) -> None; raises PredictError where what it takes is not installed.
  """

  end: str
  write: Callable[[pathlib.Path, SegmentedScan], None]
  switch: str
  help: str
  needs_voxels: bool = False
  needs_series: bool = False
  require: Callable[[str], None] = lambda switch: None


def _masks(folder: pathlib.Path, segmented: SegmentedScan) -> None:
  from input_pipeline.ct import volume

  folder.mkdir()
  for target in segmented.single:  # one at a time, so that many classes fit into memory
    mask = segmented.segmentation.mask(target.name)
    path = folder / output_names.of_class(target)
    volume.write_nifti(path, mask, segmented.scan.volume.geometry, np.uint8)


def _dicom_seg(path: pathlib.Path, segmented: SegmentedScan) -> None:
  from mome_jax.predict import dicom_seg

  colours = segmented.colours
  shown = {name: colours[name] for name in segmented.present}
  dicom_seg.write(path, segmented.series, segmented.segmentation, shown, segmented.doubts)


def _rtstruct(path: pathlib.Path, segmented: SegmentedScan) -> None:
  from mome_jax.predict import rtstruct

  targets = [target for target in segmented.targets if target.name in segmented.present]
  rtstruct.write(
    path,
    segmented.series,
    segmented.segmentation,
    targets,
    segmented.colours,
    segmented.doubts,
  )


def _dicom_sr(path: pathlib.Path, segmented: SegmentedScan) -> None:
  from mome_jax.predict import dicom_sr

  rows = [row for row in segmented.rows if row['name'] in segmented.present]
  seg = path.with_name(f'{segmented.name}_{FORMATS["dicom_seg"].end}')
  segments = seg if seg.is_file() else None
  dicom_sr.write(path, segmented.series, rows, segments, segmented.doubts)


def _needs_itk(switch: str) -> None:
  from mome_jax.predict import itk_outputs

  itk_outputs.require(switch)


def _itk_labels(path: pathlib.Path, segmented: SegmentedScan) -> None:
  from input_pipeline.ct import itk_image

  labels = cast(np.ndarray, segmented.labels)  # made before
  itk_image.write(path, labels, segmented.scan.volume.geometry)


def _seg_nrrd(path: pathlib.Path, segmented: SegmentedScan) -> None:
  from mome_jax.predict import itk_outputs

  itk_outputs.write_segments(
    path,
    segmented.segmentation,
    segmented.present,
    segmented.colours,
    segmented.scan.volume.geometry,
  )


def _totalsegmentator(folder: pathlib.Path, segmented: SegmentedScan) -> None:
  from mome_jax.predict import totalsegmentator_masks

  totalsegmentator_masks.write(
    folder,
    segmented.segmentation,
    segmented.targets,
    segmented.rows,
    segmented.scan.volume.geometry,
  )


def _preview(path: pathlib.Path, segmented: SegmentedScan) -> None:
  from mome_jax.pictures import overlay
  from mome_jax.predict import plausible_masks

  ct, segmentation = segmented.scan.volume, segmented.segmentation
  views = {name: segmentation.view(name) for name in segmented.present}
  labelled = None if segmented.labels is None else segmented.labels > 0
  layers = overlay.Layers(
    views,
    colours=segmented.colours,
    labelled=labelled,
    implausible=plausible_masks.implausible(segmented.rows),
  )
  overlay.overlay(path, ct.array, ct.spacing, layers, segmented.name)


def _report(path: pathlib.Path, segmented: SegmentedScan) -> None:
  from mome_jax.predict import html_viewer

  html_viewer.write(
    path,
    segmented.scan.volume,
    segmented.segmentation,
    segmented.rows,
    title=segmented.name,
    origin=segmented.origin,
    routing=segmented.routing,
  )


# By its field of `Options`, or its name in `Options.more`; in the order of writing.
FORMATS: dict[str, Format] = {
  'masks': Format('masks', _masks, '--masks', 'also one binary file a class, in NAME_masks/'),
  'dicom_seg': Format(
    'seg.dcm',
    _dicom_seg,
    '--dicom-seg',
    'also NAME_seg.dcm, a DICOM SEG; for DICOM input',
    needs_voxels=True,
    needs_series=True,
  ),
  'rtstruct': Format(
    'rtstruct.dcm',
    _rtstruct,
    '--rtstruct',
    'also NAME_rtstruct.dcm, a DICOM RT Structure Set (contours); for DICOM input',
    needs_voxels=True,
    needs_series=True,
  ),
  'dicom_sr': Format(
    'sr.dcm',
    _dicom_sr,
    '--dicom-sr',
    'also NAME_sr.dcm, a DICOM Structured Report of volumes and HU; for DICOM input',
    needs_voxels=True,
    needs_series=True,
  ),
  'totalsegmentator': Format(
    'totalsegmentator',
    _totalsegmentator,
    '--totalsegmentator',
    'also NAME_totalsegmentator/, one binary file a class with the names of TotalSegmentator',
  ),
  'nrrd': Format(
    'seg.nrrd',
    _itk_labels,
    '--nrrd',
    'also NAME_seg.nrrd, the labels once more; with the extra itk',
    require=_needs_itk,
  ),
  'mha': Format(
    'seg.mha',
    _itk_labels,
    '--mha',
    'also NAME_seg.mha, the labels once more; with the extra itk',
    require=_needs_itk,
  ),
  'seg_nrrd': Format(
    'seg.seg.nrrd',
    _seg_nrrd,
    '--seg-nrrd',
    'also NAME_seg.seg.nrrd, a segmentation for 3D Slicer; with the extra itk',
    needs_voxels=True,
    require=_needs_itk,
  ),
  'preview': Format('preview.png', _preview, '--no-preview', 'no NAME_preview.png'),
  'report': Format(
    'report.html',
    _report,
    '--report',
    'also NAME_report.html, a viewer that opens offline: slices, classes, volumes, routing',
  ),
}
_FIELDS = {field.name for field in dataclasses.fields(Options)}


def by_default(name: str) -> bool:
  """Whether a format is written unless its switch is given."""
  return name in _FIELDS and getattr(DEFAULTS, name)


def make_options(names: Collection[str], *, probabilities: bool = False) -> Options:
  """The options that ask for the formats of these names."""
  fields = {name: name in names for name in FORMATS if name in _FIELDS}
  more = tuple(name for name in names if name not in _FIELDS)
  return Options(**fields, probabilities=probabilities, more=more)


def asked(options: Options, *, overlapping: bool = False) -> dict[str, Format]:
  """The formats that some options ask for.

  Args:
    options: what is written besides labels and legend.
    overlapping: whether there are masks that the label map cannot hold whole: they are written.

  Raises:
    PredictError: if there is none of that name.
  """
  for name in options.more:
    if name not in FORMATS or name in _FIELDS:
      known = [name for name in FORMATS if name not in _FIELDS]
      raise PredictError(f'options.more: no format is called {name!r}; {suggest(name, known)}')
  return {
    name: kind
    for name, kind in FORMATS.items()
    if (getattr(options, name) if name in _FIELDS else name in options.more)
    or (overlapping and name == 'masks')
  }


def file_names(
  name: str, options: Options, *, present: bool = True, overlapping: bool = False
) -> list[str]:
  """Names of what is written for a scan.

  Args:
    name: NAME in them.
    options: what is written besides labels and legend.
    present: whether a class has voxels.
    overlapping: see `asked`.
  """
  kinds = asked(options, overlapping=overlapping).values()
  ends = ['seg.json', 'seg.nii.gz']
  ends += [kind.end for kind in kinds if present or not kind.needs_voxels]
  ends += ['probabilities'] if options.probabilities else []
  return [f'{name}_{end}' for end in ends]


def possible(name: str) -> list[str]:
  """Everything that a prediction can write for a scan."""
  return file_names(name, make_options(FORMATS, probabilities=True))
