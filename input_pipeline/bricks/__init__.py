"""Prepared scans on disk: TFDS records of bricks for training and of whole volumes for evaluation.

`DATA_DIR/SOURCE/bricks/VERSION` holds the training scans, resampled to one spacing and cut into
aligned cubes that do not overlap. A cube of nothing but air and background is left out and implied.
`DATA_DIR/SOURCE/volumes/VERSION` holds the validation and test scans on their own grids. Both are
ordinary TFDS datasets (`tfds.builder_from_directory`) in ArrayRecord files, which give random
access by record number. `index.npz` beside the bricks tells what every record holds, so that
choosing a patch is arithmetic on arrays.
"""

import collections.abc
import dataclasses
import hashlib
import io
import itertools
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
from etils import epath

from input_pipeline import sources
from input_pipeline.anatomy import TEMPLATE, Template
from input_pipeline.ct import resample, volume
from input_pipeline.errors import UserError, reading, suggest

VERSION = '1.1.0'  # of the files' layout, and of how scans are converted to it
SETTINGS = 'prepare.json'  # what `prepare` was asked for and what came of it
OUTCOMES = 'cases.json'  # beside it: what came of each case, in the records' order
INDEX = 'index.npz'
_EMPTY_HU = -900  # bricks that nowhere exceed this are air


class NotPreparedError(UserError):
  """No complete prepared source where it was looked for; the message tells how to make it."""


@dataclasses.dataclass(frozen=True)
class CaseInfo:
  """A training scan on the grid of its bricks.

  Attributes:
    name, source, supervised, slice_ranges: as in `sources.Case`.
    shape: (3,) voxels of the resampled scan.
    offset: (3,) mm from the centre of the scan's own first voxel to the centre of the first
      resampled one, along the canonical axes.
    own_spacing: (3,) mm of the scan before it was resampled; () where that was not noted.
    digest: of the scan, see `identity.scan_digest`.
  """

  name: str
  source: str
  supervised: tuple[str, ...]
  slice_ranges: Mapping[str, tuple[float, float]]
  shape: tuple[int, int, int]
  offset: tuple[float, float, float]
  own_spacing: tuple[float, ...] = ()
  digest: str = ''


@dataclasses.dataclass(frozen=True)
class HeldOutCase:
  """What is known of a validation or test scan before it is read; fields as in `VolumeRecord`."""

  name: str
  source: str
  split: str
  digest: str


@dataclasses.dataclass(frozen=True)
class VolumeRecord:
  """A validation or test scan on its own grid, in canonical axis order.

  Attributes:
    name, source, split, supervised, slice_ranges: as in `sources.Case`.
    image: (D, H, W) int16 HU.
    codes: (D, H, W) uint8.
    geometry: of the scan's own grid.
    digest: of the scan, see `identity.scan_digest`.
  """

  name: str
  source: str
  split: str
  supervised: tuple[str, ...]
  slice_ranges: Mapping[str, tuple[float, float]]
  image: np.ndarray
  codes: np.ndarray
  geometry: volume.Geometry
  digest: str = ''


def import_tfds():
  """TensorFlow Datasets, on first use only; TensorFlow stays quiet and off the accelerators."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')  # it announces itself past the log level
  import tensorflow as tf

  tf.config.set_visible_devices([], 'GPU')
  import tensorflow_datasets as tfds

  tfds.disable_progress_bar()
  return tfds


# ---------------------------------------------------------------------------- reading
class BrickStore:
  """The training bricks of one prepared source.

  Attributes:
    name: of the source.
    brick: voxels along an edge.
    spacing: (3,) mm.
    cases: C CaseInfo.
    template: of the label codes that `read` gives.
    case: (N,) int32; index into `cases` of each record.
    position: (N, 3) int32; first voxel of each record on its case's grid, a multiple of `brick`.
  """

  def __init__(
    self,
    folder: epath.Path,
    name: str,
    *,
    stored: Template = TEMPLATE,
    template: Template | None = None,
  ):
    self.name = name
    self.template = template or stored
    self._translate = _translation(stored, self.template)
    self._index = folder / INDEX
    with self._load_index() as arrays:
      self.brick = int(arrays['brick'])
      self.spacing = tuple(arrays['spacing'].tolist())
      self.cases = [_decode_case(text) for text in arrays['cases'].tolist()]
      self.case, self.position = arrays['case'], arrays['position']
    self._records = data_source(folder, 'train', skip=('code_voxels',))

  def __len__(self) -> int:
    return len(self.case)

  def digest(self) -> str:
    """Sha-256 of the index: which scans there are, their grids, and what is labelled where.

    The same wherever the files lie.
    """
    digest = hashlib.sha256()
    with self._load_index() as arrays:
      for name in sorted(arrays.files):
        array = arrays[name]
        digest.update(repr((name, array.shape, array.dtype.str)).encode() + array.tobytes())
    return digest.hexdigest()

  def _load_index(self):
    try:
      return np.load(io.BytesIO(self._index.read_bytes()))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
      raise NotPreparedError(
        f'{self._index}: damaged ({error}); prepare {self.name} again with --overwrite'
      ) from error

  def read(self, record: int) -> tuple[np.ndarray, np.ndarray]:
    """One brick; safe to call from several threads.

    Args:
      record: 0..N-1.

    Returns:
      image (brick, brick, brick) int16 HU, label (brick, brick, brick) uint8 codes; read-only.
    """
    example = self._records[int(record)]
    return example['image'], self._translate(example['label'])

  def class_voxels(self, names: Sequence[str]) -> np.ndarray:
    """How much of each class every brick holds.

    Args:
      names: K class names.

    Returns:
      (N, K) int64 voxels; 0 where the case does not supervise the class.
    """
    with self._load_index() as arrays:
      table = self._translate(np.arange(256, dtype=np.uint8))
      counts = arrays['code_voxels'].astype(np.int64) @ self.template.code_table(names)[table]
    supervised = np.array([[name in case.supervised for name in names] for case in self.cases])
    return counts * supervised[self.case]


class _Volumes(collections.abc.Sequence):
  """The held-out scans of one prepared source, read one at a time."""

  def __init__(self, folder: epath.Path, translate: Callable[[np.ndarray], np.ndarray]):
    self._parts, self._translate = [], translate
    if folder.is_dir():
      splits = import_tfds().builder_from_directory(folder).info.splits
      self._parts = [(split, data_source(folder, split)) for split in sorted(splits)]

  def __len__(self) -> int:
    return sum(len(part) for _, part in self._parts)

  def __getitem__(self, index: int) -> VolumeRecord:
    index = range(len(self))[index]
    for split, part in self._parts:
      if index < len(part):
        record = _decode_volume(part[index], split)
        return dataclasses.replace(record, codes=self._translate(record.codes))
      index -= len(part)
    raise IndexError(index)


def read_template(
  data_dir: str | os.PathLike,
  source_names: Sequence[str],
  new_classes: Iterable[Mapping[str, Any]] = (),
) -> Template:
  """The template of a run: the built-in classes, those of its prepared sources, and further ones.

  Args:
    data_dir: of the prepared sources.
    source_names: that the run reads.
    new_classes: as `Template.extend` takes them; they come first, so that their prompts and indices
      win where a source declares the same name.

  Raises:
    NotPreparedError: if a source is not prepared.
    ClassError: if two of them contradict each other.
  """
  template = TEMPLATE.extend(new_classes)
  for source in source_names:
    declared = {entry['name'] for entry in template.additions()}
    for entry in _stored_classes(data_dir, source):
      # An index is the source's own affair: its codes are translated on reading.
      drop = ('index', 'prompt') if entry['name'] in declared else ('index',)
      template = template.extend([{k: v for k, v in entry.items() if k not in drop}])
  return template


def open_bricks(
  data_dir: str | os.PathLike, source: str, template: Template | None = None
) -> BrickStore:
  """The training bricks of a prepared source.

  Args:
    data_dir: of the prepared sources.
    source: name of one of them.
    template: whose codes to give, from `read_template`; by default the source's own.

  Raises:
    NotPreparedError: if it is not prepared, or has no training cases.
  """
  folder = _prepared(data_dir, source) / 'bricks' / VERSION
  if not folder.is_dir():
    skipped = read_settings(data_dir, source).get('skipped')
    reason = f'every one was skipped, see {SETTINGS}' if skipped else 'it was prepared without any'
    raise NotPreparedError(f'{folder}: no training cases of {source}; {reason}')
  stored = TEMPLATE.extend(_stored_classes(data_dir, source))
  return BrickStore(folder, source, stored=stored, template=template)


def open_volumes(
  data_dir: str | os.PathLike, source: str, template: Template | None = None
) -> Sequence[VolumeRecord]:
  """The validation and test scans of a prepared source; empty where it has none.

  Args:
    data_dir: of the prepared sources.
    source: name of one of them.
    template: whose codes to give, from `read_template`; by default the source's own.

  Raises:
    NotPreparedError: if it is not prepared.
  """
  stored = TEMPLATE.extend(_stored_classes(data_dir, source))
  translate = _translation(stored, template or stored)
  return _Volumes(_prepared(data_dir, source) / 'volumes' / VERSION, translate)


def held_out_cases(data_dir: str | os.PathLike, source: str) -> list[HeldOutCase]:
  """The scans of `open_volumes`, in its order, without reading them.

  Raises:
    NotPreparedError: if the source is not prepared.
  """
  cases = json.loads((_prepared(data_dir, source) / OUTCOMES).read_text())
  fields = [field.name for field in dataclasses.fields(HeldOutCase)]
  described = [HeldOutCase(*(case[f] for f in fields)) for case in cases]
  return sorted((c for c in described if c.split != 'train'), key=lambda case: case.split)


def _stored_classes(data_dir: str | os.PathLike, source: str) -> list[dict]:
  _prepared(data_dir, source)
  return read_settings(data_dir, source).get('new_classes', [])


def _translation(stored: Template, wanted: Template) -> Callable[[np.ndarray], np.ndarray]:
  """Label codes of one template -> those of another."""
  table = stored.translation(wanted)
  if np.array_equal(table, np.arange(256)):
    return lambda codes: codes
  return lambda codes: table[codes]


def read_settings(data_dir: str | os.PathLike, source: str) -> dict | None:
  """What `prepare` left in SETTINGS, or None if the source is not prepared completely."""
  path = epath.Path(data_dir) / source / SETTINGS
  with reading(path, NotPreparedError):
    return json.loads(path.read_text()) if path.is_file() else None


def prepared_sources(data_dir: str | os.PathLike) -> list[str]:
  """Names of the sources that are prepared completely."""
  return sorted(path.parent.name for path in epath.Path(data_dir).glob(f'*/{SETTINGS}'))


def _prepared(data_dir: str | os.PathLike, source: str) -> epath.Path:
  settings = read_settings(data_dir, source)
  folder = epath.Path(data_dir) / source
  command = f'python -m input_pipeline.prepare --source={source} --data_dir={data_dir}'
  if settings is None:
    known = {*prepared_sources(data_dir), *sources.SOURCES}
    hint = '' if source in known else suggest(source, sorted(known)).partition('known:')[0]
    raise NotPreparedError(f'{folder}: not prepared; {hint or f"run {command}"}')
  if settings['settings']['version'] != VERSION:
    found = settings['settings']['version']
    raise NotPreparedError(f'{folder}: version {found}, need {VERSION}; run {command} --overwrite')
  return folder


def data_source(folder: epath.Path, split: str, *, skip: Sequence[str] = ()):
  """Random access to the records of a split; the fields in `skip` are not decoded."""
  tfds = import_tfds()
  decoders = {field: tfds.decode.SkipDecoding() for field in skip}
  return tfds.builder_from_directory(folder).as_data_source(split=split, decoders=decoders)


def _decode_case(text: str) -> CaseInfo:
  values = json.loads(text)
  ranges = {name: tuple(heights) for name, heights in values.pop('slice_ranges').items()}
  return CaseInfo(slice_ranges=ranges, **{k: _as_tuple(v) for k, v in values.items()})


def _as_tuple(value):
  return tuple(value) if isinstance(value, list) else value


def _decode_volume(example: dict, split: str) -> VolumeRecord:
  affine = example['affine']
  shape = tuple(example['own_shape'].tolist())
  orientation = nib.orientations.io_orientation(affine).astype(int)
  spacing = np.empty(3)
  spacing[orientation[:, 0]] = nib.affines.voxel_sizes(affine)
  case = json.loads(example['case'])
  return VolumeRecord(
    name=case['name'],
    source=case['source'],
    split=split,
    supervised=tuple(case['supervised']),
    slice_ranges={name: tuple(heights) for name, heights in case['slice_ranges'].items()},
    image=example['image'],
    codes=example['label'],
    geometry=volume.Geometry(shape, affine, orientation, spacing, example['image'].shape),
    digest=case['digest'],
  )


# ---------------------------------------------------------------------------- cutting
def cut(
  image: np.ndarray, codes: np.ndarray, brick: int
) -> Iterator[tuple[tuple[int, int, int], np.ndarray, np.ndarray]]:
  """Cuts a scan into aligned cubes; those of nothing but air and background are left out.

  Args:
    image: (D, H, W) int16 HU.
    codes: (D, H, W) uint8.
    brick: edge, voxels; the last cubes are padded with air and background.

  Yields:
    position of the first voxel (3,), image and codes (brick, brick, brick).
  """
  for position in itertools.product(*(range(0, n, brick) for n in image.shape)):
    inside = tuple(slice(p, p + brick) for p in position)
    if image[inside].max() <= _EMPTY_HU and not codes[inside].any():
      continue
    pad = [(0, brick - n) for n in image[inside].shape]
    yield (
      position,
      np.pad(image[inside], pad, constant_values=volume.AIR),
      np.pad(codes[inside], pad),
    )


def to_spacing(scan: sources.Scan, spacing: Sequence[float]):
  """Brings a scan to the spacing of the network.

  Args:
    scan: on its own grid.
    spacing: (3,) mm.

  Returns:
    image (D, H, W) int16 HU, codes (D, H, W) uint8, and the offset (3,) mm of `CaseInfo`.
  """
  own = scan.geometry.spacing
  image = to_int16(resample.resample(scan.image, own, spacing, order=1))
  codes = resample.resample(scan.codes, own, spacing, order=0)
  # The grids share their centre.
  offset = ((np.array(scan.image.shape) - 1) * own - (np.array(image.shape) - 1) * spacing) / 2
  return image, codes, offset


def to_int16(image: np.ndarray) -> np.ndarray:
  """HU as they are stored: rounded, and clipped to -1024..32767."""
  return np.clip(np.rint(image), volume.AIR, 32767).astype(np.int16)
