"""From a folder of labelled scans to a model that goes on from another one, in one command."""

from mome_jax.finetune.command import main, make_parser

__all__ = ['main', 'make_parser']
