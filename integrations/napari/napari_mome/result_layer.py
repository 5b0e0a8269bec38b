"""Masks as one Labels layer, with the names of classes and the colours of all outputs."""

import contextlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from napari.layers import Image, Labels
from napari.utils import DirectLabelColormap

from input_pipeline.ct import volume
from input_pipeline.ct.volume import Geometry
from mome_jax.errors import UserError, writing
from mome_jax.pictures.colours import palette
from mome_jax.predict.formats import SegmentedScan
from napari_mome import placement
from napari_mome.placement import PlacedScan

ENDING = '_seg.nii.gz'


def labels_of(segmented: SegmentedScan, placed: PlacedScan) -> np.ndarray:
  """The label map of `predict`, on the axes of the layer."""
  targets = {target.name: target.label for target in segmented.targets}
  return placed.on_layer(segmented.segmentation.label_map(targets))


def looks(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """How napari is to show labels.

  Args:
    rows: of a legend.

  Returns:
    `features`, a table that names the class under the cursor, and `colormap`.
  """
  table = {
    'index': [0, *(row['label'] for row in rows)],
    'class': ['', *(row['name'] for row in rows)],
    'volume_ml': [np.nan, *(row['volume_ml'] for row in rows)],
  }
  colours = palette([row['name'] for row in rows])
  shades = {row['label']: (*colours[row['name']], 1.0) for row in rows}
  return {
    'features': table,
    'colormap': DirectLabelColormap(color_dict={None: (0, 0, 0, 0), 0: (0, 0, 0, 0), **shades}),
  }


def layer_over(image: Image, labels: np.ndarray, rows: Sequence[Mapping[str, Any]]) -> Labels:
  """A new layer that lies on the voxels of an image.

  Args:
    image: that was segmented.
    labels: on its axes.
    rows: of the legend.
  """
  return Labels(
    labels,
    name=f'{image.name} classes',
    scale=image.scale,
    translate=image.translate,
    rotate=image.rotate,
    shear=image.shear,
    affine=image.affine,
    units=image.units,
    axis_labels=image.axis_labels,
    opacity=0.5,
    **looks(rows),
  )


def legend_of(path: pathlib.Path) -> pathlib.Path:
  """Where the legend of a file of labels lies."""
  return path.with_name(f'{volume.stem(path)}.json')


def of_file(
  path: pathlib.Path, rows: Sequence[Mapping[str, Any]]
) -> tuple[np.ndarray, dict[str, Any], str]:
  """Labels that `predict` has written, as napari takes a layer.

  Args:
    path: NIfTI file.
    rows: of its legend.

  Raises:
    VolumeError: if it cannot be read.
  """
  labels = volume.read_labels(path, most=65535)  # `predict` numbers free text from 200 on
  array, transform = placement.upright(labels)
  shown = {
    'name': volume.stem(path),
    'opacity': 0.5,
    **transform,
    **looks(rows),
  }
  return array, shown, 'labels'


def rows_of(path: pathlib.Path) -> list[dict[str, Any]] | None:
  """The rows of the legend beside a file of labels; None where what lies there is none."""
  try:
    rows = json.loads(legend_of(path).read_text(encoding='utf-8'))['labels']
    good = all({'label', 'name', 'volume_ml'} <= set(row) for row in rows)
  except (OSError, ValueError, KeyError, TypeError):
    return None
  return rows if good else None


def write(
  path: pathlib.Path, labels: np.ndarray, geometry: Geometry, legend: Mapping[str, Any] | None
) -> None:
  """Writes labels and their legend; what lies there goes if it is the same of an earlier time.

  Args:
    path: NIfTI file.
    labels: (D, H, W) uint8 or uint16, on the canonical grid of the scan.
    geometry: of the scan.
    legend: None has that of what the file held before removed.

  Raises:
    UserError: if they cannot be written, or another file lies where the legend belongs.
  """
  place, rows = legend_of(path), rows_of(path)
  files = [path.with_name(f'{volume.stem(path)}{ending}') for ending in volume.ENDINGS]
  belongs = rows is not None and [file for file in files if file.exists()] == [path]
  in_the_way = rows is not None if legend is None else place.exists()
  if in_the_way and not belongs:
    raise UserError(
      f'{place}: lies there already and is no legend of {path.name}; take another name'
    )
  part = place.with_name(f'.{os.getpid()}-{place.name}')
  try:
    with writing(path):
      if legend is not None:  # whole before the first file changes
        part.write_text(json.dumps(legend, indent=2) + '\n', encoding='utf-8')
      volume.write_nifti(path, labels, geometry, labels.dtype)
      if legend is not None:
        os.replace(part, place)
      elif belongs:
        place.unlink()
  finally:
    with contextlib.suppress(OSError):
      part.unlink()


def redraw(shown: Labels, layer: Labels) -> None:
  """Has a layer show what another one of the same place and shape shows."""
  shown.data = layer.data
  shown.features, shown.colormap = layer.features, layer.colormap
