"""MoME in JAX: text-prompted segmentation of organs and tumours in 3D CT.

`Predictor`, `Ensemble`, `predict` and `build_model` are imported when they are first used, so that
`import mome_jax` and the command's help are quick.
"""

from typing import TYPE_CHECKING

from input_pipeline import lazy

if TYPE_CHECKING:
  from mome_jax import predict
  from mome_jax.inference.ensemble import Ensemble
  from mome_jax.inference.loaded_model import Predictor
  from mome_jax.models import build_model

__version__ = '0.2.0'
__all__ = ['Ensemble', 'Predictor', '__version__', 'build_model', 'predict']


__getattr__ = lazy.exports(
  __name__,
  {
    'predict': 'mome_jax.predict',  # the module, which can be called: they have one name
    'Predictor': 'mome_jax.inference.loaded_model',
    'Ensemble': 'mome_jax.inference.ensemble',
    'build_model': 'mome_jax.models',
  },
)


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
