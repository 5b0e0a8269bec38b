"""Label maps of a liver, a tumor in it and a spleen, and what declares them."""

import json

import nibabel as nib
import numpy as np

AFFINE = np.diag([-2.0, -1.5, 3.0, 1.0])  # LPS on disk
LIVER, TUMOR, SPLEEN = 1, 2, 3


def labels(*, shift=0):
  codes = np.zeros((16, 14, 12), np.uint8)
  codes[2 + shift : 8 + shift, 3:9, 3:9] = LIVER
  codes[4 + shift : 7 + shift, 4:7, 4:7] = TUMOR
  codes[10:14, 3:8, 2:6] = SPLEEN
  return codes


def save(path, array, affine=AFFINE):
  path.parent.mkdir(parents=True, exist_ok=True)
  nib.save(nib.Nifti1Image(array, affine), path)


def declare(folder, **meaning):
  folder.mkdir(parents=True, exist_ok=True)
  content = {'labels': {'background': 0, **meaning}}
  (folder / 'dataset.json').write_text(json.dumps(content))
