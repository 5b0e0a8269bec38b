"""Which label codes each brick holds: the part of an index that grows with bricks and codes.

A brick holds a few of 256 codes, so only those are kept. Earlier versions kept all 256 numbers of
each brick, which 34,000 scans fill 5 GB with; theirs are read, too.
"""

from collections.abc import Iterator, Mapping

import numpy as np

DENSE = 'code_voxels'  # of earlier versions: (N, 256) int32
NAMES = ('voxel_record', 'voxel_code', 'voxel_count')
_ROWS = 2**14  # made dense at once
Arrays = Mapping[str, np.ndarray]


class Builder:
  """Collects the counts of one brick after another."""

  def __init__(self):
    self._parts: list[tuple[np.ndarray, np.ndarray]] = []

  def add(self, counts: np.ndarray) -> None:
    """Adds the counts (256,) of the next brick."""
    codes = np.flatnonzero(counts)
    self._parts.append((codes.astype(np.uint8), counts[codes].astype(np.int32)))

  def arrays(self) -> dict[str, np.ndarray]:
    """What is stored: of each code in a brick the brick's number, the code and its voxels."""
    sizes = [len(codes) for codes, _ in self._parts]
    record = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    codes, counts = (np.concatenate(part) for part in zip(*self._parts, strict=True))
    return dict(zip(NAMES, (record, codes, counts), strict=True))


def entries(arrays: Arrays) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Number of the brick, code and voxels (M,) of each code in a brick, of a stored index."""
  if DENSE not in arrays:
    record, code, count = (arrays[name] for name in NAMES)
    return record, code, count
  dense = arrays[DENSE]
  record, code = np.nonzero(dense)
  return record.astype(np.int32), code.astype(np.uint8), dense[record, code]


def dense_bytes(arrays: Arrays, records: int) -> Iterator[bytes]:
  """The bytes of the (N, 256) int32 array that earlier versions stored, in parts."""
  record, code, count = entries(arrays)
  for start in range(0, records, _ROWS):
    rows = np.zeros((min(_ROWS, records - start), 256), np.int32)
    low, high = np.searchsorted(record, (start, start + _ROWS))
    rows[record[low:high] - start, code[low:high]] = count[low:high]
    yield rows.tobytes()
