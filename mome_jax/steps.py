"""Pure functions of (parameters, batch, prompts): loss, train step, predict step."""

import jax
import jax.numpy as jnp
import optax

from mome_jax import losses
from mome_jax.models import router
from mome_jax.state import TrainState, learning_rate


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
    config: `config.train`; uses `expert_loss`, the weight of the same losses on each coarser
      expert's own logits, and `text_loss`, the weight of `losses.prompt_contrast`.

  Returns:
    loss_fn(params, batch, prompts) -> (loss, metrics). `batch` holds image (B, D, H, W, C_in),
    label (B, D, H, W) uint8 codes, supervised (B, K), frame (B, 4), slice_range (B, K, 2);
    `prompts` ids and mask (2 K, T), or vectors (2 K, d_t): a random prompt of each class, then the
    default ones.
  """

  def loss_fn(params, batch, prompts):
    sampled, default = jnp.split(embed(text_encoder, params, prompts), 2)
    logits, aux = model.apply({'params': params['model']}, batch['image'], sampled)
    # Class-first: sums over voxels then run over long contiguous axes. The model's last step puts
    # the classes last; the compiler cancels the two.
    logits = jnp.moveaxis(logits, -1, 1)
    targets = jnp.moveaxis(code_table.T[:, batch['label'].astype(jnp.int32)], 0, 1)
    valid = losses.valid_voxels(
      batch['label'].shape[1:], batch['supervised'], batch['frame'], batch['slice_range']
    )
    bce, dice = losses.masked_bce_dice(logits, targets, valid)
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
          losses.masked_bce_dice(
            scores, losses.block_mean(targets, factor), losses.block_mean(valid, factor)
          )
        )
      metrics['loss_experts'] = total / len(coarse)
      loss = loss + config.expert_loss * metrics['loss_experts']
    return loss, {'loss': loss, **metrics}

  return loss_fn


def make_train_step(loss_fn, optimizer, config):
  """One optimizer step: train_step(state, batch, prompts) -> (state, metrics of scalars).

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
    metrics['grad_norm'] = optax.global_norm(grads)
    metrics['learning_rate'] = schedule(state.step)
    return TrainState(state.step + 1, params, ema, opt_state), metrics

  return train_step


def make_predict_step(model):
  """predict_step(params, text (K, d_t), windows (B, D, H, W, C)) -> logits (B, D, H, W, K)."""

  def predict_step(params, text, windows):
    return model.apply({'params': params['model']}, windows, text)[0]

  return predict_step


def make_routing_step(model):
  """What the router did: routing_step(params, text, windows) -> (logits, weights).

  `weights` is L arrays (B, K, D, H, W) float32, each scale's share in each class at each voxel.
  """

  def routing_step(params, text, windows):
    logits, aux = model.apply({'params': params['model']}, windows, text)
    return logits, router.scale_weights(aux['router_logits'], model.top_k)

  return routing_step
