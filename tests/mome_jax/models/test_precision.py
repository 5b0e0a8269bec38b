"""Products in float32 and those that choose experts run in full precision on TPU and GPU too."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mome_jax import ops
from mome_jax.models import MoME, sparse_bank
from mome_jax.models.backbones import swin
from mome_jax.text import anatomy_code, t5
from mome_jax.training import losses

# Parts of the path of an operation in the network: of the router, the gates it makes, a bank's
# gate, and the class features and the scan's context that both read.
DECIDE = ('/router/', 'bkc,bdhwc->bkdhw', '/gate/', '/text/', '/context/')


class Pyramid(nn.Module):
  """Two scales at the least cost to trace."""

  num_scales = 2
  stride = 2

  @nn.compact
  def __call__(self, x):
    return x, ops.max_pool(x)


def products(lowered) -> dict[str, list[str]]:
  """Path -> precisions, of every product in a StableHLO program."""
  text = lowered.as_text(debug_info=True)
  paths = dict(re.findall(r'^#(loc\d+) = loc\("([^"]*)"', text, re.MULTILINE))
  by_path = {}
  for line in text.splitlines():
    if 'stablehlo.dot_general' in line or 'stablehlo.convolution' in line:
      precision = re.findall('HIGHEST|DEFAULT', line)
      location = re.search(r'loc\(#(loc\d+)\)$', line)[1]
      by_path.setdefault(paths.get(location, location), []).append(', '.join(precision))
  return by_path


def test_every_deciding_product_is_exact_on_a_tpu():
  """Forward, recomputed and backward."""
  options = sparse_bank.BankOptions((0, 1), 4, 2, 2, 'dense', 2.0, 8)
  model = MoME(Pyramid(), width=16, router_width=8, bank=options, dtype=jnp.bfloat16)
  image, text = jnp.zeros((1, 4, 4, 4, 8)), jnp.zeros((3, 12))
  variables = jax.eval_shape(model.init, jax.random.key(0), image, text)

  def loss(variables, image, text):
    return model.apply(variables, image, text)[0].sum()

  traced = jax.jit(jax.grad(loss)).trace(variables, image, text)
  by_path = products(traced.lower(lowering_platforms=('tpu',)))
  for part in DECIDE:
    precisions = {p for path, each in by_path.items() if part in path for p in each}
    assert precisions == {'HIGHEST, HIGHEST'}, part
  assert any('DEFAULT, DEFAULT' in each for each in by_path.values())  # it would be seen


def gradient_precisions(model, *inputs, platform) -> set[str]:
  """Of every product in a model's gradient; its parameters come first in `inputs`."""

  def loss(variables, *inputs):
    return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(model.apply(variables, *inputs)))

  variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
  traced = jax.jit(jax.grad(loss)).trace(variables, *inputs)
  return {
    p for each in products(traced.lower(lowering_platforms=(platform,))).values() for p in each
  }


class Layers(nn.Module):
  """One of each kind of layer that backbones are made of."""

  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    convolutions = ({}, {'size': 1}, {'halve': True})
    y = [ops.Conv3D(2, dtype=self.dtype, **kind)(x) for kind in convolutions]
    y += [ops.DownConv3D(2, self.dtype)(x), ops.UpConv3D(2, dtype=self.dtype)(x)]
    y += [norm(dtype=self.dtype)(x) for norm in (ops.GroupNorm, ops.LayerNorm)]
    y += [ops.mean_pool(x), ops.max_pool(x)]
    return y, swin.WindowAttention(2, self.dtype)(x.reshape(1, -1, x.shape[-1]), None)


@pytest.mark.parametrize('platform', ['tpu', 'cuda'])
def test_layers_in_float32_are_exact(platform):
  """Forward and backward; in bfloat16 products are the platform's own."""
  precisions = [
    gradient_precisions(Layers(dtype), jnp.zeros((1, 2, 2, 2, 4)), platform=platform)
    for dtype in (jnp.float32, jnp.bfloat16)
  ]
  assert precisions == [{'HIGHEST, HIGHEST'}, {'DEFAULT, DEFAULT'}]


def test_a_network_in_float32_is_exact():
  """What is not the backbone: experts, banks, heads, router."""
  options = sparse_bank.BankOptions((0,), 4, 2, 2, 'dense', 2.0, 8)
  model = MoME(Pyramid(), width=16, router_width=8, bank=options)
  inputs = jnp.zeros((1, 4, 4, 4, 8)), jnp.zeros((3, 12))
  assert gradient_precisions(model, *inputs, platform='tpu') == {'HIGHEST, HIGHEST'}


def sums(lowered) -> set[str]:
  """Types of what is summed in a StableHLO program."""
  applied = r'applies stablehlo.add across dimensions = \[(.*?)\] : \(tensor<((?:\d+x)*)(\w+)>'
  types = set()
  for axes, sizes, dtype in re.findall(applied, lowered.as_text()):
    sizes = [int(n) for n in sizes.split('x') if n]
    if any(sizes[int(axis)] > 1 for axis in axes.split(',')):  # of one value there is no sum
      types.add(dtype)
  return types


@pytest.mark.parametrize('executor', sparse_bank.EXECUTORS)
def test_no_sum_of_a_network_in_bfloat16_is_taken_in_bfloat16(executor):
  """Over a million voxels; from Hopper on, a GPU would add in what it is given."""
  options = sparse_bank.BankOptions((0,), 4, 2, 2, executor, 2.0, 8)
  model = MoME(Pyramid(), width=16, router_width=8, bank=options, dtype=jnp.bfloat16)
  image, text = jnp.zeros((1, 4, 4, 4, 8)), jnp.zeros((3, 12))
  variables = jax.eval_shape(model.init, jax.random.key(0), image, text)

  def loss(params, image, text):
    return model.apply(params, image, text, train=True)[0].sum()

  params = {'params': variables['params']}
  traced = jax.jit(jax.grad(loss)).trace(params, image, text)
  for platform in ('tpu', 'cuda'):
    assert sums(traced.lower(lowering_platforms=(platform,))) == {'f32'}


def test_no_sum_of_a_backbone_in_bfloat16_is_taken_in_bfloat16():
  model = Layers(jnp.bfloat16)
  x = jnp.zeros((1, 2, 2, 2, 4), jnp.bfloat16)
  variables = jax.eval_shape(model.init, jax.random.key(0), x)
  loss = lambda variables, x: sum(jnp.sum(y) for y in jax.tree.leaves(model.apply(variables, x)))
  traced = jax.jit(jax.grad(loss, (0, 1))).trace(variables, x)
  for platform in ('tpu', 'cuda'):
    assert sums(traced.lower(lowering_platforms=(platform,))) == {'f32'}


def contrast_of_codes(embeddings, codes):
  return anatomy_code.loss(embeddings, codes, np.arange(2), 0.1)


@pytest.mark.parametrize('feed_forward', t5.FEED_FORWARDS)
def test_a_text_encoder_in_float32_is_exact(feed_forward):
  encoder = t5.TextEncoder(t5.T5Config(16, 8, 4, 16, 2, 2, feed_forward))
  ids = jnp.ones((2, 5), jnp.int32)
  assert gradient_precisions(encoder, ids, ids > 0, platform='tpu') == {'HIGHEST, HIGHEST'}


@pytest.mark.parametrize('loss', [losses.prompt_contrast, contrast_of_codes])
def test_texts_that_are_nearly_parallel_are_told_apart_on_a_tpu(loss):
  """Their cosines differ by less than a bfloat16 holds."""
  vectors = jnp.ones((4, 8))
  traced = jax.jit(jax.grad(loss)).trace(vectors, vectors)
  by_path = products(traced.lower(lowering_platforms=('tpu',)))
  assert {p for each in by_path.values() for p in each} == {'HIGHEST, HIGHEST'}
