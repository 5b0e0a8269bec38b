"""No mask depends on what it was asked for together with, nor on the order of the prompts."""

import functools
import json

import fresh
import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threshold import save_scan

from mome_jax import predict
from mome_jax.inference.loaded_model import Predictor
from mome_jax.predict import prompted_model
from mome_jax.predict.request import Options, Request

TRAINED = ('liver', 'liver tumor', 'right kidney', 'left kidney', 'kidney tumor')
# Trained classes by name and synonym, one that was not trained, and free text.
PROMPTS = (*TRAINED, 'hepar', 'Kidney_L', 'spleen', 'pineapple pizza', 'tumor', 'left')
RULES = ('sides', 'largest', 'inside', 'minimum')


@pytest.fixture(scope='module')
def network(tmp_path_factory):
  return Predictor(fresh.save_model(tmp_path_factory.mktemp('model') / 'm', TRAINED, bias=-0.5))


@pytest.fixture(scope='module')
def masks(network):
  """masks(prompts) -> name -> (D, H, W) bool."""
  image = np.full((20, 22, 18), -1000.0)
  image[3:-3, 3:-3, 2:-2] = np.random.default_rng(0).normal(40, 100, (14, 16, 14))

  @functools.cache
  def segment(prompts):
    model = prompted_model.ask(network, Request([], prompts, rules=RULES, force=True))
    segmentation = model.segmenter(image, (8.0, 8.0, 10.0))
    return {target.name: segmentation.mask(target.name) for target in model.targets}

  return segment


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(PROMPTS), min_size=1, max_size=8, unique=True))
def test_any_subset_in_any_order_has_the_same_masks(masks, prompts):
  for prompt in prompts:
    for name, mask in masks((prompt,)).items():
      np.testing.assert_array_equal(masks(tuple(prompts))[name], mask, err_msg=name)


def test_the_masks_are_none_that_nothing_could_change(masks):
  alone = {name: mask for prompt in PROMPTS for name, mask in masks((prompt,)).items()}
  parts = {name: mask for name, mask in alone.items() if 0 < mask.mean() < 0.99}
  trained = [name for name in parts if name in TRAINED]
  free = [name for name in parts if name not in TRAINED]
  assert len(trained) >= 3 and len(free) >= 3  # noise, but neither everywhere nor nowhere
  assert not (alone['liver'] & alone['kidney tumor']).any()
  assert any((parts[a] & parts[b]).any() for a in trained for b in free)


def test_files_of_a_prompt_are_the_same_whatever_else_is_written(network, tmp_path):
  scan = [save_scan(tmp_path / 'a.nii.gz')]
  options = Options(preview=False, probabilities=True)
  rows = {}
  for number, prompts in enumerate((['tumor', 'liver'], ['liver', 'spleen', 'left', 'tumor'])):
    out = tmp_path / str(number)
    [result] = predict.predict(
      network, scan, out, prompts, options=options, force=True, progress=False
    )
    assert result.status == 'ok'
    legend = json.loads((out / 'a_seg.json').read_text())
    rows[number] = {row['name']: row for row in legend['labels']}
  for name in ('tumor', 'liver'):
    first, second = rows[0][name], rows[1][name]
    assert {k: v for k, v in first.items() if k not in ('label', 'mask')} == {
      k: v for k, v in second.items() if k not in ('label', 'mask')
    }
  read = lambda number, path: np.asarray(nib.load(tmp_path / str(number) / path).dataobj)
  np.testing.assert_array_equal(*(read(n, rows[n]['tumor']['mask']) for n in rows))
  np.testing.assert_array_equal(*(read(n, 'a_seg.nii.gz') == 6 for n in rows))
  np.testing.assert_array_equal(*(read(n, 'a_probabilities/liver.nii.gz') for n in rows))
  assert rows[0]['liver']['mask'] is None  # --masks was not given
