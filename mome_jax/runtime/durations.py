"""How long things took on this machine the last time: a file beside the compiled programs.

It is a courtesy: whatever is wrong with the file, nothing is known then, and no run ends for it.
"""

import contextlib
import json
import os
import pathlib

import jax

_FILE = 'seconds.json'


def last(name: str) -> float | None:
  """Seconds that something took the last time, or None.

  Args:
    name: of it, up to where several differ: the newest counts.
  """
  known = [seconds for noted, seconds in _read(_file()).items() if noted.startswith(name)]
  return known[-1] if known else None


def note(name: str, seconds: float) -> None:
  """Notes how long something took, in place of what was noted before."""
  file = _file()
  if file is None:
    return
  with contextlib.suppress(OSError):
    file.parent.mkdir(parents=True, exist_ok=True)
    others = {noted: value for noted, value in _read(file).items() if noted != name}
    part = file.with_suffix(f'.{os.getpid()}')
    try:
      part.write_text(json.dumps(others | {name: float(f'{seconds:.3g}')}), encoding='utf-8')
      part.replace(file)
    finally:
      part.unlink(missing_ok=True)


def _file() -> pathlib.Path | None:
  folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]  # set at run time
  kept = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
  return pathlib.Path(folder, _FILE) if kept and folder and '://' not in folder else None


def _read(file: pathlib.Path | None) -> dict[str, float]:
  try:
    content = json.loads(file.read_text(encoding='utf-8')) if file is not None else {}
    return {str(name): float(seconds) for name, seconds in content.items()}
  except (OSError, ValueError, TypeError, AttributeError):
    return {}
