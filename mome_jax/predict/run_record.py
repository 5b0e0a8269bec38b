"""What became of the scans of a run: `report.csv`, a row a scan, and `manifest.json`."""

import csv
import io
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from mome_jax.predict import staging
from mome_jax.predict.workers import Result

TABLE, MANIFEST = 'report.csv', 'manifest.json'
_COLUMNS = ('case', 'input', 'status', 'seconds', 'message')


def row(result: Result) -> dict[str, Any]:
  """The columns of a result that every table of scans begins with."""
  return {column: getattr(result, column) for column in _COLUMNS}


def table(results: Sequence[Result], names: Sequence[str]) -> str:
  """The text of `report.csv`: a row a scan, with the volume of each class in ml.

  A class that was looked for and not found has 0, and a scan without results empty fields. The
  columns depend on the request alone. Text beyond ASCII starts with a byte order mark, which
  spreadsheets need to read it as UTF-8.

  Args:
    results: of the scans.
    names: K class names, in the order of the columns.
  """
  volumes = {name: f'{name} (ml)' for name in names}
  text = io.StringIO()
  writer = csv.DictWriter(text, [*_COLUMNS, *volumes.values()])
  writer.writeheader()
  for result in results:
    found = {volumes[label['name']]: label['volume_ml'] for label in result.labels}
    writer.writerow(row(result) | found)
  mark = '' if text.getvalue().isascii() else '\ufeff'
  return mark + text.getvalue()


def write(
  output: pathlib.Path,
  record: Mapping[str, Any],
  results: Sequence[Result],
  names: Sequence[str],
) -> None:
  """Writes both files; a kill at any time leaves two whole ones.

  Args:
    output: existing folder.
    record: fields that the manifest begins with.
    results: so far.
    names: K class names.

  Raises:
    OSError: if they cannot be written.
  """
  cases = [{**row(result), 'timings': result.timings} for result in results]
  texts = {
    TABLE: table(results, names),
    MANIFEST: json.dumps({**record, 'cases': cases}, indent=2, default=str) + '\n',
  }
  with staging.scratch(output) as folder:
    for name, text in texts.items():
      (folder / name).write_text(text, encoding='utf-8', newline='')
      os.replace(folder / name, output / name)
