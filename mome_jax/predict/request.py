"""What is asked of a prediction: which scans, which classes, what is written."""

import dataclasses
import operator
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from input_pipeline.anatomy import TEMPLATE, Template
from input_pipeline.anatomy.resolve import resolve
from mome_jax.errors import UserError, printable

if TYPE_CHECKING:
  from mome_jax.predict import find_scans

FAST_OVERLAP = 0.25  # about a third of the windows of 0.5
FIRST_FREE_LABEL = 200  # of prompts outside the template


class PredictError(UserError):
  """What was asked for cannot be done; the message names the fix."""


@dataclasses.dataclass(frozen=True)
class Options:
  """What is written besides labels and legend.

  Attributes:
    masks: one binary file a class.
    probabilities: one map a class.
    preview: a picture of three planes.
    report: a page to look at it.
    dicom_seg: a DICOM SEG object, for DICOM input.
    more: names of `formats.FORMATS` that have no field here.
    rtstruct: a DICOM RT Structure Set, for DICOM input.
  """

  masks: bool = False
  probabilities: bool = False
  preview: bool = True
  report: bool = False
  dicom_seg: bool = False
  more: tuple[str, ...] = ()
  rtstruct: bool = False


DEFAULTS = Options()


@dataclasses.dataclass(frozen=True)
class Request:
  """What is asked of a model, whichever it is and wherever the results go.

  A text or path where several may stand counts as one item; of a generator all items are taken.

  Attributes:
    inputs: NIfTI files, zip archives and folders; see `find_scans.find_scans`.
    prompts: class names or any text; None is all classes of the model but the experimental ones.
    options: what to write besides labels and legend.
    fast: let windows overlap by 0.25; the grid stays the same.
    assume_spacing: (3,) mm, in place of what NIfTI headers say.
    volume_number: which one of NIfTI files with several volumes, from 0 on.
    check_sides: call a scan mirrored where liver and spleen have changed sides.
    rules: of post-processing, names of `postprocess.RULES`; None is those of the model's config.
    as_written: prompts go to the text encoder as they are; no name or synonym is looked up.
    force: ask also for what the model was not trained on.
    tta: segment the mirror image too and average; None is what the model's config says.
    keep_absent: leave small masks that count as none; see `plausible_masks.judge_and_clean`.

  Raises:
    PredictError: if there are prompts, and none in them.
    VolumeError: if `assume_spacing` is not three sizes.
  """

  inputs: Sequence[str | os.PathLike]
  prompts: Sequence[str] | None = None
  options: Options = DEFAULTS
  fast: bool = False
  assume_spacing: Sequence[float] | None = None
  volume_number: int | None = None
  check_sides: bool = False
  rules: Sequence[str] | None = None
  as_written: bool = False
  force: bool = False
  tta: bool | None = None
  keep_absent: bool = False

  def __post_init__(self) -> None:
    for name in ('inputs', 'prompts', 'rules'):
      value = getattr(self, name)
      if value is not None:
        one = isinstance(value, str | os.PathLike)
        object.__setattr__(self, name, (value,) if one else tuple(value))
    # Legends hold both, and JSON has no numbers of NumPy.
    if self.assume_spacing is not None:
      from input_pipeline.ct import grid_checks  # slow to import, and the options are read for help

      object.__setattr__(self, 'assume_spacing', grid_checks.sizes(self.assume_spacing))
    if self.volume_number is not None:
      object.__setattr__(self, 'volume_number', operator.index(self.volume_number))
    if self.prompts is not None and not len(self.prompts):
      raise PredictError(
        'prompts is empty; write what to look for, as ["liver"], or leave it out for the classes '
        'of the model'
      )

  @property
  def overlap(self) -> float | None:
    """Share of a window that the next one overlaps; None is that of the model's config."""
    return FAST_OVERLAP if self.fast else None

  def read(self, scan: 'find_scans.ScanFiles') -> 'find_scans.LoadedScan':
    """Reads a scan as it is asked for; see `find_scans.read`."""
    from mome_jax.predict import find_scans

    return find_scans.read(scan, assume_spacing=self.assume_spacing, number=self.volume_number)


@dataclasses.dataclass(frozen=True)
class Target:
  """What a prompt asks for.

  Attributes:
    label: in the written label map.
    name: lower case; the canonical name for a class of the template.
    prompt: as it was typed.
    text: what the text encoder reads: the sentence of a class, or the prompt.
    taken_as: 'class' (its name), 'synonym' (other words for it), or 'free'.
    also: further prompts that ask for the same.
    familiarity: of the prompt to the model, 0 to 1; see `text.familiarity`.
    verdict: 'known', 'near' or 'unfamiliar'.
    nearest: of free text the trained class, or pair, that it is like; '' where it is like none.
  """

  label: int
  name: str
  prompt: str
  text: str
  taken_as: str = 'class'
  also: tuple[str, ...] = ()
  familiarity: float = 1.0
  verdict: str = 'known'
  nearest: str = ''

  def told(self) -> str:
    """One line for people: what the prompts were taken for."""
    prompts = ' and '.join(f'"{prompt}"' for prompt in (self.prompt, *self.also))
    if self.taken_as == 'free':
      like = f' like the class {self.nearest}' if self.nearest else ''
      return f'{prompts}: free text{like}, label {self.label}'
    return f'{prompts}: the class {self.name}, label {self.label}'


def _plain(prompt: str) -> str:
  """What the encoder reads of free text: words as in the prompts that it learned from.

  Of 'Mandible_Bone' or 'mandible (bone)' it would make a vector far from that of 'mandible bone'.
  """
  return ' '.join(re.sub(r'[\W_]+', ' ', prompt.casefold()).split()) or prompt


def make_targets(
  prompts: str | Sequence[str], template: Template = TEMPLATE, *, as_written: bool = False
) -> list[Target]:
  """What some prompts ask for.

  Names and synonyms of a class, however they are spelled, stand for the sentence it was trained
  with, and keep its label; see `anatomy.resolve`. A paired organ without its side stands for both.
  Any other text is for the text encoder, its words in lower case, and gets a label from 200 on.
  What several prompts ask for is one target.

  Args:
    prompts: texts, or one.
    template: of the class names.
    as_written: look nothing up: all of it is free text, and read as it is.

  Raises:
    UserError: if a prompt is empty or no Unicode, or there are more texts than labels.
  """
  targets: dict[str, Target] = {}
  label = FIRST_FREE_LABEL
  for text in [prompts] if isinstance(prompts, str) else prompts:
    prompt = ' '.join(text.split())
    if not prompt:
      raise UserError('an empty prompt; write what to look for')
    if prompt != printable(prompt):
      raise UserError(f'the prompt "{printable(prompt)}" is not UTF-8; write it in UTF-8')
    name = prompt.casefold()
    asked = [
      Target(s.index, s.name, prompt, s.prompt, 'class' if s.name == name else 'synonym')
      for s in (() if as_written else resolve(prompt, template))
    ]
    read = prompt if as_written else _plain(prompt)
    for target in asked or [Target(label, name, prompt, read, 'free')]:
      before = targets.get(target.name)
      if before is None:
        targets[target.name] = target
        label += target.taken_as == 'free'
      elif prompt not in (before.prompt, *before.also):
        targets[target.name] = dataclasses.replace(before, also=(*before.also, prompt))
  if label > 1 << 16:
    raise UserError(
      f'{label - FIRST_FREE_LABEL} prompts outside the template have no label below 65536; ask for '
      'fewer at a time'
    )
  return list(targets.values())
