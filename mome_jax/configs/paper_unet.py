r"""MoME on the U-Net of the CLIP-Driven Universal Model: four scales, 32 classes, 1.5 mm, 96^3.

python -m mome_jax.main --config=paper_unet --workdir=DIR --config.data_dir=DIR \
    --config.data.sources="('lits', 'word')"

Never trained yet: neither time nor Dice is known. Compiled for chips of TPU v5e with a patch on
each, it needs 5.3 of the 16 GiB of a chip and 6.7 TFLOP a patch.
"""

import ml_collections

from mome_jax.configs import base


def get_config() -> ml_collections.ConfigDict:
  """Returns the experiment."""
  config = base.get_config()
  config.classes = (
    'spleen', 'right kidney', 'left kidney', 'gallbladder', 'esophagus', 'liver', 'stomach',
    'aorta', 'postcava', 'portal and splenic vein', 'pancreas', 'right adrenal gland',
    'left adrenal gland', 'duodenum', 'hepatic vessel', 'right lung', 'left lung', 'colon',
    'intestine', 'rectum', 'bladder', 'prostate', 'left femoral head', 'right femoral head',
    'celiac trunk', 'kidney tumor', 'liver tumor', 'pancreas tumor', 'hepatic vessel tumor',
    'lung tumor', 'colon tumor', 'kidney cyst',
  )  # fmt: skip
  config.model.remat = True
  return config
