"""Which prompts a model may be asked: known ones, near ones with a note, others by force only."""

import dataclasses
import functools
import textwrap
from collections.abc import Mapping, Sequence

from input_pipeline import remarks
from input_pipeline.anatomy import Template, resolve
from input_pipeline.anatomy.wording import is_beside, objection
from mome_jax import checkpoint
from mome_jax.errors import few
from mome_jax.inference.model import Model
from mome_jax.inference.packed_mask import PackedMask
from mome_jax.predict.request import PredictError, Request, Target
from mome_jax.text.familiarity import Familiarity, Judgement

_listed = functools.partial(few, most=10)  # the names of one message
_WIDTH = 200  # characters of a prompt that one message repeats


class UnfamiliarError(PredictError):
  """A prompt means nothing that the model was trained on; the message names all such.

  Args:
    what: is wrong, without the fix, which is another one where there is no command line.
  """

  def __init__(self, what: str):
    super().__init__(f'{what}, or pass --force for masks that cannot be trusted')
    self.what = what


def default_classes(predictor: Model) -> tuple[str, ...]:
  """The classes that a request without prompts asks for: all but the experimental ones.

  Where there are no others, as in the mean of models of which each hardly knows some, all of them.
  """
  config = predictor.config
  usual = tuple(name for name in config.classes if name not in config.experimental)
  return usual or tuple(config.classes)


def judge(
  targets: Sequence[Target], predictor: Model, request: Request
) -> tuple[list[Target], list[str]]:
  """Judges what the prompts of a request ask for.

  A class that the model was trained on is known. Anything else is judged by
  `mome_jax.text.familiarity`; a class of the template that the model was not trained on is
  unfamiliar.

  Args:
    targets: K, what the prompts ask for.
    predictor: the model.
    request: with `as_written` no name decides, the text alone.

  Returns:
    The targets with their familiarity and verdict, and notes on those that are not known, or
    experimental.

  Raises:
    UnfamiliarError: if some are unfamiliar, and the request does not force them.
  """
  trained = tuple(predictor.config.classes)
  doubtful = [t for t in targets if t.taken_as == 'free' or t.name not in trained]
  judgements = _judgements(doubtful, trained, predictor, request)
  refused = [t for t in doubtful if judgements[t.name].verdict == 'unfamiliar']
  objections = _objections(doubtful, judgements, predictor)
  if (objections or refused) and not request.force:
    said = [f'"{textwrap.shorten(text, _WIDTH)}" {why}' for text, why in objections.items()]
    rest = [t for t in refused if t.prompt not in objections]
    raise UnfamiliarError('; '.join(said + _refusal(rest, judgements, predictor)))
  notes = [f'CAUTION: "{text}" {why}; check its mask' for text, why in objections.items()]
  judged = [_with(target, judgements.get(target.name), predictor) for target in targets]
  notes += [_note(target) for target in judged if target.verdict != 'known']
  experimental = [
    t.name
    for t in targets
    if t.name in predictor.config.experimental
    or (t in doubtful and judgements[t.name].nearest in predictor.config.experimental)
  ]
  if experimental:
    notes.append(
      f'CAUTION: {_listed(experimental)}: experimental, too few patients taught the model; check '
      'the masks'
    )
  return [
    dataclasses.replace(target, verdict='unfamiliar') if target.prompt in objections else target
    for target in judged
  ], notes


def _refusal(
  refused: Sequence[Target], judgements: Mapping[str, Judgement], predictor: Model
) -> list[str]:
  """One sentence on what the model was not trained on; none if there is nothing."""
  if not refused:
    return []
  nearest = [_like(target, judgements[target.name], predictor) for target in refused]
  hints = [
    f'"{target.prompt}" (nearest: {name})' if name else f'"{target.prompt}"'
    for target, name in zip(refused, nearest, strict=True)
  ]
  return [
    f'{_listed(hints)}: the model was not trained on this; it knows {_known(predictor)}; ask for '
    'those'
  ]


def unanswered(path: str, targets: Sequence[Target], masks: Mapping[str, PackedMask]) -> list[str]:
  """Notes on free text that gave no voxel though its words are like a class.

  A text encoder may be far from a class with words that the judge finds near to it.

  Args:
    path: of the scan.
    targets: what was asked for.
    masks: of a segmentation, by the names of what competes with nothing.
  """
  return [
    f'{path}: nothing was found for "{target.prompt}"; it may be like "{target.nearest}"'
    for target in targets
    if target.nearest and target.name in masks and masks[target.name].box is None
  ]


def _objections(
  doubtful: Sequence[Target], judgements: Mapping[str, Judgement], predictor: Model
) -> dict[str, str]:
  """Prompt -> why it should not be asked for, of free text that something speaks against."""
  trained = frozenset(predictor.config.classes)
  objections: dict[str, str] = {}
  for target in doubtful:
    judgement = judgements[target.name]
    nearest = '' if judgement.verdict == 'unfamiliar' else judgement.nearest
    if target.taken_as == 'free':
      why = objection(target.prompt, trained, predictor.template, nearest=nearest)
      objections |= {target.prompt: why} if why else {}
  return objections


def _judgements(
  doubtful: Sequence[Target], trained: tuple[str, ...], predictor: Model, request: Request
) -> Mapping[str, Judgement]:
  """Judgements by the names of targets; without any, nothing is loaded."""
  if not doubtful:
    return {}
  judges = _judges(trained, predictor.template)
  # What is looked up here already is a class by another spelling, which the judges may not know.
  texts = [t.prompt if t.taken_as == 'free' else t.name for t in doubtful]
  with remarks.collected():  # of a long prompt the model's own text tells
    judged = judges.judge(texts, look_up=not request.as_written)
  return {t.name: _noted(t, j, predictor.template) for t, j in zip(doubtful, judged, strict=True)}


def _noted(target: Target, judgement: Judgement, template: Template) -> Judgement:
  """The judgement, near at most for free text of a part or neighbour of a class."""
  known = target.taken_as == 'free' and judgement.verdict == 'known' and judgement.nearest
  if known and is_beside(target.prompt, judgement.nearest, template):
    return dataclasses.replace(judgement, verdict='near')
  return judgement


@functools.lru_cache(4)  # of a program that predicts more than once
def _judges(trained: tuple[str, ...], template: Template) -> Familiarity:
  return Familiarity(trained, template, embed=checkpoint.load_text_encoder())


def _with(target: Target, judgement: Judgement | None, predictor: Model) -> Target:
  if judgement is None:
    return target
  return dataclasses.replace(
    target,
    familiarity=round(judgement.familiarity, 2),
    verdict=judgement.verdict,
    nearest=_like(target, judgement, predictor) if target.taken_as == 'free' else '',
  )


def _like(target: Target, judgement: Judgement, predictor: Model) -> str:
  """The class that a target is like; the pair, where no side is named and the model knows both."""
  if not resolve.key(target.prompt)[0]:
    for noun, pair in predictor.template.pairs().items():
      if judgement.nearest in pair and set(pair).issubset(predictor.config.classes):
        return noun
  return judgement.nearest


def _note(target: Target) -> str:
  if target.verdict == 'near':
    like = f' ({target.nearest})' if target.nearest else ''
    return (
      f'CAUTION: "{target.prompt}" is near to what the model was trained on{like} and '
      'may mean something else; check its mask'
    )
  return f'CAUTION: the model was not trained on "{target.prompt}": its mask cannot be trusted'


def _known(predictor: Model) -> str:
  """The classes of a model, which of them are experimental, for people."""
  config = predictor.config
  usual = _listed(name for name in config.classes if name not in config.experimental)
  rest = _listed(name for name in config.classes if name in config.experimental)
  if not usual:
    return f'{rest} (experimental)'
  return f'{usual} (experimental: {rest})' if rest else usual
