"""Masks as one Labels layer, with the names of classes and the colours of all outputs."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from napari.layers import Image, Labels
from napari.utils import DirectLabelColormap

from input_pipeline.ct import volume
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


def of_file(path: pathlib.Path) -> tuple[np.ndarray, dict[str, Any], str]:
  """Labels that `predict` has written beside their legend, as napari takes a layer.

  Raises:
    VolumeError: if it cannot be read.
  """
  labels = volume.read_labels(path)
  array, transform = placement.upright(labels)
  rows = json.loads(legend_of(path).read_text())['labels']
  shown = {
    'name': volume.stem(path),
    'opacity': 0.5,
    **transform,
    **looks(rows),
  }
  return array, shown, 'labels'


def redraw(shown: Labels, layer: Labels) -> None:
  """Has a layer show what another one of the same place and shape shows."""
  shown.data = layer.data
  shown.features, shown.colormap = layer.features, layer.colormap
