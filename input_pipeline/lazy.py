"""Names of a package that are imported when they are first used, so that help comes at once."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def exports(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
  """The `__getattr__` of a package (PEP 562).

  Args:
    package: its `__name__`.
    homes: name -> module that holds it, which may be that module itself.
  """

  def get(name: str) -> Any:
    if name not in homes:
      raise AttributeError(f'module {package!r} has no attribute {name!r}')
    home = importlib.import_module(homes[name])
    return home if homes[name] == f'{package}.{name}' else getattr(home, name)

  return get
