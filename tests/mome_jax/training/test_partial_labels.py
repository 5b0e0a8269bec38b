"""Sources that label different classes, mixed in one batch, through the loss that trains."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline import bricks, sources
from input_pipeline.anatomy import IGNORE_CODE, OUTSIDE_CODE
from input_pipeline.batches import dataset
from input_pipeline.bricks import writer
from input_pipeline.ct import volume
from mome_jax.configs import demo
from mome_jax.models import build_model
from mome_jax.training import steps

pytestmark = pytest.mark.usefixtures('soon')

SPACING = (12.0, 12.0, 12.0)
# One source labels a class beyond the phantom's, over some slices; nobody labels the last one.
CLASSES = ('liver', 'liver tumor', 'right kidney', 'stomach', 'right parotid', 'larynx')
LABELLED = {
  'phantom_liver': (1, 1, 0, 0, 0, 0),
  'phantom_kidney': (0, 0, 1, 0, 0, 0),
  'phantom_organs': (1, 0, 1, 1, 0, 0),
  'heads': (0, 0, 0, 0, 1, 0),
}


def heads():
  rng = np.random.default_rng(0)
  image = rng.integers(-500, 500, (20, 20, 20)).astype(np.int16)
  codes = np.where(rng.random(image.shape) < 0.3, 35, 0).astype(np.uint8)
  geometry = volume.to_canonical(image, np.diag([*SPACING, 1])).geometry
  load = lambda: sources.Scan(image, codes, geometry)
  ranges = {'right parotid': (60.0, 150.0)}
  return [sources.Case('heads', 'one', 'train', ('right parotid',), load, ranges)]


@pytest.fixture(scope='module')
def config():
  config = demo.get_config()
  config.classes = CLASSES
  config.data.patch = (16, 16, 16)
  config.data.spacing = SPACING
  config.data.balance = 'sources'
  config.model.backbone.size = 'tiny'
  config.model.scales = (0, 1)  # it compiles in half the time
  return config


@pytest.fixture(scope='module')
def batch(config, tmp_path_factory):
  """Of both stores, with at least one patch of each dataset."""
  folder = tmp_path_factory.mktemp('data')
  stores = []
  for name, cases in (
    ('phantom', sources.phantom_cases(train=3, validation=0, spacing=SPACING)),
    ('nifti_folder', heads()),
  ):
    writer.write(sources.get_source(name), cases, folder, spacing=SPACING, brick=16)
    settings = {'settings': {'version': bricks.VERSION}}
    (folder / name / bricks.SETTINGS).write_text(json.dumps(settings))
    stores.append(bricks.open_bricks(folder, name))
  for batch in itertools.islice(
    dataset.make_dataset(config.data, stores, CLASSES, seed=1, batch_size=8), 20
  ):
    if {tuple(row) for row in batch['supervised'].astype(int).tolist()} == set(LABELLED.values()):
      return batch
  raise AssertionError('no batch of all datasets')


class Probe:
  """A model to whose logits numbers are added, so that gradients of the logits can be had."""

  def __init__(self, model, added):
    self.model, self.added = model, added

  def apply(self, *args, **kwargs):
    logits, aux = self.model.apply(*args, **kwargs)
    experts = [x + y for x, y in zip(aux['expert_logits'], self.added['experts'], strict=True)]
    return logits + self.added['logits'], aux | {'expert_logits': experts}


class Given:
  """A model whose logits are its parameters, at full and at half resolution."""

  def apply(self, variables, *args, **kwargs):
    logits = variables['params']
    return logits['fine'], {'expert_logits': [logits['fine'], logits['half']], 'banks': {}}


def test_ignored_voxels_train_no_class(config):
  table = np.zeros((256, 2), bool)
  table[6, 0] = table[1, 1] = True
  label = np.array([0, 6, 1, IGNORE_CODE], np.uint8)[
    np.random.default_rng(0).integers(0, 4, (1, 4, 4, 4))
  ]
  label[0, :2, :2, :2] = IGNORE_CODE  # a whole block
  batch = {
    'image': np.zeros((1, 4, 4, 4, 1)),
    'label': label,
    'supervised': np.array([[True, True]]),
    'absent': np.zeros((1, 2), bool),
    'frame': np.array([[0, 0, 1.0, 0]]),
    'slice_range': np.full((1, 2, 2), (-np.inf, np.inf)),
  }
  rng = np.random.default_rng(1)
  logits = {k: rng.normal(size=(1, n, n, n, 2)) for k, n in (('fine', 4), ('half', 2))}
  loss_fn = steps.make_loss_fn(Given(), None, jnp.asarray(table), config.train)
  prompts = dict.fromkeys(('sampled', 'default'), {'vectors': np.zeros((2, 3), np.float32)})
  loss = lambda logits: loss_fn({'model': logits}, batch, prompts)
  of, metrics = jax.jit(jax.grad(loss, has_aux=True))(logits)
  np.testing.assert_array_equal((of['fine'] != 0).all(-1), label != IGNORE_CODE)
  assert not of['fine'][label == IGNORE_CODE].any()
  assert not of['half'][0, :, 0, 0, 0].any() and of['half'][0, :, 1].all()  # classes first
  # The loss is that of the known voxels alone.
  known = label[0] != IGNORE_CODE
  x = logits['fine'][0][known]
  bce = np.logaddexp(0, x) - x * table[label[0][known]]
  np.testing.assert_allclose(metrics['loss_bce'], bce.mean(), rtol=1e-5)


def test_logits_of_unlabelled_classes_get_no_gradient(config, batch):
  template = sources.get_source('phantom').template(None)
  model, table = build_model(config.model), jnp.asarray(template.code_table(CLASSES))
  vectors = np.random.default_rng(0).normal(size=(2 * len(CLASSES), config.text.d_model))
  sampled, default = np.split(vectors.astype(np.float32), 2)
  prompts = {'sampled': {'vectors': sampled}, 'default': {'vectors': default}}
  # Initialised outside of a program, a network compiles each of its operations.
  shapes = jax.eval_shape(model.init, jax.random.key(0), batch['image'], sampled)['params']
  rng = np.random.default_rng(1)
  params = {
    'model': jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32), shapes)
  }
  apply = lambda: model.apply({'params': params['model']}, batch['image'], sampled, train=True)
  logits, aux = jax.eval_shape(apply)
  zeros = lambda tree: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)
  added = {'logits': zeros(logits), 'experts': zeros(list(aux['expert_logits']))}

  def loss(added, prompts):
    loss_fn = steps.make_loss_fn(Probe(model, added), None, table, config.train)
    return loss_fn(params, batch, prompts)[0]

  of_logits = jax.jit(jax.grad(loss))(added, prompts)
  labelled = batch['supervised']
  # Outside the patient every class is known, and taught.
  outside = (batch['label'] == OUTSIDE_CODE)[:, None]
  slopes = np.abs(np.moveaxis(of_logits['logits'], -1, 1))
  assert (slopes > 0)[np.broadcast_to(outside, slopes.shape)].all() and outside.any()
  fine = np.where(outside, 0, slopes)
  np.testing.assert_array_equal(fine.max((2, 3, 4)) > 0, labelled)
  assert (fine[~labelled] == 0).all()
  assert len(of_logits['experts']) > 1
  for coarse in of_logits['experts'][1:]:
    assert (np.abs(coarse)[~labelled] == 0).all()
    np.testing.assert_array_equal(np.abs(coarse).max((2, 3, 4)) > 0, labelled)
  # Outside the slices that were contoured, too.
  for row in np.flatnonzero(labelled[:, 4]):
    step, first = batch['frame'][row, 2:]
    turn = np.abs(batch['frame'][row, :2]).sum()
    if turn < 1e-6:
      height = first + step * np.arange(16)
      inside = (height >= 60) & (height <= 150)
      np.testing.assert_array_equal((fine[row, 4] > 0).any((0, 1)), inside)
  # No prompt of a class that nobody in the batch labels is moved by more, every other one is.
  config.train.outside_loss = 0.0
  of_prompts = jax.jit(jax.grad(loss, 1))(added, prompts)
  moved = np.abs(of_prompts['sampled']['vectors']).max(1) > 0
  np.testing.assert_array_equal(moved, labelled.any(0))
  assert moved.tolist() == [True] * 5 + [False]
