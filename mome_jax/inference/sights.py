"""What a model has seen of windows, kept: further prompts on the same scan skip the backbone."""

import collections
import contextlib
import hashlib
from collections.abc import Callable, Iterator

import jax
import numpy as np

from mome_jax.models.mome import Sight

_Kept = tuple[list[np.ndarray], list[jax.sharding.Sharding], jax.tree_util.PyTreeDef]


class Sights:
  """Sights of windows in the memory of the host, by the content of the windows.

  A kept sight is the one that the network made, bit for bit, and so are the logits that are read
  from it. Where there is no room, what was seen of other scans goes, that of the scan used longest
  ago first; what of one scan does not fit is seen again each time.

  Args:
    limit: bytes.

  Attributes:
    reused: how often a sight was there.
    made: how often it was not.
  """

  def __init__(self, limit: int):
    self._limit = limit
    self._bytes = 0
    self._scans: collections.OrderedDict[str, dict[bytes, _Kept]] = collections.OrderedDict()
    self._scan = ''
    self.reused = self.made = 0

  @contextlib.contextmanager
  def scan(self, name: str) -> Iterator[None]:
    """In this block, windows are those of a scan of this name."""
    self._scans.setdefault(name, {})
    self._scans.move_to_end(name)
    before, self._scan = self._scan, name
    try:
      yield
    finally:
      self._scan = before

  def forget(self, name: str) -> None:
    """Drops what was seen of a scan."""
    for kept in self._scans.pop(name, {}).values():
      self._bytes -= _size(kept)

  def of(self, windows: np.ndarray, see: Callable[[np.ndarray], Sight]) -> Sight:
    """What is seen of windows (B, D, H, W, C) float32.

    Args:
      windows: of the scan of this block.
      see: makes it, where it is not kept.
    """
    key = hashlib.blake2b(np.ascontiguousarray(windows).data, digest_size=16).digest()
    here = self._scans.setdefault(self._scan, {})
    kept = here.get(key)
    if kept is not None:
      self.reused += 1
      arrays, shardings, tree = kept
      return jax.tree.unflatten(tree, jax.device_put(arrays, shardings))
    self.made += 1
    sight = see(windows)
    leaves, tree = jax.tree.flatten(sight)
    if self._has_room(sum(leaf.nbytes for leaf in leaves)):
      kept = [np.asarray(leaf) for leaf in leaves], [leaf.sharding for leaf in leaves], tree
      here[key] = kept
      self._bytes += _size(kept)
    return sight

  def _has_room(self, size: int) -> bool:
    """Whether so many bytes more can be kept, once other scans have gone as far as they must."""
    others = [name for name in self._scans if name != self._scan and self._scans[name]]
    for name in others:
      if self._bytes + size <= self._limit:
        break
      self.forget(name)
    return self._bytes + size <= self._limit


def _size(kept: _Kept) -> int:
  return sum(array.nbytes for array in kept[0])
