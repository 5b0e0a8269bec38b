"""How a run went and how its results were made: `report.csv`, `manifest.json`, `volumes.csv`."""

import contextlib
import csv
import dataclasses
import datetime
import importlib.metadata
import io
import json
import pathlib
import platform
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from input_pipeline.files import folder_lock
from mome_jax import __version__
from mome_jax.predict import volume_table
from mome_jax.predict.growing_file import GrowingFile
from mome_jax.predict.request import PredictError, Request
from mome_jax.predict.result import Result

if TYPE_CHECKING:
  from mome_jax.predict.prompted_model import PromptedModel

TABLE, MANIFEST = 'report.csv', 'manifest.json'
_COLUMNS = ('case', 'input', 'status', 'seconds', 'message')
_DOUBTS = ('implausible', 'removed', 'unfamiliar')  # further columns
_PACKAGES = ('jax', 'jaxlib', 'flax', 'numpy', 'scipy', 'nibabel', 'pydicom',
             'highdicom', 'orbax-checkpoint')  # fmt: skip


class RunRecord:
  """The files of a run, each result added as it comes; a kill at any time leaves whole ones.

  `volumes.csv` keeps what earlier runs left of other cases in the folder. Only where one of them
  left other lines of the same case it is written anew.

  The time of the run starts with the object.

  Args:
    output: folder; may be made later than the record.
  """

  def __init__(self, output: pathlib.Path):
    self._output = output
    self._started, self._start = datetime.datetime.now(datetime.UTC), time.perf_counter()
    self._loaded = 0.0  # seconds
    self._fields: dict[str, Any] = {}
    self._names: list[str] = []
    self._results: list[Result] = []
    self._table = GrowingFile(output / TABLE, marked=True)
    self._manifest = GrowingFile(output / MANIFEST)
    self._volumes = GrowingFile(output / volume_table.TABLE, marked=True)
    self._earlier: dict[str, str] = {}  # case -> its lines in the table of volumes

  def begin(
    self, request: Request, model: 'PromptedModel', notes: Sequence[str], *, existing: str
  ) -> None:
    """Writes what is known before the first scan, in place of the files of an earlier run.

    Args:
      request: what is asked for.
      model: that has read its prompts.
      notes: on the input and the model.
      existing: what is done with scans that have results.

    Raises:
      PredictError: if the files cannot be written.
    """
    self._loaded = time.perf_counter() - self._start
    self._names = [target.name for target in model.targets]
    self._fields = {
      'started': self._started.isoformat(timespec='seconds'),
      **environment(),
      **describe(model),
      'prompts': [dataclasses.asdict(target) for target in model.targets],
      'options': {
        **dataclasses.asdict(request.options),
        'existing': existing,
        'fast': request.fast,
        'assume_spacing': request.assume_spacing,
        'volume_number': request.volume_number,
        'check_sides': request.check_sides,
        'postprocess': model.segmenter.settings.rules,
        'tta': model.segmenter.settings.tta,
        'keep_absent': request.keep_absent,
        'as_written': request.as_written,
        'force': request.force,
      },
      'notes': list(notes),
    }
    self._write([], finished=False)

  def add(self, result: Result) -> None:
    """Adds one more result; PredictError if it cannot."""
    self._results.append(result)
    row, lines = table_row(result, self._names), volume_table.lines([result])
    case = _case(result)
    with self._writing():
      if self._table.can_add(row):
        self._table.add(row)
      else:
        self._write_table(self._results)
      if self._manifest.can_add(case):
        comma = ',\n' if len(self._results) > 1 else ''
        self._manifest.add(comma + case, self._end(finished=False))
      else:
        self._write_manifest(self._results, finished=False)
      if result.case not in self._earlier and self._volumes.can_add(lines):
        self._volumes.add(lines)
      elif self._earlier.get(result.case) != lines:
        self._write_volumes(self._results)

  def finish(self, results: Sequence[Result]) -> None:
    """Writes all results in the order of their scans; PredictError if it cannot."""
    self._write(results, finished=True)

  def _write(self, results: Sequence[Result], *, finished: bool) -> None:
    with self._writing():
      self._write_table(results)
      self._write_manifest(results, finished=finished)
      self._write_volumes(results)

  def _write_table(self, results: Sequence[Result]) -> None:
    self._table.write(table(results, self._names))

  def _write_manifest(self, results: Sequence[Result], *, finished: bool) -> None:
    head = json.dumps(self._fields, indent=2, default=str).removesuffix('\n}')
    cases = ',\n'.join(map(_case, results))
    self._manifest.write(f'{head},\n  "cases": [\n{cases}', self._end(finished=finished))

  def _end(self, *, finished: bool) -> str:
    """Of the manifest, behind the last case."""
    seconds = {'load': self._loaded, 'total': time.perf_counter() - self._start}
    told = json.dumps({name: round(number, 2) for name, number in seconds.items()})
    return f'\n  ],\n  "finished": {json.dumps(finished)},\n  "seconds": {told}\n}}\n'

  def _write_volumes(self, results: Sequence[Result]) -> None:
    # Read anew each time: another run may write into the folder meanwhile.
    earlier = volume_table.of_earlier(self._output, results)
    self._volumes.write(volume_table.table(earlier, results))
    self._earlier = volume_table.by_case(earlier)

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    try:
      with folder_lock.in_turn(self._output):  # another run may add its cases
        yield
    except OSError as error:
      raise PredictError(f'{self._output}: cannot be written ({error.strerror})') from error


def _case(result: Result) -> str:
  """What the manifest holds of a scan: JSON, indented as an entry of a list in it."""
  content = {**row(result), 'timings': result.timings, 'implausible': _reasons(result)}
  return textwrap.indent(json.dumps(content, indent=2, default=str), '    ')


def row(result: Result) -> dict[str, Any]:
  """The columns of a result that every table of scans begins with."""
  return {column: getattr(result, column) for column in _COLUMNS}


def table(results: Sequence[Result], names: Sequence[str]) -> str:
  """The text of `report.csv`: a row a scan, with the volume of each class in ml.

  A class that was looked for and has no voxel has 0, and a scan without results empty fields.
  `implausible` names the masks that are, `removed` those that count as none, and `unfamiliar` those
  whose prompt the model was not trained on, or is only near to what it was (`near`), separated by
  semicolons; volumes of the last are told too. The columns depend on the request alone.

  Args:
    results: of the scans.
    names: K class names, in the order of the columns.
  """
  return _csv(names, header=True) + ''.join(table_row(result, names) for result in results)


def table_row(result: Result, names: Sequence[str]) -> str:
  """The line of a scan in `table`."""
  volumes = {_title(label['name']): label['volume_ml'] for label in result.labels}
  doubts = {
    'implausible': '; '.join(_reasons(result)),
    'removed': '; '.join(_removed(result)),
    'unfamiliar': '; '.join(_doubts(result)),
  }
  return _csv(names, {**row(result), **doubts, **volumes})


def _csv(
  names: Sequence[str], fields: Mapping[str, Any] | None = None, *, header: bool = False
) -> str:
  """A line of `report.csv`, or its header."""
  text = io.StringIO()
  writer = csv.DictWriter(text, [*_COLUMNS, *_DOUBTS, *map(_title, names)])
  if header:
    writer.writeheader()
  if fields is not None:
    writer.writerow(fields)
  return text.getvalue()


def _title(name: str) -> str:
  return f'{name} (ml)'


def _doubts(result: Result) -> list[str]:
  """The masks whose prompt means nothing that the model was trained on, or may not."""
  verdicts = {label['name']: label.get('verdict', 'known') for label in result.labels}
  return [
    f'{name} (near)' if verdict == 'near' else name
    for name, verdict in verdicts.items()
    if verdict != 'known'
  ]


def _reasons(result: Result) -> dict[str, Sequence[str]]:
  """Why masks are not plausible, by name."""
  return {
    label['name']: label['reasons'] for label in result.labels if label.get('plausible') is False
  }


def _removed(result: Result) -> list[str]:
  """The masks that count as none."""
  return [label['name'] for label in result.labels if label.get('removed_ml')]


# ---------------------------------------------------------------------------- how it was made
def versions() -> dict[str, str]:
  """Of the packages that results depend on, those that are installed."""
  installed = {'mome-jax': __version__}
  for name in _PACKAGES:
    try:
      installed[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return installed


def environment() -> dict[str, Any]:
  """Python, platform, versions of packages and the command."""
  return {'python': platform.python_version(), 'platform': platform.platform(),
          'versions': versions(), 'command': sys.argv}  # fmt: skip


def describe(model: 'PromptedModel') -> dict[str, Any]:
  """Where a model came from, the SHA-256 of its parameters, its config and devices.

  Of several, `members` tells the same of each, and the config is that of the first.
  """
  predictor = model.predictor
  several = {}
  if len(predictor.members) > 1:
    several['members'] = [
      {'path': one.path, 'step': one.step, 'sha256': one.fingerprint()} for one in predictor.members
    ]
  return {
    'checkpoint': {'path': predictor.path, 'step': predictor.step, 'sha256': model.fingerprint,
                   **several},
    'config': predictor.config.to_dict(),
    'devices': [f'{device.platform}:{device.id} {device.device_kind}' for device in
                predictor.devices],
  }  # fmt: skip
