"""The pictures of an evaluation: numbers become drawings here and nowhere else in this room."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from input_pipeline.bricks import VolumeRecord
from mome_jax.evaluate import metrics
from mome_jax.inference import router_maps
from mome_jax.inference.segmentation import Segmentation
from mome_jax.pictures import froc_curve, overlay, router_pictures
from mome_jax.pictures.colours import palette


class CasePictures:
  """Draws the first cases of a split, and what the router did in them.

  Args:
    folder: created where missing, unless nothing is drawn.
    number: cases to draw.
    explainer: of the model; None where it mixes no scales.
    several: whether scans of several sources are drawn, which may have one name: the source goes
      before it.
  """

  def __init__(
    self,
    folder: epath.Path,
    number: int,
    explainer: router_maps.Explainer | None = None,
    *,
    several: bool = False,
  ):
    self.folder = folder
    self._number = number
    self._explainer = explainer
    self._totals = None if explainer is None else router_maps.RoutingTotals(explainer)
    self._slices: list[router_pictures.RouterSlice] = []  # of the first case
    self._several = several

  def watch(self) -> router_maps.RoutingWatch | None:
    """For the segmentation of the next case; None where the router is not asked."""
    if self._explainer is None or not self._number:
      return None
    return self._explainer.watch()

  def draw(
    self, case: VolumeRecord, segmentation: Segmentation, watch: router_maps.RoutingWatch | None
  ) -> None:
    """Draws a case that was segmented under `watch`, if it is one of the first."""
    if not self._number:
      return
    self._number -= 1
    name = f'{case.source}_{case.name}' if self._several else case.name
    _draw_masks(self.folder / f'{name}.png', case, segmentation)
    if watch is None or self._totals is None:
      return
    maps = watch.maps()
    slices = router_pictures.largest_slices(maps, case.image, case.geometry.spacing, segmentation)
    self._slices = self._slices if self._totals.cases else slices
    self._totals.add(maps)
    router_pictures.scale_maps(
      self.folder / f'{name}_routing.png',
      slices,
      maps.scale_labels,
      title=f'{name}: which scale each class trusts where',
    )

  def finish(self, end: str, points: Sequence[Mapping[str, Any]]) -> None:
    """Draws what is of all cases.

    Args:
      end: of the names of the pictures, such as '_test'.
      points: of `froc.summarize`.
    """
    curve = self.folder / f'detection{end}.png'
    if not froc_curve.froc_curve(curve, points):
      curve.unlink(missing_ok=True)  # of an earlier evaluation
    totals = self._totals
    if totals is None or not totals.cases:
      return
    scans = f'{totals.cases} scan{"s" * (totals.cases != 1)}'
    router_pictures.routing(
      self.folder / f'routing{end}.png',
      router_pictures.Shares(totals.names, totals.scale_labels, totals.share, totals.mean_entropy),
      self._slices,
      title=f'Weight of each scale inside the predicted masks of {scans}',
    )


def _draw_masks(path: epath.Path, case: VolumeRecord, segmentation: Segmentation) -> None:
  masks = {}
  for name in segmentation.names:
    if name in case.absent:
      # What the scan cannot show is drawn where the model sees it all the same.
      mask = segmentation.mask(name) & _known_slices(case, name)
      if mask.any():
        masks[name] = mask
    elif name in case.supervised:
      masks[name] = segmentation.view(name)
  names = list(masks)
  table = segmentation.template.code_table(names)
  layers = overlay.Layers(
    masks,
    {name: overlay.CodeMask(case.codes, table[:, i]) for i, name in enumerate(names)},
    palette(segmentation.names),
  )
  title = f'{path.stem}: prediction filled, reference dashed'
  overlay.overlay(path, case.image, case.geometry.spacing, layers, title)


def _known_slices(case: VolumeRecord, name: str) -> np.ndarray:
  """(W,) bool: the slices in which something is known of a class."""
  number = case.image.shape[2]
  slices = np.arange(number).reshape(1, 1, -1)
  return np.isin(
    np.arange(number), metrics.restrict(slices, case.geometry.spacing, case.heights(name))
  )
