"""`volumes.csv`: a line for each class of each case whose results a folder holds."""

import csv
import io
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mome_jax.predict.request import PredictError
from mome_jax.predict.result import Result

TABLE = 'volumes.csv'
COLUMNS = ('case', 'series_uid', 'class', 'label', 'volume_ml', 'mean_hu', 'sd_hu', 'components',
           'present', 'cut', 'plausible', 'reasons', 'unsure', 'verdict')  # fmt: skip
_OF_LABEL = ('label', 'volume_ml', 'mean_hu', 'sd_hu', 'components', 'present', 'cut', 'plausible',
             'unsure', 'verdict')  # fmt: skip


def read(path: pathlib.Path) -> list[dict[str, str]]:
  """The lines of a table; none if there is no file.

  Raises:
    PredictError: if it is another table, a line of it is not whole, or it cannot be read.
  """
  if not path.exists():
    return []
  try:
    with path.open(encoding='utf-8-sig', newline='') as stream:
      reader = csv.DictReader(stream)
      lines = list(reader)
  except (OSError, ValueError, csv.Error) as error:
    raise PredictError(f'{path}: cannot be read ({error}); move it away') from error
  if reader.fieldnames is None or tuple(reader.fieldnames) != COLUMNS:
    raise PredictError(f'{path}: has other columns than a table of volumes; move it away')
  for number, line in enumerate(lines, 1):
    if None in line or None in line.values():
      raise PredictError(
        f'{path}: line {number} below the header has other fields than the header; move it away'
      )
  return lines


def of_earlier(output: pathlib.Path, results: Sequence[Result]) -> list[dict[str, str]]:
  """The lines of a folder's table that stay beside those of some results.

  Lines of a case go when its legend is gone, or when it has a new result.

  Args:
    output: folder of the results.
    results: of this run; those that failed have no lines.

  Raises:
    PredictError: as `read`.
  """
  earlier = read(output / TABLE)
  done = {result.case for result in results if result.labels}
  exists = {case: (output / f'{case}_seg.json').exists() for case in
            {line['case'] for line in earlier} - done}  # fmt: skip
  return [line for line in earlier if exists.get(line['case'], False)]


def table(earlier: Iterable[Mapping[str, Any]], results: Sequence[Result]) -> str:
  """The text of the table: lines of earlier runs, then those of results.

  What is not known is an empty field: `plausible` of free text, the mean of no voxel.
  """
  return _csv([dict(zip(COLUMNS, COLUMNS, strict=True)), *earlier]) + lines(results)


def lines(results: Sequence[Result]) -> str:
  """The lines of some results, without the header."""
  return _csv(line for result in results for line in _lines(result))


def by_case(earlier: Iterable[Mapping[str, Any]]) -> dict[str, str]:
  """Case -> the text of its lines."""
  groups: dict[str, list[Mapping[str, Any]]] = {}
  for line in earlier:
    groups.setdefault(line['case'], []).append(line)
  return {case: _csv(group) for case, group in groups.items()}


def _csv(rows: Iterable[Mapping[str, Any]]) -> str:
  text = io.StringIO()
  csv.DictWriter(text, COLUMNS).writerows(rows)
  return text.getvalue()


def _lines(result: Result) -> list[dict[str, Any]]:
  return [
    {
      'case': result.case,
      'series_uid': result.series_uid,
      'class': label['name'],
      **{column: _shown(label.get(column)) for column in _OF_LABEL},
      'reasons': '; '.join(label.get('reasons') or ()),
    }
    for label in result.labels
  ]


def _shown(value: Any) -> Any:
  """A value as a field: yes and no in lower case, as JSON has them."""
  return str(value).lower() if isinstance(value, bool) else value
