"""An environment of processes in which packages are not installed, as far as imports can tell."""

import os
import textwrap

SITE = """
import importlib.machinery
import sys


class Without(importlib.machinery.PathFinder):
  @classmethod
  def find_spec(cls, name, path=None, target=None):
    if name.split('.')[0] in {packages!r}:
      return None
    return importlib.machinery.PathFinder.find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Without
"""


def without(packages, folder, **environment):
  """The environment; `packages` with spaces, `folder` gets the module that Python imports first."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'sitecustomize.py').write_text(textwrap.dedent(SITE.format(packages=packages.split())))
  path = os.pathsep.join([str(folder), *filter(None, [os.environ.get('PYTHONPATH')])])
  return {**os.environ, **environment, 'PYTHONPATH': path}
