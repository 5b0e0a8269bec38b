"""The router's gates against the formula, and what they depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mome_jax import ops
from mome_jax.models import router
from mome_jax.models.router import Gate

pytestmark = pytest.mark.usefixtures('soon')

RNG = np.random.default_rng(1)


def make_gates(features, classes, context, inputs='text+vision', **values):
  """The router with its parameters at the start, or those given; and what it returns."""
  module = router.Router(4, inputs)
  params = module.init(jax.random.key(0), features, classes, context).get('params', {})
  params |= values
  return params, module.apply({'params': params}, features, classes, context)


@pytest.mark.parametrize(('equal_start', 'finest'), [(False, 0.9), (True, 1 / 3)])
def test_a_fresh_router_gives_the_finest_scale_nine_tenths_or_as_much_as_others(
  equal_start, finest
):
  features = [jnp.zeros((1, 4 >> level, 4 >> level, 4 >> level, 8)) for level in range(3)]
  inputs = features, jnp.ones((2, 16)), jnp.ones((1, 16))
  module = router.Router(4, equal_start=equal_start)
  gates, _ = module.init_with_output(jax.random.key(0), *inputs)
  logits = [Gate(g.weight[:, 0], g.bias[:, 0])(x) for g, x in zip(gates, features, strict=True)]
  np.testing.assert_allclose(ops.scale_weights(logits)[0], finest, rtol=1e-5)


def test_a_gate_is_the_product_of_query_and_normalised_key():
  shapes = (2, 4, 4, 2, 32), (2, 2, 2, 1, 32)
  features = [jnp.asarray(RNG.normal(1, 2, shape), jnp.float32) for shape in shapes]
  classes, context = (jnp.asarray(RNG.normal(size=(n, 16)), jnp.float32) for n in (3, 2))
  prior = jnp.asarray(RNG.normal(size=16), jnp.float32)
  norm = {'scale': jnp.linspace(0.5, 2, 32), 'bias': jnp.linspace(-1, 1, 32)}
  params, (gate, _) = make_gates(features, classes, context, prior_0=prior, norm_0=norm)
  normalised = torch.nn.functional.group_norm(
    torch.from_numpy(np.moveaxis(np.array(features[0]), -1, 1).copy()),
    16,
    *(torch.from_numpy(np.array(norm[name])) for name in ('scale', 'bias')),
  )
  keys = np.einsum('bcdhw,cr->bdhwr', normalised, params['key_0'])
  for k in range(3):
    pairs = jnp.concatenate([jnp.broadcast_to(classes[k], (2, 16)), context], -1)
    query = pairs @ params['query']['kernel'] + params['query']['bias']
    expected = np.einsum('br,bdhwr->bdhw', query, keys) / 2 + classes[k] @ prior + params['bias_0']
    got = Gate(gate.weight[:, k], gate.bias[:, k])(features[0])
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  ('inputs', 'by_class', 'by_voxel'),
  [
    ('text+vision', True, True),
    ('text', True, False),
    ('vision', False, True),
    ('uniform', False, False),
  ],
)
def test_what_the_weights_depend_on(inputs, by_class, by_voxel):
  features = [jnp.asarray(RNG.normal(size=(1, n, n, n, 8)), jnp.float32) for n in (4, 2)]
  classes = jnp.asarray(RNG.normal(size=(2, 16)), jnp.float32)
  context = jnp.ones((1, 16))
  params, _ = make_gates(features, classes, context, inputs)
  given = {name: jnp.ones(16) for name in params if name == 'prior_0'}
  params, gates = make_gates(features, classes, context, inputs, **given)
  logits = [Gate(gates[0].weight[:, k], gates[0].bias[:, k])(features[0]) for k in range(2)]
  assert (np.abs(logits[0] - logits[1]).max() > 1e-3) == by_class
  assert (np.ptp(logits[0]) > 1e-3) == by_voxel
  assert bool(params) == (inputs != 'uniform')
