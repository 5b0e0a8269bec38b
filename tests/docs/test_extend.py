"""The examples of docs/how-to/extend.md, run as they stand, each used the way users would."""

import contextlib
import csv
import json
import pathlib
import re
import types
from unittest import mock

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest
from threshold import Threshold, save_scan

from input_pipeline import bricks, prepare, sources
from mome_jax.configs import demo
from mome_jax.evaluate import command as evaluate
from mome_jax.evaluate import compare, metrics, score_files
from mome_jax.models import backbones, build_model
from mome_jax.predict import command as predict
from mome_jax.predict import formats, prompted_model
from mome_jax.predict.request import Options, PredictError
from mome_jax.training import config_check, loss_terms, steps

PAGE = pathlib.Path(__file__).parents[2] / 'docs/how-to/extend.md'
TABLES = {
  'A dataset': sources.SOURCES,
  'A backbone': backbones.BACKBONES,
  'A term of the loss': loss_terms.TERMS,
  'A metric': metrics.METRICS,
  'An output': formats.FORMATS,
}
AFFINE = np.diag([4.0, 4, 4, 1])


def examples():
  """Heading -> the program below it."""
  sections = re.findall(r'^## (.*?)\n(.*?)(?=^## |\Z)', PAGE.read_text(), re.DOTALL | re.MULTILINE)
  return {
    title: program
    for title, text in sections
    for program in re.findall(r'^```python\n(.*?)^```$', text, re.DOTALL | re.MULTILINE)
  }


@contextlib.contextmanager
def extended(title):
  """Runs an example; afterwards its table is what it was."""
  with mock.patch.dict(TABLES[title]):
    before = set(TABLES[title])
    exec(compile(examples()[title], str(PAGE), 'exec'), {'__name__': 'example'})
    assert len(set(TABLES[title]) - before) == 1
    yield


def test_every_table_has_an_example():
  assert list(examples()) == list(TABLES)


def save(path, array):
  path.parent.mkdir(parents=True, exist_ok=True)
  nib.save(nib.Nifti1Image(array, AFFINE), path)


def test_a_dataset(tmp_path):
  organs = np.zeros((12, 12, 12), np.uint8)
  organs[2:6, 2:10, 2:10], organs[8:10, 2:6, 2:6] = 1, 2
  image = np.random.default_rng(0).normal(40, 200, organs.shape).astype(np.int16)
  for name in 'abcdef':
    save(tmp_path / f'download/{name}/ct.nii.gz', image)
    save(tmp_path / f'download/{name}/organs.nii.gz', organs)
  options = ['--source=clinic', f'--manual_dir={tmp_path / "download"}']
  options += [f'--data_dir={tmp_path / "data"}', '--spacing=4', '--brick=12']
  with extended('A dataset'):
    assert not prepare.main(options)
    store = bricks.open_bricks(tmp_path / 'data', 'clinic')
  assert len(store)
  voxels = store.class_voxels(['liver', 'spleen', 'stomach'])
  assert (voxels == [4 * 8 * 8, 2 * 4 * 4, 0]).all()


def test_a_backbone():
  config = demo.get_config()
  config.model.backbone.name, config.model.backbone.size = 'means', 'tiny'
  image = np.random.default_rng(0).normal(size=(1, 8, 8, 8, 2)).astype(np.float32)
  text = np.random.default_rng(1).normal(size=(3, config.text.d_model)).astype(np.float32)
  with extended('A backbone'):
    config_check.check(config, data=False)
    model = build_model(config.model)
    logits, aux = jax.eval_shape(
      lambda: model.init_with_output(jax.random.key(0), image, text, train=True)[0]
    )
    pyramid, _ = jax.jit(model.backbone.init_with_output)(jax.random.key(0), image)
  assert logits.shape == (1, 8, 8, 8, 3)
  assert [part.shape for part in aux['expert_logits']] == [(1, 3, 8, 8, 8), (1, 3, 4, 4, 4)]
  assert [part.shape for part in pyramid] == [(1, 8, 8, 8, 8), (1, 4, 4, 4, 16)]
  assert all(np.isfinite(part).all() and np.std(part) > 0 for part in pyramid)


def test_a_term_of_the_loss():
  """A class fills the scan and the model says 1/2; another is not labelled, and NaN."""
  batch = {
    'image': jnp.zeros((1, 2, 2, 2, 1)),
    'label': jnp.ones((1, 2, 2, 2), jnp.uint8),
    'supervised': jnp.array([[True, False]]),
    'absent': jnp.zeros((1, 2), bool),
    'frame': jnp.array([[0.0, 0.0, 1.0, 0.0]]),
    'slice_range': jnp.array([[[-np.inf, np.inf]] * 2]),
  }
  model = types.SimpleNamespace(
    apply=lambda variables, *_, **__: (variables['params'], {'expert_logits': [], 'banks': {}})
  )
  logits = jnp.zeros((1, 2, 2, 2, 2)).at[..., 1].set(jnp.nan)
  table = jnp.zeros((256, 2), bool).at[1, 0].set(True)
  prompts = dict.fromkeys(('sampled', 'default'), {'vectors': jnp.zeros((2, 3))})

  def step(weight):
    config = demo.get_config().train
    config.size_loss = weight
    loss = steps.make_loss_fn(model, None, table, config)
    return jax.jit(jax.grad(loss, has_aux=True))({'model': logits}, batch, prompts)

  with extended('A term of the loss'):
    slopes, values = step(3.0)
    _, without = step(0.0)
  assert values['loss_size'] == 0.25 / 2  # of two pairs
  np.testing.assert_allclose(values['loss'] - without['loss'], 3 * 0.25 / 2, rtol=1e-6)
  assert 'loss_size' not in without
  assert (np.asarray(slopes['model'])[..., 1] == 0).all()


def test_a_metric(tmp_path):
  truth = np.zeros((12, 12, 12), np.uint8)
  truth[2:6, 2:6, 2:6] = 1
  spleen, prediction = truth.copy(), truth.copy()
  spleen[8:10, 8:10, 8:10] = 2
  prediction[2] = 0  # 3 of 4 slices, and no spleen
  save(tmp_path / 'labelsTr/a.nii.gz', spleen)
  save(tmp_path / 'out/a.nii.gz', prediction)
  (tmp_path / 'dataset.json').write_text(
    json.dumps({'labels': {'background': 0, 'liver': 1, 'spleen': 2}})
  )

  def score(name):
    folders = [f'--predictions={tmp_path / "out"}', f'--references={tmp_path / "labelsTr"}']
    assert not evaluate.main(['score', *folders, f'--output={tmp_path / name}'])
    return score_files.read(tmp_path / name)

  before = score('before')
  with extended('A metric'):
    rows = score('after')
    old = score_files.read(tmp_path / 'before')
    text = compare.to_markdown(compare.compare(old, rows))
  assert [row['volume_error'] for row in rows] == [0.25, 1.0]
  with (tmp_path / 'after/cases.csv').open() as file:
    assert [row['volume_error'] for row in csv.DictReader(file)] == ['0.25', '1.0']
  summary = json.loads((tmp_path / 'after/summary.json').read_text())
  assert summary['classes']['liver']['volume_error'] == 0.25
  assert '| volume error % |' in (tmp_path / 'after/table.md').read_text()
  assert ',volume_error\n' in (tmp_path / 'after/table.csv').read_text()
  assert '### volume error %' in text
  # Whatever was there is as it was.
  assert [{k: row[k] for k in before[0]} for row in rows] == before
  assert 'volume' not in (tmp_path / 'before/table.md').read_text()


def test_an_output(tmp_path, monkeypatch):
  monkeypatch.setattr(prompted_model, 'load', lambda *_, **__: Threshold())
  scan, out = save_scan(tmp_path / 'a.nii.gz'), tmp_path / 'out'
  options = ['--input', str(scan), '--output', str(out), '--no-preview', '--quiet']
  with extended('An output'):
    assert not predict.main([*options, '--volumes'])
    assert not predict.main([*options, '--skip-done', '--volumes'])
    files = {path.name for path in out.iterdir()}
    with pytest.raises(PredictError, match="no format is called 'volume'; did you mean volumes"):
      formats.asked(Options(more=('volume',)))
    (out / 'a_seg.json').rename(tmp_path / 'legend.json')
    (out / 'a_seg.nii.gz').unlink()
    assert predict.main(options)  # a table of an earlier run is in the way
  written = {'a_seg.json', 'a_seg.nii.gz', 'a_volumes.csv'}
  assert files == written | {'manifest.json', 'report.csv', 'volumes.csv'}
  legend = json.loads((tmp_path / 'legend.json').read_text())['labels']
  with (out / 'a_volumes.csv').open() as file:
    rows = list(csv.DictReader(file))
  assert rows == [{'name': row['name'], 'volume_ml': str(row['volume_ml'])} for row in legend]
  assert float(rows[0]['volume_ml']) > 0 and rows[0]['name'] == 'liver'
