"""An environment of processes in which a package is not installed, as far as imports can tell."""

import os
import textwrap

SITE = """
import importlib.machinery
import sys


class Without(importlib.machinery.PathFinder):
  @classmethod
  def find_spec(cls, name, path=None, target=None):
    if name.split('.')[0] == {package!r}:
      return None
    return importlib.machinery.PathFinder.find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Without
"""


def without(package, folder, **environment):
  """The environment; `folder` gets the module that Python imports as it starts."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'sitecustomize.py').write_text(textwrap.dedent(SITE.format(package=package)))
  path = os.pathsep.join([str(folder), *filter(None, [os.environ.get('PYTHONPATH')])])
  return {**os.environ, **environment, 'PYTHONPATH': path}
