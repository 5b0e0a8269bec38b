"""A batch in parts: the gradient of the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_model import B, K, example, one_step


@pytest.mark.parametrize('parts', [2, 8])
def test_parts_of_a_batch_teach_what_the_batch_teaches(parts):
  params, batch, prompts, _ = example()
  whole, metrics = one_step(1)(params, batch, prompts)
  state, by_parts = one_step(parts)(params, batch, prompts)
  moved = jax.tree.map(jnp.subtract, params, whole.params)
  assert min(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(moved)) > 1e-2
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  jax.tree.map(close, state.params, whole.params)
  assert by_parts.keys() == metrics.keys()
  for name, value in metrics.items():
    np.testing.assert_allclose(by_parts[name], value, rtol=1e-5, err_msg=name)
  # A mean of the parts' means would be another loss.
  alone = one_step(1)
  means = [
    alone(params, {k: v[i::parts] for k, v in batch.items()}, prompts)[1]['loss']
    for i in range(parts)
  ]
  assert abs(np.mean(means) - metrics['loss']) > 1e-2


@pytest.mark.parametrize('parts', [1, 2])
def test_nothing_is_differentiated_for_what_is_kept(parts):
  params, batch, prompts, _ = example()
  state, metrics = one_step(parts)(params, batch, prompts)
  moved = lambda of: np.abs(params['model']['bias'] - of.params['model']['bias'])
  assert metrics['grad_norm'] > 1.01 * moved(state)
  kept, metrics = one_step(parts, freeze=('model/kernel', 'text'))(params, batch, prompts)
  np.testing.assert_allclose(metrics['grad_norm'], moved(state), rtol=1e-5)
  np.testing.assert_array_equal(kept.params['model']['kernel'], params['model']['kernel'])
  np.testing.assert_allclose(kept.params['model']['bias'], state.params['model']['bias'], rtol=1e-5)


def test_a_step_without_a_finite_gradient_is_left_out():
  params, batch, prompts, _ = example()
  broken = batch | {'image': batch['image'].copy(), 'supervised': np.ones((B, K), bool)}
  broken['image'][7] = np.inf
  run = one_step(4, skip=2)
  state, metrics = run(params, broken, prompts)
  assert metrics['skipped'] == metrics['skipped_in_row'] == 1
  jax.tree.map(np.testing.assert_array_equal, state.params, params)
  jax.tree.map(np.testing.assert_array_equal, state.ema, params)
  state, metrics = run(params, broken, prompts, state.opt_state)
  assert metrics['skipped_in_row'] == 2
  state, metrics = run(params, batch, prompts, state.opt_state, done=5)
  # The optimizer has counted 3 of 5 steps, of the 1000 of the warm-up to 1e-4.
  np.testing.assert_allclose(metrics['learning_rate'], 3e-7, rtol=1e-5)
  assert metrics['skipped'] == metrics['skipped_in_row'] == 0
  assert np.isfinite(metrics['loss'])
  assert jnp.abs(state.params['model']['kernel'] - params['model']['kernel']).max() > 1e-3
