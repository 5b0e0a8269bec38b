"""Backbones: published sizes, the pyramid's shapes, and options that must not change the result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ml_collections import ConfigDict

from mome_jax.configs import baseline_swin_unetr, baseline_unet, paper_swin_unetr, paper_unet
from mome_jax.models import build_model
from mome_jax.models.backbones import BACKBONES, build_backbone, resenc_unet, unet


def build(name, size='tiny', *, remat=False, **options):
  options = ConfigDict({'name': name, 'size': size, **options})
  return build_backbone(options, remat=remat, dtype=jnp.float32)


def shapes_of(model, *sides, channels=1):
  image = jax.ShapeDtypeStruct((1, *sides, channels), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), image)['params']


def fill(shapes, seed=0):
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    noise = rng.normal(size=leaf.shape).astype(np.float32)
    if path[-1].key == 'scale':
      return 1 + 0.2 * noise
    return noise * np.float32(np.sqrt(2 / np.prod(leaf.shape[:-1] or (100,))))

  return jax.tree_util.tree_map_with_path(draw, shapes)


def count(tree):
  return sum(np.prod(x.shape, dtype=int) for x in jax.tree.leaves(tree))


@pytest.mark.parametrize('name', BACKBONES)
@pytest.mark.parametrize('size', ['tiny', 'small', 'base'])
def test_every_scale_halves_the_one_before(name, size):
  model = build(name, size)
  sides = (2 * model.stride, model.stride, 3 * model.stride)
  image = jax.ShapeDtypeStruct((2, *sides, 1), jnp.float32)
  pyramid = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x)[0], image)
  assert len(pyramid) == model.num_scales
  assert 2 ** (model.num_scales - 1) == model.stride
  for level, x in enumerate(pyramid):
    assert x.shape[:4] == (2, *(n >> level for n in sides))


@pytest.mark.parametrize(
  ('config', 'parameters'), [(baseline_unet, 19_416_417), (baseline_swin_unetr, 62_595_315)]
)
def test_baselines_have_the_published_size(config, parameters):
  config = config.get_config()
  assert len(config.classes) == 32
  model = build_model(config.model)
  image = jax.ShapeDtypeStruct((1, 64, 64, 64, len(config.data.windows)), jnp.float32)
  text = jax.ShapeDtypeStruct((32, config.text.d_model), jnp.float32)
  assert count(jax.eval_shape(model.init, jax.random.key(0), image, text)) == parameters


@pytest.mark.parametrize(('config', 'scales'), [(paper_unet, 4), (paper_swin_unetr, 6)])
def test_paper_configs_mix_every_scale(config, scales):
  model = build_model(config.get_config().model)
  assert model.active_scales == tuple(range(scales))
  assert model.backbone.remat


def test_residual_encoder_has_the_published_plan():
  shapes = shapes_of(build('resenc_unet', 'base'), 64, 64, 64)
  stages = [shapes[f'encoder_{level}'] for level in range(6)]
  assert [len(stage) for stage in stages] == [1, 3, 4, 6, 6, 6]
  widths = [stage['block_0']['conv_1']['conv']['kernel'].shape[-1] for stage in stages]
  assert widths == [32, 64, 128, 256, 320, 320]
  # dynamic_network_architectures 0.4.4 counts the same for this plan, without its output layers.
  assert count(shapes) == 102_348_160


def test_residual_block_by_its_definition():
  """Strided convolution, instance norms, and a shortcut of means: nnU-Net's block, in PyTorch."""
  x = np.random.default_rng(1).normal(size=(1, 4, 6, 8, 3)).astype(np.float32)
  module = resenc_unet.ResidualBlock(5, halve=True)
  params = fill(jax.eval_shape(module.init, jax.random.key(0), x)['params'])
  y = module.apply({'params': params}, x)

  def conv(x, name, stride=1):
    part = params[name]['conv']
    kernel = torch.from_numpy(part['kernel'].transpose(4, 3, 0, 1, 2).copy())
    bias = torch.from_numpy(part['bias']) if 'bias' in part else None
    x = F.conv3d(x, kernel, bias, stride=stride, padding=kernel.shape[-1] // 2)
    norm = [torch.from_numpy(params[name]['norm'][part]) for part in ('scale', 'bias')]
    return F.instance_norm(x, weight=norm[0], bias=norm[1])

  tx = torch.from_numpy(np.moveaxis(x, -1, 1).copy())
  main = conv(F.leaky_relu(conv(tx, 'conv_0', stride=2)), 'conv_1')
  expected = F.leaky_relu(main + conv(F.avg_pool3d(tx, 2), 'shortcut'))
  assert 'bias' not in params['shortcut']['conv']
  np.testing.assert_allclose(y, np.moveaxis(expected.numpy(), 1, -1), atol=2e-5)


def test_rematerialisation_gives_the_same_network():
  rng = np.random.default_rng(0)
  image = jnp.asarray(rng.uniform(size=(1, 16, 16, 32, 2)), jnp.float32)
  plain = unet.UNet((8, 16))
  params = fill(shapes_of(plain, 16, 16, 32, channels=2))

  def run(model):
    def loss(params):
      pyramid = model.apply({'params': params}, image)
      return sum(jnp.square(x - 1).mean() for x in pyramid), pyramid

    step = jax.value_and_grad(loss, has_aux=True)
    (_, pyramid), grads = jax.jit(step)(params)
    return pyramid, grads, 'remat' in str(jax.make_jaxpr(step)(params))

  pyramid, grads, recomputes = run(plain)
  assert not recomputes
  other = unet.UNet((8, 16), remat=True)
  shapes = shapes_of(other, 16, 16, 32, channels=2)
  assert jax.tree.structure(shapes) == jax.tree.structure(params)
  recomputed, slopes, recomputes = run(other)
  assert recomputes
  for ours, expected in zip((*recomputed, slopes), (*pyramid, grads), strict=True):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
      np.testing.assert_allclose(a, b, atol=2e-5 * max(1, float(jnp.abs(b).max())))


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (
      {'name': 'vnet'},
      r"backbone.name is 'vnet'; did you mean unet\? known: unet, swin_unetr, res",
    ),
    ({'name': 'unet', 'size': 'huge'}, "model.backbone.size is 'huge'; known: tiny, small, base"),
    (
      {'name': 'unet', 'merging': 'cum'},
      r'model\.backbone\.merging: unet has the options name, size$',
    ),
    ({'name': 'swin_unetr', 'merging': 'v3'}, "model.backbone.merging is 'v3'; known: cum, monai"),
  ],
)
def test_a_wrong_backbone_says_what_is_known(options, message):
  with pytest.raises(ValueError, match=message):
    build(**options)
