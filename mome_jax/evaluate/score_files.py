"""An evaluation folder: scores of every case and class, their summary and tables."""

import collections
import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from input_pipeline.files import text_files
from mome_jax.errors import UserError, writing
from mome_jax.evaluate import false_positives, froc, lesions, metrics, patients, tables

CASES, SUMMARY, TABLE, TABLE_CSV = 'cases.csv', 'summary.json', 'table.md', 'table.csv'
CURVE = 'detection.csv'
FOLDERS = {'validation': 'evaluation', 'test': 'evaluation_test'}  # of a split, in a workdir
_KEYS = ('source', 'case', 'split', 'class')


class ResultsError(UserError):
  """Scores that are missing, broken or do not fit others; the message names the file."""


def score(
  source: str,
  case: str,
  name: str,
  prediction: np.ndarray,
  truth: np.ndarray,
  spacing: Sequence[float] | np.ndarray,
  *,
  absent: bool = False,
) -> dict[str, Any]:
  """The row of one class in one scan.

  Args:
    source: the dataset.
    case: the scan.
    name: of the class; tumours and cysts also get the counts of `lesions.count`.
    prediction: (D, H, W) bool.
    truth: (D, H, W) bool, on the same grid.
    spacing: (3,) mm.
    absent: whether the scan's field of view cannot show the class: it has no part in any metric.

  Returns:
    `source`, `case`, `split` and `patients.FIELD` (not known here: ''), `class`, the values of
    `metrics.METRICS`, those of `lesions.FIELDS`, and those of `false_positives.FIELDS`.
  """
  row: dict[str, Any] = {'source': source, 'case': case, 'split': '', 'class': name}
  row[patients.FIELD] = ''
  row |= dict.fromkeys(metrics.METRICS, math.nan)
  if not absent:
    row |= metrics.measure(prediction, truth, spacing)
  row |= false_positives.measure(prediction, truth, spacing, absent=absent)
  counted = lesions.is_lesion(name) and not absent
  counts = lesions.count(prediction, truth, spacing, name) if counted else {}
  return row | {field: counts.get(field) for field in lesions.FIELDS}


def write(
  folder: str | os.PathLike,
  rows: Sequence[Mapping[str, Any]],
  *,
  title: str,
  origin: Mapping[str, Any],
  points: Sequence[Mapping[str, Any]] = (),
  failed: Sequence[tuple[str, str]] = (),
) -> tuple[dict[str, Any], str]:
  """Writes `cases.csv`, `summary.json`, `table.md`, `table.csv`, and `detection.csv` of `points`.

  Args:
    folder: created where missing.
    rows: of `score`.
    title: of the table.
    origin: fields that the summary begins with.
    points: of `froc.summarize`; where there are none, there is no `detection.csv`.
    failed: (case, reason) of what could not be scored; in the summary and the table.

  Returns:
    The summary, and the text of `table.md`.

  Raises:
    ValueError: if the rows are of several splits, which no mean may mix.
  """
  splits = sorted({row.get('split', '') for row in rows})
  if len(splits) > 1:
    raise ValueError(f'rows of the splits {", ".join(splits)}; write each to a folder of its own')
  place = epath.Path(folder)
  summary = metrics.summarize(rows)
  table = tables.report(summary, title=title)
  if failed:
    table += f'\n{tables.failures(failed)}'
    summary['failed'] = [{'case': case, 'reason': reason} for case, reason in failed]
  columns = (*_KEYS, *metrics.METRICS, *lesions.FIELDS, *false_positives.FIELDS, patients.FIELD)
  with writing(place, ResultsError):
    place.mkdir(parents=True, exist_ok=True)
    (place / SUMMARY).unlink(missing_ok=True)  # written last: with it, the others are whole
    text_files.replace(place / CASES, tables.csv_text(columns, rows))
    text_files.replace(place / TABLE, table)
    text_files.replace(place / TABLE_CSV, tables.to_csv(summary))
    (place / CURVE).unlink(missing_ok=True)
    if points:
      text_files.replace(place / CURVE, tables.csv_text(froc.FIELDS, points))
    text_files.replace(place / SUMMARY, json.dumps({**origin, **summary}, indent=2) + '\n')
  return summary, table


def read_summary(folder: epath.Path) -> dict[str, Any]:
  """The summary of an evaluation folder that holds whole scores; empty where it does not."""
  try:
    summary = json.loads((folder / SUMMARY).read_text(encoding='utf-8'))
  except (OSError, ValueError):  # a process that wrote it was killed
    return {}
  return summary if isinstance(summary, dict) else {}


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
  """Reads the scores of an evaluation back.

  Args:
    path: a workdir (its validation scans, or else its test scans), an evaluation folder in it, or
      its `cases.csv`, which may then lie anywhere.

  Returns:
    Rows as `score` gives them; what older files did not note is None in the counts of detection and
    in volumes, '' in `split` and patient, and NaN in metrics besides the standard ones.

  Raises:
    ResultsError: if there are no scores, they cannot be read, or the folder has no whole
      `summary.json`, which is written last.
  """
  place = epath.Path(path)
  tried = [place, place / CASES, *(place / name / CASES for name in FOLDERS.values())]
  file = next((file for file in tried if file.is_file()), None)
  if file is None:
    raise ResultsError(
      f'{path}: no {CASES} there; name a workdir that was evaluated, or an evaluation folder'
    )
  if file != place and not read_summary(file.parent):
    raise ResultsError(
      f'{file.parent}: no whole {SUMMARY}, so that its scores may be of several evaluations; '
      'evaluate again'
    )
  reader = csv.DictReader(io.StringIO(text_files.read_explained(file, ResultsError)))
  needed = 'case', 'class', *metrics.STANDARD
  missing = [name for name in needed if name not in (reader.fieldnames or ())]
  if missing:
    raise ResultsError(f'{file}: no column {missing[0]!r}; expected what mome_jax.evaluate writes')
  try:
    rows = [_parse(row) for row in reader]
  except ValueError as error:
    raise ResultsError(f'{file}: line {reader.line_num}: {error}; evaluate again') from error
  keys = collections.Counter((row['source'], row['case'], row['class']) for row in rows)
  twice = [key for key, count in keys.items() if count > 1]
  if twice:
    _, case, name = twice[0]
    raise ResultsError(f'{file}: {name} of {case} has several rows; evaluate again')
  return rows


def _parse(row: Mapping[str, str]) -> dict[str, Any]:
  if None in row or None in row.values():  # where a score is missing, both masks were empty
    raise ValueError('has not as many fields as the first line')
  parsed: dict[str, Any] = {key: row.get(key, '') for key in (*_KEYS, patients.FIELD)}
  parsed |= {name: float(row.get(name) or math.nan) for name in metrics.METRICS}
  parsed |= false_positives.parse(row)
  counts = {name: row.get(name) for name in lesions.FIELDS}
  return parsed | {name: int(text) if text else None for name, text in counts.items()}
