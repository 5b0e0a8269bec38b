"""The picture of a training."""

import numpy as np
import pytest
from matplotlib.image import imread

from mome_jax.pictures import training_curves


def curve_rows(n):
  for step in range(1, n + 1):
    yield {
      'step': 10 * step,
      'loss': 2 / step,
      'loss_bce': 1 / step,
      'loss_dice': 1 / step,
      'learning_rate': 1e-4,
      'grad_norm': 100.0 / step,
    }


def test_training_curves(tmp_path):
  training_curves.training_curves(tmp_path / 'full.png', curve_rows(200))
  full = imread(tmp_path / 'full.png')
  training_curves.training_curves(tmp_path / 'again.png', list(curve_rows(200)))
  np.testing.assert_array_equal(full, imread(tmp_path / 'again.png'))
  odd = [{'step': 5, 'dice': 0.5}, {'step': 7, 'loss': float('nan')}, {'step': 8, 'loss': None}]
  training_curves.training_curves(tmp_path / 'odd.png', [*curve_rows(200), *odd])
  np.testing.assert_array_equal(full, imread(tmp_path / 'odd.png'))  # nothing of them is drawn
  training_curves.training_curves(tmp_path / 'none.png', [])
  none = imread(tmp_path / 'none.png')
  assert none.shape == full.shape
  third = full.shape[1] // 3
  for i in range(3):  # each panel has a line in it
    part = slice(i * third, (i + 1) * third)
    assert (np.ptp(full[:, part, :3], axis=2) > 0.3).sum() > 300
    assert (np.ptp(none[:, part, :3], axis=2) > 0.3).sum() == 0


def test_validation_has_a_panel_of_its_own(tmp_path):
  """And the other three are where they were."""
  rows = list(curve_rows(20))
  training_curves.training_curves(tmp_path / 'without.png', rows)
  values = {'validation/dice': 0.5, 'validation/dice/liver': 0.4, 'validation/loss_bce': 0.3}
  rows[9] |= values
  rows[19] |= {name: value + 0.1 for name, value in values.items()}
  training_curves.training_curves(tmp_path / 'with.png', rows)
  without, with_panel = (imread(tmp_path / f'{name}.png') for name in ('without', 'with'))
  assert with_panel.shape[1] > 1.3 * without.shape[1]
  further = with_panel[:, without.shape[1] :]
  assert (np.ptp(further[..., :3], axis=2) > 0.3).sum() > 200
  rate = slice(without.shape[1] // 3 + 30, without.shape[1] - 20)
  np.testing.assert_array_equal(with_panel[50:, rate], without[50:, rate])


@pytest.mark.parametrize('n', [1, 2])
def test_training_curves_of_few_steps(tmp_path, n):
  training_curves.training_curves(tmp_path / 'few.png', curve_rows(n))
  assert (np.ptp(imread(tmp_path / 'few.png')[..., :3], axis=2) > 0.3).sum() > 100
