"""Products that decide which experts are chosen run in full precision where the default is less."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp

from mome_jax import ops
from mome_jax.models import MoME, sparse_bank

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
      precision = re.search(r'precision.*?\[([^]]*)\]', line)
      location = re.search(r'loc\(#(loc\d+)\)$', line)[1]
      by_path.setdefault(paths.get(location, location), []).append(precision and precision[1])
  return by_path


def test_every_deciding_product_is_exact_on_a_tpu():
  """Forward, recomputed and backward."""
  options = sparse_bank.BankOptions((0, 1), 4, 2, 2, 'dense', 2.0, 8)
  model = MoME(Pyramid(), width=16, router_width=8, bank=options)
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
