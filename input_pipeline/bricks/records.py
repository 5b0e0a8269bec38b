"""What a record holds: of one brick, and of one whole scan; how both are stored and read."""

import dataclasses
import json
import os
import types
from collections.abc import Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np

from input_pipeline import sources
from input_pipeline.ct import volume
from input_pipeline.sources import base

Key = base.Key
VERSION = '1.1.0'  # of the files' layout, and of how scans are converted to it
SETTINGS = 'prepare.json'  # what `prepare` was asked for and what came of it
OUTCOMES = 'cases.json'  # beside it: what came of each case, in the records' order
INDEX = 'index.npz'
POOL = 'pool'  # split of the whole scans of a source whose cases can all be trained on, too


@dataclasses.dataclass(frozen=True)
class CaseInfo(base.Known):
  """A training scan on the grid of its bricks.

  Attributes:
    name, source, supervised, slice_ranges: as in `sources.Case`.
    shape: (3,) voxels of the resampled scan.
    offset: (3,) mm from the centre of the scan's own first voxel to the centre of the first
      resampled one, along the canonical axes.
    own_spacing: (3,) mm of the scan before it was resampled; () where that was not noted.
    digest: of the scan, see `identity.scan_digest`.
    absent: as in `sources.Case`.
  """

  name: str
  source: str
  supervised: tuple[str, ...]
  slice_ranges: Mapping[str, tuple[float, float]]
  shape: tuple[int, int, int]
  offset: tuple[float, float, float]
  own_spacing: tuple[float, ...] = ()
  digest: str = ''
  absent: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class HeldOutCase(base.Named):
  """What is known of a validation or test scan before it is read; fields as in `VolumeRecord`."""

  name: str
  source: str
  split: str
  digest: str


@dataclasses.dataclass(frozen=True)
class VolumeRecord(base.Known):
  """A validation or test scan on its own grid, in canonical axis order.

  Attributes:
    name, source, split, supervised, slice_ranges: as in `sources.Case`.
    image: (D, H, W) int16 HU.
    codes: (D, H, W) uint8.
    geometry: of the scan's own grid.
    digest: of the scan, see `identity.scan_digest`.
    absent: as in `sources.Case`.
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
  absent: tuple[str, ...] = ()


def import_tfds() -> types.ModuleType:
  """TensorFlow Datasets, on first use only; it reads and writes records without TensorFlow."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')  # it announces itself past the log level
  import tensorflow_datasets as tfds

  tfds.disable_progress_bar()
  return tfds


def brick_features(brick: int) -> Any:
  """TFDS features of a training record."""
  features = import_tfds().features
  cube = (brick, brick, brick)
  return features.FeaturesDict(
    {
      'image': features.Tensor(shape=cube, dtype=np.int16, encoding='zlib'),
      'label': features.Tensor(shape=cube, dtype=np.uint8, encoding='zlib'),
      'case': features.Text(),
      'source': features.Text(),
      'supervised': features.Sequence(features.Text()),
      'position': features.Tensor(shape=(3,), dtype=np.int32),
      'spacing': features.Tensor(shape=(3,), dtype=np.float32),
      'code_voxels': features.Tensor(shape=(256,), dtype=np.int32, encoding='zlib'),
    }
  )


def brick_example(
  case: sources.Case,
  position: Sequence[int],
  image: np.ndarray,
  codes: np.ndarray,
  spacing: Sequence[float],
) -> dict[str, Any]:
  """The record of one brick, see `brick_features`; arguments as `cutting.cut` yields them."""
  return {
    'image': image,
    'label': codes,
    'case': case.name,
    'source': case.source,
    'supervised': list(case.supervised),
    'position': np.array(position, np.int32),
    'spacing': np.array(spacing, np.float32),
    'code_voxels': np.bincount(codes.ravel(), minlength=256).astype(np.int32),
  }


def volume_features() -> Any:
  """TFDS features of a held-out scan."""
  features = import_tfds().features
  return features.FeaturesDict(
    {
      'image': features.Tensor(shape=(None, None, None), dtype=np.int16, encoding='zlib'),
      'label': features.Tensor(shape=(None, None, None), dtype=np.uint8, encoding='zlib'),
      # NOTE: encoded, because a plain float tensor is stored in single precision.
      'affine': features.Tensor(shape=(4, 4), dtype=np.float64, encoding='bytes'),
      'own_shape': features.Tensor(shape=(3,), dtype=np.int32),
      'case': features.Text(
        doc='JSON: name, source, split, supervised, slice_ranges, digest, absent'
      ),
    }
  )


def volume_example(
  case: sources.Case, scan: sources.Scan, image: np.ndarray, digest: str
) -> dict[str, Any]:
  """The record of a held-out scan, see `volume_features`; `image` is the scan's, int16 HU."""
  fields = ('name', 'source', 'split', 'supervised', 'slice_ranges', 'absent')
  described = {field: plain(getattr(case, field)) for field in fields} | {'digest': digest}
  return {
    'image': image,
    'label': scan.codes,
    'affine': scan.geometry.affine,
    'own_shape': np.array(scan.geometry.shape, np.int32),
    'case': json.dumps(described),
  }


def plain(value: Any) -> Any:
  """A value fit for JSON: a mapping becomes a dict."""
  return dict(value) if isinstance(value, Mapping) else value


def read_case(text: str) -> CaseInfo:
  """A training scan of the index, from its JSON."""
  values = json.loads(text)
  ranges = _read_ranges(values.pop('slice_ranges'))
  return CaseInfo(slice_ranges=ranges, **{k: _as_tuple(v) for k, v in values.items()})


def _as_tuple(value: Any) -> Any:
  return tuple(value) if isinstance(value, list) else value


def _read_ranges(ranges: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float]]:
  return {name: (low, high) for name, (low, high) in ranges.items()}


def read_volume(example: Mapping[str, Any], split: str) -> VolumeRecord:
  """A held-out scan, from its record and split."""
  affine = example['affine']
  orientation = nib.orientations.io_orientation(affine).astype(int)
  spacing = np.empty(3)
  spacing[orientation[:, 0]] = nib.affines.voxel_sizes(affine)
  shape = tuple(example['own_shape'].tolist())
  case = json.loads(example['case'])
  return VolumeRecord(
    name=case['name'],
    source=case['source'],
    split=split,
    supervised=tuple(case['supervised']),
    slice_ranges=_read_ranges(case['slice_ranges']),
    image=example['image'],
    codes=example['label'],
    geometry=volume.Geometry(shape, affine, orientation, spacing, example['image'].shape),
    digest=case['digest'],
    absent=tuple(case.get('absent', ())),  # earlier versions knew of none
  )
