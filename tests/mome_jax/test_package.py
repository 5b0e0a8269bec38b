"""What `import mome_jax` offers."""

import subprocess
import sys
import types

import pytest

import mome_jax


def test_importing_is_light():
  program = 'import mome_jax, sys; dir(mome_jax); print("jax" in sys.modules)'
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True)
  assert done.stdout == 'False\n'


def test_exports_are_those_of_their_modules():
  from mome_jax import models
  from mome_jax.inference import loaded_model

  assert mome_jax.Predictor is loaded_model.Predictor
  assert mome_jax.build_model is models.build_model
  assert {'Predictor', 'predict', 'build_model'} <= set(dir(mome_jax))
  with pytest.raises(AttributeError, match='no attribute .nonsense'):
    mome_jax.nonsense  # noqa: B018


@pytest.mark.parametrize('first', ['', 'import mome_jax.predict; '])
def test_predict_is_module_and_function(first):
  """Whether the module was imported before or not."""
  program = f"""
{first}import mome_jax
from mome_jax import predict
from mome_jax.predict import PredictError
assert predict is mome_jax.predict and callable(predict.predict)
try:
  predict('model', [], 'out', existing='maybe')
except PredictError as error:
  print(error)
"""
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True)
  assert "existing='maybe'" in done.stdout
  assert isinstance(mome_jax.predict, types.ModuleType)
