"""Bricks to training batches: stateless sampling, crops, augmentation, tf.data.

Every patch is a function of (seed, global index) alone; the index is step * batch size + row. So a
batch is the same on any number of hosts, and a run resumed at step n sees what it would have seen.
"""

import collections
import dataclasses
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from scipy import ndimage

from input_pipeline import bricks
from input_pipeline.anatomy import Template
from input_pipeline.batches import augment, mirror, spec
from input_pipeline.ct import volume
from input_pipeline.ct.hu_windows import hu_windows
from input_pipeline.errors import UserError, suggest

# The chosen voxel lies at most this part of the patch's edge from its centre, along each axis: a
# network that only ever sees a structure in the middle would learn to look there.
_JITTER = 0.25


class PipelineError(UserError):
  """Configuration and prepared data do not fit; the message names both and the fix."""


@dataclasses.dataclass(frozen=True)
class _Case:
  """One scan of a store, or its mirror image, ready for sampling.

  Attributes:
    store: index of its store.
    info: of the scan.
    records: (a, b, c) int32, the record of each brick of its grid; -1 where it is implied air.
    table: (256, K) bool; the codes that count as each class.
    voxels: class -> (record numbers, probability of each), for the classes present.
    supervised: (K,) bool.
    slice_range: (K, 2) float32 mm.
  """

  store: int
  info: bricks.CaseInfo
  records: np.ndarray
  table: np.ndarray
  voxels: Mapping[int, tuple[np.ndarray, np.ndarray]]
  supervised: np.ndarray
  slice_range: np.ndarray


@dataclasses.dataclass(frozen=True)
class _View:
  """What is drawn from: the scans as they are, or their mirror images.

  Attributes:
    datasets: of each dataset its cases, and (class, the cases that have it) of each class.
    odds: (len(datasets),) float64, how often each is drawn.
  """

  datasets: Sequence[tuple[list[_Case], list[tuple[int, list[_Case]]]]]
  odds: np.ndarray


class BrickCache:
  """The bricks decoded last, up to a number of bytes; safe to use from several threads.

  Attributes:
    voxels_read: of all bricks decoded so far.

  Args:
    read: key -> arrays, the first of which holds a number a voxel.
    megabytes: bound on the arrays kept.
  """

  def __init__(self, read: Callable[[tuple], tuple[np.ndarray, ...]], megabytes: float):
    self._read = read
    self._free = int(megabytes * 2**20)
    self.voxels_read = 0
    self._kept = collections.OrderedDict()
    self._lock = threading.Lock()

  def __call__(self, key: tuple) -> tuple[np.ndarray, ...]:
    """The arrays of that key, read where they are not kept."""
    with self._lock:
      if key in self._kept:
        self._kept.move_to_end(key)
        return self._kept[key]
    # Not under the lock: two threads may read the same brick, but none waits for another's disk.
    arrays = self._read(key)
    with self._lock:
      self.voxels_read += arrays[0].size
      if key not in self._kept:
        self._kept[key] = arrays
        self._free -= _size(arrays)
      while self._free < 0:
        self._free += _size(self._kept.popitem(last=False)[1])
    return arrays


def _size(arrays: tuple[np.ndarray, ...]) -> int:
  return sum(array.nbytes for array in arrays)


class PatchSampler:
  """Draws training patches.

  A patch is drawn in three steps: a dataset, as `balance` says; then with probability `foreground`
  a class that the dataset supervises, uniformly, one of the cases that have it, uniformly, and one
  of its voxels there, uniformly, near which the patch is placed; otherwise any place in any case.

  Args:
    config: mapping with attributes
      patch: (3,) voxels;
      windows: HU windows (low, high), one input channel each;
      foreground: probability of the second step above;
      balance: 'sources' draws every dataset equally often; 'classes' draws it as often as it has
        classes, so that no class is rare because its dataset labels many;
      cache_mb: bound on decoded bricks in memory;
      augment: mapping of `augment.DEFAULTS` fields, or None;
      spacing: (3,) mm, checked against the stores where it is given.
    stores: the prepared sources, opened with one template.
    classes: K class names of it.

  Raises:
    PipelineError: if a store has another spacing or another template, no case supervises one of
      the classes, or mirror images are asked for and a class has none.
  """

  def __init__(self, config, stores: Sequence[bricks.BrickStore], classes: Sequence[str]):
    self.patch = tuple(config.patch)
    self.windows = np.array(config.windows, np.float32).reshape(-1, 2)
    self.classes = tuple(classes)
    self._foreground = config.foreground
    self._augment = augment.complete(config.augment)
    self._stores = list(stores)
    self._cache = BrickCache(lambda key: self._stores[key[0]].read(key[1]), config.cache_mb)
    wanted = getattr(config, 'spacing', None)
    for store in self._stores:
      if store.template.additions() != self._stores[0].template.additions():
        raise PipelineError(
          f'{store.name} and {self._stores[0].name} extend the template differently; open both '
          'with the template of bricks.read_template'
        )
      if wanted is not None and not np.allclose(store.spacing, wanted):
        raise PipelineError(
          f'{store.name} is prepared at {store.spacing} mm, the configuration wants '
          f'{tuple(wanted)}; prepare it again with --spacing, or change the configuration'
        )
    template = self._stores[0].template
    self._view = self._look(config.balance, template, self.classes)
    self._mirrored = None
    if self._augment['p_mirror']:
      try:
        names = mirror.mirrored_names(template)
        self._mirrored_codes = mirror.mirrored_codes(template)
        # A class of the mirror image is what its partner is in the scan.
        partners = tuple(names[template.get(name).name] for name in self.classes)
        self._mirrored = self._look(config.balance, template, partners)
      except UserError as error:
        raise PipelineError(f'data.augment.p_mirror: {error}; or set it to 0') from error

  def _look(self, balance: str, template: Template, names: Sequence[str]) -> _View:
    """The stores with the structures `names` in the place of the K classes."""
    table = template.code_table(names)
    cases = [case for i in range(len(self._stores)) for case in self._open(i, names, table)]
    datasets = []
    for source in sorted({case.info.source for case in cases}):
      members = [case for case in cases if case.info.source == source]
      having = [(k, [c for c in members if k in c.voxels]) for k in range(len(names))]
      datasets.append((members, [(k, some) for k, some in having if some]))
    weights = [max(len(having), 1) for _, having in datasets]
    if balance not in ('sources', 'classes'):
      hint = suggest(balance, ('sources', 'classes'))
      raise PipelineError(f'data.balance is {balance!r}; {hint}')
    if balance == 'sources':
      weights = [1] * len(weights)
    if not datasets:
      stores = [store.name for store in self._stores]
      raise PipelineError(f'no case of {stores} labels one of {names}; choose other classes')
    return _View(datasets, np.array(weights) / sum(weights))

  def _open(self, number: int, names: Sequence[str], table: np.ndarray) -> Iterator[_Case]:
    """The cases of a store that supervise at least one of the structures."""
    store = self._stores[number]
    counts = store.class_voxels(names)
    order = np.argsort(store.case, kind='stable')
    bounds = np.searchsorted(store.case[order], np.arange(len(store.cases) + 1))
    for i, info in enumerate(store.cases):
      supervised = np.array([name in info.supervised for name in names])
      if not supervised.any():
        continue
      mine = order[bounds[i] : bounds[i + 1]]
      records = np.full([-(-n // store.brick) for n in info.shape], -1, np.int32)
      records[tuple(store.position[mine].T // store.brick)] = mine
      total = counts[mine].sum(0)
      voxels = {}
      for k in np.flatnonzero(total):
        some = mine[counts[mine, k] > 0]
        voxels[int(k)] = (some, counts[some, k] / total[k])
      ranges = [info.slice_ranges.get(name, (-np.inf, np.inf)) for name in names]
      yield _Case(number, info, records, table, voxels, supervised, np.array(ranges, np.float32))

  @property
  def voxels_read(self) -> int:
    """Voxels of all bricks decoded so far."""
    return self._cache.voxels_read

  def sample(self, index: int, seed: int) -> dict[str, np.ndarray]:
    """One training example.

    Args:
      index: global number of the example.
      seed: of the run.

    Returns:
      The arrays of `spec.BATCH`.
    """
    rng = np.random.default_rng([seed, index])
    # No number is drawn where mirroring is off, so that such runs keep their batches.
    mirrored = self._mirrored is not None and rng.random() < self._augment['p_mirror']
    case, start = self._place(rng, self._mirrored if mirrored else self._view)
    spacing = self._stores[case.store].spacing
    matrix = augment.draw_matrix(rng, self._augment, spacing)
    image, label, matrix, origin = self.crop(case, start, matrix)
    image = augment.change_hu(rng, image.astype(np.float32), self._augment)
    image = hu_windows(image, self.windows)
    image = augment.change_contrast(rng, image, self._augment)
    frame = np.append(matrix[2], origin[2]) * spacing[2]
    frame[3] += case.info.offset[2]
    if mirrored:
      image, label, frame = mirror.mirror(image, label, frame, self._mirrored_codes)
    return {
      'image': image,
      'label': label,
      'supervised': case.supervised,
      'frame': frame.astype(np.float32),
      'slice_range': case.slice_range,
    }

  def _place(self, rng: np.random.Generator, view: _View) -> tuple[_Case, np.ndarray]:
    """A case and the first voxel of a patch in it."""
    members, having = view.datasets[rng.choice(len(view.datasets), p=view.odds)]
    patch = np.array(self.patch)
    if having and rng.random() < self._foreground:
      k, cases = having[rng.integers(len(having))]
      case = cases[rng.integers(len(cases))]
      reach = np.floor(patch * _JITTER).astype(int)
      start = self._voxel(rng, case, k) - patch // 2 + rng.integers(-reach, reach + 1)
      room = np.array(case.info.shape) - patch
    else:
      case = members[rng.integers(len(members))]
      room = np.array(case.info.shape) - patch
      start = rng.integers(np.minimum(room, 0), np.maximum(room, 0) + 1)
    # A patch stays inside the scan, or the scan inside the patch.
    return case, np.clip(start, np.minimum(room, 0), np.maximum(room, 0))

  def _voxel(self, rng: np.random.Generator, case: _Case, k: int) -> np.ndarray:
    """A voxel (3,) of class k, uniformly over those of the case."""
    records, probabilities = case.voxels[k]
    record = int(rng.choice(records, p=probabilities))
    _, label = self._cache((case.store, record))
    found = np.flatnonzero(case.table[:, k][label])
    inside = np.unravel_index(found[rng.integers(len(found))], label.shape)
    return self._stores[case.store].position[record] + np.array(inside)

  def crop(
    self, case: _Case, start: np.ndarray, matrix: np.ndarray | None
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A patch, turned and zoomed about its centre.

    Args:
      case: to read.
      start: (3,) first voxel of the patch before it is turned.
      matrix: (3, 3) from `augment.draw_matrix`, or None.

    Returns:
      image (D, H, W) int16 or float32 HU, label (D, H, W) uint8, and the map of a patch voxel v to
      the scan: matrix (3, 3) @ v + origin (3,), in voxels.
    """
    if matrix is None:
      return *self.read(case, start, start + self.patch), np.eye(3), start
    middle = (np.array(self.patch) - 1) / 2
    origin = start + middle - matrix @ middle
    corners = np.array(list(itertools.product(*((0, n - 1) for n in self.patch))))
    reached = corners @ matrix.T + origin
    low = np.floor(reached.min(0)).astype(int)
    high = np.ceil(reached.max(0)).astype(int) + 1
    image, label = self.read(case, low, high)
    place = {'matrix': matrix, 'offset': origin - low, 'output_shape': self.patch}
    return (
      ndimage.affine_transform(image, order=1, output=np.float32, cval=volume.AIR, **place),
      ndimage.affine_transform(label, order=0, cval=0, **place),
      matrix,
      origin,
    )

  def read(self, case: _Case, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A box of a scan, from the bricks it touches; air where there is none.

    Args:
      case: to read.
      low: (3,) first voxel; may lie outside the scan, as may the last.
      high: (3,) one past the last voxel.

    Returns:
      image int16 HU and label uint8, of shape high - low.
    """
    low, high = np.asarray(low), np.asarray(high)
    image = np.full(high - low, volume.AIR, np.int16)
    label = np.zeros(high - low, np.uint8)
    edge = self._stores[case.store].brick
    first = np.maximum(low // edge, 0)
    last = np.minimum(-(-high // edge), case.records.shape)
    for cell in itertools.product(*map(range, first, last)):
      record = int(case.records[cell])
      if record < 0:
        continue
      begin = np.array(cell) * edge
      a, b = np.maximum(begin, low), np.minimum(begin + edge, high)
      to = tuple(map(slice, a - low, b - low))
      of = tuple(map(slice, a - begin, b - begin))
      part, codes = self._cache((case.store, record))
      image[to], label[to] = part[of], codes[of]
    return image, label


def make_dataset(
  config,
  stores: Sequence[bricks.BrickStore],
  classes: Sequence[str],
  *,
  seed: int,
  start_step: int = 0,
  batch_size: int,
  host: int = 0,
  num_hosts: int = 1,
) -> 'Batches':
  """Endless batches of one host, made in the background by tf.data.

  Args:
    config: of `PatchSampler`, and num_parallel, the number of patches made at the same time.
    stores: the prepared sources.
    classes: K class names.
    seed: of the run.
    start_step: number of the first batch.
    batch_size: B over all hosts.
    host: this host yields rows [host * B / num_hosts, (host + 1) * B / num_hosts).
    num_hosts: how many share the batch.

  Returns:
    Iterator over what `PatchSampler.sample` returns, with a leading axis of B / num_hosts.

  Raises:
    PipelineError: as `PatchSampler`, and if the hosts cannot share the batch evenly.
  """
  if batch_size % num_hosts:
    raise PipelineError(f'batch size {batch_size} cannot be shared by {num_hosts} hosts evenly')
  sampler = PatchSampler(config, stores, classes)
  rows = batch_size // num_hosts

  def draw(number):
    step, row = divmod(number, rows)
    return sampler.sample(step * batch_size + host * rows + row, seed)

  return Batches(_in_background(config, sampler, draw, start_step * rows, rows), sampler)


def _in_background(config, sampler: PatchSampler, draw: Callable, first: int, rows: int):
  """Iterator over batches of `rows` examples draw(first), draw(first + 1), ..."""
  bricks.import_tfds()
  import tensorflow as tf

  windows, classes = len(sampler.windows), len(sampler.classes)
  shapes = spec.shapes(sampler.patch, windows=windows, classes=classes)

  def in_order(number):
    example = draw(int(number))
    return [example[name] for name in shapes]

  def to_example(number):
    types = [tf.as_dtype(spec.BATCH[name].dtype) for name in shapes]
    tensors = tf.numpy_function(in_order, [number], types)
    return {
      name: tf.ensure_shape(tensor, shape)
      for (name, shape), tensor in zip(shapes.items(), tensors, strict=True)
    }

  dataset = tf.data.Dataset.range(first, np.iinfo(np.int64).max)
  dataset = dataset.map(to_example, num_parallel_calls=config.num_parallel, deterministic=True)
  dataset = dataset.batch(rows, drop_remainder=True).prefetch(2)
  return dataset.as_numpy_iterator()


class Batches:
  """An iterator that ends its background threads before the interpreter goes.

  NOTE: threads of tf.data that wait for Python while it shuts down would hang the process for ever.
  """

  def __init__(self, iterator: Iterator[dict[str, np.ndarray]], sampler: PatchSampler):
    self._running = [iterator]
    self._sampler = sampler
    weakref.finalize(self, self._running.clear)  # runs at exit too

  def __iter__(self):
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    return next(self._running[0])

  @property
  def voxels_read(self) -> int:
    """Voxels of all bricks decoded so far, those of batches that are still to come among them."""
    return self._sampler.voxels_read
