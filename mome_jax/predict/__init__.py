"""CT in, segmentation out: `python -m mome_jax.predict`, or `predict(...)` from Python."""

import sys
import types

from mome_jax.predict.command import (
  DEMO,
  PredictError,
  find_devices,
  main,
  make_parser,
  predict,
)
from mome_jax.predict.workers import Result

__all__ = ['DEMO', 'PredictError', 'find_devices', 'main', 'make_parser', 'predict']


class _Callable(types.ModuleType):
  """`mome_jax.predict(...)` is `predict(...)`, while `mome_jax.predict` stays the module.

  Package attribute and module share a name; whichever is imported first would hide the other.
  """

  def __call__(self, *args, **keywords) -> list[Result]:
    return predict(*args, **keywords)


sys.modules[__name__].__class__ = _Callable
