"""`Predictor`, where it has always been: see `inference/loaded_model.py`."""

from mome_jax.inference.loaded_model import SHIPPED, Predictor

__all__ = ['SHIPPED', 'Predictor']
