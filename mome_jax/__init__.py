"""MoME in JAX: text-prompted segmentation of organs and tumours in 3D CT.

`Predictor`, `predict` and `build_model` are imported when they are first used, so that
`import mome_jax` and the command's help are quick.
"""

import importlib
import typing

if typing.TYPE_CHECKING:
  from mome_jax import predict
  from mome_jax.inference.loaded_model import Predictor
  from mome_jax.models import build_model

__version__ = '0.2.0'
__all__ = ['Predictor', '__version__', 'build_model', 'predict']


def __getattr__(name: str) -> typing.Any:
  if name == 'predict':  # the module, which can be called: function and module have one name
    return importlib.import_module('mome_jax.predict')
  if name == 'Predictor':
    from mome_jax.inference.loaded_model import Predictor

    return Predictor
  if name == 'build_model':
    from mome_jax.models import build_model

    return build_model
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
