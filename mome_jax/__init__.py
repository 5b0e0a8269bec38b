"""MoME in JAX: text-prompted segmentation of organs and tumours in 3D CT."""

__version__ = '0.1.0'
