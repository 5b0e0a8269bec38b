"""What is added to BCE and Dice of the mixture: a table of terms, each with a weight in the config.

A bank of sparse experts balances itself as well; its terms come out of the network.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from input_pipeline.anatomy import IGNORE_CODE
from mome_jax.training import losses


@dataclasses.dataclass(frozen=True)
class Inputs:
  """What a term can use of a step.

  Attributes:
    logits: (B, K, D, H, W) float32, of the mixture.
    targets: (B, K, D, H, W) bool.
    valid: (B, K, D, H, W) bool; where the labels say something about the class.
    labelled: (B, K) bool; where they say it anywhere in the patch.
    pairs: losses of the mixture, where the labels say something and outside the patient.
    expert_logits: of each expert alone, finest first: (B, K, D/f, H/f, W/f) float32.
    sampled: (K, d_t) float32, embeddings of a random prompt of each class.
    default: (K, d_t) float32, those of the default prompts.
    text_is_trained: whether the embeddings come from an encoder that learns.
    batch: the arrays of `input_pipeline.batches.spec.BATCH`.
    negative_logits: (B, N, D, H, W) float32, of the mixture for prompts of other anatomy; None
      where there are none.
    counts: of the whole batch, where this is a part of it; else None.
  """

  logits: jax.Array
  targets: jax.Array
  valid: jax.Array
  labelled: jax.Array
  pairs: losses.PairLosses
  expert_logits: tuple[jax.Array, ...]
  sampled: jax.Array
  default: jax.Array
  text_is_trained: bool
  batch: Mapping[str, jax.Array]
  negative_logits: jax.Array | None = None
  counts: losses.Counts | None = None


class Term(NamedTuple):
  """A term of the loss.

  Attributes:
    weight: its field of `config.train`.
    value: inputs -> scalar; None where the model has nothing that it could be taken of.
    always: logged with weight 0 too; other terms then cost nothing.
    adds_up: whether it divides by `Inputs.counts`, so that its values of the parts of a batch add
      up to that of the batch; of any other term their mean is taken.
  """

  weight: str
  value: Callable[[Inputs], jax.Array | None]
  always: bool = False
  adds_up: bool = False


def bce_dice(
  pairs: losses.PairLosses,
  labelled: jax.Array,
  absent: jax.Array,
  counts: losses.Counts | None,
) -> tuple[jax.Array, jax.Array]:
  """BCE of the classes that their scans can show, and Dice of those that are in the patch.

  Args:
    pairs: as of `Inputs`.
    labelled: the same.
    absent: (B, K) bool; classes that the case's scan cannot show.
    counts: as of `Inputs`.
  """
  shown = None if counts is None else counts.supervised - counts.absent
  present = None if counts is None else counts.present
  return (
    losses.mean(pairs.bce, labelled & ~absent, shown),
    losses.mean(pairs.dice, pairs.present, present),
  )


def text(inputs: Inputs) -> jax.Array | None:
  """How badly prompts of different classes can be told apart; None of text that does not learn."""
  if not inputs.text_is_trained:
    return None
  return losses.prompt_contrast(inputs.sampled, inputs.default)


def experts(inputs: Inputs) -> jax.Array | None:
  """BCE and 1 - Dice of each coarser expert's own logits, their mean; None of a single scale."""
  coarse = inputs.expert_logits[1:]
  total: Any = 0.0
  for scores in coarse:
    factor = inputs.logits.shape[-1] // scores.shape[-1]
    blocks = losses.block_supervision(inputs.targets, inputs.valid, factor)
    # Where a class has a valid voxel or a target, one of its blocks has.
    total += sum(losses.masked_bce_dice(scores, *blocks, **denominators(inputs.counts)))
  return total / len(coarse) if coarse else None


def negative(inputs: Inputs) -> jax.Array | None:
  """BCE of prompts of other anatomy against an empty mask; None where none were drawn.

  In every voxel of every case but those that are to be ignored: the mask is empty whatever the case
  labels, as none of its labels can be of this anatomy.
  """
  logits = inputs.negative_logits
  if logits is None:
    return None
  known = jnp.broadcast_to((inputs.batch['label'] != IGNORE_CODE)[:, None], logits.shape)
  pairs = None if inputs.counts is None else inputs.counts.known * logits.shape[1]
  return losses.masked_bce_dice(logits, jnp.zeros_like(known), known, pairs=pairs)[0]


def absent(inputs: Inputs) -> jax.Array:
  """BCE of the classes that their scan cannot show, against an empty mask; 0 where there are none.

  Apart from that of the other classes, whose share would fall with every class that is absent.
  """
  count = None if inputs.counts is None else inputs.counts.absent
  return losses.mean(inputs.pairs.bce, inputs.labelled & inputs.batch['absent'], count)


def outside(inputs: Inputs) -> jax.Array:
  """BCE against an empty mask outside the patient, of the classes of which no label says anything.

  Air is known in every scan: a lung learned in chests must not be seen in the air around a head.
  """
  count = None if inputs.counts is None else inputs.counts.outside
  return losses.mean(inputs.pairs.bce, inputs.pairs.supervised & ~inputs.labelled, count)


def denominators(counts: losses.Counts | None) -> dict[str, Any]:
  """Of `masked_bce_dice`."""
  return {} if counts is None else {'pairs': counts.supervised, 'pairs_present': counts.present}


# Name in the metrics, after loss_, -> term.
TERMS = {
  'text': Term('text_loss', text, always=True),
  'experts': Term('expert_loss', experts, adds_up=True),
  'negative': Term('negative_loss', negative, adds_up=True),
  'absent': Term('absent_loss', absent, adds_up=True),
  'outside': Term('outside_loss', outside, adds_up=True),
}


def values(inputs: Inputs, config: ConfigDict) -> Iterator[tuple[str, float, jax.Array]]:
  """Name, weight and value of the terms that there are.

  Args:
    inputs: of the step.
    config: `config.train`.
  """
  for name, term in TERMS.items():
    weight = config[term.weight]
    value = term.value(inputs) if weight or term.always else None
    if value is not None:
      if inputs.counts is not None and not term.adds_up:
        value = value / inputs.counts.parts
      yield name, weight, value
