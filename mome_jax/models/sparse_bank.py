"""A bank of sparse experts at one scale: each voxel is a token that chooses k of E experts."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from mome_jax import ops
from mome_jax.errors import ConfigError, suggest
from mome_jax.moe import capacity, dense, losses, router_stats, routing

EXECUTORS = ('dense', 'capacity')


@dataclasses.dataclass(frozen=True)
class BankOptions:
  """Of the banks of a model.

  Attributes:
    scales: indices of the decoder layers that have a bank.
    num_experts: E.
    top_k: k, experts of each token.
    expansion: hidden width of an expert, relative to its input.
    executor: 'dense' runs all experts on all tokens; 'capacity' sends tokens to experts.
    capacity_factor: room of an expert in training, relative to a balanced load; of 'capacity'.
    router_width: of the text features that the gate reads.
  """

  scales: tuple[int, ...]
  num_experts: int
  top_k: int
  expansion: int
  executor: str
  capacity_factor: float
  router_width: int


def make_options(
  config: ml_collections.ConfigDict | None, scales: tuple[int, ...], router_width: int
) -> BankOptions | None:
  """The options in `config.model.bank`, None where no scale has a bank.

  Args:
    config: with the fields of `BankOptions` but the last.
    scales: the decoder layers that take part in the model.
    router_width: see `BankOptions`.

  Raises:
    ConfigError: for a value that cannot be.
  """
  if not config or not config.scales:
    return None
  if not set(config.scales) <= set(scales):
    raise ConfigError(f'model.bank.scales is {tuple(config.scales)}; the experts are at {scales}')
  if not 1 <= config.top_k <= config.num_experts:
    raise ConfigError(
      f'model.bank.top_k is {config.top_k}; expected 1 to num_experts={config.num_experts}'
    )
  if config.executor not in EXECUTORS:
    raise ConfigError(
      f'model.bank.executor is {config.executor!r}; {suggest(config.executor, EXECUTORS)}'
    )
  if config.executor == 'capacity' and config.capacity_factor <= 0:
    raise ConfigError(f'model.bank.capacity_factor is {config.capacity_factor}; expected above 0')
  return BankOptions(
    tuple(config.scales),
    config.num_experts,
    config.top_k,
    config.expansion,
    config.executor,
    config.capacity_factor,
    router_width,
  )


class TokenGate(nn.Module):
  """Logits of the sparse experts, from a token and the training classes it looks like. All float32.

  `W_e [x_v ; W_t sum_j softmax_j(<W_x x_v, c_j> / sqrt(d)) c_j]`. By linearity the classes are
  taken through W_e first: no array of N rows is wider than the number of classes.
  """

  options: BankOptions

  @nn.compact
  def __call__(self, tokens: jax.Array, trained: jax.Array) -> jax.Array:
    """Tokens (N, C_l), training classes (J, d) float32 -> (N, E) float32."""
    width, d = tokens.shape[-1], trained.shape[-1]
    o = self.options
    tokens = tokens.astype(jnp.float32)
    query = self.param('query', nn.initializers.lecun_normal(), (width, d))
    text = self.param('text', nn.initializers.lecun_normal(), (d, o.router_width))
    # Not zero: all tokens would choose experts 0 to k - 1, and the balance loss would not see it.
    small = nn.initializers.normal(2e-2)
    kernel = self.param('kernel', small, (width + o.router_width, o.num_experts))
    product = functools.partial(jnp.matmul, precision=ops.EXACT)
    attention = nn.softmax(product(tokens, product(query, trained.T)) / math.sqrt(d))
    classes = product(product(trained, text), kernel[width:])
    return product(tokens, kernel[:width]) + product(attention, classes)


class SparseBank(nn.Module):
  """F + sum over the k chosen experts of p_i e_i(GroupNorm(F)); the identity at the start."""

  options: BankOptions
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self,
    features: jax.Array,
    trained: jax.Array,
    body: jax.Array | None = None,
    *,
    train: bool,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """See the class.

    Args:
      features: (B, D_l, H_l, W_l, C_l).
      trained: (J, d) float32, features of the training classes.
      body: (B, D_l, H_l, W_l) bool, False in air, which the balance loss leaves out; None: all.
      train: experts drop what they have no room for; otherwise no token is dropped, so that a
        result depends on neither the batch nor the mesh.

    Returns:
      (B, D_l, H_l, W_l, C_l), and a report: `balance` and `z`, the auxiliary losses; `experts`
      (B, D_l, H_l, W_l, k) int32; and what `moe.router_stats.summarize` returns.
    """
    o = self.options
    width = features.shape[-1]
    x = ops.GroupNorm(dtype=self.dtype, name='norm')(features).reshape(-1, width)
    count, devices = x.shape[0], capacity.num_devices()
    x = jnp.pad(x, ((0, -count % (capacity.ROW_MULTIPLE * devices)), (0, 0)))
    valid = jnp.arange(x.shape[0]) < count
    routes = routing.route(TokenGate(o, name='gate')(x, trained), valid, o.top_k)

    params = jax.tree.map(lambda p: p.astype(self.dtype), self._experts(width))
    if o.executor == 'dense':
      y = dense.execute(apply_experts, params, x, routes, valid)
      served, slots = jnp.broadcast_to(valid[:, None], routes.experts.shape), None
    else:
      room = routing.capacity(x.shape[0] // devices, o.num_experts, o.top_k, o.capacity_factor)
      y, served = capacity.execute(
        apply_experts,
        params,
        x,
        routes,
        valid,
        capacity=room,
        drop_free=not train,
      )
      slots = o.num_experts * room * devices if train else None
    grid = features.shape[:-1]
    # Most of a patch may be air, all of which looks alike: balanced with it, the experts of air
    # would be as many as its share, and those of the body the fewer.
    balanced = valid if body is None else valid & jnp.pad(body.reshape(-1), (0, len(x) - count))
    report = {
      'balance': losses.balance_loss(routes, balanced),
      'z': losses.z_loss(routes, valid),
      'experts': routes.experts[:count].reshape(*grid, o.top_k),
      **router_stats.summarize(routes, valid, served, slots),
    }
    return features + y[:count].reshape(features.shape).astype(features.dtype), report

  def _experts(self, width: int) -> dict[str, jax.Array]:
    experts, hidden = self.options.num_experts, self.options.expansion * width
    zeros = nn.initializers.zeros
    he = nn.initializers.he_normal(batch_axis=(0,))
    return {
      'kernel_in': self.param('kernel_in', he, (experts, width, hidden)),
      'bias_in': self.param('bias_in', zeros, (experts, hidden)),
      'kernel_out': self.param('kernel_out', zeros, (experts, hidden, width)),
      'bias_out': self.param('bias_out', zeros, (experts, width)),
    }


def apply_experts(params: dict[str, jax.Array], rows: jax.Array) -> jax.Array:
  """W_out gelu(W_in x + b_in) + b_out of each expert: (e, c, d) -> (e, c, d)."""
  precision = ops.precision_of(rows.dtype)
  product = functools.partial(jnp.einsum, 'ecd,edh->ech', precision=precision)
  bias_in, bias_out = (params[name][:, None] for name in ('bias_in', 'bias_out'))
  hidden = nn.gelu(ops.add_bias(product(rows, params['kernel_in']), bias_in))
  return ops.add_bias(product(hidden, params['kernel_out']), bias_out)
