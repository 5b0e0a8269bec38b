"""Prompts: the sentences that name a class to the text encoder."""

from collections.abc import Sequence

import numpy as np

from input_pipeline.anatomy import TEMPLATE, Structure, Template
from mome_jax.errors import UserError


class PromptError(UserError):
  """Prompts that cannot be made or read; the message names them and the fix."""


# Sentences seen in training. {name} is a bare name, {noun} a noun phrase with its article.
SENTENCES = (
  'A computerized tomography of {noun}',
  'There is {noun} in this computerized tomography',
  'A CT of {noun}',
  'CT scan showing {noun}',
  'an axial CT image of {noun}',
  'segment {noun}',
  'Delineate {noun} in this scan',
  'where is {noun}?',
  '{name}',
  '{name} on CT',
  'contour of {noun}',
  'voxels that belong to {noun}',
)


def default_prompts(names: Sequence[str], template: Template = TEMPLATE) -> list[str]:
  """The prompt of evaluation and prediction for every class.

  Args:
    names: K canonical names of the template.
    template: anatomy.Template.

  Returns:
    K prompts, such as 'A computerized tomography of a liver'.

  Raises:
    ClassError: if the template has no such name; the message lists close ones.
  """
  return [template.get(name).prompt for name in names]


def held_out_prompts(names: Sequence[str], template: Template = TEMPLATE) -> list[str]:
  """A name of every class that training never showed, bare as a user may type it.

  Args:
    names: K canonical names of the template.
    template: anatomy.Template.

  Returns:
    K prompts, such as 'hepatic tissue'.

  Raises:
    ClassError: if the template has no such name.
    PromptError: if a class has no held-out name.
  """
  structures = [template.get(name) for name in names]
  without = [structure.name for structure in structures if not structure.held_out]
  if without:
    raise PromptError(f'{", ".join(without)}: no held_out names in the template; add some')
  return [structure.held_out[0] for structure in structures]


BY_KIND = {'default': default_prompts, 'held_out': held_out_prompts}  # of config.evaluation.prompts


def phrase(sentence: str, structure: Structure, name: str) -> str:
  """Puts one of a structure's names into a sentence.

  Args:
    sentence: with {name} or {noun}.
    structure: anatomy.Structure.
    name: its name or one of its synonyms.

  Returns:
    The prompt.
  """
  # The table has an article for the canonical name only; 'the' goes with every synonym.
  noun = structure.noun if name == structure.name and structure.noun else f'the {name}'
  return sentence.format(name=name, noun=noun)


def sample_prompts(
  names: Sequence[str], *, seed: int, step: int, template: Template = TEMPLATE
) -> list[str]:
  """Draws a training prompt per class: the default one or, as often, a synonym in a sentence.

  Has no state: a resumed run draws what the interrupted one would have drawn, and a class draws
  the same whatever other classes are asked for. Synonyms held out for evaluation never appear.

  Args:
    names: K canonical names of the template.
    seed: of the run, >= 0.
    step: training step, >= 0.
    template: anatomy.Template.

  Returns:
    K prompts.

  Raises:
    ClassError: if the template has no such name; the message lists close ones.
  """
  prompts = []
  for structure in map(template.get, names):
    rng = np.random.default_rng([seed, step, structure.index])
    prompts.append(sample_phrase(rng, structure))
  return prompts


def sample_phrase(rng: np.random.Generator, structure: Structure) -> str:
  """A structure's default prompt or, as often, one of its names in a sentence."""
  if rng.random() < 0.5:
    return structure.prompt
  name = rng.choice((structure.name, *structure.synonyms))
  return phrase(rng.choice(SENTENCES), structure, name)


def training_prompts(
  template: Template = TEMPLATE, names: Sequence[str] | None = None
) -> list[str]:
  """Every prompt that `sample_prompts` can draw, in a fixed order; held-out synonyms are absent.

  Args:
    template: anatomy.Template.
    names: canonical names; None is all of the template.
  """
  return [
    phrase(sentence, structure, name)
    for structure in map(template.get, template.names() if names is None else names)
    for name in (structure.name, *structure.synonyms)
    for sentence in SENTENCES
  ]


def parse_prompts(text: str) -> list[str]:
  """Splits what a user typed: 'liver, left kidney' gives ['liver', 'left kidney'].

  Args:
    text: prompts separated by commas; space around and repeated inside them does not count.

  Returns:
    The prompts, in order, at least one.

  Raises:
    PromptError: if there is none, or one is empty.
  """
  prompts = [' '.join(part.split()) for part in text.split(',')]
  if not all(prompts):
    raise PromptError(f'prompts {text!r}: an empty one; separate names with single commas')
  return prompts
