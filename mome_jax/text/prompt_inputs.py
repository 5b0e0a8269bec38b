"""Prompts to what the text branch takes: token ids when it trains, vectors when it is frozen."""

import dataclasses
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast

import jax
import ml_collections
import numpy as np

from input_pipeline import remarks
from input_pipeline.anatomy import TEMPLATE, Template, vocabulary
from mome_jax.errors import ConfigError, few, suggest
from mome_jax.text import embed, negatives, prompts
from mome_jax.text.t5 import TextEncoder, build_text_encoder
from mome_jax.text.tokenizer import DEFAULT_MODEL, Tokenizer
from mome_jax.text.vectors import TextVectorError, TextVectors, command

MODES = ('joint', 'frozen')
BUCKET = 4  # the number of prompts is padded to a multiple, so that few programs are compiled
PromptInputs = Callable[[Sequence[str]], dict[str, np.ndarray]]


def is_frozen(config: ml_collections.ConfigDict) -> bool:
  """Whether `config.text` describes vectors made once; ConfigError if its mode names nothing."""
  if config.mode not in MODES:
    raise ConfigError(f'text.mode is {config.mode!r}; {suggest(config.mode, MODES)}')
  return config.mode == 'frozen'


def count_negatives(config: ml_collections.ConfigDict) -> int:
  """Prompts of other anatomy in a training step; vectors made once are of the classes alone.

  Args:
    config: the whole config; uses `text.mode` and `train.negatives`.
  """
  return 0 if is_frozen(config.text) else config.train.negatives


def joint(tokenizer: Tokenizer, max_length: int) -> PromptInputs:
  """K prompts -> ids (K, T) int32 and mask (K, T) bool."""

  def inputs(texts):
    ids, mask = tokenizer.encode(texts, max_length)
    return {'ids': ids, 'mask': mask}

  return inputs


def frozen(vectors: Callable[[Sequence[str]], np.ndarray]) -> PromptInputs:
  """K prompts -> vectors (K, d_t) float32."""
  return lambda texts: {'vectors': vectors(texts)}


def pad(inputs: dict[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
  """Adds empty prompts, whose embedding is zero, up to `rows`."""
  return {
    name: np.pad(array, [(0, rows - len(array)), *[(0, 0)] * (array.ndim - 1)])
    for name, array in inputs.items()
  }


def fill_bucket(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Adds empty prompts up to a multiple of BUCKET."""
  rows = len(next(iter(inputs.values())))
  return pad(inputs, -(-rows // BUCKET) * BUCKET)


def embeddings(
  text_encoder: TextEncoder | None, params: Mapping[str, Any], prompts: Mapping[str, jax.Array]
) -> jax.Array:
  """Embeddings of prompts: 'ids' (K, T) int32 and 'mask' (K, T) bool -> (K, d_t) float32.

  Frozen text comes as 'vectors' (K, d_t), which are the result.
  """
  if 'vectors' in prompts:
    return prompts['vectors']
  assert text_encoder is not None  # token ids are made for an encoder that trains
  variables = {'params': params['text']}
  return cast(jax.Array, text_encoder.apply(variables, prompts['ids'], prompts['mask']))


@dataclasses.dataclass(frozen=True)
class TrainingText:
  """The text branch of a training run.

  Attributes:
    encoder: that trains with the model, or None.
    vectors: of frozen text, or None.
    width: d_t.
    inputs: prompts -> what the train step takes.
    classes: K names.
    template: of the classes.
    synonyms: whether random prompts are drawn; frozen vectors may know the default ones only.
    negatives: how many prompts of other anatomy are drawn.
    others: what they are drawn from.
  """

  encoder: TextEncoder | None
  vectors: TextVectors | None
  width: int
  inputs: PromptInputs
  classes: tuple[str, ...]
  template: Template = TEMPLATE
  synonyms: bool = True
  negatives: int = 0
  others: tuple[vocabulary.Term, ...] = ()

  def batch(self, *, seed: int, step: int) -> dict[str, dict[str, np.ndarray]]:
    """Of each class a random prompt, as 'sampled', and the default one, as 'default'.

    And prompts of other anatomy, as 'negative', where there are any.
    """
    default = prompts.default_prompts(self.classes, self.template)
    sampled = prompts.sample_prompts(self.classes, seed=seed, step=step, template=self.template)
    batch = {
      'sampled': self.inputs(sampled if self.synonyms else default),
      'default': self.inputs(default),
    }
    if self.negatives:
      drawn = negatives.sample_negatives(self.others, self.negatives, seed=seed, step=step)
      batch['negative'] = self.inputs(drawn)
    return batch


def for_training(
  config: ml_collections.ConfigDict,
  template: Template = TEMPLATE,
  tokenizer: str | os.PathLike[str] = DEFAULT_MODEL,
) -> TrainingText:
  """The text branch that a config describes.

  Args:
    config: the whole config; uses `text`, `classes` and `train.negatives`.
    template: of the classes.
    tokenizer: SentencePiece file, where the text is not frozen.

  Raises:
    TextVectorError: if the text is frozen and there are no vectors, or none for a class.
    ClassError: if the template has no such class.
    ConfigError: if the vocabulary has more pieces than the encoder, or more negatives are asked for
      than there are.
  """
  classes = tuple(config.classes)
  default = prompts.default_prompts(classes, template)  # of unknown classes there are none
  if not is_frozen(config.text):
    encoder = build_text_encoder(config.text)
    pieces = Tokenizer(tokenizer)
    if pieces.vocab_size > config.text.vocab_size:
      raise ConfigError(
        f'text.vocab_size is {config.text.vocab_size}; {tokenizer} has {pieces.vocab_size} pieces'
      )
    inputs = joint(pieces, config.text.max_length)
    count = count_negatives(config)
    others = negatives.negative_terms(classes, vocabulary.read(template)) if count else ()
    if count > len(others):
      raise ConfigError(
        f'train.negatives is {count}; the vocabulary has {len(others)} terms that are no class'
      )
    return TrainingText(
      encoder, None, config.text.d_model, inputs, classes, template, negatives=count, others=others
    )
  vectors = _read_vectors(config.text.vectors)
  vectors(default, f'pass --config.text.vectors=FILE.npz, made for all classes with {command()} '
          '[--new-classes=DATASET.JSON] by the T5 checkpoint')  # fmt: skip
  drawn = set(prompts.training_prompts(template, classes)) - {*default}
  synonyms = _has_synonyms(vectors, drawn, config.text.vectors)
  return TrainingText(None, vectors, vectors.width, frozen(vectors), classes, template, synonyms)


def _has_synonyms(vectors: TextVectors, drawn: Collection[str], path: str) -> bool:
  """Whether all prompts beside the default ones have a vector; a note where only some have."""
  missing = [prompt for prompt in sorted(drawn) if prompt not in vectors]
  if 0 < len(missing) < len(drawn):
    remarks.tell(
      f'{path}: no vector for {few(map(repr, missing))}, so that all classes are '
      f'trained without synonyms; make it with {command()} [--new-classes=DATASET.JSON]'
    )
  return not missing


def teach_the_same(
  config: ml_collections.ConfigDict, before: TextVectors, vectors: TextVectors
) -> bool:
  """Whether a run goes on with the vectors that it learned; either may have others beside.

  Args:
    config: the whole config; uses `classes` and `new_classes`.
    before: of the run's earlier steps.
    vectors: that it is to go on with.
  """
  template = TEMPLATE.extend(config.new_classes)
  drawn = prompts.training_prompts(template, config.classes)
  drawn += prompts.default_prompts(config.classes, template)
  shared = [prompt for prompt in before.prompts if prompt in vectors]
  if before.width != vectors.width or any((one in before) != (one in vectors) for one in drawn):
    return False
  # Made again, with other prompts beside them, they differ by rounding.
  return np.allclose(vectors(shared), before(shared), rtol=1e-4, atol=1e-5)


def _read_vectors(path: str) -> TextVectors:
  if not path:
    raise TextVectorError(
      f'text.mode is frozen and text.vectors is not set; make them with {command()} and pass '
      '--config.text.vectors=FILE.npz'
    )
  return TextVectors.load(path) if str(path).endswith('.npz') else embed.read_cum(path, TEMPLATE)
