"""Text-prompted segmentation of CT in napari: a thin layer over `mome_jax`."""
