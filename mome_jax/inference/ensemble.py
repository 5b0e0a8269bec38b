"""Several models that answer together: the mean of their logits."""

import hashlib
import os
from collections.abc import Collection, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from mome_jax import checkpoint
from mome_jax.errors import UserError
from mome_jax.inference.loaded_model import SHIPPED, Predictor
from mome_jax.inference.model import Model, Reader, mean

# What windows are made by, and what is asked for in them: path in the config, what it is called.
_SAME = {
  'data.spacing': 'grid in mm',
  'data.windows': 'HU windows',
  'evaluation.window': 'window in voxels',
}


class EnsembleError(UserError):
  """Models that cannot be averaged; the message names what differs."""


class Ensemble(Model):
  """Models of the same grid, windows and classes, whose logits are averaged window by window.

  All of them are held in memory, but what they see in a batch of windows only one after the other.
  Post-processing, overlap and the record of what classes look like are those of the first; a class
  that is experimental in one of them is so in the mean.

  Args:
    models: at least one.

  Raises:
    EnsembleError: if they differ in what windows are made by or in their classes.
  """

  def __init__(self, models: Sequence[Predictor]):
    self._members = tuple(models)
    first = self._members[0]
    for other in self.members[1:]:
      _check_alike(first, other)
    self.path = ' + '.join(model.path for model in self.members)
    self.folder, self.config, self.step = first.folder, _config_of_all(self.members), None
    self.template, self.devices = first.template, first.devices

  @property
  def members(self) -> Sequence[Predictor]:
    """The models."""
    return self._members

  def reader(self, prompts: Sequence[str]) -> Reader:
    """See `Model.reader`."""
    return mean([model.reader(prompts) for model in self.members])

  def fingerprint(self) -> str:
    """See `Model.fingerprint`; whatever the order of the models."""
    return _joined(sorted(model.fingerprint() for model in self.members))

  def text_fingerprint(self, prompts: Sequence[str]) -> str:
    """See `Model.text_fingerprint`; whatever the order of the models."""
    return _joined(sorted(model.text_fingerprint(prompts) for model in self.members))


def _joined(digests: Sequence[str]) -> str:
  return hashlib.sha256(''.join(digests).encode()).hexdigest()


def _check_alike(first: Predictor, other: Predictor) -> None:
  pairs: dict[str, tuple[Any, Any]] = {
    called: (_value(first, field), _value(other, field)) for field, called in _SAME.items()
  }
  pairs['classes'] = sorted(first.config.classes), sorted(other.config.classes)
  pairs['new classes'] = first.template.additions(), other.template.additions()
  for called, (expected, value) in pairs.items():
    if value != expected:
      raise EnsembleError(
        f'{other.path}: its {called}, {value}, differ from those of {first.path}, {expected}; only '
        'models that agree can be averaged'
      )


def _config_of_all(models: Sequence[Predictor]) -> ConfigDict:
  """The first model's config, with the classes that too few patients taught any of them."""
  config = models[0].config.copy_and_resolve_references()
  weak = {name for model in models for name in model.config.experimental}
  config.experimental = tuple(name for name in config.classes if name in weak)
  return config


def _value(model: Predictor, field: str) -> Any:
  value = model.config
  for name in field.split('.'):
    value = value[name]
  return value


def open_model(
  paths: str | os.PathLike | Sequence[str | os.PathLike] = SHIPPED,
  config: Any = None,
  *,
  asked: Collection[str] = (),
  text_model: str | os.PathLike | None = None,
  devices: Sequence[jax.Device] | None = None,
) -> Model:
  """One model, or several as one.

  Args:
    paths: of models, or folders with an `ensemble.json` that names some.
    config: in place of the model's own. Of several, whose configs differ, those values of its
      `evaluation` count for all that are not the first model's own, or are asked for; each keeps
      its others, such as which checkpoint to take.
    asked: names of values that were asked for, such as 'evaluation.checkpoint'.
    text_model: see `Predictor`.
    devices: see `Predictor`.

  Raises:
    CheckpointError: if there is no model, or it cannot be read.
    EnsembleError: if several cannot be averaged.
  """
  listed = [paths] if isinstance(paths, str | os.PathLike) else paths
  members = checkpoint.expand(listed)
  if len(members) == 1:
    return Predictor(members[0], config, text_model=text_model, devices=devices)
  configs = [checkpoint.load_config(path) for path in members]
  if config is not None:
    before = configs[0].evaluation
    of_all = {
      name: value
      for name, value in config.evaluation.items()
      if value != before[name] or f'evaluation.{name}' in asked
    }
    for member in configs:
      member.evaluation.update(of_all)
  models = [
    Predictor(path, member, text_model=text_model, devices=devices)
    for path, member in zip(members, configs, strict=True)
  ]
  return Ensemble(models)
