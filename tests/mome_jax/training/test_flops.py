"""Counted operations against numbers worked out by hand, loops and gradients included."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from mome_jax.configs import paper_unet
from mome_jax.models.backbones import build_backbone
from mome_jax.ops import conv3d
from mome_jax.training import compile_ahead, sharding
from mome_jax.training.flops import count_flops


def flops(f, *shapes, platform='tpu'):
  arrays = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
  return count_flops(jax.jit(f).trace(*arrays).jaxpr, platform)


def test_a_matrix_product():
  assert flops(lambda a, b: a @ b, (3, 4, 5), (3, 5, 6)) == 2 * 3 * 4 * 5 * 6


def test_a_loop_counts_each_round():
  body = lambda x, w: (x @ w, None)
  assert flops(lambda x, w: lax.scan(body, x, w)[0], (4, 8), (10, 8, 8)) == 10 * 2 * 4 * 8 * 8


def test_a_convolution_and_its_gradient():
  once = 2 * 2 * 8**3 * 27 * 4 * 16
  shapes = (2, 8, 8, 8, 4), (3, 3, 3, 4, 16)
  assert flops(conv3d.conv3d, *shapes) == once
  loss = lambda x, k: conv3d.conv3d(x, k).sum()
  total = flops(jax.grad(loss, (0, 1)), *shapes)
  # Padded borders and the unused forward pass: exact counts depend on how JAX transposes.
  assert total == pytest.approx(3 * once, rel=0.35)


def test_the_branch_of_the_platform_counts():
  shapes = (1, 8, 8, 8, 4), (3, 3, 3, 4, 16)
  native = 2 * 8**3 * 27 * 4 * 16
  assert flops(conv3d.conv3d, *shapes, platform='tpu') == native
  assert flops(conv3d.conv3d, *shapes, platform='cpu') == pytest.approx(native / 2, rel=0.01)


def test_rematerialisation_counts_again():
  f = lambda x, w: jnp.sin(jax.checkpoint(lambda x, w: jnp.sin(x @ w) @ w)(x, w)).sum()
  once = 2 * 4 * 8 * 8
  assert flops(jax.grad(f, (0, 1)), (4, 8), (8, 8)) >= 7 * once - 1


def test_a_whole_training_step_counts_as_xla_does():
  """In a program without loops; elementwise operations and borders are the difference."""
  config = paper_unet.get_config()
  config.classes = config.classes[: config.model.class_chunk]
  config.train.batch_size = 1
  traced, _ = compile_ahead.trace_train_step(config, sharding.local_mesh())
  counted = count_flops(traced.jaxpr, 'cpu')
  assert counted == pytest.approx(traced.lower().cost_analysis()['flops'], rel=0.05)


def test_the_published_unet_by_hand():
  """Every convolution of the forward pass at 96^3, as many operations as weights and voxels say."""
  model = build_backbone(paper_unet.get_config().model.backbone, remat=False, dtype=jnp.float32)
  image = jax.ShapeDtypeStruct((1, 96, 96, 96, 1), jnp.float32)
  params = jax.eval_shape(model.init, jax.random.key(0), image)
  expected = 0
  for name, stage in params['params'].items():
    level = int(name[-1])
    voxels = (96 >> level) ** 3
    kernels = [leaf.size for leaf in jax.tree.leaves(stage) if leaf.ndim == 5]
    # Each voxel of an up-convolution's output sees one of its eight taps.
    expected += 2 * voxels * sum(kernels) / (8 if name.startswith('upsample') else 1)
  assert count_flops(jax.jit(model.apply).trace(params, image).jaxpr) == expected
