"""CT in, segmentation out: `python -m mome_jax.predict`, or `predict(...)` from Python.

A `Request` says what is asked for. `segment_scans` finds the scans (`find_scans`), has the model
read the prompts (`prompted_model`) and sends the scans through a line of `workers`, whose results
go to disk whole or not at all (`write_results`, `staging`). `run_record` keeps what became of them,
and `earlier` knows which of them need not be made again.
"""

import sys
import types
from typing import TYPE_CHECKING, Any

from input_pipeline import lazy
from mome_jax.predict.request import Options, PredictError, Request
from mome_jax.predict.result import Result

if TYPE_CHECKING:
  from mome_jax.predict.command import main, make_parser
  from mome_jax.predict.find_scans import ScanError
  from mome_jax.predict.prompted_model import find_devices
  from mome_jax.predict.segment_scans import predict, segment

__all__ = [
  'Options',
  'PredictError',
  'Request',
  'Result',
  'ScanError',
  'find_devices',
  'main',
  'make_parser',
  'predict',
  'segment',
]

__getattr__ = lazy.exports(
  __name__,
  {
    **dict.fromkeys(('main', 'make_parser'), 'mome_jax.predict.command'),
    'ScanError': 'mome_jax.predict.find_scans',
    'find_devices': 'mome_jax.predict.prompted_model',
    **dict.fromkeys(('predict', 'segment'), 'mome_jax.predict.segment_scans'),
  },
)


class _Callable(types.ModuleType):
  """`mome_jax.predict(...)` is `predict(...)`, while `mome_jax.predict` stays the module.

  Package attribute and module share a name; whichever is imported first would hide the other.
  """

  def __call__(self, *args: Any, **keywords: Any) -> list[Result]:
    from mome_jax.predict import segment_scans

    return segment_scans.predict(*args, **keywords)


sys.modules[__name__].__class__ = _Callable
