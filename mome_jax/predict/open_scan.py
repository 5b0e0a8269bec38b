"""From prompts to masks of a scan that stays open: what was made of it once is there later on.

The classes that the model was trained on come from one pass, whichever of them are asked for;
anything else from further ones, four prompts each. No mask depends on what else is asked for, so
what was made of a scan once is there for every later set of prompts. Each pass after the first one
finds what the backbone saw of the scan, as far as it could be kept: only text, router and heads run
again.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from mome_jax.inference import segmentation as masks
from mome_jax.inference.model import Model
from mome_jax.inference.packed_mask import PackedMask
from mome_jax.inference.progress import Progress
from mome_jax.inference.segmentation import Segmentation
from mome_jax.inference.segmenter import Segmenter
from mome_jax.inference.sights import Sights
from mome_jax.plausibility.judge import Judgement
from mome_jax.predict import plausible_masks, prompted_model, verdicts, write_results
from mome_jax.predict.find_scans import LoadedScan
from mome_jax.predict.formats import SegmentedScan
from mome_jax.predict.prompted_model import PromptedModel
from mome_jax.predict.request import Request, Target
from mome_jax.predict.uncertainty import Uncertainty

_TOGETHER = 4  # free prompts in a pass: what the network reads at a time


class Listener(Protocol):
  """Who waits for masks. What a method raises ends the work."""

  def check(self) -> None:
    """Asked often whether to go on."""

  def enter(self, stage: str) -> None:
    """Hears what is done from now on, in a few words."""

  def progress(self, done: int, total: int) -> None:
    """Hears how many windows of the stage are done."""


@dataclasses.dataclass(frozen=True)
class Part:
  """Masks that were made in one pass over the windows of a scan.

  Attributes:
    segmentation: of them.
    unsure: by name, the share of a mask that is; see `uncertainty.Uncertainty`.
    judgement: of the masks, or None.
  """

  segmentation: Segmentation
  unsure: dict[str, float | None]
  judgement: Judgement | None = None


@dataclasses.dataclass(eq=False, kw_only=True)
class OpenScan:
  """A scan that prompts are asked about.

  Attributes:
    key: its name among what the model has seen.
    title: what it is called.
    loaded: the scan.
    trained: the masks of all classes that the model was trained on, once one was asked for.
    free: masks of anything else, by name and text of the prompt, with their unsure share.
  """

  key: str
  title: str
  loaded: LoadedScan
  trained: Part | None = None
  free: dict[tuple[str, str], tuple[PackedMask, float | None]] = dataclasses.field(
    default_factory=dict
  )


class Answerer:
  """Has a model answer prompts about open scans.

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

  def forget(self, key: str) -> None:
    """Drops what was seen of a scan of this key."""
    for sights in self._sights:
      sights.forget(key)

  def segment(
    self, scan: OpenScan, request: Request, asked: PromptedModel, listener: Listener
  ) -> Iterator[SegmentedScan]:
    """Makes the masks of some prompts.

    Args:
      scan: the scan.
      request: the prompts; see `request`.
      asked: the model, which has read them; see `read_prompts`.
      listener: who waits.

    Yields:
      The masks that are finished, in the order of the prompts, with their rows; again whenever
      there are more, all of them at last.
    """
    trained, free = _split(asked)
    todo = [target for target in free if (target.name, target.text) not in scan.free]
    ready = [*trained, *(target for target in free if target not in todo)]
    if trained:
      self._make_trained(scan, listener)
    if ready:
      listener.check()
      yield _segmented(scan, asked, ready)
    for first in range(0, len(todo), _TOGETHER):
      some = todo[first : first + _TOGETHER]
      self._make_free(scan, request, some, listener)
      ready += some
      listener.check()
      yield _segmented(scan, asked, ready)

  def _make_trained(self, scan: OpenScan, listener: Listener) -> None:
    if scan.trained is None:
      listener.enter('classes of the model')
      asked = self.read_prompts(self.request(None))
      part = self._run(scan, asked.segmenter, listener)
      left, judgement = plausible_masks.judge_and_clean(
        scan.loaded.volume,
        part.segmentation,
        asked.records,
        keep_absent=self._options.keep_absent,
      )
      scan.trained = Part(left, part.unsure, judgement)

  def _make_free(
    self, scan: OpenScan, request: Request, targets: Sequence[Target], listener: Listener
  ) -> None:
    listener.enter(', '.join(target.name for target in targets))
    written = [t.prompt if t.taken_as == 'free' else t.name for t in targets]
    asked = self.read_prompts(self.request(written, force=True, as_written=request.as_written))
    part = self._run(scan, asked.segmenter, listener)
    for target in targets:
      mask = part.segmentation.free[target.name]
      scan.free[target.name, target.text] = mask, part.unsure[target.name]

  def _run(self, scan: OpenScan, segmenter: Segmenter, listener: Listener) -> Part:
    volume = scan.loaded.volume
    uncertainty = Uncertainty(range(len(segmenter.classes)))

    def on_slab(slab) -> None:
      listener.check()
      uncertainty.add(slab)

    with self.seeing(scan.key):
      segmentation = segmenter(
        volume.array,
        tuple(volume.spacing),
        on_slab,
        watch=Progress(segmenter.predict, listener.progress),
      )
    listener.check()
    return Part(segmentation, dict(zip(segmenter.classes, uncertainty.shares(), strict=True)))

  @contextlib.contextmanager
  def seeing(self, key: str) -> Iterator[None]:
    """In this block, what the model has seen of a scan is there for its windows.

    Args:
      key: of the scan.
    """
    with contextlib.ExitStack() as stack:
      for sights in self._sights:
        stack.enter_context(sights.scan(key))
      yield


def _split(asked: PromptedModel) -> tuple[list[Target], list[Target]]:
  """The targets that compete with each other, and the free ones."""
  names = asked.segmenter.names
  targets = asked.targets
  return [t for t in targets if t.name in names], [t for t in targets if t.name not in names]


def notes_on(segmented: SegmentedScan) -> list[str]:
  """What the user should know of the masks of a scan, which is called by its name."""
  names, free = [target.name for target in segmented.targets], segmented.segmentation.free
  told = plausible_masks.notes(segmented.name, segmented.judgement, names)
  return [*told, *verdicts.unanswered(segmented.name, segmented.targets, free)]


def _segmented(scan: OpenScan, asked: PromptedModel, targets: Sequence[Target]) -> SegmentedScan:
  """Some targets, which are finished, in the order of the prompts."""
  targets = [target for target in asked.targets if target in targets]
  segmentation, unsure = _joined(scan, asked, targets)
  judgement = scan.trained.judgement if scan.trained and segmentation.names else None
  segmented = SegmentedScan(
    scan.title, scan.loaded, segmentation, targets, judgement=judgement, unsure=unsure
  )
  return dataclasses.replace(segmented, rows=write_results.measure(segmented))


def _joined(
  scan: OpenScan, asked: PromptedModel, targets: Sequence[Target]
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
  return Segmentation((), *nothing, asked.predictor.template, free), unsure
