"""The loss and the train step: pure functions of parameters, batch and prompts."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from input_pipeline.anatomy import IGNORE_CODE, OUTSIDE_CODE
from mome_jax.models import MoME
from mome_jax.moe import router_stats
from mome_jax.runtime import compilation
from mome_jax.text import prompt_inputs
from mome_jax.text.t5 import TextEncoder
from mome_jax.training import loss_terms, losses, sharding
from mome_jax.training.optimizer import learning_rate, without_slope
from mome_jax.training.state import TrainState

Metrics = dict[str, jax.Array]
LossFn = Callable[..., tuple[jax.Array, Metrics]]
CountFn = Callable[[dict[str, jax.Array]], losses.Counts]


def make_loss_fn(
  model: MoME, text_encoder: TextEncoder | None, code_table: jax.Array, config: ConfigDict
) -> LossFn:
  """The loss of a batch as a function of the parameters.

  Args:
    model: from `build_model`.
    text_encoder: from `build_text_encoder`; None: the text is frozen.
    code_table: (256, K) bool; whether a label code belongs to a class.
    config: `config.train`; uses `log_dice`, the weights of `loss_terms.TERMS`, and `balance_loss`
      and `z_loss`, of the banks of sparse experts; where `text_rate` is 0, nothing is
      differentiated for the text encoder, the norm that is clipped is that of the others, and there
      is no term of the text.

  Returns:
    loss_fn(params, batch, prompts, counts=None) -> (loss, metrics). `batch` holds the arrays of
    `input_pipeline.batches.spec.BATCH` for B samples; `prompts` a random prompt of each class as
    'sampled' and the default ones as 'default', and where there are any prompts of other anatomy as
    'negative', all as of `prompt_inputs.embeddings`. With the counts of a whole batch, losses and
    metrics of its parts add up to those of the batch; balance, z-loss and the report of banks, but
    for `classes`, are then the mean of those of the parts.
  """

  def loss_fn(params, batch, prompts, counts=None):
    trains_text = text_encoder is not None and config.text_rate > 0
    text = _embeddings(text_encoder, params, prompts, trained=trains_text)
    answers = _answers(model, params, batch['image'], text['sampled'], text.get('negative'))
    targets, valid = _supervision(code_table, batch)
    labelled = valid.any((2, 3, 4))
    # Nothing lies outside the patient, whatever is labelled there.
    outside = (batch['label'] == OUTSIDE_CODE)[:, None]
    pairs = losses.pair_losses(answers.logits, targets, valid | outside, log=config.log_dice)
    bce, dice = loss_terms.bce_dice(pairs, labelled, batch['absent'], counts)
    loss, metrics = bce + dice, {'loss_bce': bce, 'loss_dice': dice}
    inputs = loss_terms.Inputs(
      answers.logits,
      targets,
      valid,
      labelled,
      pairs,
      answers.expert_logits,
      text['sampled'],
      text['default'],
      text_is_trained=trains_text,
      batch=batch,
      negative_logits=answers.negative_logits,
      counts=counts,
    )
    for name, weight, value in loss_terms.values(inputs, config):
      metrics[f'loss_{name}'] = value
      loss = loss + weight * value
    share = 1 if counts is None else 1 / counts.parts
    for scale, routing in answers.banks.items():
      balance = config.balance_loss * routing['balance'] + config.z_loss * routing['z']
      loss = loss + share * balance
      metrics |= _bank_metrics(scale, routing, targets & valid, share)
    return loss, {'loss': loss, **metrics}

  return loss_fn


class _Answers(NamedTuple):
  """What a model makes of a batch: logits of K classes and N other prompts.

  Attributes:
    logits: (B, K, D, H, W) float32.
    expert_logits: L arrays (B, K, D_l, H_l, W_l) float32.
    negative_logits: (B, N, D, H, W) float32; None without other prompts.
    banks: scale -> report of its bank.
  """

  logits: jax.Array
  expert_logits: tuple[jax.Array, ...]
  negative_logits: jax.Array | None
  banks: Mapping[int, dict[str, jax.Array]]


def _answers(
  model: MoME, params: Any, image: jax.Array, sampled: jax.Array, others: jax.Array | None
) -> _Answers:
  """The answers to the embeddings of a prompt of each class, and of other anatomy."""
  asked = sampled if others is None else jnp.concatenate([sampled, others])
  # Banks attend to the classes alone, in training too.
  variables = {'params': params['model']}
  logits, aux = model.apply(variables, image, asked, sampled, train=True)
  # Class-first: sums over voxels then run over long contiguous axes. The model's last step puts the
  # classes last; the compiler cancels the two.
  logits, negative = jnp.moveaxis(logits, -1, 1), None
  expert_logits = tuple(aux['expert_logits'])
  if others is not None:
    logits, negative = jnp.split(logits, [len(sampled)], axis=1)
    expert_logits = tuple(scores[:, : len(sampled)] for scores in expert_logits)
  return _Answers(logits, expert_logits, negative, aux['banks'])


def _supervision(code_table: jax.Array, batch: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
  """Targets, and where the labels say something about the class: (B, K, D, H, W) bool both."""
  targets = losses.look_up(code_table, batch['label'])
  valid = losses.valid_voxels(
    batch['label'].shape[1:], batch['supervised'], batch['frame'], batch['slice_range']
  )
  return targets, valid & (batch['label'] != IGNORE_CODE)[:, None]


def make_count_fn(code_table: jax.Array) -> CountFn:
  """count(batch) -> what the means of the loss of a batch run over.

  Args:
    code_table: (256, K) bool; whether a label code belongs to a class.
  """

  def count(batch: dict[str, jax.Array]) -> losses.Counts:
    known = batch['label'] != IGNORE_CODE
    outside = batch['label'] == OUTSIDE_CODE
    return losses.count(*_supervision(code_table, batch), outside, known, batch['absent'])

  return count


def _embeddings(
  text_encoder: TextEncoder | None,
  params: Any,
  prompts: Mapping[str, Mapping[str, jax.Array]],
  *,
  trained: bool,
) -> dict[str, jax.Array]:
  """Of each kind of prompts its embeddings, all in one pass of an encoder that may be trained."""
  if text_encoder is not None and not trained:
    params = params | {'text': jax.lax.stop_gradient(params['text'])}
  joined = jax.tree.map(lambda *kinds: jnp.concatenate(kinds), *prompts.values())
  ends = np.cumsum([len(jax.tree.leaves(kind)[0]) for kind in prompts.values()])
  parts = jnp.split(prompt_inputs.embeddings(text_encoder, params, joined), ends[:-1])
  return dict(zip(prompts, parts, strict=True))


def _bank_metrics(scale: int, routing: dict, targets: jax.Array, share: Any) -> Metrics:
  """How the bank of a scale routed, and which of its experts the voxels of each class chose.

  Args:
    scale: of the bank.
    routing: its report.
    targets: (B, K, D, H, W) bool.
    share: of the batch that this is; what is no count is multiplied by it.
  """
  metrics = {k: share * v for k, v in routing.items() if k != 'experts'}
  blocks = jnp.moveaxis(losses.block_mean(targets, 2**scale), 1, -1)
  metrics['classes'] = router_stats.by_class(routing['experts'], routing['load'].shape[0], blocks)
  return {f'moe_{scale}/{k}': v for k, v in metrics.items()}


def _gradient_fn(loss_fn: LossFn, count_fn: CountFn, parts: int) -> Callable[..., Any]:
  """gradients(params, batch, prompts) -> (gradients, metrics), a part of the batch at a time.

  What is averaged over (case, class) pairs is averaged over those of the whole batch: parts differ
  in how many they have, so that a mean of their means would be another loss.
  """
  gradients = jax.grad(loss_fn, has_aux=True)
  if parts == 1:
    return gradients

  def accumulated(params, batch, prompts):
    # Sample i is of part i % parts: a device holds as many of each, and none is moved.
    split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)
    counts = jax.tree.map(lambda x: x.sum(0), jax.lax.map(count_fn, split))

    def add(total, part):
      slopes, metrics = gradients(params, part, prompts, counts)
      return jax.tree.map(jnp.add, total, slopes), metrics

    total, metrics = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), split)
    return total, jax.tree.map(lambda x: x.sum(0), metrics)

  return accumulated


def make_train_step(
  loss_fn: LossFn, count_fn: CountFn, optimizer: optax.GradientTransformation, config: ConfigDict
) -> Callable[..., tuple[TrainState, Metrics]]:
  """One optimizer step: train_step(state, batch, prompts) -> (state, metrics).

  The metrics are scalars; those of a bank of E experts also (E,) and (E, K) arrays. With
  `skip_nonfinite`, a step whose loss or gradient is NaN or infinite leaves parameters and optimizer
  as they are, up to so many in a row; `skipped` is 1 then, and `skipped_in_row` their number.

  Args:
    loss_fn: from `make_loss_fn`.
    count_fn: from `make_count_fn`.
    optimizer: from `make_optimizer`.
    config: `config.train`; uses `accumulate`, `ema_decay`, `skip_nonfinite` and `freeze`: for what
      that keeps nothing is differentiated, and `grad_norm` is that of the others.
  """
  schedule = learning_rate(config)

  def loss_of_moving(params, *rest):
    return loss_fn(without_slope(params, config.freeze), *rest)

  gradients = _gradient_fn(loss_of_moving, count_fn, config.accumulate)

  def train_step(state: TrainState, batch, prompts):
    grads, metrics = gradients(state.params, batch, prompts)
    metrics['grad_norm'] = optax.tree.norm(grads)
    if config.skip_nonfinite:
      # Finite gradients of a loss that is not, or with a norm beyond float32, are as useless.
      finite = jnp.isfinite(metrics['loss']) & jnp.isfinite(metrics['grad_norm'])
      grads = jax.tree.map(lambda g: jnp.where(finite, g, jnp.nan), grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    t = state.step.astype(jnp.float32)
    decay = jnp.minimum(config.ema_decay, (1 + t) / (10 + t))
    ema = optax.incremental_update(params, state.ema, 1 - decay)
    if config.skip_nonfinite:
      metrics['skipped'] = 1 - opt_state.last_finite.astype(jnp.float32)
      metrics['skipped_in_row'] = opt_state.notfinite_count.astype(jnp.float32)
    for name, part in grads['model'].items():
      if isinstance(part, dict) and 'bank' in part:
        scale = name.removeprefix('expert_')
        experts = {k: g for k, g in part['bank'].items() if k not in ('gate', 'norm')}
        metrics[f'moe_{scale}/grad_norm'] = router_stats.gradient_norms(experts)
        metrics[f'moe_{scale}/grad_norm_gate'] = optax.tree.norm(part['bank']['gate'])
    # Steps left out do not count for the optimizer.
    left_out = state.opt_state.total_notfinite if config.skip_nonfinite else 0
    metrics['learning_rate'] = schedule(state.step - left_out)
    return TrainState(state.step + 1, params, ema, opt_state), metrics

  return train_step


def jit_train_step(
  config: ConfigDict,
  model: MoME,
  text_encoder: TextEncoder | None,
  optimizer: optax.GradientTransformation,
  abstract: TrainState,
  code_table: np.ndarray,
) -> Any:
  """The compiled-once train step of a config, on the mesh of `abstract`; the state is donated.

  Args:
    config: the whole config.
    model: from `build_model`.
    text_encoder: from `build_text_encoder`; None: the text is frozen.
    optimizer: from `make_optimizer`.
    abstract: the state's shapes and shardings; the new state has the same.
    code_table: (256, K) bool; whether a label code belongs to a class.
  """
  table = jnp.asarray(code_table)
  loss_fn = make_loss_fn(model, text_encoder, table, config.train)
  step = make_train_step(loss_fn, make_count_fn(table), optimizer, config.train)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  mesh = cast(jax.sharding.NamedSharding, abstract.step.sharding).mesh
  metrics = jax.sharding.NamedSharding(mesh, sharding.REPLICATED)
  platform = mesh.devices.flat[0].platform
  return compilation.jit(step, platform, donate_argnums=0, out_shardings=(shardings, metrics))
