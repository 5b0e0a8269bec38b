"""Detection of tumours and cysts: is the lesion found, and are others invented.

| number | is |
|:--|:--|
| sensitivity | of the scans with a lesion, the share where a predicted component overlaps one |
| specificity | of the scans without, the share without a predicted component of the least volume |
| harmonic mean | 2 / (1 / sensitivity + 1 / specificity) |
| false positives per healthy scan | such components in scans without a lesion, their mean |

Sensitivity, specificity and their harmonic mean over patients are what Liu et al., "CLIP-Driven
Universal Model" (ICCV 2023, its table of tumour detection) report; there any predicted voxel makes
a patient positive. Here a lesion also has to be hit, by a component of any volume, as in autoPET's
evaluation: else one that is smaller than the least volume of its class (`postprocess.MINIMUM_ML`)
could not be found by its own mask. A component that hits none is an alarm from that volume on, so
that one stray voxel is none. False positives per scan are the horizontal axis of free-response
analysis (Bunch et al., SPIE 1977); at the probability 0.5 of the masks they are one point of it.
Components are 26-connected.
"""

import math
import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from input_pipeline.ct.components import components
from mome_jax.evaluate import patients
from mome_jax.evaluate.bootstrap import bootstrap_ratio
from mome_jax.inference.postprocess import MINIMUM_ML

FIELDS = ('lesions', 'found', 'predicted')
_WORDS = {'cancer', 'carcinoma', 'cyst', 'cysts', 'lesion', 'lesions', 'metastasis', 'metastases',
          'nodule', 'nodules', 'tumor', 'tumors', 'tumour', 'tumours'}  # fmt: skip


def is_lesion(name: str) -> bool:
  """Whether a class is something to be detected: a word of its name says so."""
  return not _WORDS.isdisjoint(re.findall('[a-z]+', name.casefold()))


def count(
  prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float] | np.ndarray, name: str
) -> dict[str, int]:
  """Counts the components of one lesion class in one scan.

  Args:
    prediction: (D, H, W) bool.
    truth: (D, H, W) bool, on the same grid.
    spacing: (3,) mm.
    name: of the class; its `MINIMUM_ML` applies to components that overlap no lesion.

  Returns:
    `lesions`: components of the truth; `found`: those of them that a predicted component overlaps;
    `predicted`: components of the prediction that overlap a lesion or have the least volume.
  """
  voxel_ml = float(np.prod(spacing)) / 1000
  labels, _ = components(prediction)
  lesions, number = components(truth)
  sizes = np.bincount(labels.ravel(), minlength=1)
  counted = sizes * voxel_ml >= MINIMUM_ML.get(name, 0.0)
  counted[labels[lesions > 0]] = True
  counted[0] = False
  return {
    'lesions': number,
    'found': int(np.count_nonzero(np.unique(lesions[labels > 0]))),
    'predicted': int(counted.sum()),
  }


def rates(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Detection numbers of one class over its scans.

  Args:
    rows: one mapping per scan with the keys of `FIELDS`.

  Returns:
    `n_diseased` and `n_healthy` scans; `sensitivity` and `specificity`, and their `harmonic_mean`;
    `lesion_sensitivity`, the share of all lesions that were found; `false_positives_per_healthy`.
    NaN where there is no scan to tell.
  """
  return _rates(_shares(rows))


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """The numbers of `rates`, each share and mean with its 95 % bootstrap `_interval` over patients.

  Args:
    rows: as of `rates`; those with the same `patients.FIELD` are scans of one patient.
  """
  by_number, intervals = _shares(rows), {}
  for name, shares in by_number.items():
    pairs, whose = [share[:2] for share in shares], [share.patient for share in shares]
    intervals[f'{name}_interval'] = bootstrap_ratio(pairs, whose)
  return _rates(by_number) | intervals


class _Share(NamedTuple):
  """What one scan adds to a number."""

  part: int
  whole: int
  patient: Hashable


def _shares(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[_Share]]:
  """Number -> what each scan that tells of it adds."""
  scans = [(row, row.get(patients.FIELD) or number) for number, row in enumerate(rows)]
  diseased = [(row, who) for row, who in scans if row['lesions']]
  healthy = [(row, who) for row, who in scans if not row['lesions']]
  return {
    'sensitivity': [_Share(row['found'] > 0, 1, who) for row, who in diseased],
    'specificity': [_Share(row['predicted'] == 0, 1, who) for row, who in healthy],
    'lesion_sensitivity': [_Share(row['found'], row['lesions'], who) for row, who in diseased],
    'false_positives_per_healthy': [_Share(row['predicted'], 1, who) for row, who in healthy],
  }


def _rates(by_number: Mapping[str, Sequence[_Share]]) -> dict[str, Any]:
  diseased, healthy = (len(by_number[name]) for name in ('sensitivity', 'specificity'))
  numbers: dict[str, Any] = {'n_diseased': diseased, 'n_healthy': healthy}
  for name, shares in by_number.items():
    whole = sum(share.whole for share in shares)
    numbers[name] = sum(share.part for share in shares) / whole if whole else math.nan
  return numbers | {'harmonic_mean': _harmonic(numbers['sensitivity'], numbers['specificity'])}


def _harmonic(a: float, b: float) -> float:
  if math.isnan(a) or math.isnan(b):
    return math.nan
  return 2 * a * b / (a + b) if a + b else 0.0
