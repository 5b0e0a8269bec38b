"""Results as NRRD and MetaImage: what they take, and a segmentation for 3D Slicer."""

import pathlib
from collections.abc import Mapping, Sequence

from input_pipeline.ct import itk_image, slicer_segments, volume
from mome_jax.inference.segmentation import Segmentation
from mome_jax.predict.request import PredictError


def require(switch: str) -> None:
  """Raises PredictError if what writes these formats is not installed.

  Args:
    switch: that asks for one of them.
  """
  try:
    itk_image.library()
  except volume.VolumeError as error:
    raise PredictError(f'{switch}: {error}') from error


def write_segments(
  path: pathlib.Path,
  segmentation: Segmentation,
  names: Sequence[str],
  colours: Mapping[str, Sequence[float]],
  geometry: volume.Geometry,
) -> None:
  """Writes a segmentation of 3D Slicer; classes that overlap are in different layers.

  Args:
    path: `.seg.nrrd` file.
    segmentation: of the classes.
    names: of the classes to write, at least one.
    colours: name -> red, green and blue, 0 to 1.
    geometry: of the scan.

  Raises:
    PredictError: if there are more classes than values.
  """
  if len(names) > 255:
    raise PredictError(f'{path.name}: {len(names)} classes; it holds 255, ask for fewer at a time')
  layers, declared = slicer_segments.layered((name, segmentation.mask(name)) for name in names)
  header = slicer_segments.header(declared, colours, geometry.shape)
  itk_image.write(path, layers[..., 0] if layers.shape[-1] == 1 else layers, geometry, header)
