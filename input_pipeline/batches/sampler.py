"""Which patch a training example is, and what it holds: stateless index arithmetic, crops.

Every patch is a function of (seed, global index) alone; the index is step * batch size + row. So a
batch is the same on any number of hosts, and a run resumed at step n sees what it would have seen.
"""

import copy
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline import bricks
from input_pipeline.anatomy import OUTSIDE_CODE, Template
from input_pipeline.batches import augment, contrast, mirror, spec
from input_pipeline.batches.brick_cache import BrickCache
from input_pipeline.batches.deform import deform
from input_pipeline.ct import volume
from input_pipeline.ct.hu_windows import hu_windows
from input_pipeline.errors import UserError, suggest

# The chosen voxel lies at most this part of the patch's edge from its centre, along each axis: a
# network that only ever sees a structure in the middle would learn to look there.
_JITTER = 0.25
_ROUNDING = 1e-4  # voxels by which a place that is computed in another order may lie further out


class PipelineError(UserError):
  """Configuration and prepared data do not fit; the message names both and the fix."""


@dataclasses.dataclass(frozen=True)
class StoreCase:
  """One scan of a store, or its mirror image, ready for sampling.

  Attributes:
    store: index of its store.
    info: of the scan.
    records: (a, b, c) int32, the record of each brick of its grid; -1 where it is implied air.
    table: (256, K) bool; the codes that count as each class.
    voxels: class -> (record numbers, probability of each), for the classes present.
    supervised: (K,) bool.
    absent: (K,) bool; of those, the classes that the scan cannot show.
    slice_range: (K, 2) float32 mm.
  """

  store: int
  info: bricks.CaseInfo
  records: np.ndarray
  table: np.ndarray
  voxels: Mapping[int, tuple[np.ndarray, np.ndarray]]
  supervised: np.ndarray
  absent: np.ndarray
  slice_range: np.ndarray


# Of each dataset, by its name, its cases, and (class, the cases that have it) of each class.
_Datasets = Mapping[str, tuple[list[StoreCase], list[tuple[int, list[StoreCase]]]]]


def _check_stores(stores: Sequence[bricks.Store], spacing: Sequence[float] | None) -> None:
  """PipelineError if stores have other templates, or another spacing than the configuration's."""
  for store in stores:
    if store.template.additions() != stores[0].template.additions():
      raise PipelineError(
        f'{store.name} and {stores[0].name} extend the template differently; open both '
        'with the template of bricks.read_template'
      )
    if spacing is not None and not np.allclose(store.spacing, spacing):
      raise PipelineError(
        f'{store.name} is prepared at {store.spacing} mm, the configuration wants '
        f'{tuple(spacing)}; prepare it again with --spacing, or change the configuration'
      )


def _check_dataset(setting: str, name: str, datasets: Sequence[str]) -> None:
  if name not in datasets:
    raise PipelineError(f'{setting}: no dataset is called {name!r}; {suggest(name, datasets)}')


def _augmentations(config: Any, known: Sequence[str]) -> dict[str, dict]:
  """What is done to the patches of each dataset."""
  fields = dict(getattr(config, 'augment_of', ()))
  for name in fields:
    _check_dataset('data.augment_of', name, known)
  return {name: augment.complete_for(config.augment, fields.get(name, {})) for name in known}


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
      weights: optionally pairs of a dataset's name and what its odds are multiplied by;
      cache_mb: bound on decoded bricks in memory;
      augment: mapping of `augment.DEFAULTS` fields, or None;
      augment_of: optionally pairs of a dataset's name and the fields that it has otherwise;
      spacing: (3,) mm, checked against the stores where it is given.
    stores: the prepared sources, opened with one template.
    classes: K class names of it.

  Raises:
    PipelineError: if a store has another spacing or another template, no case supervises one of
      the classes, `weights` or `augment_of` names no dataset, or mirror images are asked for and a
      class has none.
  """

  def __init__(self, config: Any, stores: Sequence[bricks.Store], classes: Sequence[str]):
    self.patch = tuple(config.patch)
    self.windows = np.array(config.windows, np.float32).reshape(-1, 2)
    self.classes = tuple(classes)
    self._foreground = config.foreground
    self._stores = list(stores)
    self._outside = [OUTSIDE_CODE if store.tells_outside else 0 for store in self._stores]
    self._megabytes = config.cache_mb
    self._cache = self._empty_cache(config.cache_mb)
    _check_stores(self._stores, getattr(config, 'spacing', None))
    template = self._stores[0].template
    known = sorted({name for store in self._stores for name in store.datasets})
    self._augment = _augmentations(config, known)
    self._organs = contrast.organ_table(template)
    self._datasets = self._look(template, self.classes)
    self._mirrored: _Datasets | None = None
    if any(of['p_mirror'] for of in self._augment.values()):
      try:
        names = mirror.mirrored_names(template)
        self._mirrored_codes = mirror.mirrored_codes(template)
        # A class of the mirror image is what its partner is in the scan.
        partners = tuple(names[template.get(name).name] for name in self.classes)
        self._mirrored = self._look(template, partners)
      except UserError as error:
        raise PipelineError(f'data.augment.p_mirror: {error}; or set it to 0') from error
    self._names, self._odds = self._draw_odds(
      config.balance, dict(getattr(config, 'weights', ())), known
    )

  def _look(self, template: Template, names: Sequence[str]) -> _Datasets:
    """The cases with the structures `names` in the place of the K classes."""
    table = template.code_table(names)
    cases = [case for i in range(len(self._stores)) for case in self._open(i, names, table)]
    datasets = {}
    for source in sorted({case.info.source for case in cases}):
      members = [case for case in cases if case.info.source == source]
      having = [(k, [c for c in members if k in c.voxels]) for k in range(len(names))]
      datasets[source] = members, [(k, some) for k, some in having if some]
    if not datasets:
      stores = [store.name for store in self._stores]
      raise PipelineError(f'no case of {stores} labels one of {names}; choose other classes')
    return datasets

  def _draw_odds(
    self, balance: str, weights: Mapping[str, float], known: Sequence[str]
  ) -> tuple[list[str], np.ndarray]:
    """The datasets, and how often each is drawn, as it is or as its mirror image."""
    if balance not in ('sources', 'classes'):
      raise PipelineError(
        f'data.balance is {balance!r}; {suggest(balance, ("sources", "classes"))}'
      )
    for name in weights:
      _check_dataset('data.weights', name, known)
    drawn = {n: d for n, d in (self._mirrored or {}).items() if self._augment[n]['p_mirror']}
    drawn |= self._datasets
    names = sorted(drawn)
    counts = [max(len(drawn[name][1]), 1) if balance == 'classes' else 1 for name in names]
    odds = np.array(counts) * [weights.get(name, 1.0) for name in names]
    return names, odds / odds.sum()

  def _open(self, number: int, names: Sequence[str], table: np.ndarray) -> Iterator[StoreCase]:
    """The cases of a store that supervise at least one of the structures."""
    store = self._stores[number]
    counts = store.class_voxels(names)
    order = np.argsort(store.case, kind='stable')
    bounds = np.searchsorted(store.case[order], np.arange(len(store.cases) + 1))
    for i, info in enumerate(store.cases):
      supervised = np.array([name in info.supervised for name in names])
      if not supervised.any():
        continue
      absent = np.array([name in info.absent for name in names])
      numbers = order[bounds[i] : bounds[i + 1]]
      records = np.full([-(-n // store.brick) for n in info.shape], -1, np.int32)
      records[tuple(store.position[numbers].T // store.brick)] = numbers
      total = counts[numbers].sum(0)
      voxels = {}
      for k in np.flatnonzero(total):
        some = numbers[counts[numbers, k] > 0]
        voxels[int(k)] = (some, counts[some, k] / total[k])
      limits = np.array([info.heights(name) for name in names], np.float32)
      yield StoreCase(number, info, records, table, voxels, supervised, absent, limits)

  def _empty_cache(self, megabytes: float) -> BrickCache:
    return BrickCache([store.read_all for store in self._stores], megabytes)

  def part(self, of: int) -> 'PatchSampler':
    """The same sampler for one of several processes, with its part of the cache, empty."""
    part = copy.copy(self)
    part._cache = self._empty_cache(self._megabytes / of)
    return part

  @property
  def shapes(self) -> dict[str, tuple[int, ...]]:
    """Shape of each array of an example."""
    return spec.shapes(self.patch, windows=len(self.windows), classes=len(self.classes))

  @property
  def cases(self) -> list[StoreCase]:
    """Every scan that patches are drawn from."""
    return [case for members, _ in self._datasets.values() for case in members]

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
    name, mirrored = self._dataset(rng)
    config = self._augment[name]
    datasets = self._mirrored if mirrored and self._mirrored else self._datasets
    case, start, voxel = self._place(rng, *datasets[name])
    spacing = self._stores[case.store].spacing
    matrix = augment.draw_matrix(rng, config, spacing)
    # Where a class was contoured over some slices only, heights say which voxels are known.
    level = bool(np.isfinite(case.slice_range).any())
    shifts = augment.draw_shifts(rng, config, self.patch, spacing, level=level)
    field = augment.draw_field(rng, config, start, self.patch, voxel)
    fixed = voxel - start if config['hold_voxel'] else None
    image, label, matrix, origin = self.crop(case, start, matrix, shifts, fixed, field)
    image = self._change_organs(rng, image.astype(np.float32), label, case.info, config)
    image = augment.change_scan(rng, image, config, spacing)
    image = augment.change_hu(rng, image, config)
    image = hu_windows(image, self.windows.tolist())
    image = augment.change_contrast(rng, image, config)
    frame = np.append(matrix[2], origin[2]) * spacing[2]
    frame[3] += case.info.offset[2]
    if mirrored:
      image, label, frame = mirror.mirror(image, label, frame, self._mirrored_codes)
    return {
      'image': image,
      'label': label,
      'supervised': case.supervised,
      'absent': case.absent,
      'frame': frame.astype(np.float32),
      'slice_range': case.slice_range,
    }

  def _dataset(self, rng: np.random.Generator) -> tuple[str, bool]:
    """The dataset of an example, and whether it is of a mirror image."""
    # No number is drawn where mirroring is off, so that such runs keep their batches.
    number = 1.0 if self._mirrored is None else rng.random()
    name = self._names[rng.choice(len(self._names), p=self._odds)]
    if self._mirrored is None or name not in self._mirrored:
      return name, False
    return name, number < self._augment[name]['p_mirror'] or name not in self._datasets

  def _change_organs(
    self,
    rng: np.random.Generator,
    image: np.ndarray,
    label: np.ndarray,
    info: bricks.CaseInfo,
    config: Mapping,
  ) -> np.ndarray:
    """Another contrast phase and other bowel content, where drawn."""
    known = set(info.supervised) - set(info.slice_ranges)
    if augment.draws(rng, config, 'p_contrast'):
      image = contrast.change_phase(rng, image, label, self._organs, known, config)
    if augment.draws(rng, config, 'p_content'):
      image = contrast.change_content(rng, image, label, self._organs, known)
    return image

  def _place(
    self,
    rng: np.random.Generator,
    members: list[StoreCase],
    having: list[tuple[int, list[StoreCase]]],
  ) -> tuple[StoreCase, np.ndarray, np.ndarray]:
    """A case of a dataset, the first voxel of a patch in it, and the voxel it is drawn for."""
    patch = np.array(self.patch)
    if having and rng.random() < self._foreground:
      k, cases = having[rng.integers(len(having))]
      case = cases[rng.integers(len(cases))]
      reach = np.floor(patch * _JITTER).astype(int)
      voxel = self._voxel(rng, case, k)
      start = voxel - patch // 2 + rng.integers(-reach, reach + 1)
      room = np.array(case.info.shape) - patch
    else:
      voxel = None
      case = members[rng.integers(len(members))]
      room = np.array(case.info.shape) - patch
      start = rng.integers(np.minimum(room, 0), np.maximum(room, 0) + 1)
    # A patch stays inside the scan, or the scan inside the patch.
    start = np.clip(start, np.minimum(room, 0), np.maximum(room, 0))
    return case, start, start + patch // 2 if voxel is None else voxel

  def _voxel(self, rng: np.random.Generator, case: StoreCase, k: int) -> np.ndarray:
    """A voxel (3,) of class k, uniformly over those of the case."""
    records, probabilities = case.voxels[k]
    record = int(rng.choice(records, p=probabilities))
    _, label = self._cache.get(case.store, [record])[0]
    voxels = np.flatnonzero(case.table[:, k][label])
    inside = np.unravel_index(voxels[rng.integers(len(voxels))], label.shape)
    return self._stores[case.store].position[record] + np.array(inside)

  def crop(
    self,
    case: StoreCase,
    start: np.ndarray,
    matrix: np.ndarray | None,
    shifts: np.ndarray | None = None,
    fixed: np.ndarray | None = None,
    field: tuple[np.ndarray, np.ndarray] | None = None,
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A patch, turned and zoomed about its centre, and deformed.

    Args:
      case: to read.
      start: (3,) first voxel of the patch before it is turned.
      matrix: (3, 3) from `augment.draw_matrix`, or None.
      shifts: (3, D, H, W) from `augment.draw_shifts`, or None.
      fixed: (3,) voxel of the patch that stays where it is; None: its centre is turned about.
      field: from `augment.draw_field`, or None: outside is air, as beyond the scan.

    Returns:
      image (D, H, W) int16 or float32 HU, label (D, H, W) uint8, and the map of a patch voxel v to
      the scan before it is deformed: matrix (3, 3) @ v + origin (3,), in voxels.
    """
    if matrix is None and shifts is None:
      return *self._read(case, start, start + self.patch, field), np.eye(3), start
    matrix = np.eye(3) if matrix is None else matrix
    middle = (np.array(self.patch) - 1) / 2 if fixed is None else fixed
    if shifts is not None and fixed is not None:
      shifts = shifts - shifts[:, *fixed, None, None, None]
    origin = start + middle - matrix @ middle
    corners = np.array(list(itertools.product(*((0, n - 1) for n in self.patch))))
    reached = corners @ matrix.T + origin
    reach = 0 if shifts is None else np.abs(shifts).max((1, 2, 3))
    low = np.floor(reached.min(0) - reach - _ROUNDING).astype(int)
    high = np.ceil(reached.max(0) + reach + _ROUNDING).astype(int) + 2
    image, label = self._read(case, low, high, field)
    return *deform(image, label, matrix, origin - low, shifts, self.patch), matrix, origin

  def _read(
    self,
    case: StoreCase,
    low: np.ndarray,
    high: np.ndarray,
    field: tuple[np.ndarray, np.ndarray] | None,
  ) -> tuple[np.ndarray, np.ndarray]:
    """As `read`, of a scan that has nothing outside a field of view."""
    image, label = self.read(case, low, high)
    if field is not None:
      inside = np.clip(np.array(field) - low, 0, high - low).T
      for axis, (begin, end) in enumerate(inside):
        for beyond in (slice(0, begin), slice(end, None)):
          at = (slice(None),) * axis + (beyond,)
          image[at], label[at] = volume.AIR, self._outside[case.store]
    return image, label

  def read(
    self, case: StoreCase, low: np.ndarray, high: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """A box of a scan, from the bricks it touches; air around the patient where there is none.

    Args:
      case: to read.
      low: (3,) first voxel; may lie outside the scan, as may the last.
      high: (3,) one past the last voxel.

    Returns:
      image int16 HU and label uint8, of shape high - low.
    """
    low, high = np.asarray(low), np.asarray(high)
    image = np.full(high - low, volume.AIR, np.int16)
    label = np.full(high - low, self._outside[case.store], np.uint8)
    edge = self._stores[case.store].brick
    first = np.maximum(low // edge, 0)
    last = np.minimum(-(-high // edge), case.records.shape)
    cells = itertools.product(*map(range, first, last))
    touched = {cell: int(case.records[cell]) for cell in cells if case.records[cell] >= 0}
    bricks_read = self._cache.get(case.store, list(touched.values()))
    for cell, (part, codes) in zip(touched, bricks_read, strict=True):
      begin = np.array(cell) * edge
      a, b = np.maximum(begin, low), np.minimum(begin + edge, high)
      to = tuple(map(slice, a - low, b - low))
      of = tuple(map(slice, a - begin, b - begin))
      image[to], label[to] = part[of], codes[of]
    return image, label
