"""Fingerprints of many scans: a megabyte each as they are, so that they lie packed in a file."""

import io
import tempfile
import zlib
from collections.abc import Iterator, Mapping

import numpy as np

from input_pipeline.dedupe import sketches
from input_pipeline.dedupe.fingerprint import Fingerprint

Key = tuple[str, str]


class FingerprintStore(Mapping[Key, Fingerprint]):
  """Fingerprints by source and case; what is small in memory, the rest in a temporary file."""

  def __init__(self):
    self._file = tempfile.TemporaryFile()  # noqa: SIM115  # closed by close()
    self._places: dict[Key, tuple[int, int, tuple[int, ...]]] = {}
    self.small: dict[Key, tuple[np.ndarray, np.ndarray]] = {}  # profile and sketch

  def add(self, key: Key, scan: Fingerprint) -> None:
    """Keeps a fingerprint, its values rounded to whole HU."""
    content = io.BytesIO()
    content.write(np.round(scan.values).astype(np.int16).tobytes())
    content.write(np.packbits(scan.body).tobytes())
    packed = zlib.compress(content.getvalue(), 1)
    start = self._file.seek(0, io.SEEK_END)
    self._file.write(packed)
    self._places[key] = start, len(packed), scan.body.shape
    outline = sketches.sketch(scan.values, scan.body).astype(np.float16)
    self.small[key] = scan.profile, outline

  def __getitem__(self, key: Key) -> Fingerprint:
    start, size, shape = self._places[key]
    self._file.seek(start)
    content = zlib.decompress(self._file.read(size))
    count = int(np.prod(shape))
    values = np.frombuffer(content, np.int16, count).reshape(shape).astype(np.float32)
    bits = np.frombuffer(content, np.uint8, offset=2 * count)
    body = np.unpackbits(bits, count=count).astype(bool).reshape(shape)
    return Fingerprint(values, body, self.small[key][0])

  def __iter__(self) -> Iterator[Key]:
    return iter(self._places)

  def __len__(self) -> int:
    return len(self._places)

  def close(self) -> None:
    """Removes the file."""
    self._file.close()
