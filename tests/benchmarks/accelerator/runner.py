"""Runs the cases of a part, keeps what each found, and goes on where it stopped."""

import dataclasses
import functools
import json
import pathlib
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from input_pipeline import control_groups

ROUND = 4  # digits of a number in the table


@dataclasses.dataclass(frozen=True)
class Case:
  """One row of a table.

  Attributes:
    name: of the row; the same in every run.
    measure: () -> what fills the columns, as JSON; further entries go into the JSON file alone.
  """

  name: str
  measure: Callable[[], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Part:
  """A table.

  Attributes:
    title: one line above it.
    columns: key of a row -> what the column is called.
    cases: settings -> its rows, cheapest and most telling first.
  """

  title: str
  columns: Mapping[str, str]
  cases: Callable[['Settings'], Sequence[Case]]


@dataclasses.dataclass(frozen=True)
class Settings:
  """What was asked for.

  Attributes:
    output: folder of all results.
    tiny: sizes at which everything runs on a CPU in seconds.
    data_dir: of prepared sources, or None.
    repeats: of every measurement of time.
    minutes: of the training run.
    config: of the training run.
  """

  output: pathlib.Path
  tiny: bool = False
  data_dir: str | None = None
  repeats: int = 5
  minutes: float = 5.5
  config: str = 'openkbp'


def run(name: str, part: Part, settings: Settings, *, limit: float) -> bool:
  """Runs the cases that have no row yet, and writes NAME.json after each and NAME.md.

  A case that fails has its reason in its row and is tried again by the next run.

  Args:
    name: of the part.
    part: with its cases.
    settings: handed to them.
    limit: seconds after which no further case begins.

  Returns:
    Whether all cases have a row without an error.
  """
  began = time.monotonic()
  file = settings.output / f'{name}.json'
  cases = part.cases(settings)
  rows = _read(file, machine(settings))
  for case in cases:
    if 'error' not in rows.get(case.name, {'error': ''}):
      continue
    if time.monotonic() - began > limit:
      print(f'{name}: {limit:.0f} s are over; the same command goes on', flush=True)
      break
    start = time.monotonic()
    try:
      rows[case.name] = dict(case.measure())
    except Exception as error:  # noqa: BLE001  # whatever it is, the next case is worth its time
      reason = ' '.join(str(error).split())[:300]
      rows[case.name] = {'error': f'{type(error).__name__}: {reason}'}
      (settings.output / f'{name}.errors.txt').open('a').write(traceback.format_exc() + '\n')
    seconds = round(time.monotonic() - start, 1)
    print(f'{name}: {case.name}: {rows[case.name].get("error", "done")} ({seconds} s)', flush=True)
    _write(file, {'machine': machine(settings), 'rows': rows})
    (settings.output / f'{name}.md').write_text(table(part, machine(settings), rows))
  return all('error' not in rows.get(case.name, {'error': ''}) for case in cases)


def table(part: Part, on: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> str:
  """The Markdown of a part."""
  lines = [
    f'{part.title} {", ".join(f"{key} {value}" for key, value in on.items())}.',
    '',
    f'| case | {" | ".join(part.columns.values())} |',
    f'|:--|{"--:|" * len(part.columns)}',
  ]
  for name, row in rows.items():
    cells = [_cell(row.get(key)) for key in part.columns]
    if 'error' in row:
      cells[-1] = row['error'].replace('|', '/')
    lines.append(f'| {name} | {" | ".join(cells)} |')
  return '\n'.join(lines) + '\n'


def machine(settings: Settings) -> dict[str, Any]:
  """What numbers can be compared on: device, versions, sizes."""
  import jax

  _, kind, count = devices()
  return {
    'device': kind,
    'devices': count,
    'processors': control_groups.usable_cpus(),
    'jax': jax.__version__,
    'sizes': 'tiny' if settings.tiny else 'full',
  }


@functools.cache
def devices() -> tuple[str, str, int]:
  """Platform, kind and number of the devices, as a process of its own sees them.

  This process takes them only for what it measures itself. A TPU serves one process at a time, and
  of a GPU's memory JAX takes three quarters: what a case starts would find no device, or no room.
  """
  program = (
    'import jax, json; ours = jax.devices(); '
    'print(json.dumps([ours[0].platform, ours[0].device_kind, len(ours)]))'
  )
  command = [sys.executable, '-c', program]
  answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
  platform, kind, count = json.loads(answer.splitlines()[-1])
  return platform, kind, count


def _cell(value: Any) -> str:
  if isinstance(value, float):
    return f'{value:.{ROUND}g}'
  return '' if value is None else str(value)


def _read(file: pathlib.Path, on: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """The rows of an earlier run on the same machine."""
  if not file.is_file():
    return {}
  earlier = json.loads(file.read_text())
  if earlier['machine'] != on:
    raise SystemExit(
      f'{file} was measured on {earlier["machine"]}, this is {on}; choose another --output'
    )
  return earlier['rows']


def _write(file: pathlib.Path, content: Any) -> None:
  part = file.with_suffix('.part')
  part.write_text(json.dumps(content, indent=1))
  part.replace(file)
