"""What evaluation and prediction need of a model: of one, or of several that are averaged."""

import abc
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from input_pipeline.anatomy import Template
from mome_jax.inference import mirroring
from mome_jax.inference.segmenter import Segmenter, Settings

if TYPE_CHECKING:
  from mome_jax.inference.loaded_model import Predictor

# (B, *window, C) float32 -> an iterator of logits (B, k, *window) float32, a few prompts each; of
# several readers that are averaged, all prompts of each in its turn.
Reader = Callable[[np.ndarray], Iterator[jax.Array]]


class Model(abc.ABC):
  """Reads prompts and segments scans.

  Attributes:
    path: where it came from, as a user would write it.
    folder: that holds its `config.json` and what else describes it.
    config: see `configs/base.py`.
    step: of training, or None.
    template: the built-in classes and those that came with the model.
    devices: that hold the model.
  """

  path: str
  folder: epath.Path
  config: ConfigDict
  step: int | None
  template: Template
  devices: Sequence[jax.Device]

  @property
  @abc.abstractmethod
  def members(self) -> Sequence['Predictor']:
    """The models whose logits are averaged: one, or several."""

  @abc.abstractmethod
  def reader(self, prompts: Sequence[str]) -> Reader:
    """Makes the logits of K prompts from windows; the last part may hold more than the K.

    Raises:
      TextVectorError: if the model's text is frozen and it has no vector for a prompt.
    """

  @abc.abstractmethod
  def fingerprint(self) -> str:
    """SHA-256 of all parameters, hexadecimal; the same however they were stored."""

  @abc.abstractmethod
  def text_fingerprint(self, prompts: Sequence[str]) -> str:
    """SHA-256 of what the text encoder gets for some prompts, hexadecimal."""

  def segmenter(
    self,
    names: Sequence[str],
    prompts: Sequence[str],
    template: Template | None = None,
    *,
    rules: Sequence[str] | None = None,
    overlap: float | None = None,
    free: Sequence[str] = (),
    tta: bool | None = None,
  ) -> Segmenter:
    """Segments scans into K classes that compete, and F masks that compete with nothing.

    Args:
      names: K class names.
      prompts: K + F texts for the text encoder.
      template: tells which classes contain which; None is the model's own.
      rules: of post-processing; None is those of the model's config.
      overlap: of neighbouring windows; None is that of `config.evaluation`.
      free: F other names.
      tta: whether the mirror image is segmented too, see `mirroring`; None is
        `config.evaluation.tta`.

    Raises:
      PostprocessError: if a rule is unknown.
      MirrorError: if there is no mirror image of a class among the names.
      TextVectorError: if the model's text is frozen and it has no vector for a prompt.
    """
    template = template or self.template
    settings = Settings.of_config(
      self.config,
      rules=rules,
      overlap=overlap,
      tta=tta,
      devices=len(self.devices),
      windows=min(member.windows_a_call() for member in self.members),
    )
    reader = self.reader(prompts)
    if settings.tta:
      other = mirroring.mirrored_prompts(names, prompts, template)
      reader = mean([reader, mirroring.mirrored(self.reader(other))])
    accelerated = bool(self.devices) and self.devices[0].platform != 'cpu'
    return Segmenter(reader, names, settings, template, free=free, on_device=accelerated)


def mean(readers: Sequence[Reader]) -> Reader:
  """The mean of several readers' logits, of which one is finished before the next one begins.

  Each gives the K logits in its turn, and the blending of windows averages: what a reader saw of
  the windows is held no longer than its turn lasts, and no sum of K maps besides.
  """
  first, *others = readers

  def read(windows: np.ndarray) -> Iterator[jax.Array]:
    parts = first(windows)  # on its way to the devices before it is waited for
    later = itertools.chain.from_iterable(reader(windows) for reader in others)
    return itertools.chain(parts, later)

  return read
