"""The training loss as a whole, of a model that says what it is told to."""

import types

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mome_jax.training import steps

CONFIG = ConfigDict(
  {
    'log_dice': False,
    'expert_loss': 1.0,
    'text_loss': 0.0,
    'negative_loss': 0.0,
    'absent_loss': 0.0,
    'outside_loss': 0.0,
  }
)


def test_a_coarse_expert_is_not_taught_less_organ_at_the_border_of_a_range():
  """All organ, contoured above 2 mm: the lower of two blocks is half valid, and is taught 1."""
  coarse = jnp.array([-1.0, 2.0]).reshape(1, 1, 1, 1, 2)
  logits, aux = jnp.zeros((1, 2, 2, 4, 1)), {'expert_logits': [None, coarse], 'banks': {}}
  model = types.SimpleNamespace(apply=lambda *_, **__: (logits, aux))
  batch = {
    'image': jnp.zeros((1, 2, 2, 4, 1)),
    'label': jnp.ones((1, 2, 2, 4), jnp.uint8),
    'supervised': jnp.ones((1, 1), bool),
    'absent': jnp.zeros((1, 1), bool),
    'frame': jnp.array([[0.0, 0.0, 2.0, 1.0]]),  # slices at 1, 3, 5, 7 mm
    'slice_range': jnp.array([[[2.0, np.inf]]]),
  }
  table = jnp.zeros((256, 1), bool).at[1].set(True)
  prompts = dict.fromkeys(('sampled', 'default'), {'vectors': jnp.zeros((1, 3))})
  loss_fn = steps.make_loss_fn(model, None, table, CONFIG)
  _, metrics = loss_fn({'model': {}}, batch, prompts)
  weight, p = np.array([0.5, 1]), 1 / (1 + np.exp([1.0, -2.0]))
  bce = -(weight * np.log(p)).sum() / 1.5
  dice = 1 - (2 * (weight * p).sum() + 1) / ((weight * p).sum() + 1.5 + 1)
  np.testing.assert_allclose(metrics['loss_experts'], bce + dice, rtol=1e-6)
