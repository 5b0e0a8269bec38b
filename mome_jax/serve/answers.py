"""From prompts to masks: what was asked for is made in passes, and each is shown when it is made.

The classes that the model was trained on come from one pass, whichever of them are asked for;
anything else from further ones, four prompts each. No mask depends on what else is asked for, so
what was made of a scan once is there for every later set of prompts. Each pass after the first one
finds what the backbone saw of the scan, as far as it could be kept: only text, router and heads run
again.
"""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mome_jax.errors import UserError
from mome_jax.inference import segmentation as masks
from mome_jax.inference.model import Model
from mome_jax.inference.progress import Progress
from mome_jax.inference.segmentation import Segmentation
from mome_jax.inference.segmenter import Segmenter
from mome_jax.inference.sights import Sights
from mome_jax.predict import (
  class_statistics,
  plausible_masks,
  prompted_model,
  verdicts,
  viewer_data,
  write_results,
)
from mome_jax.predict.formats import SegmentedScan
from mome_jax.predict.prompted_model import PromptedModel
from mome_jax.predict.request import Options, Request, Target, make_targets
from mome_jax.predict.uncertainty import Uncertainty
from mome_jax.serve.compute import Job
from mome_jax.serve.scans import Part, PromptSet, Scan

_TOGETHER = 4  # free prompts in a pass: what the network reads at a time


class Answerer:
  """Has a model answer prompts.

  Args:
    model: in memory.
    options: of every request; its prompts and inputs do not count.
    keep: bytes of what the model has seen that are kept.
  """

  def __init__(self, model: Model, options: Request, keep: int):
    self.model = model
    self._options = options
    self._sights = [Sights(keep // len(model.members)) for _ in model.members]
    for member, sights in zip(model.members, self._sights, strict=True):
      member.sights = sights

  def request(
    self, prompts: Sequence[str] | None, *, force: bool = False, as_written: bool = False
  ) -> Request:
    """What is asked of the model."""
    return dataclasses.replace(self._options, prompts=prompts, force=force, as_written=as_written)

  def read_prompts(self, request: Request) -> PromptedModel:
    """Has the model read prompts; UserError as `prompted_model.ask`."""
    return prompted_model.ask(self.model, request)

  def judge(self, prompts: Sequence[str]) -> list[dict[str, Any]]:
    """What each prompt would be taken for, and whether the model knows it.

    Raises:
      UserError: if a prompt is empty.
    """
    targets = make_targets(prompts, self.model.template)
    targets, notes = verdicts.judge(targets, self.model, self.request(prompts, force=True))
    fields = 'name', 'prompt', 'taken_as', 'verdict', 'familiarity'
    return [{field: getattr(target, field) for field in fields} for target in targets]

  def forget(self, scan: Scan) -> None:
    """Drops what was seen of a scan."""
    for sights in self._sights:
      sights.forget(scan.key)

  def warm_up(self, job: Job) -> None:
    """Has the model answer about nothing, so that its programs are there for the first scan."""
    asked = self.read_prompts(self.request(None))
    job.enter('getting ready')
    settings = asked.segmenter.settings
    air = np.zeros(
      (settings.tiling.batch_size, *settings.tiling.window, len(settings.hu_windows)), np.float32
    )
    with self._seeing('nothing'):
      parts = asked.segmenter.predict(air)
      for part in parts if hasattr(parts, '__next__') else [parts]:
        np.asarray(part)
    for sights in self._sights:
      sights.forget('nothing')

  def answer(self, scan: Scan, one: PromptSet, job: Job) -> None:
    """Makes the masks of a set of prompts, and shows them as they are finished."""
    trained, free = self._split(one)
    todo = [target for target in free if (target.name, target.text) not in scan.free]
    ready = [*trained, *(target for target in free if target not in todo)]
    if trained:
      self._make_trained(scan, job)
    if ready:
      self._show(scan, one, ready, job)
    for first in range(0, len(todo), _TOGETHER):
      some = todo[first : first + _TOGETHER]
      self._make_free(scan, one, some, job)
      ready += some
      self._show(scan, one, ready, job)

  def explain(self, scan: Scan, one: PromptSet, job: Job) -> None:
    """Makes the routing maps of a set of prompts.

    Raises:
      UserError: if no one router made its masks.
    """
    request = dataclasses.replace(one.request, options=Options(report=True))
    asked = self.read_prompts(request)
    if asked.explainer is None or one.segmented is None:
      raise UserError('no routing maps: this model mixes no scales, or several passes are averaged')
    job.enter('routing')
    watch = asked.explainer.watch()
    volume = scan.loaded.volume
    asked.segmenter(volume.array, tuple(volume.spacing), watch=Progress(watch, job.progress))
    one.routing = watch.maps()
    one.segmented = dataclasses.replace(one.segmented, routing=one.routing)
    one.view = viewer_data.masks(
      volume, one.segmented.segmentation, one.segmented.rows, scan.step, one.routing
    )
    one.files.pop('report.html', None)

  # -------------------------------------------------------------------------- passes
  def _split(self, one: PromptSet) -> tuple[list[Target], list[Target]]:
    """The targets that compete with each other, and the free ones."""
    names = one.asked.segmenter.names
    targets = one.asked.targets
    return [t for t in targets if t.name in names], [t for t in targets if t.name not in names]

  def _make_trained(self, scan: Scan, job: Job) -> None:
    if scan.trained is None:
      job.enter('classes of the model')
      asked = self.read_prompts(self.request(None))
      part = self._run(scan, asked.segmenter, job)
      judgement = plausible_masks.judge_masks(scan.loaded.volume, part.segmentation, asked.looks)
      scan.trained = dataclasses.replace(part, judgement=judgement)

  def _make_free(self, scan: Scan, one: PromptSet, targets: Sequence[Target], job: Job) -> None:
    job.enter(', '.join(target.name for target in targets))
    written = [t.prompt if t.taken_as == 'free' else t.name for t in targets]
    asked = self.read_prompts(self.request(written, force=True, as_written=one.request.as_written))
    part = self._run(scan, asked.segmenter, job)
    for target in targets:
      mask = part.segmentation.free[target.name]
      scan.free[target.name, target.text] = mask, part.unsure[target.name]

  def _run(self, scan: Scan, segmenter: Segmenter, job: Job) -> Part:
    volume = scan.loaded.volume
    uncertainty = Uncertainty(range(len(segmenter.classes)))

    def on_slab(slab) -> None:
      job.check()
      uncertainty.add(slab)

    with self._seeing(scan.key):
      segmentation = segmenter(
        volume.array,
        tuple(volume.spacing),
        on_slab,
        watch=Progress(segmenter.predict, job.progress),
      )
    job.check()
    return Part(segmentation, dict(zip(segmenter.classes, uncertainty.shares(), strict=True)))

  @contextlib.contextmanager
  def _seeing(self, key: str):
    with contextlib.ExitStack() as stack:
      for sights in self._sights:
        stack.enter_context(sights.scan(key))
      yield

  # -------------------------------------------------------------------------- showing
  def _show(self, scan: Scan, one: PromptSet, targets: Sequence[Target], job: Job) -> None:
    """Makes some targets of a set visible, in the order of its prompts."""
    job.check()
    targets = [target for target in one.asked.targets if target in targets]
    volume = scan.loaded.volume
    segmentation, unsure = self._joined(scan, one, targets)
    judgement = scan.trained.judgement if scan.trained and segmentation.names else None
    segmented = SegmentedScan(
      scan.title, scan.loaded, segmentation, targets, judgement=judgement, unsure=unsure
    )
    rows = write_results.measure(segmented)
    # The rows come last: where they are, there is a view.
    one.view = viewer_data.masks(volume, segmentation, rows, scan.step)
    one.segmented = dataclasses.replace(segmented, rows=rows)
    one.is_whole = len(targets) == len(one.asked.targets)
    job.show([target.name for target in targets])

  def _joined(
    self, scan: Scan, one: PromptSet, targets: Sequence[Target]
  ) -> tuple[Segmentation, Mapping[str, float | None]]:
    names = [target.name for target in targets]
    made = {t.name: scan.free.get((t.name, t.text)) for t in targets}
    free = {name: mask[0] for name, mask in made.items() if mask is not None}
    unsure = {name: mask[1] for name, mask in made.items() if mask is not None}
    if scan.trained is not None and set(names) - set(free):
      joined = dataclasses.replace(scan.trained.segmentation, free=free)
      return joined, {**scan.trained.unsure, **unsure}
    shape = scan.loaded.volume.array.shape
    nothing = np.zeros(shape, np.uint8), np.zeros((*shape, masks.over_bytes(())), np.uint8)
    return Segmentation((), *nothing, one.asked.predictor.template, free), unsure


def warnings_of(scan: Scan, one: PromptSet) -> list[str]:
  """What the user should know of the masks of a set, with the scan called by its title."""
  assert one.segmented is not None  # asked for once there is something to show
  names = [target.name for target in one.segmented.targets]
  told = plausible_masks.notes(scan.title, one.segmented.judgement, names)
  return [*scan.notes, *told]


def origin_of(scan: Scan, one: PromptSet) -> dict[str, Any]:
  """The fields of the legend of a set."""
  assert one.segmented is not None
  mirrored = class_statistics.is_mirrored(one.segmented.segmentation)
  origin = write_results.origin_of(
    scan.files,
    scan.digest,
    one.asked,
    one.segmented.judgement,
    mirrored=mirrored,
    warnings=warnings_of(scan, one),
  )
  return {**origin, 'input': scan.title}
