"""How a run went and how its results were made: `report.csv`, `manifest.json`, `volumes.csv`."""

import csv
import dataclasses
import datetime
import importlib.metadata
import io
import json
import os
import pathlib
import platform
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mome_jax import __version__
from mome_jax.predict import staging, volume_table
from mome_jax.predict.request import PredictError, Request
from mome_jax.predict.result import Result

if TYPE_CHECKING:
  from mome_jax.predict.prompted_model import PromptedModel

TABLE, MANIFEST = 'report.csv', 'manifest.json'
_COLUMNS = ('case', 'input', 'status', 'seconds', 'message')
_PACKAGES = ('jax', 'jaxlib', 'flax', 'numpy', 'scipy', 'nibabel', 'pydicom',
             'highdicom', 'orbax-checkpoint')  # fmt: skip


class RunRecord:
  """The files of a run, written anew after each scan; a kill at any time leaves whole ones.

  `volumes.csv` keeps what earlier runs left of other cases in the folder.

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
        'as_written': request.as_written,
        'force': request.force,
      },
      'notes': list(notes),
    }
    self._write([], finished=False)

  def add(self, result: Result) -> None:
    """Writes one more result; PredictError if it cannot."""
    self._results.append(result)
    self._write(self._results, finished=False)

  def finish(self, results: Sequence[Result]) -> None:
    """Writes all results in the order of their scans; PredictError if it cannot."""
    self._write(results, finished=True)

  def _write(self, results: Sequence[Result], *, finished: bool) -> None:
    total = time.perf_counter() - self._start
    manifest = {
      **self._fields,
      'finished': finished,
      'seconds': {'load': round(self._loaded, 2), 'total': round(total, 2)},
      'cases': [
        {**row(result), 'timings': result.timings, 'implausible': _reasons(result)}
        for result in results
      ],
    }
    texts = {
      TABLE: table(results, self._names),
      MANIFEST: json.dumps(manifest, indent=2, default=str) + '\n',
    }
    # Read anew each time: another run may write into the folder meanwhile.
    earlier = volume_table.read(self._output / volume_table.TABLE)
    texts[volume_table.TABLE] = volume_table.merge(self._output, earlier, results)
    try:
      with staging.scratch(self._output) as folder:
        for name, text in texts.items():
          (folder / name).write_text(text, encoding='utf-8', newline='')
          os.replace(folder / name, self._output / name)
    except OSError as error:
      raise PredictError(f'{self._output}: cannot be written ({error.strerror})') from error


def row(result: Result) -> dict[str, Any]:
  """The columns of a result that every table of scans begins with."""
  return {column: getattr(result, column) for column in _COLUMNS}


def table(results: Sequence[Result], names: Sequence[str]) -> str:
  """The text of `report.csv`: a row a scan, with the volume of each class in ml.

  A class that was looked for and has no voxel has 0, and a scan without results empty fields.
  `implausible` names the masks that are, separated by semicolons; their volumes are told too. The
  columns depend on the request alone. Text beyond ASCII starts with a byte order mark, which
  spreadsheets need to read it as UTF-8.

  Args:
    results: of the scans.
    names: K class names, in the order of the columns.
  """
  titles = {name: f'{name} (ml)' for name in names}
  doubtful = 'implausible'
  text = io.StringIO()
  writer = csv.DictWriter(text, [*_COLUMNS, doubtful, *titles.values()])
  writer.writeheader()
  for result in results:
    volumes = {titles[label['name']]: label['volume_ml'] for label in result.labels}
    masks = '; '.join(_reasons(result))
    writer.writerow({**row(result), doubtful: masks, **volumes})
  mark = '' if text.getvalue().isascii() else '\ufeff'
  return mark + text.getvalue()


def _reasons(result: Result) -> dict[str, Sequence[str]]:
  """Why masks are not plausible, by name."""
  return {
    label['name']: label['reasons'] for label in result.labels if label.get('plausible') is False
  }


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
