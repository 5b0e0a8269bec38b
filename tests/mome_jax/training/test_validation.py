"""Dice and losses of held-out patches, against plain loops over voxels."""

import tracemalloc
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from input_pipeline.anatomy import IGNORE_CODE, OUTSIDE_CODE, TEMPLATE
from mome_jax.training import sharding
from mome_jax.training import validation as validation_module
from mome_jax.training.validation import Validation, make_score_step, some_classes, summarise

K, SHAPE = 3, (4, 3, 2)
NAMES = 'a', 'b', 'c'


@pytest.fixture
def batch():
  rng = np.random.default_rng(0)
  label = rng.integers(0, 4, (2, *SHAPE)).astype(np.uint8)  # code k + 1 is class k
  label[0, 0, 0] = IGNORE_CODE
  label[1, 0, 0] = label[1, 2, 1] = OUTSIDE_CODE  # of class b known in slice 0 too
  logits = rng.normal(size=(2, *SHAPE, K + 1)).astype(np.float32)  # one more fills a bucket
  limits = np.tile(np.array([-np.inf, np.inf], np.float32), (2, K, 1))
  limits[1, 1] = 1.0, 2.0  # of the second patch, class b in the slices 1 and 2 alone
  supervised = np.array([[True, True, False], [True, True, False]])
  frame = np.array([[0, 0, 1, 0], [1, 0, 0, 0]], np.float32)
  return logits, {
    'label': label, 'supervised': supervised, 'frame': frame, 'slice_range': limits,
    'absent': np.zeros((2, K), bool),
  }  # fmt: skip


def by_hand(logits, batch):
  table = np.zeros((256, K), bool)
  table[1:4] = np.eye(K, dtype=bool)
  p = 1 / (1 + np.exp(-logits[..., :K].astype(np.float64)))
  bce, dice, overlap, predicted, labelled = [], [], np.zeros(K), np.zeros(K), np.zeros(K)
  for n in range(2):
    for k in range(K):
      if not batch['supervised'][n, k]:
        continue
      valid = batch['label'][n] != IGNORE_CODE
      if (n, k) == (1, 1):
        valid &= np.isin(np.arange(SHAPE[0]), (1, 2))[:, None, None]
      known = valid | (batch['label'][n] == OUTSIDE_CODE)
      truth = (batch['label'][n] == k + 1) & valid
      q = p[n, ..., k]
      if not batch['absent'][n, k]:
        bce.append(-np.where(truth, np.log(q), np.log(1 - q))[known].mean())
      if truth.any():
        dice.append(-np.log((2 * q[truth].sum() + 1e-7) / (q[known].sum() + truth.sum() + 1e-7)))
      mask = (logits[n, ..., k] > 0) & valid
      overlap[k] += (mask & truth).sum()
      predicted[k] += mask.sum()
      labelled[k] += truth.sum()
  return table, np.mean(bce), np.mean(dice), 2 * overlap / np.maximum(predicted + labelled, 1)


@pytest.mark.parametrize('absent', [False, True])
def test_scores_of_a_batch(batch, absent):
  logits, arrays = batch
  if absent:  # it has no voxel in the second patch, and is no part of the mean
    arrays['label'][1][arrays['label'][1] == 1] = 0
    arrays['absent'][1, 0] = True
  table, bce, dice_loss, dice = by_hand(logits, arrays)
  step = make_score_step(jnp.asarray(table), log=True)
  total = {name: np.asarray(value) for name, value in step(jnp.asarray(logits), arrays).items()}
  values = summarise(total, NAMES)
  assert values['loss_bce'] == pytest.approx(bce, rel=1e-5)
  assert values['loss_dice'] == pytest.approx(dice_loss, rel=1e-5)
  assert values['loss'] == pytest.approx(bce + dice_loss, rel=1e-5)
  assert values['dice/a'] == pytest.approx(dice[0])
  assert values['dice/b'] == pytest.approx(dice[1])
  assert 'dice/c' not in values  # not labelled anywhere: unknown, not 0
  assert values['dice'] == pytest.approx(dice[:2].mean())


def test_the_sums_of_two_batches_are_those_of_one(batch):
  logits, arrays = batch
  table = by_hand(logits, arrays)[0]
  step = make_score_step(jnp.asarray(table), log=False)
  whole = step(jnp.asarray(logits), arrays)
  parts = [
    step(jnp.asarray(logits[n : n + 1]), {name: x[n : n + 1] for name, x in arrays.items()})
    for n in range(2)
  ]
  for name, value in whole.items():
    np.testing.assert_allclose(parts[0][name] + parts[1][name], value, rtol=1e-6)


def test_labels_are_no_gather_on_a_tpu(batch):
  """It would fetch the classes of every voxel by themselves."""
  logits, arrays = batch
  step = jax.jit(make_score_step(jnp.asarray(by_hand(logits, arrays)[0]), log=False))
  traced = step.trace(logits, arrays)
  assert 'gather' in traced.lower().as_text()  # it would be seen
  assert 'gather' not in traced.lower(lowering_platforms=('tpu',)).as_text()


@pytest.mark.parametrize('size', [1, 2, 4])
def test_no_patch_more_counts_than_is_asked_for(batch, size):
  """The batch's size, which may change in a run, decides nothing."""
  logits, arrays = batch
  arrays['image'] = logits
  sample = lambda number, seed: {name: x[number % 2] for name, x in arrays.items()}
  validation = types.SimpleNamespace(
    _batch_size=size, _config=ConfigDict({'validation': {'patches': 3}}), _place=lambda x: x,
    _sampler=types.SimpleNamespace(sample=sample),
  )  # fmt: skip
  step = make_score_step(jnp.asarray(by_hand(logits, arrays)[0]), log=False)
  scored = [step(jnp.asarray(part.pop('image')), part) for part in Validation._batches(validation)]
  first, second = (
    step(jnp.asarray(logits[n : n + 1]), {k: x[n : n + 1] for k, x in arrays.items()})
    for n in range(2)
  )
  for name in first:
    total = sum(part[name] for part in scored)
    np.testing.assert_allclose(total, 2 * first[name] + second[name], rtol=1e-6)


@pytest.mark.parametrize('batches', [0, 2])
def test_a_run_that_is_asked_to_end_waits_for_one_batch(batches):
  """It waited for all of them: a preempted TPU has half a minute."""
  done = []
  validation = types.SimpleNamespace(
    _embed=lambda *_: (None, None), _prompts={}, _mesh=sharding.local_mesh(jax.devices()[:1]),
    _batches=lambda: ({'image': number} for number in range(9)), _classes=NAMES,
    _logits=lambda *_: done.append('batch'), _score=lambda *_: {},
  )  # fmt: skip
  assert Validation.__call__(validation, None, lambda: len(done) == batches) is None
  assert len(done) == batches


def test_nothing_labelled_gives_no_dice():
  total = {name: np.zeros(K) for name in ('overlap', 'predicted', 'labelled')}
  total |= {name: np.zeros(()) for name in ('bce', 'dice', 'pairs', 'present')}
  assert summarise(total, NAMES) == {'loss': 0, 'loss_bce': 0, 'loss_dice': 0}


def test_of_a_scan_without_a_class_all_is_drawn():
  case = types.SimpleNamespace(voxels={}, info=types.SimpleNamespace(shape=(3, 4, 5)))
  low, high = Validation._labelled_box(None, case)
  assert low.tolist() == [0, 0, 0] and high.tolist() == [3, 4, 5]


@pytest.mark.parametrize('shown', [(), (3,), (0, 1, 2, 4), (0, 1, 2, 3, 4)])
def test_a_picture_holds_the_logits_of_a_few_classes_at_a_time(shown, monkeypatch, tmp_path):
  """Each device held those of all classes in all windows of all devices: of 64, gigabytes."""
  rng = np.random.default_rng(0)
  names, shape, drawn, gathered = TEMPLATE.names()[:5], (13, 9, 8), [], []
  image = rng.uniform(0, 100, shape).astype(np.float32)
  case = types.SimpleNamespace(voxels={}, info=types.SimpleNamespace(shape=shape, name='a scan'))

  def gather(logits, numbers):
    gathered.append(some_classes(logits, numbers))
    return gathered[-1]

  validation = types.SimpleNamespace(
    _drawn=case, _shown=np.array(shown, int),
    _sampler=types.SimpleNamespace(
      patch=(8, 8, 8), windows=np.array([[0.0, 100.0]]),
      read=lambda *_: (image, np.zeros(shape, np.uint8)),
    ),
    _labelled_box=lambda case: Validation._labelled_box(None, case),
    _embed=lambda *_: (None, None),
    _logits=lambda ema, text, windows, trained: windows - jnp.linspace(0.1, 0.8, 8),
    _gather=gather, _batch_size=2, _classes=names, _template=TEMPLATE, _prompts={},
    _mesh=sharding.local_mesh(jax.devices()[:1]),
    _config=ConfigDict({'mesh': {'spatial': False}, 'data': {'spacing': (1.0, 1.0, 1.0)}}),
  )  # fmt: skip
  monkeypatch.setattr(
    validation_module.overlay, 'overlay', lambda *given: drawn.append(given[3].masks)
  )
  ended = iter((False, True))
  Validation.draw(validation, tmp_path / 'scan.png', None, 'step 1', lambda: next(ended))
  assert not drawn and not list(ended)  # it was left after the second slab of two
  gathered.clear()
  Validation.draw(validation, tmp_path / 'scan.png', None, 'step 1')
  assert {part.shape for part in gathered} == ({(2, 4, 8, 8, 8)} if shown else set())
  (masks,) = drawn
  assert list(masks) == [names[k] for k in shown]
  for k, mask in zip(shown, masks.values(), strict=True):
    level = np.linspace(0.1, 0.8, 8)[k]
    clear = np.abs(image / 100 - level) > 1e-4
    np.testing.assert_array_equal(mask[clear], (image / 100 > level)[clear])


def test_a_picture_of_many_classes_holds_no_mask_of_each(monkeypatch, tmp_path):
  """Of 32 classes at 1.5 mm they took gigabytes beside the run's own."""
  shape, names = (96, 32, 32), TEMPLATE.names()[:32]
  rng = np.random.default_rng(0)
  codes = rng.integers(0, 40, shape).astype(np.uint8)
  info = types.SimpleNamespace(name='a', shape=shape)
  case = types.SimpleNamespace(voxels={}, info=info)
  image = np.full(shape, 40, np.int16)
  sampler = types.SimpleNamespace(
    read=lambda *_: (image, codes), windows=np.array([[-100, 100]]), patch=(16,) * 3
  )
  mesh = sharding.local_mesh()
  weights = jnp.asarray(rng.normal(size=40).astype(np.float32))  # logits of each class; more in all
  shown = [k for k in range(32) if k not in (3, 6)]
  validation = types.SimpleNamespace(
    _drawn=case, _shown=np.array(shown), _gather=some_classes,
    _sampler=sampler, _classes=names, _template=TEMPLATE, _mesh=mesh, _prompts={}, _batch_size=1,
    _config=ConfigDict({'mesh': {'spatial': False}, 'data': {'spacing': (1.5, 1.5, 1.5)}}),
    _embed=lambda *_: (None, None),
    _labelled_box=lambda _: (0, 0),
    _logits=lambda ema, text, image, trained: image * weights,
  )  # fmt: skip
  drawn = []
  monkeypatch.setattr(validation_module.overlay, 'overlay', lambda *given: drawn.append(given))
  Validation.draw(validation, tmp_path / 'a.png', None, '')  # what JAX compiles is none of it
  tracemalloc.start()
  Validation.draw(validation, tmp_path / 'a.png', None, '')
  most = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert most < 5e6  # 9e6 with a byte for each voxel of each mask
  layers = drawn[-1][3]
  assert list(layers.masks) == [names[k] for k in shown]
  plane = (slice(None), 7, slice(4, 20))
  for k, name in enumerate(names):
    if name in layers.masks:
      assert layers.masks[name].shape == shape
      assert (layers.masks[name][plane] == (weights[k] > 0)).all()
      truth = TEMPLATE.code_table([name])[:, 0][codes]
      np.testing.assert_array_equal(layers.truths[name][plane], truth[plane])
  assert layers.labelled.any() and not layers.labelled[codes == 4].any()
