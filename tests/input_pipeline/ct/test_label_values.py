"""Maps whose values are no labels."""

import tracemalloc

import numpy as np
import pytest

from input_pipeline.ct import volume


def test_an_interpolated_map_takes_little_more_memory_to_be_refused():
  array = np.linspace(0.1, 0.9, 400_000, dtype=np.float32).reshape(100, 100, 40)
  tracemalloc.start()
  try:
    with pytest.raises(volume.VolumeError, match=r'0\.100014 and 399992 more are no integers'):
      volume.to_labels(array, 'in.nii')
    assert tracemalloc.get_traced_memory()[1] < 8 * array.nbytes
  finally:
    tracemalloc.stop()
