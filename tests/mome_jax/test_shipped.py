"""The model that comes with the package, as a user meets it."""

import json

import nibabel as nib
import numpy as np

from input_pipeline.sources.openkbp import ORGANS
from mome_jax import predict
from mome_jax.predictor import SHIPPED


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
  found = np.asarray(nib.load(out / 'pt_202_ct_seg.nii.gz').dataobj)
  truth = np.asarray(nib.load(folder / 'pt_202_oar.nii.gz').dataobj)
  labels = {
    row['name']: row for row in json.loads((out / 'pt_202_ct_seg.json').read_text())['labels']
  }
  dices = []
  for value, name in ORGANS.values():
    a, b = found == labels[name]['label'], truth == value
    if b.any():
      dices.append(2 * (a & b).sum() / (a.sum() + b.sum()))
  assert len(dices) >= 5
  assert np.mean(dices) > 0.65
