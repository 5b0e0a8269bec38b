"""What training logs: `metrics.jsonl`, `experts.jsonl` and the same scalars for TensorBoard."""

import json
import sys

import numpy as np
from etils import epath
from tensorboard import summary

from input_pipeline.files import text_files
from input_pipeline.files.buckets import is_in_bucket
from mome_jax.errors import UserError, one_line, writing


class LogError(UserError):
  """The log cannot be written; the message says where and what to do."""


class MetricsLog:
  """Log of one training run, one JSON object a line.

  `metrics.jsonl` holds the scalars of every log step; `experts.jsonl` the vectors and matrices of
  the banks of sparse experts, where there are any, at every checkpoint. Lines beyond `start`, which
  a killed run wrote after its last checkpoint, are removed.
  """

  def __init__(self, workdir: epath.Path, start: int):
    workdir.mkdir(parents=True, exist_ok=True)
    self._path = workdir / 'metrics.jsonl'
    self._experts = workdir / 'experts.jsonl'
    for path in (self._path, self._experts):
      if path.exists():
        kept: dict[int, dict] = {}  # a validation that was made up for has a line of its own
        for row in _complete_rows(path):
          if row['step'] <= start:
            kept[row['step']] = kept.get(row['step'], {}) | row
        with writing(path, LogError):
          text_files.replace(path, ''.join(map(_line, kept.values())))
    self._tensorboard = _open_tensorboard(workdir / 'tensorboard')

  def rows(self) -> list[dict[str, float]]:
    """All lines of `metrics.jsonl`."""
    return _complete_rows(self._path)

  def expert_rows(self) -> list[dict[str, list]]:
    """All lines of `experts.jsonl`."""
    return _complete_rows(self._experts)

  def write(self, step: int, row: dict[str, np.ndarray], *, vectors: bool) -> None:
    """Appends the scalars of `row`; with `vectors` also what is not scalar, to its own file.

    Raises:
      LogError: if the disk is full, say.
    """
    scalars = {k: float(v) for k, v in row.items() if np.ndim(v) == 0}
    arrays = {k: np.round(v, 6).tolist() for k, v in row.items() if np.ndim(v)}
    try:
      _append(self._path, {'step': step, **scalars})
      if vectors and arrays:
        _append(self._experts, {'step': step, **arrays})
    except OSError as error:
      raise LogError(
        f'cannot write {self._path} ({error.strerror}); the last complete checkpoint is kept. Free '
        'space and run the same command again'
      ) from error
    if self._tensorboard:
      self._write_events(self._tensorboard, step, scalars)

  def _write_events(self, writer: summary.Writer, step: int, scalars: dict[str, float]) -> None:
    """Writes events; ends that where they cannot be written."""
    try:
      for name, value in scalars.items():
        writer.add_scalar(name, value, step=step)
      writer.flush()  # a run that is asked to end does not close its log
    except Exception as error:  # each file system raises its own
      _note(self._path.parent / 'tensorboard', error)
      self._tensorboard = None

  def close(self) -> None:
    """Flushes the TensorBoard events."""
    if self._tensorboard:
      self._tensorboard.flush()
      self._tensorboard.close()


def _open_tensorboard(folder: epath.Path) -> summary.Writer | None:
  """TensorBoard's own writer, which needs no TensorFlow; None where it cannot write: a copy."""
  try:
    return summary.Writer(str(folder))
  except Exception as error:  # each file system raises its own
    _note(folder, error)
    return None


def _note(folder: epath.Path, error: Exception) -> None:
  print(
    f'note: no events for TensorBoard: {folder} cannot be written ({one_line(error)[:200]}); '
    'metrics.jsonl has the same numbers',
    file=sys.stderr,
  )


def _append(path: epath.Path, row: dict) -> None:
  if is_in_bucket(path):  # an object cannot grow: appending would replace it
    text = path.read_text(encoding='utf-8') if path.exists() else ''
    path.write_text(text + _line(row), encoding='utf-8')
    return
  with path.open('a', encoding='utf-8') as file:
    file.write(_line(row))


def _line(row: dict) -> str:
  return json.dumps(row) + '\n'


def _complete_rows(path: epath.Path) -> list[dict]:
  """All lines of a JSONL file that can be read, none where there is no file.

  A killed run leaves its last line unfinished; any other that cannot be read is told of.
  """
  rows: list[dict] = []
  lines = path.read_bytes().splitlines() if path.exists() else []
  for number, line in enumerate(lines, 1):
    try:
      row = json.loads(line)
      row['step']
      rows.append(row)
    except (ValueError, TypeError, KeyError):
      if number < len(lines):
        print(f'note: {path}: line {number} cannot be read and is left out', file=sys.stderr)
  return rows
