"""The model that comes with the package, as a user meets it."""

import json
import math

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np

from input_pipeline.sources.openkbp import ORGANS
from input_pipeline.sources.phantom.trunk import make_phantom
from mome_jax import predict
from mome_jax.inference.loaded_model import SHIPPED, Predictor, windows_that_fit
from mome_jax.models import build_model
from mome_jax.runtime import compilation
from mome_jax.text.prompts import default_prompts


def test_it_is_small_and_has_a_card():
  assert sum(path.stat().st_size for path in SHIPPED.rglob('*') if path.is_file()) < 12e6
  card = (SHIPPED / 'README.md').read_text()
  assert all(word in card for word in ('licence', 'cite', 'Not a medical device', 'fails'))
  assert all(name in card for _, name in ORGANS.values())


def test_predict_finds_the_organs_of_a_patient_without_a_checkpoint(real_data, tmp_path):
  folder = real_data / 'openkbp' / 'val'
  out = tmp_path / 'out'
  scan = folder / 'pt_202_ct.nii.gz'
  assert predict.main(['--input', str(scan), '--output', str(out), '--quiet']) == 0
  predicted = np.asarray(nib.load(out / 'pt_202_ct_seg.nii.gz').dataobj)
  truth = np.asarray(nib.load(folder / 'pt_202_oar.nii.gz').dataobj)
  labels = {
    row['name']: row for row in json.loads((out / 'pt_202_ct_seg.json').read_text())['labels']
  }
  dices = []
  for value, name in ORGANS.values():
    a, b = predicted == labels[name]['label'], truth == value
    if b.any():
      dices.append(2 * (a & b).sum() / (a.sum() + b.sum()))
  assert len(dices) >= 5
  assert np.mean(dices) > 0.65


def test_an_abdomen_is_told_from_a_head_and_neck(real_data, tmp_path, capsys):
  scan = real_data / 'totalsegmentator' / 'example_ct.nii.gz'
  out = tmp_path / 'out'
  assert predict.main(['--input', str(scan), '--output', str(out), '--no-preview']) == 0
  told = capsys.readouterr().err
  legend = json.loads((out / 'example_ct_seg.json').read_text())
  marked = {row['name']: row for row in legend['labels'] if row['components']}
  # What an upper abdomen may show.
  shown = {'spinal cord', 'esophagus', 'right lung', 'left lung'}
  assert {name for name, row in marked.items() if row['present']} <= shown
  assert all(row['plausible'] is False and row['reasons'] for row in marked.values())
  removed = {row['name'] for row in legend['labels'] if row['removed_ml']}
  assert removed and not removed & shown and 'removed as not there: larynx' in told
  assert 'do not trust its masks' in told


def test_what_is_compiled_ahead_is_all_that_a_scan_needs():
  segmenter = Predictor().segmenter(['mandible', 'larynx'], ['a mandible', 'a larynx'])
  before = compilation.programs()
  segmenter.compile()
  ahead = compilation.programs()
  segmenter(np.zeros((50, 40, 60), np.float32), (3.0, 3.0, 2.5))
  assert before < ahead == compilation.programs()


def test_bfloat16_computes_nearly_what_float32_does():
  predictor = Predictor()
  config = predictor.config
  text = predictor.embed(default_prompts(config.classes, predictor.template))
  hu = make_phantom(0, spacing=config.data.spacing)[0][20:60, 10:50, 20:60]
  window = jnp.stack([jnp.clip((hu - a) / (b - a), 0, 1) for a, b in config.data.windows], -1)[None]
  logits = {}
  for dtype in ('float32', 'bfloat16'):
    with config.unlocked():
      config.model.dtype = dtype
    apply = jax.jit(build_model(config.model).apply)
    logits[dtype], _ = apply({'params': predictor.params['model']}, window, text)
  exact, rough = logits['float32'], logits['bfloat16']
  assert 0 < jnp.abs(rough - exact).max() < 2e-2 * jnp.abs(exact).max()
  assert jnp.linalg.norm(rough - exact) < 2e-2 * jnp.linalg.norm(exact)


def test_windows_a_call_follow_the_memory_of_a_device():
  predictor = Predictor()
  assert predictor.windows_a_call() == 1  # of a CPU
  assert predictor.segmenter(['mandible'], ['mandible']).settings.tiling.batch_size == 1
  # The small U-Net keeps 16, 32, 64 and 128 channels of a window at scales of 1, 1/2 ..., besides 8
  # channels of each scale.
  window = math.prod(predictor.config.evaluation.window)
  voxels = [window / 8**scale for scale in range(3)]
  least = 4 * sum(n * (width + 8) for n, width in zip(voxels, (16, 32, 64), strict=True))
  assert least < predictor.bytes_seen < 1.1 * least
  counts = [windows_that_fit(10**6, free) for free in (10**5, 10**7, 35 * 10**6, 10**9)]
  assert counts == [1, 1, 2, 8]
