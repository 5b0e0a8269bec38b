"""The loss and the train step: pure functions of parameters, batch and prompts."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from input_pipeline.anatomy import IGNORE_CODE
from mome_jax.models import MoME
from mome_jax.moe import router_stats
from mome_jax.text import prompt_inputs
from mome_jax.text.t5 import TextEncoder
from mome_jax.training import compilation, loss_terms, losses, sharding
from mome_jax.training.optimizer import learning_rate
from mome_jax.training.state import TrainState

Metrics = dict[str, jax.Array]
LossFn = Callable[[Any, dict[str, jax.Array], dict[str, Any]], tuple[jax.Array, Metrics]]


def make_loss_fn(
  model: MoME, text_encoder: TextEncoder | None, code_table: jax.Array, config: ConfigDict
) -> LossFn:
  """The loss of a batch as a function of the parameters.

  Args:
    model: from `build_model`.
    text_encoder: from `build_text_encoder`; None: the text is frozen.
    code_table: (256, K) bool; whether a label code belongs to a class.
    config: `config.train`; uses `log_dice`, the weights of `loss_terms.TERMS`, and `balance_loss`
      and `z_loss`, of the banks of sparse experts.

  Returns:
    loss_fn(params, batch, prompts) -> (loss, metrics). `batch` holds the arrays of
    `input_pipeline.batches.spec.BATCH` for B samples; `prompts` a random prompt of each class as
    'sampled' and the default ones as 'default', and where there are any prompts of other anatomy as
    'negative', all as of `prompt_inputs.embeddings`.
  """

  def loss_fn(params, batch, prompts):
    text = _embeddings(text_encoder, params, prompts)
    sampled, default, others = text['sampled'], text['default'], text.get('negative')
    asked = sampled if others is None else jnp.concatenate([sampled, others])
    # Banks attend to the classes alone, in training too.
    variables = {'params': params['model']}
    logits, aux = model.apply(variables, batch['image'], asked, sampled, train=True)
    # Class-first: sums over voxels then run over long contiguous axes. The model's last step puts
    # the classes last; the compiler cancels the two.
    logits, negative = jnp.moveaxis(logits, -1, 1), None
    expert_logits = tuple(aux['expert_logits'])
    if others is not None:
      logits, negative = jnp.split(logits, [len(sampled)], axis=1)
      expert_logits = tuple(scores[:, : len(sampled)] for scores in expert_logits)
    targets = jnp.moveaxis(code_table.T[:, batch['label'].astype(jnp.int32)], 0, 1)
    valid = losses.valid_voxels(
      batch['label'].shape[1:], batch['supervised'], batch['frame'], batch['slice_range']
    )
    valid &= (batch['label'] != IGNORE_CODE)[:, None]
    bce, dice = losses.masked_bce_dice(logits, targets, valid, log=config.log_dice)
    metrics = {'loss_bce': bce, 'loss_dice': dice}
    loss = bce + dice
    inputs = loss_terms.Inputs(
      logits,
      targets,
      valid,
      expert_logits,
      sampled,
      default,
      text_is_trained=text_encoder is not None,
      batch=batch,
      negative_logits=negative,
    )
    for name, weight, value in loss_terms.values(inputs, config):
      metrics[f'loss_{name}'] = value
      loss = loss + weight * value
    for scale, routing in aux['banks'].items():
      loss = loss + config.balance_loss * routing['balance'] + config.z_loss * routing['z']
      metrics |= _bank_metrics(scale, routing, losses.block_mean(targets & valid, 2**scale))
    return loss, {'loss': loss, **metrics}

  return loss_fn


def _embeddings(
  text_encoder: TextEncoder | None, params: Any, prompts: Mapping[str, Mapping[str, jax.Array]]
) -> dict[str, jax.Array]:
  """Of each kind of prompts its embeddings, all in one pass of the encoder."""
  joined = jax.tree.map(lambda *kinds: jnp.concatenate(kinds), *prompts.values())
  ends = np.cumsum([len(jax.tree.leaves(kind)[0]) for kind in prompts.values()])
  parts = jnp.split(prompt_inputs.embeddings(text_encoder, params, joined), ends[:-1])
  return dict(zip(prompts, parts, strict=True))


def _bank_metrics(scale: int, routing: dict, targets: jax.Array) -> Metrics:
  """How the bank of a scale routed, and which of its experts the voxels of each class chose."""
  metrics = {k: v for k, v in routing.items() if k != 'experts'}
  targets = jnp.moveaxis(targets, 1, -1)
  metrics['classes'] = router_stats.by_class(routing['experts'], routing['load'].shape[0], targets)
  return {f'moe_{scale}/{k}': v for k, v in metrics.items()}


def make_train_step(
  loss_fn: LossFn, optimizer: optax.GradientTransformation, config: ConfigDict
) -> Callable[..., tuple[TrainState, Metrics]]:
  """One optimizer step: train_step(state, batch, prompts) -> (state, metrics).

  The metrics are scalars; those of a bank of E experts also (E,) and (E, K) arrays.

  Args:
    loss_fn: from `make_loss_fn`.
    optimizer: from `make_optimizer`.
    config: `config.train`; uses `ema_decay`.
  """
  schedule = learning_rate(config)

  def train_step(state: TrainState, batch, prompts):
    (_, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, batch, prompts)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    t = state.step.astype(jnp.float32)
    decay = jnp.minimum(config.ema_decay, (1 + t) / (10 + t))
    ema = optax.incremental_update(params, state.ema, 1 - decay)
    metrics['grad_norm'] = optax.tree.norm(grads)
    for name, part in grads['model'].items():
      if isinstance(part, dict) and 'bank' in part:
        scale = name.removeprefix('expert_')
        experts = {k: g for k, g in part['bank'].items() if k not in ('gate', 'norm')}
        metrics[f'moe_{scale}/grad_norm'] = router_stats.gradient_norms(experts)
        metrics[f'moe_{scale}/grad_norm_gate'] = optax.tree.norm(part['bank']['gate'])
    metrics['learning_rate'] = schedule(state.step)
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
  loss_fn = make_loss_fn(model, text_encoder, jnp.asarray(code_table), config.train)
  step = make_train_step(loss_fn, optimizer, config.train)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  mesh = cast(jax.sharding.NamedSharding, abstract.step.sharding).mesh
  metrics = jax.sharding.NamedSharding(mesh, sharding.REPLICATED)
  platform = mesh.devices.flat[0].platform
  return compilation.jit(step, platform, donate_argnums=0, out_shardings=(shardings, metrics))
