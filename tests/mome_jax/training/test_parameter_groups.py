"""How far groups of parameters moved."""

import jax
import jax.numpy as jnp
import pytest

from mome_jax.training.parameter_groups import distances


def test_how_far_groups_moved():
  router = {'bias_0': 3.0, 'bias_1': [0.0], 'prior_0': [0.0, 0.0], 'query': {'kernel': [[1.0]]}}
  bank = {'bank': {'kernel_in': [1.0, 1.0]}, 'norm': {'scale': [5.0]}}
  start = {
    'model': {
      'backbone': {'a': [1.0, 2.0], 'b': [[3.0, 4.0]]},
      'text': {'kernel': [[2.0]]},
      'heads': {'bias': [2.0]},
      'router': router,
      'expert_1': bank,
      'mixture_share': 0.0,
    },
    'text': {'embed': [1.0, 1.0]},
  }
  start = jax.tree.map(jnp.asarray, start, is_leaf=lambda x: isinstance(x, list))
  end = jax.tree.map(jnp.copy, start)
  end['model']['backbone']['a'] += jnp.array([3.0, -1.0])
  end['model']['backbone']['b'] += jnp.array([[1.0, 5.0]])
  end['model']['heads']['bias'] -= 4.0
  end['model']['router']['bias_0'] -= 2.0
  end['model']['router']['prior_0'] += jnp.array([0.0, 2.0])
  end['model']['mixture_share'] += 0.5
  end['model']['expert_1']['bank']['kernel_in'] += jnp.array([3.0, 4.0])
  moved = {name: float(value) for name, value in distances(start, end).items()}
  assert moved == pytest.approx(
    {
      'moved/backbone': 3.0,  # sqrt((9 + 1 + 1 + 25) / 4)
      'moved/text_encoder': 0.0,
      'moved/generator': 8**0.5,  # of two numbers one moved by 4
      'moved/router_kernels': 0.0,
      'moved/router_biases': 2**0.5,
      'moved/router_priors': 2**0.5,
      'moved/mixture_share': 0.5,
      'moved/banks': 12.5**0.5,
      'moved/experts': 0.0,
    }
  )
