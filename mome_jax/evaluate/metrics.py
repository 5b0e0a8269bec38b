"""Dice, surface Dice (NSD) and HD95 on the scan's own grid, and their summary over cases.

Surfaces and their areas are those of DeepMind's `surface-distance` (Nikolov et al., "Clinically
applicable segmentation of head and neck anatomy", JMIR 2021); a mask that reaches the border of the
image is closed there.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from input_pipeline.ct import body
from mome_jax.evaluate import false_positives, lesions, patients
from mome_jax.evaluate.bootstrap import bootstrap_interval, bootstrap_macro


@dataclasses.dataclass(frozen=True)
class Scores:
  """Agreement of one predicted mask with its truth.

  Both masks empty: every field NaN (such a pair is left out of means). One empty: Dice and NSD 0,
  HD95 infinite.

  Attributes:
    dice: volume overlap in [0, 1].
    nsd_1mm: share of both surfaces' area within 1 mm of the other surface, in [0, 1].
    nsd: the same within 2 mm.
    nsd_3mm: the same within 3 mm.
    hd95_mm: 95th percentile, by area, of the distance from one surface to the other, mm; the larger
      of the two directions.
  """

  dice: float
  nsd_1mm: float
  nsd: float
  nsd_3mm: float
  hd95_mm: float


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two masks, neither of them empty, in the box that holds both.

  Attributes:
    prediction: (D, H, W) bool.
    truth: (D, H, W) bool.
    spacing: (3,) voxel size along the array axes, mm.
  """

  prediction: np.ndarray
  truth: np.ndarray
  spacing: Sequence[float]

  @functools.cached_property
  def distances(self) -> dict[str, np.ndarray]:
    """Between the surfaces in mm, and their areas; see `surface_distance`."""
    import surface_distance  # slow to import

    return surface_distance.compute_surface_distances(self.truth, self.prediction, self.spacing)


class Metric(NamedTuple):
  """How a mask agrees with its truth.

  Attributes:
    value: of a pair. Of two empty masks it is NaN, for all metrics.
    worst: its value if one mask is empty. Infinite ones are counted and never averaged.
    title: of its column in the tables; '' for those that only stand in the files.
    share: of 1, and shown in percent.
    higher_is_better: the way to win.
  """

  value: Callable[[Pair], float]
  worst: float = 0.0
  title: str = ''
  share: bool = True
  higher_is_better: bool = True


def dice(pair: Pair) -> float:
  """Volume overlap in [0, 1]."""
  volumes = np.count_nonzero(pair.prediction) + np.count_nonzero(pair.truth)
  return 2 * np.count_nonzero(pair.prediction & pair.truth) / volumes


def nsd(pair: Pair, tolerance: float) -> float:
  """Share of both surfaces' area within a tolerance in mm of the other surface."""
  import surface_distance

  return surface_distance.compute_surface_dice_at_tolerance(pair.distances, tolerance)


def hd95(pair: Pair) -> float:
  """95th percentile of the distances between the surfaces, mm."""
  import surface_distance

  return surface_distance.compute_robust_hausdorff(pair.distances, 95)


# Name of the column -> metric.
METRICS: dict[str, Metric] = {
  'dice': Metric(dice, title='Dice %'),
  'nsd_1mm': Metric(functools.partial(nsd, tolerance=1)),
  'nsd': Metric(functools.partial(nsd, tolerance=2), title='NSD 2 mm %'),
  'nsd_3mm': Metric(functools.partial(nsd, tolerance=3)),
  'hd95_mm': Metric(hd95, math.inf, 'HD95 mm', share=False, higher_is_better=False),
}
STANDARD = tuple(field.name for field in dataclasses.fields(Scores))  # in every evaluation


def further() -> dict[str, Metric]:
  """The metrics besides the standard ones."""
  return {name: metric for name, metric in METRICS.items() if name not in STANDARD}


def score(
  prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float] | np.ndarray
) -> Scores:
  """The standard scores of one mask against its truth; arguments and errors as of `measure`."""
  values = measure(prediction, truth, spacing)
  return Scores(**{name: values[name] for name in STANDARD})


def measure(
  prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float] | np.ndarray
) -> dict[str, float]:
  """Compares one mask with its truth by all metrics.

  Args:
    prediction: (D, H, W) bool.
    truth: (D, H, W) bool, on the same grid.
    spacing: (3,) voxel size along the array axes, mm.

  Returns:
    Name of each of `METRICS` -> value; see `Metric` for empty masks.

  Raises:
    ValueError: if a mask is not boolean, the shapes differ or a spacing is not positive.
  """
  spacing = _check(prediction, truth, spacing)
  box = body.box(prediction | truth, (1, 1, 1))
  # Cropped first, so that nothing below touches the whole scan. The package pads with background
  # whatever it is given: the crop changes no number.
  pair = Pair(prediction[box], truth[box], spacing)
  some = pair.prediction.any(), pair.truth.any()
  if not any(some):
    return dict.fromkeys(METRICS, math.nan)
  # NOTE: answered here because surface-distance 0.1 fails on an empty mask under NumPy 2.
  if not all(some):
    return {name: metric.worst for name, metric in METRICS.items()}
  return {name: float(metric.value(pair)) for name, metric in METRICS.items()}


def restrict(
  mask: np.ndarray, spacing: Sequence[float] | np.ndarray, slice_range: Sequence[float]
) -> np.ndarray:
  """Keeps the axial slices in which a class is annotated.

  Args:
    mask: (D, H, W) array in canonical order, the last axis growing to Superior.
    spacing: (3,) mm.
    slice_range: (low, high) in mm above the centre of the first slice, inclusive; may be infinite.

  Returns:
    A view (D, H, W') of the slices whose centre lies in the range, W' >= 0.
  """
  step, n_slices = float(spacing[2]), mask.shape[2]
  low, high = (float(np.clip(mm / step, -1.0, n_slices)) for mm in slice_range)
  # Ranges are stored in float32 mm; a thousandth of a slice keeps the end slices in.
  return mask[:, :, max(0, math.ceil(low - 1e-3)) : max(0, math.floor(high + 1e-3) + 1)]


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Aggregates scores over cases and classes, in all and for every dataset.

  Args:
    rows: one mapping per supervised (case, class) pair with the keys `case`, `class` and those of
      `METRICS`; both masks empty is told by NaN Dice. Optional: `source`, the dataset of the case,
      `patients.FIELD`, the same for scans of one patient, and the keys of `lesions.FIELDS` and of
      `false_positives.FIELDS`.

  Returns:
    A JSON-safe dict (None where nothing is defined): `mean_dice` and `mean_nsd` are the mean over
    classes of the mean over cases, their intervals resample patients; `classes` maps a name, in
    order of appearance, to the means of its metrics, the standard ones with intervals, `n` cases of
    `n_patients` in the mean, `n_both_empty` cases left out, `hd95_infinite` cases that `hd95_mm`
    leaves out (so for every metric that can be infinite), for tumours and cysts `detection` as
    `lesions.summarize` gives it, and where scans do not hold the class `false_positives` as
    `false_positives.summarize` gives it: a class that a scan's field of view cannot show is in no
    other number. `datasets` maps every source to the same numbers of its cases alone.

  Raises:
    ValueError: if a (case, class) pair of a dataset appears twice.
  """
  sources = dict.fromkeys(row['source'] for row in rows if row.get('source'))
  datasets = {
    source: _summary([row for row in rows if row.get('source') == source]) for source in sources
  }
  return _json_safe({**_summary(rows), 'datasets': datasets})


def tabulate(
  rows: Sequence[Mapping[str, Any]],
) -> tuple[list[tuple[str, str]], list[str], dict[str, np.ndarray]]:
  """Arranges rows by case and class.

  Args:
    rows: as in `summarize`.

  Returns:
    The C (source, case) pairs, sorted, so that resamples do not depend on the order of rows; the K
    class names in order of appearance; for each of `METRICS` an array (C, K) float64, NaN where
    there is no score.

  Raises:
    ValueError: as `summarize`.
  """
  keys = [((row.get('source', ''), row['case']), row['class']) for row in rows]
  twice = [key for key, count in collections.Counter(keys).items() if count > 1]
  if twice:
    (_, case), name = twice[0]
    raise ValueError(f'(case, class) {(case, name)} has several rows; keep one per pair')
  cases = sorted({case for case, _ in keys})
  names = list(dict.fromkeys(name for _, name in keys))
  table = {metric: np.full((len(cases), len(names)), np.nan) for metric in METRICS}
  case_index, class_index = ({key: i for i, key in enumerate(part)} for part in (cases, names))
  for (case, name), row in zip(keys, rows, strict=True):
    for metric in METRICS:
      table[metric][case_index[case], class_index[name]] = row[metric]
  return cases, names, table


def _summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  cases, names, table = tabulate(rows)
  whose = patients.of_cases(rows, cases)
  classes = {}
  for k, name in enumerate(names):
    of_class = [row for row in rows if row['class'] == name]
    column = {metric: table[metric][:, k] for metric in METRICS}
    scored = ~np.isnan(column['dice'])
    n = int(scored.sum())
    infinite = np.isinf(column['hd95_mm'])
    classes[name] = {
      'dice': mean(column['dice']),
      'dice_interval': bootstrap_interval(column['dice'], whose),
      'nsd': mean(column['nsd']),
      'nsd_interval': bootstrap_interval(column['nsd'], whose),
      'nsd_1mm': mean(column['nsd_1mm']),
      'nsd_3mm': mean(column['nsd_3mm']),
      'hd95_mm': mean(column['hd95_mm'][~infinite]),
      'hd95_infinite': int(infinite.sum()),
      'n': n,
      'n_patients': len({who for who, is_scored in zip(whose, scored, strict=True) if is_scored}),
      'n_both_empty': sum(not row.get('absent') for row in of_class) - n,
    }
    if volumes := false_positives.summarize(of_class):
      classes[name]['false_positives'] = volumes
    for metric, kind in further().items():
      values = column[metric]
      classes[name][metric] = mean(values[~np.isinf(values)])
      if math.isinf(kind.worst):
        classes[name][f'{metric}_infinite'] = int(np.isinf(values).sum())
    counted = [row for row in of_class if row.get('lesions') not in (None, '')]
    if counted:
      classes[name]['detection'] = lesions.summarize(counted)
  return {
    'mean_dice': mean(np.array([c['dice'] for c in classes.values()])),
    'mean_dice_interval': bootstrap_macro(table['dice'], whose),
    'mean_nsd': mean(np.array([c['nsd'] for c in classes.values()])),
    'mean_nsd_interval': bootstrap_macro(table['nsd'], whose),
    'classes': classes,
  }


def _check(
  prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float] | np.ndarray
) -> list[float]:
  for name, mask in (('prediction', prediction), ('truth', truth)):
    if mask.dtype != bool or mask.ndim != 3:
      raise ValueError(f'{name}: {mask.ndim}-D {mask.dtype}; pass a 3-D bool mask')
  if prediction.shape != truth.shape:
    raise ValueError(
      f'prediction {prediction.shape} and truth {truth.shape} differ in shape; '
      "bring the prediction back to the scan's own grid first"
    )
  spacing = [float(mm) for mm in spacing]
  if len(spacing) != 3 or not all(math.isfinite(mm) and mm > 0 for mm in spacing):
    raise ValueError(f'spacing {spacing}: pass three positive numbers in mm')
  return spacing


def mean(values: np.ndarray) -> float:
  """Mean of what is not NaN; NaN where nothing is left."""
  values = values[~np.isnan(values)]
  return float(values.mean()) if values.size else math.nan


def _json_safe(value: Any) -> Any:
  """Replaces NaN by None and tuples by lists, recursively."""
  if isinstance(value, Mapping):
    return {key: _json_safe(item) for key, item in value.items()}
  if isinstance(value, (tuple, list)):
    return [_json_safe(item) for item in value]
  return None if isinstance(value, float) and math.isnan(value) else value
