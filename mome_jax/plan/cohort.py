"""What a plan needs to know of the scans: nnU-Net calls it the dataset fingerprint.

Only training cases are read: what is held out decides nothing.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from etils import epath

from input_pipeline import bricks, errors, progress, remarks, sources
from input_pipeline.anatomy import IGNORE_CODE, TEMPLATE, Template
from input_pipeline.bricks import writer
from input_pipeline.bricks.command import which_cases
from input_pipeline.ct import volume
from input_pipeline.ct.components import components
from mome_jax.errors import UserError

_LOW, _STEP, _BINS = volume.AIR, 4, 1024  # HU: of the histograms, -1024 to 3072
_AIR = -900  # HU; what is below counts as nobody's
_CODES = 256
_VOXELS = 2**21  # that are counted at once


class CohortError(UserError):
  """There is nothing to plan from; the message names the source and the fix."""


@dataclasses.dataclass(frozen=True)
class CaseFacts:
  """What is kept of a training scan.

  Attributes:
    source, name: as in `sources.Case`.
    supervised: the classes that the case labels.
    spacing: (3,) mm, of the scan's own grid, canonical axis order.
    shape: (3,) voxels of it.
    volumes: class -> millilitres, of the supervised classes that are there.
    pieces: class -> share of it in its largest component.
    inside: class -> (1024,) float64 histogram of its HU that adds up to 1.
    outside: the same of what is no class and not air, zeros where there is none.
  """

  source: str
  name: str
  supervised: tuple[str, ...]
  spacing: tuple[float, ...]
  shape: tuple[int, ...]
  volumes: Mapping[str, float]
  pieces: Mapping[str, float]
  inside: Mapping[str, np.ndarray]
  outside: np.ndarray


@dataclasses.dataclass(frozen=True)
class Origin:
  """Where a source's scans are.

  Attributes:
    name: of the source as it is, or will be, prepared.
    source: as `prepare --source` takes it.
    folder: of the download, or None.
    prepared: (3,) mm of what is prepared under that name; None: nothing is.
    options: of `prepare` that said which of its cases, and in which split.
  """

  name: str
  source: str
  folder: str | None = None
  prepared: tuple[float, ...] | None = None
  options: tuple[str, ...] = ()

  def is_prepared(self, spacing: Sequence[float]) -> bool:
    """Whether it is prepared with a spacing."""
    return self.prepared is not None and np.allclose(self.prepared, spacing)

  def name_at(self, spacing: Sequence[float]) -> str:
    """Under which name it is, or can be, prepared with a spacing beside what is there."""
    if self.prepared is None or self.is_prepared(spacing):
      return self.name
    return f'{self.name}_{"x".join(f"{mm:g}" for mm in spacing)}'.replace('.', 'p')


@dataclasses.dataclass(frozen=True)
class Cohort:
  """The fingerprint of all sources together.

  Attributes:
    origins: of the sources.
    template: of their classes.
    cases: the training scans that were read.
    labelled: class -> how many of all training cases label it.
    families: dataset -> how many classes its training cases label.
    total: training cases there are, read or not.
    skipped: (case, reason) of those that could not be read.
    held_out: classes that scans label which are held out, and no training case does.
  """

  origins: Sequence[Origin]
  template: Template
  cases: Sequence[CaseFacts]
  labelled: Mapping[str, int]
  families: Mapping[str, int]
  total: int
  skipped: Sequence[tuple[str, str]]
  held_out: Sequence[str] = ()

  @functools.cached_property
  def spacings(self) -> np.ndarray:
    """(N, 3) mm."""
    return np.array([case.spacing for case in self.cases])

  @functools.cached_property
  def extents(self) -> np.ndarray:
    """(N, 3) mm from face to face."""
    return self.spacings * np.array([case.shape for case in self.cases])

  @functools.cached_property
  def classes(self) -> tuple[str, ...]:
    """Classes that occur in a training scan, in the template's order."""
    names = {name for case in self.cases for name in case.volumes}
    return sources.in_template_order(names, self.template)

  @property
  def prepared_spacing(self) -> tuple[float, ...] | None:
    """(3,) mm in which all sources are prepared; None where one is not, or otherwise."""
    first, *others = (origin.prepared for origin in self.origins)
    return first if all(other == first for other in others) else None

  def volumes(self, name: str) -> np.ndarray:
    """Millilitres of a class in the scans that have it."""
    return np.array([case.volumes[name] for case in self.cases if name in case.volumes])

  def whole(self, name: str) -> float:
    """In which share of the scans a class is one piece, but for a hundredth of it."""
    return float(np.mean([case.pieces[name] > 0.99 for case in self.cases if name in case.pieces]))

  def hu(self, names: Iterable[str], percentiles: Sequence[float]) -> list[float]:
    """HU percentiles of some classes together, in which every scan counts alike."""
    histograms = []
    for case in self.cases:
      parts = [case.inside[name] * case.volumes[name] for name in names if name in case.inside]
      if parts:
        histograms.append(np.sum(parts, 0) / np.sum(parts))
    return _percentiles(histograms, percentiles)

  def hu_outside(self, percentiles: Sequence[float]) -> list[float]:
    """HU percentiles of what is no class and not air."""
    return _percentiles([case.outside for case in self.cases], percentiles)

  def share(self) -> float:
    """Median share of a scan that is some class, counting overlapping ones twice."""
    whole = np.prod(self.extents, 1) / 1000
    return float(
      np.median([sum(c.volumes.values()) / v for c, v in zip(self.cases, whole, strict=True)])
    )


def _percentiles(histograms: Sequence[np.ndarray], percentiles: Sequence[float]) -> list[float]:
  total = np.sum(histograms, 0).cumsum()
  at = [np.searchsorted(total, q / 100 * total[-1]) for q in percentiles]
  return [float(_LOW + _STEP * (i + 0.5)) for i in at]


def facts(
  image: np.ndarray,
  codes: np.ndarray,
  spacing: Sequence[float],
  supervised: Sequence[str],
  template: Template,
  *,
  source: str = '',
  name: str = '',
) -> CaseFacts:
  """What is kept of one scan.

  Args:
    image: (D, H, W) HU.
    codes: (D, H, W) uint8, of the template.
    spacing: (3,) mm.
    supervised: the classes that the codes hold.
    template: of the codes.
    source: of the case.
    name: of the case.
  """
  pairs = _histograms(image, codes)
  table = template.code_table(supervised)  # (256, K)
  by_class = table.T.astype(np.int64) @ pairs
  voxel = float(np.prod(spacing)) / 1000
  present = [k for k in range(len(supervised)) if by_class[k].any()]
  pieces = {supervised[k]: _largest(table[:, k][codes]) for k in present}
  free = np.asarray(~table.any(1))
  free[IGNORE_CODE] = False
  outside = pairs[free].sum(0).astype(float)
  outside[: (_AIR - _LOW) // _STEP] = 0
  return CaseFacts(
    source=source,
    name=name,
    supervised=tuple(supervised),
    spacing=tuple(float(mm) for mm in spacing),
    shape=tuple(image.shape),
    volumes={supervised[k]: float(by_class[k].sum() * voxel) for k in present},
    pieces=pieces,
    inside={supervised[k]: by_class[k] / by_class[k].sum() for k in present},
    outside=outside / max(outside.sum(), 1),
  )


def _histograms(image: np.ndarray, codes: np.ndarray) -> np.ndarray:
  """Voxels of each code and bin of HU, (256, 1024) int64; of a few slices at a time.

  Counting takes 16 bytes of each voxel: of a long scan at once that would be gigabytes.
  """
  pairs = np.zeros(_CODES * _BINS, np.int64)
  depth = max(_VOXELS // max(image[:1].size, 1), 1)
  for first in range(0, len(image), depth):
    part = slice(first, first + depth)
    hu = np.clip(image[part], _LOW, _LOW + _STEP * _BINS - 1)
    bins = codes[part].astype(np.int64) * _BINS + ((hu - _LOW) // _STEP).astype(np.int64)
    pairs += np.bincount(bins.ravel(), minlength=len(pairs))
  return pairs.reshape(_CODES, _BINS)


def _largest(mask: np.ndarray) -> float:
  """Share of a mask in its largest component."""
  box = []
  for axis in range(3):
    used = np.flatnonzero(mask.any(tuple({0, 1, 2} - {axis})))
    box.append(slice(used[0], used[-1] + 1))
  parts, number = components(mask[tuple(box)])
  counts = np.zeros(number + 1, np.int64)
  for part in parts:
    counts += np.bincount(part.ravel(), minlength=number + 1)
  return float(counts[1:].max() / counts[1:].sum())


def read_cohort(
  names: Sequence[tuple[str, str | None]],
  data_dir: str | os.PathLike,
  most: int,
  *,
  name: str | None = None,
) -> Cohort:
  """Reads the fingerprint of some sources.

  Args:
    names: (source, folder of its download or None); without a folder, a source that is prepared in
      `data_dir` is read from there.
    data_dir: of the prepared sources.
    most: scans of each source to read at most, evenly spread over them; the cases that label a
      class are counted over all.
    name: under which the only source is, or will be, prepared; None: that of the source.

  Raises:
    SourceError: if a download cannot be used.
    CohortError: if there is no training case, or none of them can be read.
  """
  parts = [_list(source, name or source, folder, data_dir) for source, folder in names]
  template = TEMPLATE
  for part in parts:
    template = _join(template, part.template)
  read: list[CaseFacts] = []
  skipped: list[tuple[str, str]] = []
  chosen = [(part, case) for part in parts for case in _spread(part.cases, most)]
  for part, case in progress.bar(chosen, desc='fingerprint', unit='scan'):
    try:
      with remarks.collected():  # `prepare --check` tells them
        read.append(part.read(case))
    except Exception as error:  # whatever is wrong with one case must not stop the plan
      skipped.append((f'{part.origin.name} {case.name}', errors.reason(error)))
  if not any(case.volumes for case in read):
    asked = ', '.join(source for source, _ in names)
    why = f'; the first: {skipped[0][1]}' if skipped else ''
    raise CohortError(f'{asked}: no training case with a labelled class could be read{why}')
  every = [case for part in parts for case in part.cases]
  families: dict[str, set[str]] = {}
  for case in every:
    families.setdefault(case.source, set()).update(case.labelled)
  supervised = sorted({name for labelled in families.values() for name in labelled})
  return Cohort(
    origins=[part.origin for part in parts],
    template=template,
    cases=read,
    labelled={name: sum(name in case.labelled for case in every) for name in supervised},
    families={name: len(labelled) for name, labelled in families.items()},
    total=len(every),
    skipped=skipped,
    held_out=sorted({name for part in parts for name in part.held_out} - {*supervised}),
  )


@dataclasses.dataclass(frozen=True)
class _Part:
  """The training cases of one source, how to read one, and the classes of those held out."""

  origin: Origin
  template: Template
  cases: Sequence[sources.Case] | Sequence[bricks.CaseInfo]
  read: Callable[..., CaseFacts]
  held_out: frozenset[str] = frozenset()  # not known of what is prepared


def _list(source: str, name: str, folder: str | None, data_dir: str | os.PathLike) -> _Part:
  report = bricks.read_settings(data_dir, name)
  settings = report and report['settings']
  if report and not folder:
    return _prepared(name, report, data_dir)
  if source not in sources.SOURCES:
    known = sorted({*bricks.prepared_sources(data_dir), *sources.SOURCES})
    raise CohortError(
      f'{source}: not prepared in {data_dir}, and no source; {errors.suggest(source, known)}'
    )
  declared = sources.SOURCES[source]
  template = declared.template(folder)
  listed = declared.listed(folder)[0]
  cases = [case for case in listed if case.split == 'train']
  if report:  # groups of patients and draws that were kept decide who is held out
    splits = {one.name: one.split for one in writer.read_outcomes(epath.Path(data_dir) / name)}
    splits |= {case: split for _, case, split in report.get('assigned', ())}  # there in two forms
    held_out = {case for case, split in splits.items() if split != 'train'}
    cases = [case for case in cases if case.name not in held_out]

  def read(case: sources.Case) -> CaseFacts:
    scan = case.load()
    return facts(
      scan.image, scan.codes, scan.geometry.spacing.tolist(), case.labelled, template,
      source=case.source, name=case.name,
    )  # fmt: skip

  prepared = tuple(settings['spacing']) if settings else None
  options = tuple(which_cases(report or {}))
  origin = Origin(name, source, folder, prepared, options)
  labelled = frozenset(name for case in listed for name in case.labelled)
  return _Part(origin, template, cases, read, labelled)


def _prepared(name: str, report: Mapping, data_dir: str | os.PathLike) -> _Part:
  settings = report['settings']
  store = bricks.open_bricks(data_dir, name)
  number = {case.key: i for i, case in enumerate(store.cases)}

  def read(case: bricks.CaseInfo) -> CaseFacts:
    image = np.full(case.shape, volume.AIR, np.int16)
    codes = np.zeros(case.shape, np.uint8)
    for record in np.flatnonzero(store.case == number[case.source, case.name]):
      low = store.position[record]
      place = tuple(slice(a, a + store.brick) for a in low)
      of = tuple(slice(n - a) for n, a in zip(case.shape, low, strict=True))
      part, labels = store.read(int(record))
      image[place], codes[place] = part[of], labels[of]
    known = facts(
      image, codes, store.spacing, case.labelled, store.template,
      source=case.source, name=case.name,
    )  # fmt: skip
    if not case.own_spacing:
      return known
    extent = np.array(case.shape) * store.spacing
    shape = tuple(int(n) for n in np.maximum(np.rint(extent / case.own_spacing), 1))
    return dataclasses.replace(known, spacing=tuple(case.own_spacing), shape=shape)

  source, folder = settings.get('source', name), report.get('manual_dir')
  options = tuple(which_cases(report))
  origin = Origin(name, source, folder, tuple(settings['spacing']), options)
  return _Part(origin, store.template, store.cases, read)


def _join(template: Template, other: Template) -> Template:
  """A template with the classes that another one adds."""
  known = set(template.names())
  new = [entry for entry in other.additions() if entry['name'] not in known]
  return template.extend([{k: v for k, v in e.items() if k != 'index'} for e in new])


def _spread(cases: Sequence, most: int) -> list:
  """At most so many of the cases, evenly over their order."""
  if len(cases) <= most:
    return list(cases)
  return [cases[i] for i in np.linspace(0, len(cases) - 1, most).round().astype(int)]
