"""One class, and the mistakes one can make in declaring it."""

import dataclasses

from input_pipeline.errors import UserError

# Indices of structures end below this, so that a longer template never meets a sided code.
FIRST_SIDED_CODE = 200
# Of voxels that nobody labelled: they are neither sampled, trained nor scored, for any class.
IGNORE_CODE = 255
# Of voxels around the patient, which belong to no class, whatever their dataset labels.
OUTSIDE_CODE = 254


class ClassError(UserError):
  """A class that is unknown or declared wrongly; the message names it and the fix."""


@dataclasses.dataclass(frozen=True)
class Structure:
  """One class.

  Attributes:
    index: label in outputs, 1..38 for the built-in template, 39.. for what extends it.
    name: canonical name, lower case with spaces.
    side: '', 'left' or 'right', of the patient.
    parents: names of the structures that may contain it; with several, each voxel lies in one.
    noun: the name as a noun phrase with its article.
    synonyms: other names, used in training.
    held_out: further names, never used in training: they measure what the text encoder learned.
    sentence: the prompt, where it is not made of the noun phrase.
  """

  index: int
  name: str
  side: str = ''
  parents: tuple[str, ...] = ()
  noun: str = ''
  synonyms: tuple[str, ...] = ()
  held_out: tuple[str, ...] = ()
  sentence: str = ''

  @property
  def phrases(self) -> tuple[str, ...]:
    """Name, synonyms and held-out names."""
    return (self.name, *self.synonyms, *self.held_out)

  @property
  def prompt(self) -> str:
    """The sentence of evaluation and prediction."""
    return self.sentence or f'A computerized tomography of {self.noun or self.name}'
