"""What is asked of a prediction: which scans, which classes, what is written."""

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from input_pipeline.anatomy import TEMPLATE, Template
from mome_jax.errors import UserError

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
  """

  masks: bool = False
  probabilities: bool = False
  preview: bool = True
  report: bool = False
  dicom_seg: bool = False
  more: tuple[str, ...] = ()


DEFAULTS = Options()


@dataclasses.dataclass(frozen=True)
class Request:
  """What is asked of a model, whichever it is and wherever the results go.

  Attributes:
    inputs: NIfTI files, zip archives and folders; see `find_scans.find_scans`.
    prompts: class names or any text; None is the classes that the model was trained on.
    options: what to write besides labels and legend.
    fast: let windows overlap by 0.25; the grid stays the same.
    assume_spacing: (3,) mm, in place of what NIfTI headers say.
    volume_number: which one of NIfTI files with several volumes, from 0 on.
    check_sides: call a scan mirrored where liver and spleen have changed sides.
    rules: of post-processing, names of `postprocess.RULES`; None is those of the model's config.
  """

  inputs: Sequence[str | os.PathLike]
  prompts: Sequence[str] | None = None
  options: Options = DEFAULTS
  fast: bool = False
  assume_spacing: Sequence[float] | None = None
  volume_number: int | None = None
  check_sides: bool = False
  rules: Sequence[str] | None = None

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
    prompt: for the text encoder.
  """

  label: int
  name: str
  prompt: str


def make_targets(prompts: Sequence[str], template: Template = TEMPLATE) -> list[Target]:
  """What some prompts ask for.

  The name of a class, in any case, stands for the sentence it was trained with, and keeps its
  label. Any other text, synonyms too, is for the text encoder alone and gets a label from 200 on.

  Args:
    prompts: K texts.
    template: of the class names.

  Raises:
    UserError: if two ask for the same, or there are more texts than labels.
  """
  targets, free = [], FIRST_FREE_LABEL
  for text in prompts:
    name = ' '.join(text.casefold().split())
    if name in template.names():
      structure = template.get(name)
      targets.append(Target(structure.index, name, structure.prompt))
    else:
      targets.append(Target(free, name, ' '.join(text.split())))
      free += 1
  names = [target.name for target in targets]
  twice = sorted({name for name in names if names.count(name) > 1})
  if twice:
    raise UserError(f'prompts {", ".join(twice)}: asked for twice; name each once')
  if free > 1 << 16:
    raise UserError(
      f'{free - FIRST_FREE_LABEL} prompts outside the template have no label below 65536; ask for '
      'fewer at a time'
    )
  return targets
