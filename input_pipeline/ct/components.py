"""Connected components of masks."""

import numpy as np

# cc3d keeps room for V / 4 + 2 provisional labels of V voxels. No two of them are neighbours, so
# that sides of n voxels give at most the product of their ceil(n / 2): with sides of 4 or more that
# is less, in thin and small arrays it raises an error.
_SIDE = 4


def components(mask: np.ndarray) -> tuple[np.ndarray, int]:
  """The 26-connected components of a mask.

  Args:
    mask: (D, H, W) bool, or of a type whose zeros are the background; of any size.

  Returns:
    (D, H, W) unsigned integers, 0 the background and 1 to N the components, and N.
  """
  import cc3d  # slow to import

  mask = np.asarray(mask) != 0
  missing = [max(0, _SIDE - n) for n in mask.shape]
  padded = np.pad(mask, [(0, n) for n in missing]) if any(missing) else mask
  labels, number = cc3d.connected_components(padded, connectivity=26, return_N=True)
  return labels[tuple(slice(n) for n in mask.shape)], int(number)
