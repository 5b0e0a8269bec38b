"""What the page is shown of the masks that were asked for, and which scales are trusted where."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mome_jax.errors import UserError
from mome_jax.inference.progress import Progress
from mome_jax.predict import (
  class_statistics,
  open_scan,
  verdicts,
  viewer_data,
  write_results,
)
from mome_jax.predict.request import Options, make_targets
from mome_jax.serve.compute import Job
from mome_jax.serve.scans import PromptSet, Scan


class Answerer(open_scan.Answerer):
  """Has a model answer prompts, and shows the page what is finished."""

  def warm_up(self, job: Job) -> None:
    """Has the model answer about nothing, so that its programs are there for the first scan."""
    asked = self.read_prompts(self.request(None))
    job.enter('getting ready')
    settings = asked.segmenter.settings
    air = np.zeros(
      (settings.tiling.batch_size, *settings.tiling.window, len(settings.hu_windows)), np.float32
    )
    with self.seeing('nothing'):
      parts = asked.segmenter.predict(air)
      for part in parts if hasattr(parts, '__next__') else [parts]:
        np.asarray(part)
    self.forget('nothing')

  def judge(self, prompts: Sequence[str]) -> list[dict[str, Any]]:
    """What each prompt would be taken for, and whether the model knows it.

    Raises:
      UserError: if a prompt is empty.
    """
    targets = make_targets(prompts, self.model.template)
    targets, _ = verdicts.judge(targets, self.model, self.request(None, force=True))
    fields = 'name', 'prompt', 'taken_as', 'verdict', 'familiarity'
    return [{field: getattr(target, field) for field in fields} for target in targets]

  def check(self, prompts: Sequence[str], *, as_written: bool = False) -> None:
    """Raises UnfamiliarError if the model was not trained on some prompts."""
    targets = make_targets(prompts, self.model.template, as_written=as_written)
    verdicts.judge(targets, self.model, self.request(None, as_written=as_written))

  def answer(self, scan: Scan, one: PromptSet, job: Job) -> None:
    """Makes the masks of a set of prompts, and shows those of each pass as it ends."""
    volume = scan.loaded.volume
    for segmented in self.segment(scan, one.request, one.asked, job):
      # The rows come last: where they are, there is a view.
      one.view = viewer_data.masks(volume, segmented.segmentation, segmented.rows, scan.step)
      one.segmented = segmented
      one.is_whole = len(segmented.targets) == len(one.asked.targets)
      job.show([target.name for target in segmented.targets])

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
    with self.seeing(scan.key):
      asked.segmenter(volume.array, tuple(volume.spacing), watch=Progress(watch, job.progress))
    routing = watch.maps()
    with scan.lock:  # a report that is being written is one without them
      one.segmented = dataclasses.replace(one.segmented, routing=routing)
      one.view = viewer_data.masks(
        volume, one.segmented.segmentation, one.segmented.rows, scan.step, routing
      )
      one.files.pop('report.html', None)


def warnings_of(scan: Scan, one: PromptSet) -> list[str]:
  """What the user should know of the masks of a set, with the scan called by its title."""
  assert one.segmented is not None  # asked for once there is something to show
  return [*scan.notes, *open_scan.notes_on(one.segmented)]


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
