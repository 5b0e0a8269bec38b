"""A model that answers prompts about layers: what was made of a layer once is there later on."""

import dataclasses
import itertools
import os
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
from napari.layers import Image, Layer

from input_pipeline import remarks
from mome_jax import shipped
from mome_jax.inference.model import Model
from mome_jax.predict import prompted_model
from mome_jax.predict.formats import SegmentedScan
from mome_jax.predict.open_scan import Answerer, Listener, OpenScan, notes_on
from mome_jax.predict.request import Request
from mome_jax.runtime import compilation
from napari_mome import placement, result_layer
from napari_mome.placement import PlacedScan

KEPT = 4 << 30  # bytes of what the backbone has seen, for later prompts


@dataclasses.dataclass(frozen=True, eq=False)
class Question:
  """What is asked about a layer.

  Attributes:
    layer: the image.
    world: where the axes of napari's world grow to; see `placement`.
    prompts: None is all classes of the model but the experimental ones.
    force: ask also for what the model was not trained on.
  """

  layer: Image
  world: str = placement.WORLD
  prompts: Sequence[str] | None = None
  force: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
  """Masks that are finished.

  Attributes:
    question: what was asked.
    placed: the scan of the layer.
    segmented: the masks, with the rows of their legend.
    labels: the label map on the axes of the layer.
    notes: what the user should know.
    origin: fields of a legend: which model it was.
  """

  question: Question
  placed: PlacedScan
  segmented: SegmentedScan
  labels: np.ndarray
  notes: Sequence[str]
  origin: dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class _Opened:
  """A layer that was asked about, as it was then."""

  state: tuple
  placed: PlacedScan
  scan: OpenScan
  notes: Sequence[str]


class Desk:
  """A model in memory, and the layers that were asked about.

  Args:
    model: as for `predict`: a model folder, or a model in memory; None is the model that comes with
      the package.

  Raises:
    CheckpointError: if there is no model.
  """

  def __init__(self, model: str | os.PathLike | Model | None = None):
    compilation.use_cache()
    self.model = prompted_model.load(shipped.MODEL if model is None else model)
    self._answerer = Answerer(self.model, Request(()), KEPT)
    self._open: dict[Image, _Opened] = {}
    self._numbers = itertools.count(1)

  def phrases(self) -> list[str]:
    """What may be typed for the classes of the model: their names, then synonyms."""
    names, template = self.model.config.classes, self.model.template
    synonyms = {word for name in names for word in template.get(name).synonyms}
    return [*names, *sorted(synonyms.difference(names))]

  def answer(self, question: Question, listener: Listener) -> Iterator[Answer]:
    """Makes masks; yields those that are finished, again whenever there are more.

    Raises:
      LayerError, VolumeError: if the layer cannot be segmented.
      UnfamiliarError: if the model was not trained on what a prompt means; see `verdicts.judge`.
      UserError: if a prompt is empty.
    """
    request = self._answerer.request(question.prompts, force=question.force)
    listener.enter('reading')
    asked = self._answerer.read_prompts(request)
    opened = self._opened(question)
    for segmented in self._answerer.segment(opened.scan, request, asked, listener):
      labels = result_layer.labels_of(segmented, opened.placed)
      told = notes_on(segmented)
      notes = [*asked.notes, *opened.notes, *told, *_hidden(segmented, labels)]
      yield Answer(question, opened.placed, segmented, labels, notes, asked.origin)

  def forget_all_but(self, layers: Collection[Layer]) -> None:
    """Drops what was made of other layers than these; not while an answer is made."""
    for layer in [layer for layer in self._open if layer not in layers]:
      self._forget(layer)

  def _forget(self, layer: Image) -> None:
    opened = self._open.pop(layer, None)
    if opened is not None:
      self._answerer.forget(opened.scan.key)

  def _opened(self, question: Question) -> '_Opened':
    """The scan of a layer; a new one where voxels or place have changed."""
    layer = question.layer
    state = placement.state_of(layer, question.world)
    before = self._open.get(layer)
    if before is not None and before.state == state:
      return before
    with remarks.collected() as notes:
      placed = placement.place(layer, question.world)
    self._forget(layer)
    scan = OpenScan(key=f'layer {next(self._numbers)}', title=layer.name, loaded=placed.loaded)
    self._open[layer] = opened = _Opened(state, placed, scan, list(notes))
    return opened


def _hidden(segmented: SegmentedScan, labels: np.ndarray) -> Iterator[str]:
  """A line for each free prompt whose mask lies under others of the one label map."""
  for target in segmented.targets:
    mask = segmented.segmentation.free.get(target.name)
    if mask is None or mask.box is None:
      continue
    whole, drawn = np.count_nonzero(mask[mask.box]), np.count_nonzero(labels == target.label)
    if drawn < whole:
      yield (
        f'{target.name}: {(whole - drawn) / whole:.0%} of its mask lies under other classes; ask '
        'for it alone to see all of it'
      )
