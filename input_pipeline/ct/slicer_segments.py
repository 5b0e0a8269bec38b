"""The segmentations of 3D Slicer, `.seg.nrrd`: which voxels of which layer are which segment.

Segments that overlap lie in different layers, and the file may be cut to where there are any.
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from input_pipeline.ct import itk_image, volume
from input_pipeline.files import file_kinds, image_headers


@dataclasses.dataclass(frozen=True)
class Segment:
  """A segment: its name, the layer it is in, from 0 on, and its value there."""

  name: str
  layer: int
  value: int


def is_segmentation(path: str | os.PathLike) -> bool:
  """Whether a file's name is that of a segmentation of 3D Slicer."""
  return os.fspath(path).lower().endswith(file_kinds.SEGMENTS_ENDING)


def segments(path: pathlib.Path) -> list[Segment]:
  """The segments that a file declares, none where it is a label map without names.

  Raises:
    VolumeError: if the header cannot be read.
  """
  try:
    header = image_headers.fields(path)
  except (image_headers.HeaderError, OSError) as error:
    raise volume.VolumeError(f'{path}: cannot be read as NRRD ({error}); copy it again') from error
  declared = []
  number = 0
  while f'Segment{number}_ID' in header or f'Segment{number}_Name' in header:
    name = header.get(f'Segment{number}_Name') or header[f'Segment{number}_ID']
    layer, value = (header.get(f'Segment{number}_{key}') for key in ('Layer', 'LabelValue'))
    try:
      declared.append(Segment(name, int(layer or 0), int(value or 1)))
    except ValueError as error:
      raise volume.VolumeError(f'{path}: segment {name!r}: {error}; save it again') from error
    number += 1
  return declared


def read(path: pathlib.Path) -> volume.Volume:
  """All layers: a Volume whose array is (D, H, W, layers) uint8.

  Raises:
    VolumeError: as `volume.read_labels`.
  """
  array, affine = itk_image.read(path)
  layers = np.moveaxis(array.reshape(*array.shape[:3], -1), -1, 0)
  volumes = [volume.to_canonical(volume.to_labels(one, path), affine, name=path) for one in layers]
  return volume.Volume(np.stack([one.array for one in volumes], -1), volumes[0].geometry)


def embed(part: volume.Volume, geometry: volume.Geometry) -> volume.Volume:
  """A segmentation on a scan's grid of which it is a part; one that is none stays as it is.

  Args:
    part: (D, H, W) on its own grid; voxels beyond it are 0.
    geometry: of the scan.
  """
  offset = _offset(part.geometry, geometry)
  shape, outer = np.array(part.array.shape), np.array(geometry.canonical_shape)
  if offset is None or (offset < 0).any() or (offset + shape > outer).any():
    return part
  array = np.zeros(outer, part.array.dtype)
  array[tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))] = part.array
  return volume.Volume(array, geometry)


def common(one: volume.Geometry, other: volume.Geometry) -> volume.Geometry | None:
  """The smallest grid of which both are parts, in canonical order; None if their voxels differ."""
  offset = _offset(other, one)
  if offset is None:
    return None
  low = np.minimum(offset, 0)
  high = np.maximum(one.canonical_shape, offset + other.canonical_shape)
  affine = one.canonical_affine
  affine[:3, 3] = (affine @ [*low, 1])[:3]
  depth, height, width = (high - low).tolist()
  shape, axes = (depth, height, width), np.c_[np.arange(3), np.ones(3, int)]
  return volume.Geometry(shape, affine, axes, one.spacing, shape)


def _offset(inner: volume.Geometry, outer: volume.Geometry) -> np.ndarray | None:
  """(3,) where on a canonical grid the first voxel of another lies; None if their voxels differ."""
  steps = np.linalg.solve(outer.canonical_affine, inner.canonical_affine)
  offset = np.rint(steps[:3, 3]).astype(int)
  turned = np.abs(steps[:3, :3] - np.eye(3)) @ inner.canonical_shape
  apart = max(np.abs(steps[:3, 3] - offset).max(), turned.max())
  return None if apart > 0.05 else offset


def layered(masks: Iterable[tuple[str, np.ndarray]]) -> tuple[np.ndarray, list[Segment]]:
  """Masks as layers: each goes into the first one in which no other overlaps it.

  Args:
    masks: names and (D, H, W) bool, of which one is held at a time; at least one, at most 255.

  Returns:
    (D, H, W, layers) uint8, and the segments.
  """
  layers: list[np.ndarray] = []
  declared = []
  for value, (name, mask) in enumerate(masks, 1):
    free = (n for n, layer in enumerate(layers) if not layer[mask].any())
    number = next(free, len(layers))
    if number == len(layers):
      layers.append(np.zeros(mask.shape, np.uint8))
    layers[number][mask] = value
    declared.append(Segment(name, number, value))
  return np.stack(layers, -1), declared


def header(
  declared: Sequence[Segment], colours: Mapping[str, Sequence[float]], shape: Sequence[int]
) -> dict[str, str]:
  """The fields of the header that declare segments.

  Args:
    declared: as of `layered`.
    colours: name -> red, green and blue, 0 to 1.
    shape: of the file's own grid.
  """
  extent = ' '.join(f'0 {size - 1}' for size in shape)
  fields = {
    'Segmentation_ContainedRepresentationNames': 'Binary labelmap|',
    'Segmentation_MasterRepresentation': 'Binary labelmap',
    'Segmentation_ReferenceImageExtentOffset': '0 0 0',
  }
  for number, segment in enumerate(declared):
    values = {
      'ID': f'Segment_{number + 1}',
      'Name': segment.name,
      'Color': ' '.join(f'{part:.6g}' for part in colours[segment.name][:3]),
      'Layer': str(segment.layer),
      'LabelValue': str(segment.value),
      'Extent': extent,
    }
    fields |= {f'Segment{number}_{key}': value for key, value in values.items()}
  return fields
