"""Pure functions of (parameters, batch, prompts): loss, train step, predict step."""

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.anatomy import IGNORE_CODE
from mome_jax.models import router
from mome_jax.moe import router_stats
from mome_jax.ops import layers
from mome_jax.training import compilation, losses, sharding
from mome_jax.training.state import TrainState, learning_rate


def embed(text_encoder, params, prompts: dict[str, jax.Array]) -> jax.Array:
  """Embeddings of prompts: 'ids' (K, T) int32 and 'mask' (K, T) bool -> (K, d_t) float32.

  Frozen text comes as 'vectors' (K, d_t), which are the result.
  """
  if 'vectors' in prompts:
    return prompts['vectors']
  return text_encoder.apply({'params': params['text']}, prompts['ids'], prompts['mask'])


def make_loss_fn(model, text_encoder, code_table: jax.Array, config):
  """The loss of a batch as a function of the parameters.

  Args:
    model: from `build_model`.
    text_encoder: from `build_text_encoder`; None: the text is frozen.
    code_table: (256, K) bool; whether a label code belongs to a class.
    config: `config.train`; uses `log_dice`, `expert_loss`, the weight of BCE and 1 - Dice on each
      coarser expert's own logits, `text_loss`, the weight of `losses.prompt_contrast`, and
      `balance_loss` and `z_loss`, of the banks of sparse experts.

  Returns:
    loss_fn(params, batch, prompts) -> (loss, metrics). `batch` holds image (B, D, H, W, C_in),
    label (B, D, H, W) uint8 codes, supervised (B, K), frame (B, 4), slice_range (B, K, 2);
    `prompts` ids and mask (2 K, T), or vectors (2 K, d_t): a random prompt of each class, then the
    default ones.
  """

  def loss_fn(params, batch, prompts):
    sampled, default = jnp.split(embed(text_encoder, params, prompts), 2)
    logits, aux = model.apply({'params': params['model']}, batch['image'], sampled, train=True)
    # Class-first: sums over voxels then run over long contiguous axes. The model's last step puts
    # the classes last; the compiler cancels the two.
    logits = jnp.moveaxis(logits, -1, 1)
    targets = jnp.moveaxis(code_table.T[:, batch['label'].astype(jnp.int32)], 0, 1)
    valid = losses.valid_voxels(
      batch['label'].shape[1:], batch['supervised'], batch['frame'], batch['slice_range']
    )
    valid &= (batch['label'] != IGNORE_CODE)[:, None]
    bce, dice = losses.masked_bce_dice(logits, targets, valid, log=config.log_dice)
    metrics = {'loss_bce': bce, 'loss_dice': dice}
    loss = bce + dice
    if text_encoder is not None:
      metrics['loss_text'] = losses.prompt_contrast(sampled, default)
      loss = loss + config.text_loss * metrics['loss_text']
    coarse = aux['expert_logits'][1:]
    if config.expert_loss and coarse:
      total = 0.0
      for scores in coarse:
        factor = logits.shape[-1] // scores.shape[-1]
        total += sum(
          losses.masked_bce_dice(scores, *losses.block_supervision(targets, valid, factor))
        )
      metrics['loss_experts'] = total / len(coarse)
      loss = loss + config.expert_loss * metrics['loss_experts']
    for scale, did in aux['banks'].items():
      loss = loss + config.balance_loss * did['balance'] + config.z_loss * did['z']
      metrics |= _bank_metrics(scale, did, losses.block_mean(targets & valid, 2**scale))
    return loss, {'loss': loss, **metrics}

  return loss_fn


def _bank_metrics(scale: int, did: dict, targets: jax.Array) -> dict[str, jax.Array]:
  """What the bank of a scale did, and which of its experts the voxels of each class chose."""
  metrics = {k: v for k, v in did.items() if k != 'experts'}
  targets = jnp.moveaxis(targets, 1, -1)
  metrics['classes'] = router_stats.by_class(did['experts'], did['load'].shape[0], targets)
  return {f'moe_{scale}/{k}': v for k, v in metrics.items()}


def make_train_step(loss_fn, optimizer, config):
  """One optimizer step: train_step(state, batch, prompts) -> (state, metrics).

  The metrics are scalars; those of a bank of E experts also (E,) and (E, K) arrays.

  Args:
    loss_fn: from `make_loss_fn`.
    optimizer: from `make_optimizer`.
    config: `config.train`; uses `ema_decay`.
  """
  import optax

  schedule = learning_rate(config)

  def train_step(state: TrainState, batch, prompts):
    (_, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, batch, prompts)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    t = state.step.astype(jnp.float32)
    decay = jnp.minimum(config.ema_decay, (1 + t) / (10 + t))
    ema = optax.incremental_update(params, state.ema, 1 - decay)
    metrics['grad_norm'] = optax.global_norm(grads)
    for name, part in grads['model'].items():
      if isinstance(part, dict) and 'bank' in part:
        scale = name.removeprefix('expert_')
        experts = {k: g for k, g in part['bank'].items() if k not in ('gate', 'norm')}
        metrics[f'moe_{scale}/grad_norm'] = router_stats.gradient_norms(experts)
        metrics[f'moe_{scale}/grad_norm_gate'] = optax.global_norm(part['bank']['gate'])
    metrics['learning_rate'] = schedule(state.step)
    return TrainState(state.step + 1, params, ema, opt_state), metrics

  return train_step


def jit_train_step(
  config, model, text_encoder, optimizer, abstract: TrainState, code_table: np.ndarray
):
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
  mesh = abstract.step.sharding.mesh
  metrics = jax.sharding.NamedSharding(mesh, sharding.REPLICATED)
  platform = mesh.devices.flat[0].platform
  return jit(step, platform, donate_argnums=0, out_shardings=(shardings, metrics))


def jit(function, platform: str, **keywords):
  """`jax.jit` of a program of the network, for 'cpu', 'gpu' or 'tpu'."""
  return jax.jit(function, compiler_options=compilation.options(platform), **keywords)


def make_predict_step(model):
  """predict_step(params, text (K, d_t), windows (B, D, H, W, C)) -> logits (B, D, H, W, K).

  A model with banks of sparse experts also needs `context` (J, d_t), the embeddings of the default
  prompts of its training classes, where `text` holds other prompts.
  """

  def predict_step(params, text, windows, context=None):
    return model.apply({'params': params['model']}, windows, text, context)[0]

  return predict_step


def make_routing_step(model):
  """A predict step that also tells what the router did, summed over cells of voxels.

  routing_step(params, text (K, d_t), windows (B, D, H, W, C), counted (B, D, H, W) float32 in
  [0, 1], placement, context) -> logits (B, D, H, W, K) and a dict, all float32:
    'maps' (K, B, L + 1, d, h, w): the shares of the scales, and their entropy as a fraction of
      log L; sums over the voxels of each cell of the share or entropy times `counted`;
    'sums' (K, L + 2): over the voxels where the class's logit is above 0, sums of the shares, the
      entropy and 1, times `counted`.
  `placement` is (B, d, D), (B, h, H) and (B, w, W) float32, 1 where a voxel lies in a cell. With
  overlapping windows, `counted` is the part of a voxel that each of them has.

  Args:
    model: from `build_model`, with at least two scales.
  """

  def routing_step(params, text, windows, counted, placement, context=None):
    logits, aux = model.apply({'params': params['model']}, windows, text, context)
    share = jnp.tanh(params['model']['mixture_share']) if model.warm_start else None

    def one_class(maps):
      logits, gates = maps
      weights = _shares(gates, model.top_k, share)
      part = jnp.clip(weights, 1e-6, 1)
      entropy = -(part * jnp.log(part)).sum(1, keepdims=True) / np.log(weights.shape[1])
      told = jnp.concatenate([weights, entropy], 1)
      cells = layers.exact('bldhw,bzw->bldhz', told * counted[:, None], placement[2])
      cells = layers.exact('bldhz,byh->bldyz', cells, placement[1])
      cells = layers.exact('bldyz,bxd->blxyz', cells, placement[0])
      inside = jnp.where(logits > 0, counted, 0)
      sums = [(told * inside[:, None]).sum((0, 2, 3, 4)), inside.sum()[None]]
      return {'maps': cells, 'sums': jnp.concatenate(sums)}

    # One class at a time: the weights of all scales are the largest arrays here.
    by_class = jnp.moveaxis(logits, -1, 0), [jnp.moveaxis(a, 1, 0) for a in aux['router_logits']]
    return logits, jax.lax.map(one_class, by_class)

  return routing_step


def _shares(gates, top_k: int, share: jax.Array | None) -> jax.Array:
  """What each scale contributes to a class's logits: (B, L, D, H, W), adds up to 1.

  Args:
    gates: L arrays (B, D_l, H_l, W_l), router logits of one class.
    top_k: of the model.
    share: of the mixture in a model that started as its finest scale alone; None is all.
  """
  weights = jnp.stack(router.scale_weights(gates, top_k), 1)
  # With top_k = 1 the one weight is below 1; what a class trusts is a share all the same.
  weights = weights / jnp.maximum(weights.sum(1, keepdims=True), 1e-6)
  if share is None:
    return weights
  finest = (jnp.arange(len(gates)) == 0).astype(weights.dtype)[:, None, None, None]
  return finest + share * (weights - finest)
