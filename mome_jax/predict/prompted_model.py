"""A model made ready for the classes that a request asks for."""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from mome_jax.inference import router_maps
from mome_jax.inference.ensemble import open_model
from mome_jax.inference.model import Model
from mome_jax.inference.segmenter import Segmenter
from mome_jax.plausibility import record
from mome_jax.plausibility.record import Record
from mome_jax.predict import provenance, verdicts
from mome_jax.predict.request import PredictError, Request, Target, make_targets
from mome_jax.text.prompts import default_prompts


@dataclasses.dataclass(frozen=True, eq=False)
class PromptedModel:
  """A model that has read the prompts of a request.

  Attributes:
    predictor: the model, or several as one.
    fingerprint: SHA-256 of its parameters.
    targets: what the prompts ask for.
    segmenter: of the targets, and of all classes that those compete with.
    provenance: all that decides which voxel belongs to which class, but the scan; see
      `provenance.of_request`.
    explainer: makes the routing maps of the page, or None.
    notes: what the user should know of these prompts.
    records: of what its classes look like, of each region.
    meanings: a line on what each prompt was taken for; none where no prompt was given.
  """

  predictor: Model
  fingerprint: str
  targets: Sequence[Target]
  segmenter: Segmenter
  provenance: Mapping[str, Any]
  explainer: router_maps.Explainer | None
  notes: Sequence[str]
  records: Sequence[Record] = ()
  meanings: Sequence[str] = ()

  @property
  def columns(self) -> list[int]:
    """Where the targets are among the classes of the segmenter."""
    return [self.segmenter.classes.index(target.name) for target in self.targets]

  @property
  def origin(self) -> dict[str, Any]:
    """Which model it is: fields of every legend."""
    return {'checkpoint': self.predictor.path, 'step': self.predictor.step}


def load(
  model: str | os.PathLike | Model | Sequence[str | os.PathLike],
  *,
  text_model: str | os.PathLike | None = None,
  device: str | None = None,
) -> Model:
  """A model in memory, or several as one.

  Args:
    model: model folder, training workdir, one of its `checkpoints/STEP`, or folder of an ensemble;
      a sequence of those, whose logits are averaged; or a model in memory, which is returned as it
      is.
    text_model: see `Predictor`.
    device: see `find_devices`.

  Raises:
    CheckpointError: if there is no model, or it cannot be read.
    PredictError: if there is no such device.
  """
  if isinstance(model, Model):
    return model
  return open_model(model, text_model=text_model, devices=find_devices(device))


def find_devices(name: str | None) -> list | None:
  """JAX devices by name: a platform, or one of its devices as 'gpu:1'; None is all of the best.

  Raises:
    PredictError: if there is none; the message lists those of this machine.
  """
  if name is None:
    return None
  try:
    words = re.fullmatch('([a-z]+)(?::([0-9]+))?', name)
    platform, number = words.groups() if words else (None, None)
    if platform is None:
      raise TypeError('not the name of a device')
    devices = jax.local_devices(backend=platform)
    return devices if number is None else [devices[int(number)]]
  except (RuntimeError, TypeError, IndexError) as error:
    names = [f'{device.platform}:{n}' for n, device in enumerate(jax.local_devices())]
    known = ', '.join(dict.fromkeys([*names, 'cpu']))
    raise PredictError(f'--device {name}: no such device; there is {known}') from error


def ask(predictor: Model, request: Request) -> PromptedModel:
  """Has a model read the prompts of a request.

  All classes that the model was trained on compete wherever one of them is asked for, so that its
  mask is the same whatever else is asked; anything else has a mask of its own.

  Raises:
    PredictError: if sides are to be checked and the model does not know liver and spleen.
    MirrorError: if the mirror image is asked for and a class has none.
    PostprocessError: if a rule is unknown.
    TextVectorError: if the model's text is frozen and it has no vector for a prompt.
    UnfamiliarError: if the model was not trained on what a prompt means; see `verdicts.judge`.
    UserError: if a prompt is empty, or there are too many.
  """
  trained = tuple(predictor.config.classes)
  prompts = verdicts.default_classes(predictor) if request.prompts is None else request.prompts
  targets = make_targets(prompts, predictor.template, as_written=request.as_written)
  if request.check_sides and not {'liver', 'spleen'} <= set(trained):
    raise PredictError(
      '--check-sides compares liver and spleen, and the model was not trained on both'
    )
  if request.check_sides and request.as_written:
    raise PredictError('--check-sides compares classes, which --as-written does not ask for')
  targets, notes = verdicts.judge(targets, predictor, request)
  known = {target.name for target in targets if target.taken_as != 'free'} & set(trained)
  rivals = trained if known or request.check_sides else ()
  free = [target for target in targets if target.name not in known]
  texts = default_prompts(rivals, predictor.template) + [target.text for target in free]
  segmenter = predictor.segmenter(
    rivals,
    texts,
    rules=request.rules,
    overlap=request.overlap,
    tta=request.tta,
    free=[target.name for target in free],
  )
  explainer = None
  if request.options.report:
    explainer = router_maps.make_explainer(predictor, segmenter.classes, texts, segmenter)
    several = len(predictor.members) > 1 or segmenter.settings.tta
    if explainer is None and several and predictor.members[0].model.active_scales[1:]:
      notes = [*notes, 'no routing maps: several passes are averaged, which no one router explains']
  fingerprint, records = predictor.fingerprint(), record.read(predictor.folder)
  return PromptedModel(
    predictor,
    fingerprint,
    targets,
    segmenter,
    provenance.of_request(
      request, predictor, segmenter, targets, weights=fingerprint, records=records
    ),
    explainer,
    notes,
    records,
    [target.told() for target in targets] if request.prompts else [],
  )
