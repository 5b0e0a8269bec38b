"""Prepared scans on disk: TFDS records of bricks for training and of whole volumes for evaluation.

`DATA_DIR/SOURCE/bricks/VERSION` holds the training scans, resampled to one spacing and cut into
aligned cubes that do not overlap. A cube of nothing but air and background is left out and implied.
`DATA_DIR/SOURCE/volumes/VERSION` holds the validation and test scans on their own grids. Both are
ordinary TFDS datasets (`tfds.builder_from_directory`) in ArrayRecord files, which give random
access by record number. `index.npz` beside the bricks tells what every record holds, so that
choosing a patch is arithmetic on arrays.
"""

from input_pipeline.bricks.cutting import cut, to_int16, to_spacing
from input_pipeline.bricks.memory import MemoryStore, Store
from input_pipeline.bricks.reader import (
  BrickStore,
  NotPreparedError,
  held_out_cases,
  open_bricks,
  open_volumes,
  pool_cases,
  prepared_sources,
  read_patients,
  read_settings,
  read_template,
  training_sources,
)
from input_pipeline.bricks.records import (
  INDEX,
  OUTCOMES,
  SETTINGS,
  VERSION,
  CaseInfo,
  HeldOutCase,
  Key,
  VolumeRecord,
  import_tfds,
)

__all__ = [
  'INDEX', 'OUTCOMES', 'SETTINGS', 'VERSION', 'BrickStore', 'CaseInfo', 'HeldOutCase',
  'Key', 'MemoryStore', 'NotPreparedError', 'Store', 'VolumeRecord', 'cut', 'held_out_cases',
  'import_tfds', 'open_bricks', 'open_volumes', 'pool_cases', 'prepared_sources', 'read_patients',
  'read_settings', 'read_template', 'to_int16', 'to_spacing', 'training_sources',
]  # fmt: skip
