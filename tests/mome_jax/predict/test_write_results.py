"""Masks and maps of classes that came with a model."""

import os

import nibabel as nib
from threshold import Threshold, save_scan

from input_pipeline.anatomy import TEMPLATE
from mome_jax.predict.request import Options


def test_masks_of_new_classes_do_not_overwrite_each_other(run, tmp_path):
  class Model(Threshold):
    template = TEMPLATE.extend([{'name': name} for name in ('腫瘍', '肝')])

  save_scan(tmp_path / 'a.nii.gz')
  options = Options(preview=False, masks=True, probabilities=True)
  run(tmp_path / 'a.nii.gz', threshold=Model(), prompts=['腫瘍', '肝'], options=options, force=True)
  for folder in ('a_masks', 'a_probabilities'):
    names = sorted(os.listdir(tmp_path / 'out' / folder))
    assert names == ['39_腫瘍.nii.gz', '40_肝.nii.gz']
    highest = [nib.load(tmp_path / 'out' / folder / name).get_fdata().max() for name in names]
    assert highest[0] > 0.9 and highest[1] < 0.3
