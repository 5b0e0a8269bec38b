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
    PredictError: if it is another table or cannot be read.
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
  return lines


def merge(
  output: pathlib.Path, earlier: Iterable[Mapping[str, Any]], results: Sequence[Result]
) -> str:
  """The text of the table: what earlier runs left of other cases, then the cases of this run.

  Lines of a case go when its legend is gone, and are replaced when it has a new result. What is
  not known is an empty field: `plausible` of free text, the mean of no voxel. Text beyond ASCII
  starts with a byte order mark, which spreadsheets need to read it as UTF-8.

  Args:
    output: folder of the results.
    earlier: lines of the table as it was.
    results: of this run; those that failed have no lines.
  """
  done = {result.case for result in results if result.labels}
  exists = {case: (output / f'{case}_seg.json').exists() for case in
            {line['case'] for line in earlier} - done}  # fmt: skip
  text = io.StringIO()
  writer = csv.DictWriter(text, COLUMNS)
  writer.writeheader()
  writer.writerows(line for line in earlier if exists.get(line['case'], False))
  for result in results:
    writer.writerows(_lines(result))
  mark = '' if text.getvalue().isascii() else '\ufeff'
  return mark + text.getvalue()


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
