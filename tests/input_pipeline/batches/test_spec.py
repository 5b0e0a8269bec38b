"""The declaration of a batch says what the sampler makes."""

import numpy as np

from input_pipeline.batches import spec


def test_shapes_follow_the_axes():
  shapes = spec.shapes((4, 6, 8), windows=2, classes=5)
  assert shapes == {
    'image': (4, 6, 8, 2),
    'label': (4, 6, 8),
    'supervised': (5,),
    'absent': (5,),
    'frame': (4,),
    'slice_range': (5, 2),
  }
  assert [name for name, array in spec.BATCH.items() if array.is_volume] == ['image', 'label']


def test_every_array_has_a_numpy_type():
  assert [np.dtype(array.dtype).itemsize for array in spec.BATCH.values()] == [4, 1, 1, 1, 4, 4]
