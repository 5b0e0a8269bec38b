"""Where arrays live on eight devices; run by test_on_mesh.py in a process of its own."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import linear_model
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from mome_jax import checkpoint, ops
from mome_jax.configs import demo
from mome_jax.inference import steps
from mome_jax.inference.loaded_model import Predictor
from mome_jax.models import MoME, build_model, sparse_bank
from mome_jax.moe import capacity
from mome_jax.text.t5 import build_text_encoder
from mome_jax.training import compile_ahead, sharding, state
from mome_jax.training.state import TrainState


def mesh_config(data, expert, **changes):
  return ConfigDict({'data': data, 'expert': expert, 'spatial': False, 'fsdp': False, **changes})


def tree():
  """Parameters and moments of a bank and of something else."""
  experts = {'kernel_in': jnp.arange(8 * 64 * 64.0).reshape(8, 64, 64), 'bias_in': jnp.ones((8, 4))}
  gate = {'kernel': jnp.ones((24, 8))}
  params = {'model': {'expert_1': {'bank': {**experts, 'gate': gate}, 'norm': jnp.ones(3)}}}
  return TrainState(jnp.int32(4), params, params, [{'mu': params}])


def specs(mesh, **options):
  where = sharding.tree_shardings(mesh, tree(), **options)
  return {jax.tree_util.keystr(p): s.spec for p, s in jax.tree_util.tree_leaves_with_path(where)}


def test_experts_and_their_moments_are_sharded():
  got = specs(sharding.make_mesh(mesh_config(2, 4)))
  for path, spec in got.items():
    expert = path.endswith(("['kernel_in']", "['bias_in']"))
    assert spec == (P('expert') if expert else P()), path


def test_fsdp_spreads_what_is_large():
  got = specs(sharding.make_mesh(mesh_config(2, 4)), fsdp=True)
  large = {path: spec for path, spec in got.items() if 'kernel_in' in path}
  assert len(large) == 3
  assert set(large.values()) == {P('expert', 'data', None)}
  assert all('data' not in spec for path, spec in got.items() if path not in large)


def test_a_checkpoint_of_one_mesh_restores_on_another(tmp_path):
  config = ConfigDict({'seed': 0})
  meshes = [sharding.make_mesh(mesh_config(2, 4)), sharding.make_mesh(mesh_config(8, 1))]
  states = [jax.device_put(tree(), sharding.tree_shardings(m, tree(), fsdp=True)) for m in meshes]
  writer = checkpoint.Checkpointer(tmp_path)
  writer.save(4, states[0], {'step': 4, 'seed': 0})
  writer.close()
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), states[1]
  )
  reader = checkpoint.Checkpointer(tmp_path)
  restored, _ = reader.restore(abstract, config)
  reader.close()

  def check(got, expected):
    assert got.sharding.is_equivalent_to(expected.sharding, got.ndim)
    np.testing.assert_array_equal(got, expected)

  jax.tree.map(check, restored, states[1])


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    (mesh_config(3, 2), 'mesh.data=3 x mesh.expert=2 does not fit 8 devices'),
    (mesh_config(-1, 3), 'does not fit 8 devices'),
  ],
)
def test_a_wrong_mesh_is_refused(config, message):
  with pytest.raises(sharding.MeshError, match=message):
    sharding.make_mesh(config)


@pytest.mark.parametrize(
  ('batch', 'patch', 'spatial', 'backbone', 'message'),
  [
    (6, (16, 16, 16), False, 'unet', 'train.batch_size=6 .* 8 devices'),
    (3, (16, 16, 16), True, 'unet', 'train.batch_size=3 .* 2 rows of the mesh'),
    (6, (18, 16, 16), True, 'unet', 'does not divide the depth of data.patch'),
    (6, (16, 16, 16), True, 'swin_unetr', 'convolutional backbone instead of swin_unetr'),
  ],
)
def test_a_batch_that_does_not_fit_the_mesh_is_refused(batch, patch, spatial, backbone, message):
  config = ConfigDict(
    {
      'train': {'batch_size': batch, 'accumulate': 1}, 'data': {'patch': patch},
      'mesh': mesh_config(2, 4, spatial=spatial), 'model': {'backbone': {'name': backbone}},
    }
  )  # fmt: skip
  with pytest.raises(sharding.MeshError, match=message):
    sharding.check_batch(sharding.make_mesh(config.mesh), config)


def test_parts_of_a_batch_must_fit_the_mesh_too():
  config = demo.get_config()
  config.train.update({'batch_size': 16, 'accumulate': 2})
  mesh = sharding.make_mesh(mesh_config(2, 4))
  sharding.check_batch(mesh, config)
  config.train.accumulate = 4
  with pytest.raises(sharding.MeshError, match='by 8 devices in train.accumulate=4 parts'):
    sharding.check_batch(mesh, config)


def test_experts_that_the_mesh_cannot_divide_are_refused():
  six = {'bank': {'kernel_in': jnp.ones((6, 2, 2))}}
  with pytest.raises(sharding.MeshError, match='cannot be shared by mesh.expert=4'):
    sharding.tree_shardings(sharding.make_mesh(mesh_config(2, 4)), {'params': six})


class Pyramid(nn.Module):
  """Convolutions that cross the borders between devices, at two scales."""

  num_scales = 2
  stride = 2

  @nn.compact
  def __call__(self, x):
    fine = ops.Conv3D(8, name='fine')(x)
    return fine, ops.Conv3D(16, name='coarse')(ops.max_pool(fine))


def test_depth_over_devices_changes_no_number_and_needs_less_memory():
  """The whole network with a bank: loss and gradients with the depth over `expert`."""
  options = sparse_bank.BankOptions((1,), 4, 2, 2, 'capacity', 2.0, 8)  # C = n: drop-free
  model = MoME(Pyramid(), width=16, router_width=8, bank=options)
  rng = np.random.default_rng(0)
  image = rng.uniform(size=(2, 32, 8, 8, 1)).astype(np.float32)
  text = jnp.asarray(rng.normal(size=(5, 12)), jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), image, text)['params']
  params = jax.tree.map(
    lambda s: jnp.asarray(rng.normal(size=s.shape) / np.sqrt(30), jnp.float32),
    shapes,
  )

  def loss(params, image):
    logits, aux = model.apply({'params': params}, image, text, train=True)
    return jnp.square(logits).mean() + aux['banks'][1]['balance']

  def compiled(*arguments):
    program = jax.jit(jax.value_and_grad(loss)).lower(*arguments).compile()
    return jax.device_get(program(*arguments)), program

  expected, whole = compiled(params, image)
  mesh = sharding.make_mesh(mesh_config(2, 4, spatial=True))
  with jax.set_mesh(mesh):
    split = sharding.shard_batch(mesh, {'image': image}, spatial=True)['image']
    assert split.sharding.shard_shape(split.shape) == (1, 8, 8, 8, 1)
    got, shared = compiled(sharding.replicate(mesh, params), split)

  def close(a, b):
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max() + 1e-7)

  jax.tree.map(close, got, expected)
  bytes_of = lambda program: program.memory_analysis().temp_size_in_bytes
  assert bytes_of(shared) < bytes_of(whole) / 4  # one of eight parts, and its halos
  exchanged = compile_ahead.collectives(shared.as_text())
  assert exchanged['collective-permute']['count'] >= 4  # halos of two convolutions and gradients
  assert exchanged['all-to-all']['count'] >= 4  # two of the bank, and their gradients
  assert exchanged.get('all-gather', {'bytes': 0})['bytes'] < image.nbytes


def test_parts_of_a_batch_lie_where_the_batch_lies():
  """Every device computes its own samples of each part, and the step is that of one device."""
  params, batch, prompts, _ = linear_model.example()
  expected, metrics = linear_model.one_step(2)(params, batch, prompts)
  mesh = sharding.make_mesh(mesh_config(4, 2))
  with jax.set_mesh(mesh):
    run = linear_model.one_step(2)
    placed = [sharding.replicate(mesh, params), sharding.shard_batch(mesh, batch)]
    state, got = run(*placed, sharding.replicate(mesh, prompts))
    program = jax.jit(run).lower(*placed, prompts).compile()
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  jax.tree.map(close, state.params, expected.params)
  jax.tree.map(close, got, metrics)
  exchanged = compile_ahead.collectives(program.as_text())
  assert sum(kind['bytes'] for kind in exchanged.values()) < batch['image'].nbytes / 8


def test_two_predictors_on_two_devices_work_side_by_side(tmp_path, monkeypatch):
  """Each in its own mesh, whatever mesh is in effect, and none is left behind.

  In place of the network, what a bank does with the mesh in effect.
  """
  rows = P(('data', 'expert'))

  def make_step(model):
    def step(params, windows, trained_text):
      add = lambda x: x + jax.lax.psum(1, ('data', 'expert'))
      return jax.shard_map(add, in_specs=rows, out_specs=rows)(windows) + capacity.num_devices()

    return step

  monkeypatch.setattr(steps, 'make_see_step', make_step)
  monkeypatch.setattr(steps, 'make_read_step', lambda model: lambda params, seen, text: seen)
  config = demo.get_config()
  config.classes = ('liver', 'spleen')
  config.model.backbone.size = 'tiny'
  config.model.scales = (0, 1)
  config.model.bank.scales = (1,)
  config.model.bank.executor = 'capacity'
  config.text.num_layers = 1
  create = functools.partial(
    state.init_params, config, build_model(config.model), build_text_encoder(config.text)
  )
  shapes = jax.eval_shape(create, jax.random.key(0))
  checkpoint.save_model(
    tmp_path / 'm', config, jax.tree.map(lambda s: np.ones(s.shape, np.float32), shapes)
  )
  windows = np.random.default_rng(0).uniform(size=(2, 16, 16, 16, 1)).astype(np.float32)
  where = [[0], [5, 6]]
  predictors = [
    Predictor(tmp_path / 'm', devices=[jax.devices()[n] for n in numbers]) for numbers in where
  ]
  assert jax.sharding.get_abstract_mesh().empty
  segmenters = [p.segmenter(['liver'], ['liver']) for p in predictors]

  def check():
    for numbers, segmenter in zip(where, segmenters, strict=True):
      [got] = segmenter.predict(windows)
      assert {device.id for device in got.devices()} == set(numbers)
      np.testing.assert_allclose(got, windows + 2 * len(numbers), rtol=1e-6)

  check()
  with jax.set_mesh(sharding.make_mesh(mesh_config(2, 4))):
    check()
