"""What tells one case from another: the files and meanings it is read by, and the scan itself."""

import dataclasses
import functools
import hashlib
import os
import pathlib
import types
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

import numpy as np

from input_pipeline.anatomy import Template
from input_pipeline.errors import UserError
from input_pipeline.files import inventory
from input_pipeline.sources import base


def describe(value: Any) -> str:
  """A text that differs wherever a case would be read differently.

  Args:
    value: what a `sources.Case` holds: functions, which stand for their `sources.base.loader` name,
      partial functions with their arguments, and among these paths, mappings, sequences,
      dataclasses, arrays, templates and plain values. A path stands for every file in or below it,
      with its time and size.

  Returns:
    The same text in every process; an object of another kind is never the same.
  """
  if isinstance(value, functools.partial):
    return f'{describe(value.func)}({describe(value.args)}, {describe(value.keywords)})'
  if isinstance(value, types.FunctionType | types.BuiltinFunctionType | type):
    return base.loader_name(value)
  if isinstance(value, os.PathLike):
    return repr([os.path.abspath(value), *map(_stamp, files_below(value))])
  if isinstance(value, Template):
    return describe(value.additions())
  if isinstance(value, Mapping):
    return f'{{{", ".join(f"{describe(k)}: {describe(v)}" for k, v in value.items())}}}'
  if isinstance(value, Set):
    return f'{{{", ".join(sorted(map(describe, value)))}}}'
  if isinstance(value, list | tuple):
    return f'[{", ".join(map(describe, value))}]'
  if isinstance(value, np.ndarray):
    return f'{value.dtype}{value.shape}{hashlib.sha256(value.tobytes()).hexdigest()}'
  if dataclasses.is_dataclass(value):
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return f'{describe(type(value))}{describe(fields)}'
  return repr(value)


def files_of(value: Any) -> list[str]:
  """Every file among the arguments of a partial function, and in or below the folders there."""
  if isinstance(value, functools.partial):
    return files_of([value.args, value.keywords])
  if isinstance(value, Mapping):
    return files_of([*value.keys(), *value.values()])
  if isinstance(value, list | tuple):
    return [path for item in value for path in files_of(item)]
  return list(files_below(value)) if isinstance(value, os.PathLike) else []


def check_names(cases: Iterable[base.Case]) -> None:
  """UserError, with a file of each, if two cases of one source have one name."""
  first: dict[tuple[str, str], base.Case] = {}
  for case in cases:
    other = first.setdefault(case.key, case)
    if other is not case:
      places = [next(iter(files_of(one.load)), 'no file') for one in (other, case)]
      raise UserError(
        f'{case.source}: two cases are called {case.name!r} ({" and ".join(places)}); '
        'rename one, or move it away'
      )


def files_below(path: str | os.PathLike) -> Iterator[str]:
  """The files of a volume, or those at any depth of a folder in order; links are followed once."""
  path = os.fspath(path)
  if not os.path.isdir(path):
    yield from map(os.fspath, inventory.halves(pathlib.Path(path)))
    return
  seen = set()
  for folder, below, names in os.walk(path, followlinks=True):
    real = os.path.realpath(folder)
    if real in seen:
      below.clear()
      continue
    seen.add(real)
    below.sort()
    yield from (os.path.join(folder, name) for name in sorted(names))


def _stamp(path: str) -> tuple:
  try:
    status = os.stat(path)
  except OSError:
    return (path,)
  return (os.path.abspath(path), status.st_mtime_ns, status.st_size)


def scan_digest(image: np.ndarray) -> str:
  """What a scan holds, whatever its file is called and however its axes are stored.

  Args:
    image: (D, H, W) int16 HU in canonical axis order, on the scan's own grid.

  Returns:
    32 hexadecimal digits, equal where shape and every voxel are.
  """
  digest = hashlib.sha256(repr(image.shape).encode())
  digest.update(np.ascontiguousarray(image, '<i2').tobytes())
  return digest.hexdigest()[:32]
